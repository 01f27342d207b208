"""Commands on models and decisions: status, explain, audit, retrain, promote, approve, reject, rollback, replay."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

from pipeline import jobfile
from pipeline.commands import opened
from pipeline.intervals import format_instant

if TYPE_CHECKING:
    import argparse
    from datetime import datetime

    from pipeline.commands import Answer
    from pipeline.reports import ApprovalAnswer, Audit


def status(args: argparse.Namespace) -> Answer:
    """The state of one job, or of all, at a glance."""
    with opened() as runtime:
        broken: list[str] = []
        if args.job:
            jobs = [runtime.job(args.job)]
        else:
            good, bad = jobfile.load_all(runtime.settings.jobs)
            jobs, broken = list(good.values()), [str(file.error()) for file in bad]
        rows = runtime.statuses(jobs)
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


def explain(args: argparse.Namespace) -> Answer:
    """One decision with its numbers, in sentences, and those made with it."""
    with opened() as runtime:
        decision = runtime.explain(args.id)
        others = runtime.made_with(decision)
        lines = runtime.story(decision)
    return {**decision.model_dump(mode="json"), "made_with": [other.id for other in others], "story": lines}, lines


def audit(args: argparse.Namespace) -> Answer:
    """Verify the record of one job, or of all; raises `AuditFailed` when anything does not fit."""
    from pipeline.steps.audit import require_sound

    with opened() as runtime:
        found = runtime.audit(runtime.job(args.job) if args.job else None)
    lines = [line for audit in found for line in _audited(audit)]
    if any(audit.misfits for audit in found):
        print("\n".join(lines), file=sys.stderr)
    require_sound(found)
    return {"jobs": [audit.model_dump(mode="json") for audit in found]}, lines or ["no job has a record"]


def _audited(audit: Audit) -> list[str]:
    facts = (
        f"{audit.records} records, {audit.promotions} promotions, champion {audit.champion or '-'}, "
        f"anchored up to record {audit.anchored or '-'}"
    )
    verdict = f"{len(audit.misfits)} do not fit" if audit.misfits else "sound"
    misfits = [f"  {misfit.at}: expected {misfit.expected}; got {misfit.got}" for misfit in audit.misfits]
    return [f"{audit.job}: {verdict}: {facts}", *misfits]


def retrain(args: argparse.Namespace) -> Answer:
    """Train, gate and promote as allowed."""
    with opened() as runtime:
        report = runtime.retrain(runtime.job(args.job), args.as_of, bootstrap=args.bootstrap, reason=args.reason)
    version = f"version {report.model.version}" if report.model else "no version"
    ids = [f"pipeline explain {id} tells more" for id in report.decision_ids]
    return report.model_dump(mode="json"), [f"{version}: {report.outcome}", report.reason, *ids]


def promote(args: argparse.Namespace) -> Answer:
    """Make a version the champion."""
    with opened() as runtime:
        done = runtime.promote(runtime.job(args.job), args.version, args.reason, args.at)
    return done.model_dump(mode="json"), [_moved(done.model.version, done.previous_version, done.effective_at)]


def approve(args: argparse.Namespace) -> Answer:
    """Approve a request for a promotion."""
    with opened() as runtime:
        return _answered(runtime.answer(runtime.job(args.job), args.id, "approved", args.reason, args.at))


def reject(args: argparse.Namespace) -> Answer:
    """Reject a request for a promotion."""
    with opened() as runtime:
        return _answered(runtime.answer(runtime.job(args.job), args.id, "rejected", args.reason, args.at))


def _answered(answer: ApprovalAnswer) -> Answer:
    given, done, begun = answer.decision, answer.promotion, answer.rollout
    lines = [
        f"{given.outcome}{' before; nothing new was decided' if answer.replayed else ''} ({given.id}): {given.reason}",
        _moved(done.model.version, done.previous_version, done.effective_at) if done else "the champion was not moved",
        *([f"its rollout started ({begun.id})"] if begun else []),
    ]
    return {"outcome": given.outcome, **answer.model_dump(mode="json")}, lines


def rollback(args: argparse.Namespace) -> Answer:
    """Go back to the champion before, or with --dry-run tell what that would mean."""
    with opened() as runtime:
        job = runtime.job(args.job)
        found = runtime.blast_radius(job, restated=args.restate)
        named = [format_instant(m.start) for m in found.affected]
        rows = sum(m.rows_scored for m in found.affected)
        plan = [
            f"version {found.withdrawn.model.version} is withdrawn, version {found.back.version} rules again",
            *([f"{len(named)} partitions with {rows} rows are affected"] if args.restate else []),
            *(f"  {start}" for start in named),
        ]
        if args.dry_run:
            facts = {"withdrawn": found.withdrawn.model.version, "version": found.back.version, "affected": named}
            return {**facts, "rows": rows}, [*plan, "nothing was changed (--dry-run)"]
        print("\n".join(plan), file=sys.stderr)
        done, restated = runtime.rollback(job, args.reason, restated=args.restate, at=args.at)
    answer = {**done.model_dump(mode="json"), "restated": [m.model_dump(mode="json") for m in restated]}
    lines = [_moved(done.model.version, done.previous_version, done.effective_at)]
    return answer, [*lines, *(f"restated {m.path}" for m in restated)]


def _moved(version: int, previous: int | None, at: datetime) -> str:
    return f"champion is version {version} from {format_instant(at)} on (before: {previous or 'none'})"


def replay(args: argparse.Namespace) -> Answer:
    """The course of a job over history, or with --against two of them."""
    import os

    from pipeline import replay
    from pipeline.settings import Settings

    settings = Settings.from_env(os.environ)
    job = jobfile.find(args.job, settings.jobs)
    name = f"{job.name}-{'against' if args.against else args.policy}"
    where: dict[str, Any] = {
        "workspace": (args.workspace or settings.home / "replays" / name).resolve(),
        "jobs": settings.jobs,
        "progress": lambda line: print(line, file=sys.stderr),
    }
    if args.against:
        report = replay.backtest(job, jobfile.load(args.against), args.start, args.end, **where)
        lines = _beside(report)
    else:
        report = replay.replay(job, args.start, args.end, policy=args.policy, **where)
        lines = _course(report)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return report, lines


def _course(report: dict[str, Any]) -> list[str]:
    metric = report["metric"]
    return [
        f"{report['policy']}: {report['intervals']} intervals, {report['rows_in']} rows in = {report['rows_scored']} scored + "
        f"{report['rows_quarantined']} quarantined",
        f"{metric['name']} {metric['mean']}, {report['alerts']} alerts, {report['retrains']} retrains, "
        f"{report['promotions']} promotions, {report['seconds']} s",
    ]


def _beside(report: dict[str, Any]) -> list[str]:
    """A line per count: under the present policies, under the changed ones, and the difference."""
    present, changed, difference = report["present"], report["changed"], report["difference"]
    lines = [f"{'':<18}{'present':>12}{'changed':>12}{'difference':>12}"]
    for name in ("alerts", "retrains", "promotions", "rollbacks", "training_seconds"):
        cells = (f"{found:>12.4g}" for found in (present[name], changed[name], difference[name]))
        lines.append(f"{name.replace('_', ' '):<18}{''.join(cells)}")
    means = (present["metric"]["mean"], changed["metric"]["mean"], difference["metric"])
    cells = ("-" if mean is None else f"{mean:.4g}" for mean in means)
    return [*lines, f"{present['metric']['name']:<18}{''.join(f'{cell:>12}' for cell in cells)}"]
