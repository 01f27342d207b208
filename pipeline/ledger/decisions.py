"""Decisions and promotions in the ledger: recorded as links of their job's chain, and how they are asked for."""

from __future__ import annotations

from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from pipeline.ledger import chain, glance, moves
from pipeline.ledger.database import decisions, promotions
from pipeline.ledger.instants import microseconds
from pipeline.ledger.session import Session
from pipeline.reports import Decision, Promotion

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from datetime import datetime

    from pipeline.chain import Record
    from pipeline.ledger.glance import Glance
    from pipeline.reports import DecisionKind


class Decisions(Session):
    """What of a ledger concerns decisions and promotions; see `pipeline.ledger.Ledger`."""

    def record_decision(self, decision: Decision) -> None:
        """Record a decision; one with a known id is the same decision and is not recorded again."""
        values = {"decision": decision.id, "kind": decision.kind, "at": microseconds(decision.at)}
        with self._writing() as connection:
            if connection.execute(_named(decision.id)).first() is None:
                chain.append(connection, "decision", self._row(decision.job, decision, values))

    def decision(self, id: str) -> Decision | None:
        """The decision with that id; ``None`` when there is none."""
        found = self._read(Decision, _named(id))
        return found[0] if found else None

    def decisions(
        self,
        job: str | None = None,
        *,
        kind: DecisionKind | Sequence[DecisionKind] | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        last: int | None = None,
    ) -> list[Decision]:
        """All decisions, or those of one job and kind(s) with ``since <= at <= until``, in order of recording.

        Only the ``last`` n recorded of them.
        """
        bounds = [None if instant is None else microseconds(instant) for instant in (since, until)]
        return self._read(Decision, _narrowed(job, kind, *bounds).limit(last))[::-1]

    def record_promotion(self, promotion: Promotion) -> None:
        """Record a move of the champion alias, unless it equals the one recorded last for the job."""
        with self._writing() as connection:
            payload = connection.scalar(_promoted(is_one=True), {"job": promotion.job})
            if payload is None or Promotion.model_validate_json(payload) != promotion:
                values = {"effective_at": microseconds(promotion.effective_at)}
                chain.append(connection, "promotion", self._row(promotion.job, promotion, values))

    def promotions(self, job: str) -> list[Promotion]:
        """The job's promotions in order of recording; the alias belongs to the version of the last one."""
        return self._read(Promotion, _promoted(), {"job": job})[::-1]

    def champion(self, job: str, at: datetime | None = None) -> Promotion | None:
        """The promotion in effect at ``at``: of those effective by then the one recorded last; without ``at``, of all.

        A promotion rules from its ``effective_at`` on, over whatever was recorded before it.
        """
        asked = {"job": job} if at is None else {"job": job, "at": microseconds(at)}
        found = self._read(Promotion, _promoted(is_bounded=at is not None, is_one=True), asked)
        return found[0] if found else None

    def head(self, job: str) -> tuple[int, str]:
        """Position and link of the job's latest decision or promotion; 0 and an empty text before the first one."""
        with self._answering("reading"), self._engine.connect() as connection:
            return chain.head(connection, job)

    def records(self, job: str) -> list[Record]:
        """The job's decisions and promotions as they are stored, in order of recording."""
        with self._answering("reading"), self._engine.connect() as connection:
            return chain.records(connection, job)

    def jobs(self) -> list[str]:
        """The names of the jobs that decided anything, sorted."""
        with self._answering("reading"), self._engine.connect() as connection:
            return sorted(connection.scalars(chain.jobs()))

    def glances(self, jobs: Sequence[str], *, decided: int, rollouts: int) -> dict[str, Glance]:
        """What the ledger knows of the present state of each job; see `pipeline.ledger.glance.glances`."""
        with self._answering("reading"), self._engine.connect() as connection:
            return glance.glances(connection, jobs, decided=decided, rollouts=rollouts)

    @contextmanager
    def moving(self, job: str) -> Iterator[None]:
        """Nobody else, in whatever process, moves the job's champion meanwhile; the lock ends with its process.

        Not to be nested. Raises `PromotionConflict` when somebody else is at it for longer than a minute.
        """
        with self._answering("being locked"):
            lock = moves.acquire(self._engine, job)
        try:
            yield
        finally:
            lock.close()


def _narrowed(
    job: str | None, kind: DecisionKind | Sequence[DecisionKind] | None, since: int | None, until: int | None
) -> sa.Select[Any]:
    """The payloads of decisions, the one recorded last first; times in microseconds, ``None`` asks for all."""
    query, order = sa.select(decisions.c.payload), decisions.c.id.desc()
    if job is not None:
        query = query.where(decisions.c.job == job)
    if isinstance(kind, str):
        query = query.where(decisions.c.kind == kind)
    elif kind is not None:
        # Their few rows are sorted: in the order of ids they would be looked for among those of all kinds.
        query, order = query.where(decisions.c.kind.in_(kind)), (decisions.c.id + 0).desc()
    if since is not None:
        query = query.where(decisions.c.at >= since)
    if until is not None:
        query = query.where(decisions.c.at <= until)
    return query.order_by(order)


def _named(id: str) -> sa.Select[Any]:
    """The payload of the decision with that id."""
    return sa.select(decisions.c.payload).where(decisions.c.decision == id)


@cache
def _promoted(*, is_bounded: bool = False, is_one: bool = False) -> sa.Select[Any]:
    """The payloads of a ``job``'s promotions effective by ``at`` (microseconds), the one recorded last first, or alone."""
    query = sa.select(promotions.c.payload).where(promotions.c.job == sa.bindparam("job"))
    if is_bounded:
        # From the latest one back, not over all that were effective by then.
        query = query.where(promotions.c.effective_at + 0 <= sa.bindparam("at"))
    query = query.order_by(promotions.c.id.desc())
    return query.limit(1) if is_one else query
