"""Incidents: what people are told of once per cause, however many intervals show it.

Pure: holds a report against the open incidents and returns what changes. Must not read the ledger or tell anybody.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Literal

from pipeline.intervals import format_instant
from pipeline.verdicts import DriftReport, Incident

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from datetime import datetime

    from pipeline.verdicts import ColumnDrift, IncidentKind, News, PerformanceReport, Tier

ESTIMATED = "degradation:estimated"
_HALTED: Literal["retraining_halted"] = "retraining_halted"
# What the loop has undone is done; people should still see why the gate had let it through.
Withdrawn = Literal["promotion_withdrawn", "challenger_withdrawn"]
_WITHDRAWN: dict[Withdrawn, Tier] = {"promotion_withdrawn": "page", "challenger_withdrawn": "ticket"}
_WITHDRAWN_FOR = timedelta(days=7)
# One interval without the cause may be luck; two in a row end it.
_CLEAR_TO_CLOSE = 2
# Late and repeated reports are recognised this many intervals back; what is older counts as counted.
_REMEMBERED = 32
_MATTERS = 0.01  # share of what moves the predictions, from which a broken column is worth a page
_LEADING = 3  # columns that a multivariate verdict is put down to
_NAMED = 5
_LOUDNESS: tuple[Tier, ...] = ("log", "ticket", "page")
_PARTITION = "partition"
_OF_DRIFT: frozenset[IncidentKind] = frozenset(
    ("broken_data", "covariate_drift", "prediction_drift", "invalid_estimate")
)


@dataclass(frozen=True, slots=True)
class _Sign:
    """One cause that a report shows."""

    cause: str
    kind: IncidentKind
    tier: Tier
    columns: tuple[str, ...]
    reason: str


def update(
    open: Sequence[Incident], report: DriftReport | PerformanceReport, *, closed: Sequence[Incident] = ()
) -> list[Incident]:
    """The incidents that ``report`` changes, as they are afterwards: those of ``open`` in their order, then new ones.

    ``closed`` are the job's former incidents, those at least that ended after the report's start: a late or repeated report
    on an interval that one of them covers changes nothing of its cause. The same report again changes nothing. A cause that
    lasts is one incident, whose tier only rises; it is closed once two later intervals were judged and did not show it, and
    ``insufficient_data`` speaks neither for nor against. Drift reports speak of data, drift and estimates, performance
    reports of what was realised. Quiet reports, of backfills, change nothing.
    """
    if report.quiet:
        return []
    signs = _of_drift(report) if isinstance(report, DriftReport) else _of_performance(report, [*open, *closed])
    settled = {incident.cause for incident in closed if _covers(incident, report.start)}
    shown = {sign.cause: sign for sign in signs if sign.cause not in settled}
    after = [_followed(incident, shown.get(incident.cause), report) for incident in open]
    changed = [new for old, new in zip(open, after, strict=True) if new != old]
    known = {incident.cause for incident in open}
    return changed + [_made(report.job, sign, report.start) for cause, sign in shown.items() if cause not in known]


def of_breaker(known: Sequence[Incident], job: str, as_of: datetime, halted: bool, reason: str) -> list[Incident]:
    """The incident that a breaker opens when trainings have led to nothing, and that their success closes; as `update`.

    ``known`` are the job's open incidents; it is one incident however long it lasts.
    """
    lasting = [incident for incident in known if incident.kind == _HALTED and incident.status == "open"]
    if halted and not lasting:
        return [_made(job, _Sign(_HALTED, _HALTED, "ticket", (), reason), as_of)]
    if halted:
        return []
    return [_ended(incident, as_of) for incident in lasting if incident.latest < as_of]


def withdrawal(kind: Withdrawn, version: int) -> str:
    """The cause of the incident that the withdrawal of a version opens."""
    return f"{kind}:{version}"


def of_withdrawal(
    known: Sequence[Incident], job: str, kind: Withdrawn, version: int, at: datetime, reason: str
) -> list[Incident]:
    """The incident that the withdrawal of a version at ``at`` opens, once; ``known`` has the job's incidents of its cause."""
    sign = _Sign(withdrawal(kind, version), kind, _WITHDRAWN[kind], (), reason)
    return [] if any(incident.cause == sign.cause for incident in known) else [_made(job, sign, at)]


def outlived(known: Sequence[Incident], as_of: datetime, ruling_since: datetime) -> list[Incident]:
    """The incidents of withdrawals that end by ``as_of``: at the next promotion, or after a week.

    ``ruling_since`` is when the promotion of the present champion took effect.
    """
    found = []
    for incident in known:
        if incident.kind in _WITHDRAWN and incident.status == "open":
            week = incident.opened + _WITHDRAWN_FOR
            end = min(ruling_since, week) if ruling_since > incident.opened else week
            found += [_ended(incident, end)] if end <= as_of else []
    return found


