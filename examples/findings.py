"""What a run of the demo showed, read from the ledger alone: a table, an account in sentences, unmet expectations.

Pure functions of recorded values; must not start or change anything.
"""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING

from pipeline.intervals import format_instant
from pipeline.policies import HIGHER_IS_BETTER

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import datetime

    from pipeline.intervals import Interval
    from pipeline.job import JobSpec
    from pipeline.ledger import Ledger
    from pipeline.reports import Decision, Manifest, Promotion
    from pipeline.verdicts import DriftReport, PerformanceReport


@dataclass(frozen=True, slots=True)
class Findings:
    """The records of one job over some intervals; mappings are by interval start."""

    job: JobSpec
    intervals: tuple[Interval, ...]
    manifests: dict[datetime, Manifest]
    drift: dict[datetime, DriftReport]
    performance: dict[datetime, PerformanceReport]
    decisions: tuple[Decision, ...]
    promotions: tuple[Promotion, ...]

    @classmethod
    def read(cls, ledger: Ledger, job: JobSpec, intervals: Iterable[Interval]) -> Findings:
        """What the ledger holds at this moment."""
        return cls(
            job,
            tuple(intervals),
            {m.start: m for m in ledger.manifests(job.name)},
            {d.start: d for d in ledger.drift(job.name)},
            {p.start: p for p in ledger.performance(job.name)},
            tuple(ledger.decisions(job.name)),
            tuple(ledger.promotions(job.name)),
        )

    def decided(self, kind: str, at: datetime) -> Decision | None:
        """The latest decision of that kind at that instant."""
        return next((d for d in reversed(self.decisions) if d.kind == kind and d.at == at), None)

    @property
    def replacement(self) -> Promotion | None:
        """The first promotion that replaced another champion."""
        return next((p for p in self.promotions if p.previous_version is not None), None)

    def realised(self, start: datetime, end: datetime) -> list[float]:
        """The realised metric of the evaluated intervals that start within ``[start, end)``."""
        return [p.value for s, p in sorted(self.performance.items()) if start <= s < end and p.value is not None]


def progress(findings: Findings, interval: Interval, seconds: float) -> str:
    """One line on an interval whose chain is through: what was scored, judged, learnt and decided."""
    manifest, drift = findings.manifests[interval.start], findings.drift[interval.start]
    known = [p for p in findings.performance.values() if p.as_of <= interval.end]
    latest = max(known, key=lambda p: p.start, default=None)
    metric = f"{latest.metric} {_number(latest.value)} on {_day(latest.start)}" if latest else "no labels yet"
    return (
        f"{_day(interval.start)}  {manifest.rows_in} rows, {manifest.rows_quarantined} quarantined, "
        f"v{manifest.model_version} | {_verdict(drift)} | {metric} | {_decision(findings, interval.end)}  [{seconds:.1f} s]"
    )


