"""Republish the partitions that a withdrawn version had scored, as champion or as challenger of a rollout."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from pipeline.errors import TerminalError
from pipeline.steps import champion, plan, score

if TYPE_CHECKING:
    from datetime import datetime

    from pipeline.reports import Manifest, ModelRef, Promotion
    from pipeline.steps.context import JobContext

_LOG = logging.getLogger(__name__)
# A run that had planned before a withdrawal publishes after it, and a restatement may be interrupted. So many intervals, but
# at least so long, the loop looks for what is left; then a withdrawal of long ago costs it nothing any more.
_INTERVALS, _AT_LEAST = 14, timedelta(days=14)


@dataclass(frozen=True, slots=True)
class Withdrawal:
    """A rollback before it is done: the promotion that it undoes, the model that rules then, the partitions to restate."""

    withdrawn: Promotion
    back: ModelRef
    affected: list[Manifest]


def withdrawal(ctx: JobContext, *, restated: bool) -> Withdrawal:
    """What a rollback means now; with ``restated`` an unfinished restatement comes before any further step back.

    Raises `InvalidRequest` when there is no earlier champion.
    """
    undone = champion.withdrawn(ctx) if restated else None
    if undone and (left := affected(ctx, undone.model.version, undone.effective_at)):
        return Withdrawal(undone, champion.current(ctx), left)
    withdrawn, standing = champion.withdrawable(ctx)
    found = affected(ctx, withdrawn.model.version, withdrawn.effective_at) if restated else []
    return Withdrawal(withdrawn, standing.model, found)


def affected(ctx: JobContext, version: int, since: datetime, until: datetime | None = None) -> list[Manifest]:
    """The published partitions of intervals from ``since`` on in which ``version`` had a part: the blast radius.

    An interval that ends at ``since`` is one of them: the models of an interval are those at its end.
    """
    ended_since = ctx.ledger.manifests(ctx.job.name, since=since - timedelta.resolution, ended_by=until)
    return [manifest for manifest in ended_since if version in (manifest.model_version, manifest.challenger_version)]


def is_fresh(ctx: JobContext, withdrawn_at: datetime, as_of: datetime) -> bool:
    """Whether a withdrawal is so recent that something of it may be left to do."""
    return as_of <= _over(ctx, withdrawn_at)


def left(ctx: JobContext, version: int, since: datetime, withdrawn_at: datetime) -> list[Manifest]:
    """What is `affected` by a version that was withdrawn at ``withdrawn_at``, and not restated yet."""
    return affected(ctx, version, since, _over(ctx, withdrawn_at))


def as_far_as_possible(ctx: JobContext, manifests: list[Manifest], version: int) -> list[Manifest]:
    """`restate` for the loop: a partition that cannot be made again, as when its input is gone, holds up no other one.

    It keeps its rows, an error in the log says so, and it is tried again as long as the withdrawal is fresh.
    """
    done = []
    for manifest in manifests:
        try:
            done += restate(ctx, [manifest], version)
        except TerminalError as error:
            _LOG.error("%s is not scored again by version %d: %s", manifest.interval, version, error)
    return done


def _over(ctx: JobContext, withdrawn_at: datetime) -> datetime:
    cadence = ctx.job.cadence
    return max(cadence.shift(cadence.floor(withdrawn_at), _INTERVALS), withdrawn_at + _AT_LEAST)


def restate(ctx: JobContext, manifests: list[Manifest], version: int) -> list[Manifest]:
    """The new manifests of the given partitions, scored again with ``version``, in the order given.

    Quietly where another version was their champion: what it would have done alarms nobody. The files they replace are kept.
    A partition that has that version already stays untouched; raises what scoring raises.
    """
    plans = ((m, m.quiet or m.model_version != version) for m in manifests)
    return [score.score(ctx, plan.plan(ctx, m.interval, model=version, quiet=quiet)) for m, quiet in plans]