def news(before: Incident | None, after: Incident) -> News | None:
    """What people are to be told of the change from ``before`` (``None``: there was no incident) to ``after``.

    Each incident is told when it opens, when it gets louder, and when it closes; one of tier ``log`` never is.
    """
    if after.tier == "log":
        return None
    if before is None:
        return "opened" if after.status == "open" else None
    if before.status == "open" and after.status == "closed":
        return "closed"
    return "escalated" if _LOUDNESS.index(after.tier) > _LOUDNESS.index(before.tier) else None


def _made(job: str, sign: _Sign, start: datetime) -> Incident:
    content = json.dumps([job, sign.cause, format_instant(start)])
    return Incident(
        id=f"incident-{hashlib.sha256(content.encode()).hexdigest()[:12]}",
        job=job,
        cause=sign.cause,
        kind=sign.kind,
        tier=sign.tier,
        status="open",
        columns=sign.columns,
        opened=start,
        latest=start,
        intervals=1,
        reason=sign.reason,
        shown=(start,),
    )


def _followed(incident: Incident, sign: _Sign | None, report: DriftReport | PerformanceReport) -> Incident:
    if sign is not None:
        return _lasting(incident, sign, report.start, report.end)
    is_later = report.start > incident.latest and report.end not in incident.clear
    return _clearing(incident, report.end) if is_later and _is_absent(incident, report) else incident


def _lasting(incident: Incident, sign: _Sign, start: datetime, end: datetime) -> Incident:
    tier = _loudest((incident.tier, sign.tier))
    is_latest = start > incident.latest
    counted = {incident.opened, incident.latest, *incident.shown}
    is_forgotten = len(incident.shown) == _REMEMBERED and start < incident.shown[-1]
    return incident.model_copy(
        update={
            "tier": tier,
            "columns": tuple(dict.fromkeys((*incident.columns, *sign.columns))),
            "latest": max(incident.latest, start),
            "intervals": incident.intervals + (start not in counted and not is_forgotten),
            "reason": sign.reason if is_latest or tier != incident.tier else incident.reason,
            "shown": tuple(sorted({*incident.shown, start}, reverse=True)[:_REMEMBERED]),
            "clear": tuple(since for since in incident.clear if since > end),
        }
    )


def _clearing(incident: Incident, end: datetime) -> Incident:
    clear = (*incident.clear, end)
    if len(clear) < _CLEAR_TO_CLOSE:
        return incident.model_copy(update={"clear": clear})
    return incident.model_copy(update={"clear": clear, "status": "closed", "closed": max(clear)})


def _ended(incident: Incident, end: datetime) -> Incident:
    return incident.model_copy(update={"status": "closed", "closed": end, "clear": (end,)})


def _covers(incident: Incident, start: datetime) -> bool:
    """Whether the interval from ``start`` on lies between the incident's opening and its end, or was counted to it."""
    is_within = incident.opened <= start and (incident.closed is None or start < incident.closed)
    return is_within or start in incident.shown


def _is_absent(incident: Incident, report: DriftReport | PerformanceReport) -> bool:
    """Whether the report, which does not show the incident's cause, has looked for it and could have seen it."""
    if incident.kind == _HALTED or incident.kind in _WITHDRAWN:
        return False
    is_of_drift = incident.kind in _OF_DRIFT or incident.cause == ESTIMATED
    if is_of_drift and isinstance(report, DriftReport):
        return _is_estimate_sound(incident, report) if _is_of_estimate(incident) else _is_judged(incident, report)
    if is_of_drift or isinstance(report, DriftReport):
        return False
    if incident.kind == "label_drift":
        return report.label is not None and report.label.verdict == "stable"
    return report.verdict == "stable"


def _is_of_estimate(incident: Incident) -> bool:
    return incident.kind in ("invalid_estimate", "degradation")


def _is_estimate_sound(incident: Incident, report: DriftReport) -> bool:
    estimate = report.estimate
    if estimate is None or not estimate.is_valid:
        return False
    return estimate.compared > 0 if incident.kind == "invalid_estimate" else estimate.verdict == "stable"


def _is_judged(incident: Incident, report: DriftReport) -> bool:
    """Whether everything the incident is about was judged, on data that is not broken itself."""
    undecided = {c.column for c in report.columns if c.verdict == "insufficient_data"}
    if report.verdict == "insufficient_data" or undecided.intersection(incident.columns):
        return False
    if incident.kind == "broken_data":
        return True
    if incident.kind == "prediction_drift":
        return not _breaks_predictions(report)
    broken = _broken_columns(report)
    together = report.multivariate
    return not (None in broken or broken.intersection(incident.columns)) and (
        together is None or together.verdict == "stable"
    )


