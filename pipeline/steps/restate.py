"""Republish the partitions that a withdrawn version had scored."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from pipeline.steps import plan, score

if TYPE_CHECKING:
    from datetime import datetime

    from pipeline.reports import Manifest
    from pipeline.steps.context import JobContext


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
