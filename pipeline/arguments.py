"""The grammar of the command line: commands, their arguments, and what each of them means."""

from __future__ import annotations

import argparse
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from pydantic import TypeAdapter, ValidationError

from pipeline import __version__
from pipeline.intervals import parse_instant

if TYPE_CHECKING:
    from datetime import datetime

_EPILOG = """\
T is an ISO 8601 instant, UTC unless it says otherwise: 2026-01-31 or 2026-01-31T06:00:00Z.
JOB is a name, looked up in PIPELINE_JOBS (default dags/jobs), or the path of a job file.
State lives under PIPELINE_HOME (default .pipeline); MLFLOW_TRACKING_URI and PIPELINE_LEDGER_URL move its parts.

exit codes: 0 success, 2 wrong usage, 65 error that a retry cannot mend, 70 defect of this program, 75 error that a
retry may mend, 130 interrupted"""


class WrongUsage(Exception):
    """Arguments that the parser refuses, with the usage line of the command they were meant for."""

    def __init__(self, parser: argparse.ArgumentParser, message: str) -> None:
        super().__init__(message)
        self.shown = f"{parser.format_usage()}{parser.prog}: error: {message}"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise WrongUsage(self, message)


def parser() -> argparse.ArgumentParser:
    """The parser of the whole command line: raises `WrongUsage`, and leaves the name of the command in ``command``."""
    whole = _Parser(
        prog="pipeline",
        description="Unattended batch inference, one YAML file per job.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    whole.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = whole.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def command(name: str, text: str, job: str = "JOB") -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(command=name)
        sub.add_argument("--json", action="store_true", help="print one JSON object on stdout")
        if job:
            sub.add_argument(
                "job", metavar=job, nargs="?" if job.startswith("[") else None, help="job name, or path of its file"
            )
        return sub

    init = command("init", "Read the data and write a complete, commented job file.", job="NAME")
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

    command("check", "Validate job files; reports every problem at once.", job="[JOB]")
    command("schema", "Print the JSON Schema of the job file.", job="")
    command("status", "Show champion, latest interval, drift, performance and decisions.", job="[JOB]")
    explain = command("explain", "Tell one recorded decision with its numbers, in sentences.", job="")
    explain.add_argument("id", metavar="ID", help="as printed by status, retrain and replay, e.g. gate-1a2b3c4d5e6f")
    command("audit", "Prove that the record of decisions is unchanged and agrees with the registry.", job="[JOB]")

    score = command("score", "Plan, validate, score and publish; prints the manifest.")
    _span(score)
    score.add_argument(
        "--model",
        type=_model,
        default="as_of",
        metavar="as_of|current|VERSION",
        help="as_of: the champion at each interval's end (default); current: the champion now; or a version number",
    )
    snapshot = command("snapshot", "Path of what is published for an interval now; that file never changes.")
    _start(snapshot)
    restate = command("restate", "Score published intervals again whose input grew or changed since.")
    restate.add_argument(
        "--start", type=_instant, metavar="T", help="only this interval, changed or not (default: all that changed)"
    )
    restate.add_argument(
        "--before", type=_instant, metavar="T", help="look at the job's lookback before T (default: before now)"
    )
    restate.add_argument("--dry-run", action="store_true", help="list the intervals and change nothing")
    quarantined = command("quarantine", "What is in quarantine, by reason, with example values.")
    quarantined.add_argument(
        "--start", type=_instant, metavar="T", help="start of the first interval (default: the first)"
    )
    quarantined.add_argument("--end", type=_instant, metavar="T", help="end of the last interval (default: the last)")
    _start(command("replay-quarantine", "Validate and score an interval again once the cause is mended."))
    _span(command("monitor", "Drift report and verdict of published intervals."))
    evaluate = command("evaluate", "Realised performance on matured intervals.")
    evaluate.add_argument(
        "--as-of", required=True, type=_instant, metavar="T", help="only labels that had arrived by T count"
    )

    calibrate = command(
        "calibrate", "Measure drift thresholds on the job's own history and write them beside the job file."
    )
    calibrate.add_argument(
        "--from",
        dest="start",
        required=True,
        type=_instant,
        metavar="T",
        help="start of a history in which all was well",
    )
    calibrate.add_argument("--to", dest="end", required=True, type=_instant, metavar="T", help="its end")
    calibrate.add_argument(
        "--budget", type=int, default=90, metavar="N", help="at most one false alarm per N intervals (default: 90)"
    )
    calibrate.add_argument("--dry-run", action="store_true", help="measure and write nothing")

    incidents = command("incidents", "What is wrong now, one line per cause, and since when.")
    incidents.add_argument("--all", action="store_true", help="closed ones too")

    command("notify", "Tell the channels of PIPELINE_NOTIFY_PAGE and _TICKET what is new of incidents.")

    retrain = command("retrain", "Train on what was known at T, register, gate, promote if allowed.")
    retrain.add_argument(
        "--as-of", required=True, type=_instant, metavar="T", help="nothing that came after T is learnt from"
    )
    retrain.add_argument("--bootstrap", action="store_true", help="make the very first champion")
    retrain.add_argument("--reason", default="", metavar="TEXT", help="kept with the decision")
    promote = command("promote", "Make a registered version the champion.")
    promote.add_argument("--version", required=True, type=int, metavar="N", help="a version that retrain registered")
    promote.add_argument("--reason", required=True, metavar="TEXT", help="kept with the decision")
    promote.add_argument(
        "--at",
        type=_instant,
        metavar="T",
        help="champion of all intervals that end at or after T, whoever was (default: now)",
    )
    for verb, text in (
        ("approve", "Approve the promotion of a challenger that won the gate and waits for it."),
        ("reject", "Reject it: the champion stays."),
    ):
        answer = command(verb, text)
        answer.add_argument("--id", required=True, metavar="ID", help="the request, e.g. approval-1a2b3c4d5e6f")
        answer.add_argument("--reason", required=True, metavar="TEXT", help="kept with the decision")
        answer.add_argument(
            "--at", type=_instant, metavar="T", help="when it was answered: the promotion's time (default: now)"
        )
    rollback = command("rollback", "Go back to the previous champion.")
    rollback.add_argument("--reason", required=True, metavar="TEXT", help="kept with the decision")
    rollback.add_argument(
        "--restate",
        action="store_true",
        help="republish what the withdrawn version had scored; after a rollback that did not, or not to the end, do only that",
    )
    rollback.add_argument("--dry-run", action="store_true", help="list what would be republished and change nothing")
    rollback.add_argument(
        "--at",
        type=_instant,
        metavar="T",
        help="of intervals that end at or after T (default: now; not with --restate)",
    )

    rollout = command("rollout", "The course of the job's rollouts, and which one is under way.")
    rollout.add_argument(
        "--stop", metavar="REASON", help="withdraw the challenger of the one under way; the champion stays"
    )

    replay = command("replay", "Run the whole loop over history in simulated time.")
    replay.add_argument(
        "--from", dest="start", required=True, type=_instant, metavar="T", help="the first champion is trained here"
    )
    replay.add_argument("--to", dest="end", required=True, type=_instant, metavar="T", help="end of the last interval")
    replay.add_argument(
        "--policy",
        choices=("closed_loop", "frozen", "always"),
        default="closed_loop",
        help="closed_loop: as the job says (default); frozen: never train; always: train and promote every month",
    )
    replay.add_argument(
        "--against",
        type=Path,
        metavar="FILE",
        help="also live through it under the policies of this job file, and tell what would have been different",
    )
    replay.add_argument(
        "--workspace", type=Path, metavar="DIR", help="where everything is written (default: under home)"
    )
    replay.add_argument("--out", type=Path, metavar="FILE", help="also write the JSON report to this file")
    return whole


def _start(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--start", required=True, type=_instant, metavar="T", help="start of the interval")


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
