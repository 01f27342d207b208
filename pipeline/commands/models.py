"""Commands on models and decisions: status, explain, retrain, promote, rollback, replay."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

from pipeline import jobfile
from pipeline.commands import opened
from pipeline.intervals import format_instant

if TYPE_CHECKING:
    import argparse
    from datetime import datetime

    from pipeline.commands import Answer
    from pipeline.reports import Decision


def status(args: argparse.Namespace) -> Answer:
    """The state of one job, or of all, at a glance."""
    with opened() as runtime:
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


def explain(args: argparse.Namespace) -> Answer:
    """One decision with its numbers, in sentences, and those made with it."""
    with opened() as runtime:
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
    if decision.kind == "rollout":
        return (
            f"At {at} the rollout ({d['kind']}) of version {d['challenger_version']} of job {job} beside version "
            f"{d['champion_version']} was {decision.outcome.replace('_', ' ')}, from {d['effective_at']} on."
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
    """The course of a job over history."""
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
