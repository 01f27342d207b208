"""Commands on job files: init, check, schema."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from pipeline import jobfile
from pipeline.commands import jobs_folder
from pipeline.errors import InvalidJob, InvalidRequest
from pipeline.intervals import format_instant
from pipeline.job import JobSpec

if TYPE_CHECKING:
    import argparse

    from pipeline.commands import Answer


def init(args: argparse.Namespace) -> Answer:
    """Write a job file for data that nobody has declared yet; see `pipeline.scaffold`."""
    from pipeline.scaffold import scaffold

    out = args.out or jobs_folder() / f"{args.job}.yaml"
    if out.exists():
        raise InvalidRequest(
            f"{out} exists already", expected="a new file", got="a file", next_step="pass another --out, or remove it"
        )
    text = scaffold(
        args.job,
        features=args.features,
        labels=args.labels,
        key=args.key,
        time=args.time,
        label=args.label,
        task=args.task,
        interval=args.interval,
        available_at=args.available_at,
        delay=args.delay,
        exclude=args.exclude,
        relative_to=out.parent,
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text, encoding="utf-8")
    job = jobfile.load(out)
    return (
        {"job": job.name, "path": str(out), "features": list(job.features.columns)},
        [f"wrote {out}: {len(job.features.columns)} features", f"next: pipeline check {out}"],
    )


def check(args: argparse.Namespace) -> Answer:
    """Validate one job file, or all of the folder."""
    folder = jobs_folder()
    if args.job:
        good = {args.job: jobfile.find(args.job, folder)}
    else:
        good, broken = jobfile.load_all(folder)
        if broken:
            raise InvalidJob("\n".join(str(b.error()) for b in broken), left_behind="nothing was changed")
    jobs = [
        {
            "name": j.name,
            "interval": j.schedule.interval,
            "cron": j.cadence.cron,
            "start": format_instant(j.schedule.start),
        }
        for j in good.values()
    ]
    return {"valid": jobs}, [f"{j['name']}: valid, every {j['interval']} from {j['start']}" for j in jobs] or [
        f"no job in {folder}"
    ]


def schema(args: argparse.Namespace) -> Answer:
    """The JSON Schema of the job file."""
    schema = JobSpec.model_json_schema()
    return schema, [json.dumps(schema, indent=2)]
