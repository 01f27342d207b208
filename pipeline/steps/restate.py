"""Republish the partitions that a withdrawn version had scored."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from pipeline.steps import champion, plan, score

if TYPE_CHECKING:
    from datetime import datetime

    from pipeline.reports import Manifest, ModelRef, Promotion
    from pipeline.steps.context import JobContext


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


def affected(ctx: JobContext, version: int, since: datetime) -> list[Manifest]:
    """The published partitions that ``version`` scored as champion from ``since`` on: the blast radius.

    An interval that ends at ``since`` is one of them: the champion of an interval is the one at its end.
    """
    ended_since = ctx.ledger.manifests(ctx.job.name, since=since - timedelta.resolution)
    return [manifest for manifest in ended_since if manifest.model_version == version]


def restate(ctx: JobContext, manifests: list[Manifest], version: int) -> list[Manifest]:
    """The new manifests of the given partitions, scored again with ``version``, quietly and in the order given.

    The files they replace are kept. A partition that has that version already stays untouched; raises what scoring raises.
    """
    return [score.score(ctx, plan.plan(ctx, m.interval, model=version, quiet=True)) for m in manifests]
