"""The command line: every step without Airflow. Parses, calls the runtime, prints; decides nothing."""

from __future__ import annotations

import json
import logging
import sys
import traceback
from contextlib import redirect_stdout
from typing import TYPE_CHECKING, Any

from pipeline import arguments, jobfile
from pipeline.arguments import WrongUsage
from pipeline.errors import InvalidJob, InvalidRequest, PipelineError
from pipeline.intervals import format_instant
from pipeline.job import JobSpec

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Sequence
    from datetime import datetime
    from pathlib import Path

    from pipeline.reports import Decision, DriftReport, Manifest
    from pipeline.runtime import Runtime

# A command returns the object that --json prints, and the lines for people.
Answer = tuple[dict[str, Any], list[str]]
_INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; ``argv`` defaults to the program's arguments.

    0 success, 65 terminal error, 70 unexpected error (with its traceback on stderr), 75 transient error, 130 interrupted.
    Wrong usage raises ``SystemExit(2)``. With ``--json`` stdout gets exactly one JSON object, whatever happens; it has the
    keys ``error`` and ``message`` when the command failed. Everything else goes to stderr.
    """
    given = list(sys.argv[1:] if argv is None else argv)
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    try:
        asked = arguments.parser().parse_args(given)
        # What libraries print must not end up between the lines, or in the JSON object, that somebody reads.
        with redirect_stdout(sys.stderr):
            answer, lines = _COMMANDS[asked.command](asked)
    except WrongUsage as error:
        _fail(given, {"error": "WrongUsage", "message": str(error)}, error.shown)
        raise SystemExit(2) from None
    except PipelineError as error:
        _fail(given, error.attrs(), f"{type(error).__name__}: {error}")
        return error.exit_code
    except KeyboardInterrupt:
        _fail(given, {"error": "Interrupted", "message": "interrupted"}, "interrupted")
        return _INTERRUPTED
    except Exception as error:
        traceback.print_exc()
        what = f"{type(error).__name__}: {error}"
        advice = "this is a defect of the program; run the same command again, and report it with the lines above"
        _fail(given, {"error": type(error).__name__, "message": what, "next_step": advice}, f"{what}; {advice}")
        return PipelineError.exit_code
    print(json.dumps(answer) if asked.json else "\n".join(lines))
    return 0


def _fail(given: Sequence[str], answer: dict[str, str], line: str) -> None:
    if "--json" in given:
        print(json.dumps(answer))
    print(line, file=sys.stderr)


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
        broken: list[str] = []
        if args.job:
            jobs = [runtime.job(args.job)]
        else:
            good, bad = jobfile.load_all(runtime.settings.jobs)
            jobs, broken = list(good.values()), [str(file.error()) for file in bad]
        rows = [runtime.status(job) for job in jobs]
    lines = []
    for r in rows:
        since = f" since {r['since']}" if r["since"] else ""
        lines.append(
            f"{r['job']}: champion {r['champion'] or '-'}{since}, {r['intervals']} intervals published to {r['latest'] or '-'}, "
            f"drift {r['drift'] or '-'}, {r['metric']} {'-' if r['value'] is None else format(r['value'], '.4g')} "
            f"({r['performance'] or '-'})"
        )
        lines += [f"  {d['at']}  {d['outcome']}  {d['id']}" for d in r["decisions"]] if args.job else []
    for problem in broken:
        print(f"not a valid job: {problem}", file=sys.stderr)
    return {"jobs": rows, "invalid": broken}, lines or [f"no valid job in {runtime.settings.jobs}"]


def _explain(args: argparse.Namespace) -> Answer:
    with _open() as runtime:
        decision = runtime.explain(args.id)
        others = runtime.made_with(decision)
    lines = [_sentence(decision), decision.reason, *_numbers(decision)]
    lines += [f"At the same time: {_sentence(other)} ({other.id})" for other in others]
    return {**decision.model_dump(mode="json"), "made_with": [other.id for other in others], "story": lines}, lines


def _sentence(decision: Decision) -> str:
    """What was decided, in one sentence."""
    at, job, d = format_instant(decision.at), decision.job, decision.details
    if decision.kind == "trigger":
        verb = "started a training" if decision.outcome == "fire" else "did not start a training"
        return f"At {at} the policy of job {job} {verb}{'' if d['cause'] == 'none' else ' (' + d['cause'] + ')'}."
    if decision.kind == "gate":
        found = {
            "promote": "and found it better",
            "keep": "and did not find it better",
            "insufficient_data": "but had too little to go by",
        }
        return (
            f"At {at} the gate of job {job} compared version {d['challenger_version']} with the champion, version "
            f"{d['champion_version']}, {found[decision.outcome]}."
        )
    again, instead = (" again", "withdrawn") if decision.kind == "rollback" else ("", "replaced")
    before = f"; version {d['previous_version']} was {instead}" if d["previous_version"] else ", the first one"
    return f"From {at} on version {d['version']} is{again} the champion of job {job}{before}."


def _numbers(decision: Decision) -> list[str]:
    """The numbers that a gate decision rests on, one per line."""
    d = decision.details
    if decision.kind != "gate" or d["gain"] is None:
        return []
    return [
        f"  {d['metric']} of the champion: {d['champion']:.6g}",
        f"  {d['metric']} of the challenger: {d['challenger']:.6g}",
        f"  gain: {d['gain']:.6g} (positive is better), at least {d['low']:.6g} with the confidence asked for",
        f"  labelled rows that neither had learnt from: {d['n']}",
    ]


def _score(args: argparse.Namespace) -> Answer:
    manifests: list[Manifest] = []
    with _open() as runtime:
        job = runtime.job(args.job)
        try:
            for m in runtime.score(job, args.start, args.end, model=args.model, quiet=args.end is not None):
                manifests.append(m)
                line = f"{m.status}  {m.rows_scored} of {m.rows_in} rows by version {m.model_version}"
                print(f"{format_instant(m.start)}  {line}", file=sys.stderr)
        except PipelineError as error:
            raise _after(error, len(manifests), "published") from error
    dumped = [m.model_dump(mode="json") for m in manifests]
    lines = [
        f"{m.path}  {m.rows_scored} scored, {m.rows_quarantined} quarantined {m.reasons or ''}".rstrip()
        for m in manifests
    ]
    return (dumped[0] if args.end is None else {"manifests": dumped}), lines


def _after(error: PipelineError, done: int, what: str) -> PipelineError:
    """The error of a later interval, which also says what had been done before it."""
    left = f"{error.left_behind}; {done} interval(s) before this one are {what}" if done else error.left_behind
    return type(error)(error.what, expected=error.expected, got=error.got, left_behind=left, next_step=error.next_step)


def _monitor(args: argparse.Namespace) -> Answer:
    reports: list[DriftReport] = []
    with _open() as runtime:
        try:
            for report in runtime.monitor(runtime.job(args.job), args.start, args.end, quiet=args.end is not None):
                reports.append(report)
        except PipelineError as error:
            raise _after(error, len(reports), "monitored") from error
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
    ids = [f"pipeline explain {id} tells more" for id in report.decision_ids]
    return report.model_dump(mode="json"), [f"{version}: {report.outcome}", report.reason, *ids]


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


_COMMANDS: dict[str, Callable[[argparse.Namespace], Answer]] = {
    "init": _init,
    "check": _check,
    "schema": _schema,
    "status": _status,
    "explain": _explain,
    "score": _score,
    "monitor": _monitor,
    "evaluate": _evaluate,
    "retrain": _retrain,
    "promote": _promote,
    "rollback": _rollback,
    "replay": _replay,
}
