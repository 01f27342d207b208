"""Commands on published partitions: score, snapshot, restate, quarantine, replay-quarantine, monitor, evaluate."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from pipeline.commands import opened
from pipeline.errors import PipelineError
from pipeline.intervals import format_instant

if TYPE_CHECKING:
    import argparse
    from datetime import datetime

    from pipeline.commands import Answer
    from pipeline.job import JobSpec
    from pipeline.reports import Manifest
    from pipeline.runtime import Runtime
    from pipeline.verdicts import DriftReport


_UNCHANGED = "no published interval within the lookback has changed input"


def score(args: argparse.Namespace) -> Answer:
    """Score one interval or several; see `Runtime.score`."""
    manifests: list[Manifest] = []
    with opened() as runtime:
        job = runtime.job(args.job)
        try:
            for m in runtime.score(job, args.start, args.end, model=args.model, quiet=args.end is not None):
                manifests.append(m)
                line = f"{m.status}  {m.rows_scored} of {m.rows_in} rows by version {m.model_version}"
                print(f"{format_instant(m.start)}  {line}", file=sys.stderr)
        except PipelineError as error:
            raise _after(error, len(manifests), "published") from error
        lines = [_line(m) for m in manifests]
        if args.end is not None:
            return {"manifests": [m.model_dump(mode="json") for m in manifests]}, lines
        restated, failed = _restate_changed(runtime, job, args.start)
    answer = manifests[0].model_dump(mode="json")
    answer |= {"restated": [m.model_dump(mode="json") for m in restated], "not_restated": failed}
    return answer, [*lines, *(f"its input had changed: {_line(m)}" for m in restated)]


def _line(m: Manifest) -> str:
    files = f", {len(m.rejected_files)} files rejected" if m.rejected_files else ""
    return f"{m.path}  {m.rows_scored} scored, {m.rows_quarantined} quarantined {m.reasons or ''}".rstrip() + files


def _restate_changed(runtime: Runtime, job: JobSpec, before: datetime) -> tuple[list[Manifest], list[dict[str, Any]]]:
    """The restated intervals, and those that could not be: they stay as they are published, and are told on stderr."""
    restated, failed = [], []
    for start in runtime.changed(job, before):
        try:
            restated.append(runtime.restate(job, start))
        except PipelineError as error:
            print(f"{format_instant(start)} was not restated, {type(error).__name__}: {error}", file=sys.stderr)
            failed.append({"start": format_instant(start), **error.attrs()})
    return restated, failed


def snapshot(args: argparse.Namespace) -> Answer:
    """The immutable path of what is published for an interval."""
    with opened() as runtime:
        path = runtime.snapshot(runtime.job(args.job), args.start)
    return {"start": format_instant(args.start), "path": path}, [path]


def restate(args: argparse.Namespace) -> Answer:
    """Score published intervals again whose input changed, or the one that is named."""
    with opened() as runtime:
        job = runtime.job(args.job)
        starts = [args.start] if args.start else runtime.changed(job, args.before or runtime.clock())
        named = [format_instant(start) for start in starts]
        if args.dry_run:
            return {"would_restate": named}, [f"would restate {start}" for start in named] or [_UNCHANGED]
        manifests: list[Manifest] = []
        for start in starts:
            try:
                manifests.append(runtime.restate(job, start))
            except PipelineError as error:
                raise _after(error, len(manifests), "restated") from error
    return {"manifests": [m.model_dump(mode="json") for m in manifests]}, [_line(m) for m in manifests] or [_UNCHANGED]


def quarantine(args: argparse.Namespace) -> Answer:
    """What is in quarantine, by reason."""
    with opened() as runtime:
        found = runtime.quarantined(runtime.job(args.job), args.start, args.end)
    lines = [f"{found.rows_quarantined} of {found.rows_in} rows in {found.intervals} intervals are in quarantine"]
    lines += [
        f"  {r.reason}: {r.rows} rows in {r.intervals} intervals, last {format_instant(r.last)}"
        + (f", e.g. {', '.join(map(repr, r.examples))}" if r.examples else "")
        for r in found.reasons
    ]
    lines += [f"  file {file.path} was rejected ({file.reason}): {file.detail}" for file in found.rejected_files]
    return found.model_dump(mode="json"), lines


def replay_quarantine(args: argparse.Namespace) -> Answer:
    """Validate and score an interval again once the cause is mended."""
    with opened() as runtime:
        before, after = runtime.replay_quarantine(runtime.job(args.job), args.start)
    answer = after.model_dump(mode="json") | {"before": before.model_dump(mode="json")}
    left = f"{before.rows_quarantined} rows were in quarantine, now {after.rows_quarantined}"
    return answer, [
        _line(after),
        f"{left}; {len(before.rejected_files)} files were rejected, now {len(after.rejected_files)}",
    ]


def _after(error: PipelineError, done: int, what: str) -> PipelineError:
    """The error of a later interval, which also says what had been done before it."""
    left = f"{error.left_behind}; {done} interval(s) before this one are {what}" if done else error.left_behind
    return type(error)(error.what, expected=error.expected, got=error.got, left_behind=left, next_step=error.next_step)


def monitor(args: argparse.Namespace) -> Answer:
    """Drift reports of one interval or several."""
    reports: list[DriftReport] = []
    with opened() as runtime:
        try:
            for report in runtime.monitor(runtime.job(args.job), args.start, args.end, quiet=args.end is not None):
                reports.append(report)
        except PipelineError as error:
            raise _after(error, len(reports), "monitored") from error
    dumped = [r.model_dump(mode="json") for r in reports]
    lines = [f"{format_instant(r.start)}  {r.verdict}  {r.reason}  {r.report_uri}" for r in reports]
    return (dumped[0] if args.end is None else {"reports": dumped}), lines


def evaluate(args: argparse.Namespace) -> Answer:
    """Reports on what matured."""
    with opened() as runtime:
        job = runtime.job(args.job)
        reports = runtime.evaluate(job, args.as_of, strict=False)
        moved = runtime.advance(job, args.as_of)
        if not all(report.quiet for report in reports):
            runtime.require_measured(job, args.as_of)
    lines = [
        f"{format_instant(r.start)}  {r.verdict}{' (restated)' if r.restated else ''}  {r.reason}" for r in reports
    ]
    lines = lines or ["no interval matured since the last evaluation, and no label has come for the others"]
    said = [f"rollout {moved.outcome}: {moved.reason}"] if moved else []
    found = {
        "reports": [r.model_dump(mode="json") for r in reports],
        "rollout": moved.model_dump(mode="json") if moved else None,
    }
    return found, [*lines, *said]
