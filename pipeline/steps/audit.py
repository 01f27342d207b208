"""Prove that the record of decisions is the one that was written, and that the registry agrees with it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.errors import AuditFailed
from pipeline.intervals import format_instant
from pipeline.reports import Audit, Decision, Misfit, Promotion
from pipeline.steps.champion import ANCHOR, anchor

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pipeline.chain import Record
    from pipeline.ledger import Ledger
    from pipeline.registry import Registry


def audit(ledger: Ledger, registry: Registry, job: str, model: str | None = None) -> Audit:
    """What is found of one job: its chain, its promotions, the anchors and the champion alias; nothing is changed.

    ``model`` is the job's model in the registry, by default that of its last promotion. Moves of the champion wait
    meanwhile. Raises `LedgerUnavailable`, `RegistryUnavailable`, and `PromotionConflict` when a move does not end.
    """
    with ledger.moving(job):
        records = ledger.records(job)
        broken = broken_link(records)
        decisions, promotions, misfits = ({}, [], [broken]) if broken else _read(records)
        last = promotions[-1][1] if promotions else None
        model = model or (last.model.name if last else None)
        alias = registry.champion(model) if model else None
        tags = registry.tags(model) if model else {}
    anchors = {version: found[ANCHOR] for version, found in tags.items() if ANCHOR in found}
    if not broken:
        misfits += disagreements(decisions, promotions)
        misfits += misplaced_anchors(records, anchors)
        misfits += _misplaced_alias(model, last, alias)
    return Audit(
        job=job,
        records=len(records),
        promotions=len(promotions),
        champion=alias,
        anchored=max((_position(text) for text in anchors.values()), default=0),
        misfits=tuple(misfits),
    )


def require_sound(audits: Sequence[Audit]) -> None:
    """Raise `AuditFailed` with the first misfit of the first job that has one."""
    failed = [found for found in audits if found.misfits]
    if failed:
        first = failed[0].misfits[0]
        raise AuditFailed(
            f"the record of job {failed[0].job!r} does not hold at {first.at}",
            expected=first.expected,
            got=first.got,
            left_behind="nothing was changed",
            next_step="what comes before it is proven; compare the rest with a backup of the ledger, and the registry with "
            f"pipeline status {failed[0].job}",
            jobs=tuple(found.model_dump(mode="json") for found in audits),
        )


def broken_link(records: Sequence[Record]) -> Misfit | None:
    """The first record that is not where or not what it was when it was written; ``None`` when all are."""
    previous = ""
    for position, record in enumerate(records, 1):
        at = f"{record}, position {position}"
        if record.position != position:
            return Misfit(at=at, expected=f"a record at position {position}", got=f"position {record.position!r}")
        expected = record.link(previous)
        if record.chain != expected:
            return Misfit(at=at, expected=f"chain {expected}", got=f"chain {record.chain!r}")
        previous = record.chain
    return None


def misplaced_anchors(records: Sequence[Record], anchors: Mapping[int, str]) -> list[Misfit]:
    """The anchors, by model version, that name a link which the record does not have at that position."""
    known = {0: "", **{position: record.chain for position, record in enumerate(records, 1)}}
    found = []
    for version, text in sorted(anchors.items()):
        position = _position(text)
        there = anchor(position, known[position]) if position in known else f"{len(records)} records in all"
        if there != text:
            at = f"the anchor on version {version}, position {position}"
            found.append(Misfit(at=at, expected=f"chain {text}", got=there))
    return found


def disagreements(decisions: Mapping[str, Decision], promotions: Sequence[tuple[Record, Promotion]]) -> list[Misfit]:
    """Promotions that have no decision, say something else than it, or do not follow the promotion before."""
    found: list[Misfit] = []
    before: int | None = None
    for record, promotion in promotions:
        at = f"{record} (version {promotion.model.version} from {format_instant(promotion.effective_at)})"
        decision = decisions.get(promotion.decision_id)
        if decision is None:
            found.append(Misfit(at=at, expected=f"a decision {promotion.decision_id}", got="none of that id"))
        elif (decided := _decided(decision)) != (done := _done(promotion)):
            found.append(Misfit(at=at, expected=f"{decision.id}: {decided}", got=done))
        if promotion.previous_version != before:
            found.append(Misfit(at=at, expected=f"previous version {before}", got=f"{promotion.previous_version}"))
        before = promotion.model.version
    return found


def _decided(decision: Decision) -> str:
    return _moved(
        decision.details.get("version"),
        decision.details.get("previous_version"),
        format_instant(decision.at),
        decision.reason if decision.kind in ("promotion", "rollback") else decision.kind,
    )


def _done(promotion: Promotion) -> str:
    at = format_instant(promotion.effective_at)
    return _moved(promotion.model.version, promotion.previous_version, at, promotion.reason)


def _moved(version: int | None, previous: int | None, at: str, reason: str) -> str:
    return f"version {version} after {previous} from {at}: {reason}"


def _misplaced_alias(model: str | None, last: Promotion | None, alias: int | None) -> list[Misfit]:
    promoted = last.model.version if last else None
    if alias == promoted:
        return []
    expected = f"version {promoted}, the last promotion (a half-done move is completed by the next run of the job)"
    got = "no alias" if alias is None else f"version {alias}"
    return [Misfit(at=f"alias 'champion' of model {model!r}", expected=expected, got=got)]


def _read(records: Sequence[Record]) -> tuple[dict[str, Decision], list[tuple[Record, Promotion]], list[Misfit]]:
    """What the records say: decisions by id, promotions, and the records that cannot be read."""
    decisions, promotions, misfits = {}, [], []
    for record in records:
        payload = str(record.columns["payload"])
        try:
            if record.kind == "promotion":
                promotions.append((record, Promotion.model_validate_json(payload)))
            else:
                decision = Decision.model_validate_json(payload)
                decisions[decision.id] = decision
        except ValueError as err:
            misfits.append(Misfit(at=str(record), expected=f"a {record.kind}", got=str(err).splitlines()[0]))
    return decisions, promotions, misfits


def _position(text: str) -> int:
    first = text.partition(":")[0]
    return int(first) if first.isdecimal() else -1