def table(findings: Findings) -> list[str]:
    """One line per interval, under a header."""
    rows = [("interval", "rows", "quarantined", "drift", str(findings.job.metric), "model")]
    for interval in findings.intervals:
        manifest = findings.manifests.get(interval.start)
        performance = findings.performance.get(interval.start)
        rows.append(
            (
                _day(interval.start),
                str(manifest.rows_in) if manifest else "-",
                str(manifest.rows_quarantined) if manifest else "-",
                _verdict(findings.drift.get(interval.start)),
                _number(performance.value) if performance else "not known yet",
                f"v{manifest.model_version}" if manifest else "-",
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def account(findings: Findings, change: datetime | None) -> list[str]:
    """What happened and why, one sentence or two each, in order of time. ``change`` is when the world really changed."""
    told: list[tuple[datetime, str]] = []
    if change is not None:
        told.append(
            (change, f"On {_day(change)} the world changed: inputs shifted, and what they say about the label.")
        )
    alarm = next((d for s, d in sorted(findings.drift.items()) if d.verdict == "drift"), None)
    if alarm is not None:
        told.append((alarm.end, f"The first drift verdict fell on the interval {_day(alarm.start)}. {alarm.reason}"))
    for decision in findings.decisions:
        if decision.kind == "trigger" and decision.outcome == "fire":
            told.append((decision.at, f"At {_at(decision)} a training was started. {decision.reason}"))
        elif decision.kind == "gate":
            verb = "passed" if decision.outcome == "promote" else "did not pass"
            told.append((decision.at, f"The challenger {verb} the gate: {decision.reason}"))
    for p in findings.promotions:
        replaced = f"replaced v{p.previous_version}" if p.previous_version else "became the first champion"
        told.append(
            (p.effective_at, f"v{p.model.version} {replaced}; it scores every interval from {_day(p.effective_at)} on.")
        )
    told.sort(key=lambda entry: entry[0])
    if findings.replacement is not None:
        told.append((findings.replacement.effective_at, _effect(findings, change, findings.replacement)))
    return [text for _, text in told]


def unaccounted(findings: Findings) -> list[str]:
    """Intervals that were not scored or whose rows do not add up; empty when all is well."""
    problems = []
    for interval in findings.intervals:
        manifest = findings.manifests.get(interval.start)
        if manifest is None:
            problems.append(f"the interval {_day(interval.start)} was not scored")
        elif manifest.rows_in != manifest.rows_scored + manifest.rows_quarantined:
            problems.append(
                f"rows of {_day(interval.start)} do not add up: {manifest.rows_in} in, {manifest.rows_scored} scored, "
                f"{manifest.rows_quarantined} quarantined"
            )
    return problems


def unmet(findings: Findings, change: datetime) -> list[str]:
    """Which expectations of the simulated job did not come true: detected, retrained, gated, promoted, recovered."""
    alarms = sorted(s for s, d in findings.drift.items() if d.verdict == "drift")
    fired = [d.at for d in findings.decisions if d.kind == "trigger" and d.outcome == "fire" and d.at > change]
    passed = [d for d in findings.decisions if d.kind == "gate" and d.outcome == "promote"]
    last = findings.drift.get(findings.intervals[-1].start)
    expectations = {
        "rows were quarantined": any(m.rows_quarantined for m in findings.manifests.values()),
        "no drift verdict before the world changed": not any(start < change for start in alarms),
        "a drift verdict after the world changed": any(start >= change for start in alarms),
        "a challenger trained after the change": bool(fired),
        "the challenger passed the gate": bool(passed),
        "the challenger was promoted": findings.replacement is not None,
        "no drift any more at the end": last is not None and last.verdict == "stable",
    }
    failed = [text for text, is_met in expectations.items() if not is_met]
    return [f"not true: {text}" for text in failed] + (
        _unmet_after(findings, change, findings.replacement) if findings.replacement else []
    )


def _unmet_after(findings: Findings, change: datetime, replacement: Promotion) -> list[str]:
    problems = []
    later = [m for s, m in sorted(findings.manifests.items()) if s >= replacement.effective_at]
    stale = [_day(m.start) for m in later if m.model_version < replacement.model.version]
    if stale or not later:
        problems.append(
            f"not scored by v{replacement.model.version} or a successor: {', '.join(stale) or 'no later interval'}"
        )
    before, after = _means(findings, change, replacement)
    better = HIGHER_IS_BETTER[findings.job.metric]
    if before is None or after is None:
        problems.append("the realised metric is not known on both sides of the promotion")
    elif (after <= before) if better else (after >= before):
        problems.append(
            f"{findings.job.metric} after the promotion ({after:.3f}) is not better than before it ({before:.3f})"
        )
    return problems


def _means(findings: Findings, change: datetime | None, replacement: Promotion) -> tuple[float | None, float | None]:
    """Mean realised metric between change and promotion, and after the promotion."""
    first, last = findings.intervals[0].start, findings.intervals[-1].end
    before = findings.realised(change or first, replacement.effective_at)
    after = findings.realised(replacement.effective_at, last)
    return (fmean(before) if before else None, fmean(after) if after else None)


def _effect(findings: Findings, change: datetime | None, replacement: Promotion) -> str:
    before, after = _means(findings, change, replacement)
    since = f"from {_day(change)} " if change else ""
    text = (
        f"Mean realised {findings.job.metric}: {_number(before)} {since}up to the promotion, {_number(after)} after it."
    )
    if change is None:
        return text
    usual = findings.realised(findings.intervals[0].start, change)
    return f"{text} Before the change it was {_number(fmean(usual) if usual else None)}."


def _verdict(report: DriftReport | None) -> str:
    if report is None:
        return "-"
    if report.verdict != "drift":
        return report.verdict.replace("_", " ")
    moved = sum(c.verdict == "drift" and c.role == "feature" for c in report.columns)
    return f"DRIFT, {moved} of {sum(c.role == 'feature' for c in report.columns)} columns"


def _decision(findings: Findings, at: datetime) -> str:
    """What the loop decided at that instant, in a few words."""
    trigger = findings.decided("trigger", at)
    if trigger is None:
        return "nothing decided"
    cause = trigger.details.get("cause", "none")
    if trigger.outcome != "fire":
        return "no training" if cause == "none" else f"no training yet ({cause}, waiting for the cooldown)"
    gate = findings.decided("gate", at)
    promoted = next((p for p in findings.promotions if p.effective_at == at), None)
    result = f"v{promoted.model.version} promoted" if promoted else gate.outcome if gate else "not compared"
    return f"TRAINING ({cause}): {result}"


def _at(decision: Decision) -> str:
    return format_instant(decision.at)


def _day(instant: datetime) -> str:
    text = format_instant(instant)
    return text.removesuffix("T00:00:00Z")


def _number(value: float | None) -> str:
    return "not known" if value is None else f"{value:.3f}"


def bullets(texts: Sequence[str]) -> list[str]:
    """The texts as an indented list, wrapped."""
    return [textwrap.fill(text, 118, initial_indent="  - ", subsequent_indent="    ") for text in texts]
