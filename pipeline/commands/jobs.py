"""Commands on job files: init, check, schema."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from pipeline import jobfile
from pipeline.commands import jobs_folder, opened
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
    """Validate one job file, or all of the folder, and find the user's own metrics."""
    from pipeline.steps import user_metrics

    folder = jobs_folder()
    if args.job:
        good = {args.job: jobfile.find(args.job, folder)}
    else:
        good, broken = jobfile.load_all(folder)
        if broken:
            raise InvalidJob("\n".join(str(b.error()) for b in broken), left_behind="nothing was changed")
    for job in good.values():
        user_metrics.load(job)
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


def calibrate(args: argparse.Namespace) -> Answer:
    """Measure thresholds on the job's history and write them beside the job file."""
    if args.budget < 2:
        raise InvalidRequest(
            f"a budget of one false alarm per {args.budget} intervals is none",
            expected="--budget of at least 2",
            got=str(args.budget),
            next_step="pass a larger one, such as 90",
        )
    path = jobfile.path_of(args.job, jobs_folder())
    with opened() as runtime:
        found = runtime.calibrate(jobfile.load(path), args.start, args.end, budget=1 / args.budget)
    out = jobfile.calibration_of(path)
    if not args.dry_run:
        staged = out.with_suffix(".json.new")
        staged.write_text(found.model_dump_json(indent=2) + "\n", encoding="utf-8")
        staged.replace(out)
    lines = [
        f"{found.intervals} intervals compared with others of {found.season}: {found.rate:.2%} would alarm (95 %: at most "
        f"{found.at_most:.2%}; budget {found.budget:.2%}; thresholds until now {found.before:.2%})",
        *(f"  {name}: {limit:.3g}" for name, limit in sorted(found.thresholds.items())),
        "nothing was written" if args.dry_run else f"wrote {out}; it is used from the next run on",
    ]
    return {**found.model_dump(mode="json"), "path": None if args.dry_run else str(out)}, lines


def schema(args: argparse.Namespace) -> Answer:
    """The JSON Schema of the job file."""
    schema = JobSpec.model_json_schema()
    return schema, [json.dumps(schema, indent=2)]
