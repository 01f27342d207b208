"""The command line: every step without Airflow. Parses, calls the runtime, prints; decides nothing."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter, ValidationError

from pipeline import jobfile
from pipeline.errors import InvalidJob, InvalidRequest, PipelineError
from pipeline.intervals import format_instant, parse_instant
from pipeline.job import JobSpec

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime

    from pipeline.runtime import Runtime

# A command returns the object that --json prints, and the lines for people.
Answer = tuple[dict[str, Any], list[str]]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0 success, 2 wrong usage, 65 terminal error, 75 transient error."""
    arguments = _parser().parse_args(argv)
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    try:
        answer, lines = arguments.command(arguments)
    except PipelineError as error:
        if arguments.json:
            print(json.dumps(error.attrs()))
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return error.exit_code
    print(json.dumps(answer) if arguments.json else "\n".join(lines))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="pipeline", description="Unattended batch inference, one YAML file per job.")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[argparse.Namespace], Answer], text: str, job: str = "JOB") -> Any:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(command=run)
        sub.add_argument("--json", action="store_true", help="print one JSON object on stdout")
        if job:
            sub.add_argument(
                "job", metavar=job, nargs="?" if job.startswith("[") else None, help="job name, or path of its file"
            )
        return sub

    init = command("init", _init, "Read the data and write a complete, commented job file.", job="NAME")
    init.add_argument("--features", required=True, metavar="URI", help="root of the feature Parquet")
    init.add_argument("--labels", metavar="URI", help="root of the label Parquet (default: the features)")
    init.add_argument("--key", required=True, type=_names, metavar="COL[,COL]", help="columns that identify a row")
    init.add_argument("--time", required=True, metavar="COL", help="event time column")
    init.add_argument("--label", required=True, metavar="COL", help="column of the observed outcome")
    init.add_argument("--task", required=True, choices=("binary", "multiclass", "regression"))
    init.add_argument("--interval", required=True, metavar="1h|1d|1mo", help="length of a data interval")
    arrival = init.add_mutually_exclusive_group()
    arrival.add_argument("--available-at", metavar="COL", help="column with the instant at which a label became known")
    arrival.add_argument("--delay", type=_duration, metavar="P1D", help="a label is known this long after the event")
    init.add_argument("--exclude", type=_names, default=(), metavar="COL,...", help="columns that are no features")
    init.add_argument("--out", type=Path, metavar="FILE", help="where to write (default: NAME.yaml in PIPELINE_JOBS)")

    command("check", _check, "Validate job files; reports every problem at once.", job="[JOB]")
    command("schema", _schema, "Print the JSON Schema of the job file.", job="")
    command("status", _status, "Show champion, latest interval, drift and performance.", job="[JOB]")
    command("explain", _explain, "Tell one recorded decision with its numbers.", job="").add_argument(
        "id", metavar="ID"
    )

    score = command("score", _score, "Plan, validate, score and publish; prints the manifest.")
    _span(score)
    score.add_argument("--model", type=_model, default="as_of", metavar="as_of|current|VERSION")
    _span(command("monitor", _monitor, "Drift report and verdict of published intervals."))
    evaluate = command("evaluate", _evaluate, "Realised performance on matured intervals.")
    evaluate.add_argument("--as-of", required=True, type=_instant, metavar="T")

    retrain = command("retrain", _retrain, "Train on what was known at T, register, gate, promote if allowed.")
    retrain.add_argument("--as-of", required=True, type=_instant, metavar="T")
    retrain.add_argument("--bootstrap", action="store_true", help="make the very first champion")
    retrain.add_argument("--reason", default="", metavar="TEXT")
    promote = command("promote", _promote, "Make a registered version the champion.")
    promote.add_argument("--version", required=True, type=int, metavar="N")
    promote.add_argument("--reason", required=True, metavar="TEXT")
    promote.add_argument("--at", type=_instant, metavar="T", help="instant from which it counts (default: now)")
    rollback = command("rollback", _rollback, "Go back to the previous champion.")
    rollback.add_argument("--reason", required=True, metavar="TEXT")
    rollback.add_argument("--restate", action="store_true", help="republish the partitions that it had scored")

    replay = command("replay", _replay, "Run the whole loop over history in simulated time.")
    replay.add_argument("--from", dest="start", required=True, type=_instant, metavar="T")
    replay.add_argument("--to", dest="end", required=True, type=_instant, metavar="T")
    replay.add_argument("--policy", choices=("closed_loop", "frozen", "always"), default="closed_loop")
    replay.add_argument(
        "--workspace", type=Path, metavar="DIR", help="where everything is written (default: under home)"
    )
    replay.add_argument("--out", type=Path, metavar="FILE", help="also write the JSON report to this file")
    return parser