def _of_drift(report: DriftReport) -> Iterator[_Sign]:
    """The causes that a drift report shows; what broken data explains is no cause of its own."""
    yield from _faulty(report)
    if covariate := _covariate(report):
        yield covariate
    moved = [c for c in report.columns if c.role == "prediction" and c.verdict == "drift"]
    if moved and not _breaks_predictions(report):
        names, reason = tuple(c.column for c in moved), _reasons(moved)
        yield _Sign("prediction_drift", "prediction_drift", "page", names, reason)
    estimate = report.estimate
    if estimate is not None and not estimate.is_valid:
        yield _Sign("invalid_estimate", "invalid_estimate", "ticket", (), estimate.reason)
    elif estimate is not None and estimate.verdict == "drift":
        yield _Sign(ESTIMATED, "degradation", "ticket", (), f"estimated, before labels: {estimate.reason}")


def _faulty(report: DriftReport) -> Iterator[_Sign]:
    for column in dict.fromkeys(fault.column for fault in report.faults):
        reason = "; ".join(f"{fault.kind}: {fault.detail}" for fault in report.faults if fault.column == column)
        columns = () if column is None else (column,)
        yield _Sign(f"broken_data:{column or _PARTITION}", "broken_data", _fault_tier(report, column), columns, reason)


def _fault_tier(report: DriftReport, column: str | None) -> Tier:
    known = [c.importance for c in report.columns if c.column == column and c.importance is not None]
    return "log" if known and max(known) < _MATTERS else "page"


def _covariate(report: DriftReport) -> _Sign | None:
    broken = _broken_columns(report)
    if None in broken:
        return None
    moved = [c for c in report.columns if c.role == "feature" and c.verdict == "drift" and c.column not in broken]
    if moved:
        # A column without a tier was judged without importances: it may matter.
        tiers = {c.column: c.tier or "page" for c in moved}
        moved.sort(key=lambda c: (-_LOUDNESS.index(tiers[c.column]), -(c.importance or 0.0), c.column))
        names = tuple(c.column for c in moved)
        return _Sign("covariate_drift", "covariate_drift", _loudest(tiers.values()), names, _reasons(moved))
    together = report.multivariate
    if together is None or together.verdict != "drift":
        return None
    leading = tuple(column for column, _ in together.ranked[:_LEADING])
    if broken.intersection(leading):
        return None
    reason = (
        f"the columns together tell the window from the reference (AUC {together.auc:.3g}, limit "
        f"{together.threshold:.3g}), none of them alone; most telling: {', '.join(leading) or 'none'}"
    )
    return _Sign("covariate_drift", "covariate_drift", "ticket", leading, reason)


def _of_performance(report: PerformanceReport, known: Sequence[Incident]) -> Iterator[_Sign]:
    """The causes that a performance report shows; broken data that was scored belongs to the incident of that data."""
    if report.verdict == "drift":
        broken = _broken_then(known, report.start) if report.cause == "broken_data" else None
        if broken is not None:
            yield _Sign(broken.cause, "broken_data", "page", (), report.reason)
        elif report.cause == "concept":
            yield _Sign("concept_drift", "concept_drift", "page", (), report.reason)
        else:
            yield _Sign("degradation", "degradation", "page", (), report.reason)
    if report.label is not None and report.label.verdict == "drift":
        yield _Sign("label_drift", "label_drift", "ticket", (report.label.column,), _reasons([report.label]))


def _broken_then(known: Sequence[Incident], start: datetime) -> Incident | None:
    """The first incident of broken data that covers the interval from ``start`` on, be it open or closed by now."""
    found = [incident for incident in known if incident.kind == "broken_data" and _covers(incident, start)]
    return min(found, key=lambda incident: (incident.opened, incident.cause), default=None)


def _breaks_predictions(report: DriftReport) -> bool:
    """Whether what is broken reaches the predictions, so that they say nothing about drift."""
    return any(_fault_tier(report, fault.column) == "page" for fault in report.faults)


def _broken_columns(report: DriftReport) -> set[str | None]:
    return {fault.column for fault in report.faults}


def _loudest(tiers: Iterable[Tier]) -> Tier:
    return max(tiers, key=_LOUDNESS.index)


def _reasons(columns: Sequence[ColumnDrift]) -> str:
    named = "; ".join(f"{column.column}: {column.reason}" for column in columns[:_NAMED])
    return f"{named}; and {len(columns) - _NAMED} more" if len(columns) > _NAMED else named