def _span(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--start", required=True, type=_instant, metavar="T", help="start of the first interval")
    sub.add_argument("--end", type=_instant, metavar="T", help="end of the last interval (default: one interval)")


def _instant(text: str) -> datetime:
    return parse_instant(text)


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _duration(text: str) -> timedelta:
    try:
        return TypeAdapter(timedelta).validate_python(text)
    except ValidationError:
        raise argparse.ArgumentTypeError(f"{text!r} is not an ISO 8601 duration such as P1D or PT6H") from None


def _model(text: str) -> Any:
    if text in ("as_of", "current"):
        return text
    if text.isdigit() and int(text) > 0:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is neither as_of, nor current, nor a version number")


def _open() -> Runtime:
    # Opening a deployment imports the machine-learning libraries; check, schema and --help must not pay for that.
    from pipeline.runtime import Runtime

    return Runtime.open()


def _jobs_folder() -> Path:
    import os

    from pipeline.settings import Settings

    return Settings.from_env(os.environ).jobs


def _init(args: argparse.Namespace) -> Answer:
    from pipeline.scaffold import scaffold

    out = args.out or _jobs_folder() / f"{args.job}.yaml"
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


def _check(args: argparse.Namespace) -> Answer:
    folder = _jobs_folder()
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


def _schema(args: argparse.Namespace) -> Answer:
    schema = JobSpec.model_json_schema()
    return schema, [json.dumps(schema, indent=2)]


def _status(args: argparse.Namespace) -> Answer:
    with _open() as runtime:
        jobs = [runtime.job(args.job)] if args.job else list(jobfile.load_all(runtime.settings.jobs)[0].values())
        rows = [runtime.status(job) for job in jobs]
    lines = [
        f"{r['job']}: champion {r['champion'] or '-'}, published {r['intervals']} intervals to {r['latest'] or '-'}, "
        f"drift {r['drift'] or '-'}, {r['metric']} {r['value'] if r['value'] is not None else '-'}"
        for r in rows
    ]
    return {"jobs": rows}, lines or ["no job"]


def _explain(args: argparse.Namespace) -> Answer:
    with _open() as runtime:
        decision = runtime.explain(args.id)
    numbers = [f"  {name}: {value}" for name, value in decision.details.items()]
    return decision.model_dump(mode="json"), [
        f"{decision.id}: {decision.kind} of {decision.job} at {format_instant(decision.at)}: {decision.outcome}",
        decision.reason,
        *numbers,
    ]


def _score(args: argparse.Namespace) -> Answer:
    with _open() as runtime:
        job = runtime.job(args.job)
        manifests = []
        for m in runtime.score(job, args.start, args.end, model=args.model, quiet=args.end is not None):
            manifests.append(m)
            line = f"{format_instant(m.start)}  {m.status}  {m.rows_scored} of {m.rows_in} rows by version {m.model_version}"
            print(line, file=sys.stderr)
    dumped = [m.model_dump(mode="json") for m in manifests]
    lines = [
        f"{m.path}  {m.rows_scored} scored, {m.rows_quarantined} quarantined {m.reasons or ''}".rstrip()
        for m in manifests
    ]
    return (dumped[0] if args.end is None else {"manifests": dumped}), lines


def _monitor(args: argparse.Namespace) -> Answer:
    with _open() as runtime:
        reports = list(runtime.monitor(runtime.job(args.job), args.start, args.end, quiet=args.end is not None))
    dumped = [r.model_dump(mode="json") for r in reports]
    lines = [f"{format_instant(r.start)}  {r.verdict}  {r.reason}  {r.report_uri}" for r in reports]
    return (dumped[0] if args.end is None else {"reports": dumped}), lines


def _evaluate(args: argparse.Namespace) -> Answer:
    with _open() as runtime:
        reports = runtime.evaluate(runtime.job(args.job), args.as_of)
    lines = [f"{format_instant(r.start)}  {r.verdict}  {r.reason}" for r in reports]
    return {"reports": [r.model_dump(mode="json") for r in reports]}, lines or [
        "no interval matured since the last evaluation"
    ]


def _retrain(args: argparse.Namespace) -> Answer:
    with _open() as runtime:
        report = runtime.retrain(runtime.job(args.job), args.as_of, bootstrap=args.bootstrap, reason=args.reason)
    version = f"version {report.model.version}" if report.model else "no version"
    return report.model_dump(mode="json"), [f"{version}: {report.outcome}", report.reason]


def _promote(args: argparse.Namespace) -> Answer:
    with _open() as runtime:
        done = runtime.promote(runtime.job(args.job), args.version, args.reason, args.at)
    return done.model_dump(mode="json"), [_moved(done.model.version, done.previous_version, done.effective_at)]


def _rollback(args: argparse.Namespace) -> Answer:
    with _open() as runtime:
        done, restated = runtime.rollback(runtime.job(args.job), args.reason, restated=args.restate)
    answer = {**done.model_dump(mode="json"), "restated": [m.model_dump(mode="json") for m in restated]}
    lines = [_moved(done.model.version, done.previous_version, done.effective_at)]
    return answer, [*lines, *(f"restated {m.path}" for m in restated)]


def _moved(version: int, previous: int | None, at: datetime) -> str:
    return f"champion is version {version} from {format_instant(at)} on (before: {previous or 'none'})"


def _replay(args: argparse.Namespace) -> Answer:
    import os

    from pipeline import replay
    from pipeline.settings import Settings

    settings = Settings.from_env(os.environ)
    job = jobfile.find(args.job, settings.jobs)
    report = replay.replay(
        job,
        args.start,
        args.end,
        policy=args.policy,
        workspace=(args.workspace or settings.home / "replays" / f"{job.name}-{args.policy}").resolve(),
        jobs=settings.jobs,
        progress=lambda line: print(line, file=sys.stderr),
    )
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    metric = report["metric"]
    return report, [
        f"{report['policy']}: {report['intervals']} intervals, {report['rows_in']} rows in = {report['rows_scored']} scored + "
        f"{report['rows_quarantined']} quarantined",
        f"{metric['name']} {metric['mean']}, {report['alerts']} alerts, {report['retrains']} retrains, "
        f"{report['promotions']} promotions, {report['seconds']} s",
    ]
