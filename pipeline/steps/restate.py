"""Republish the partitions that a withdrawn version had scored."""

from __future__ import annotations

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
    return [m for m in ctx.ledger.manifests(ctx.job.name) if m.model_version == version and m.end >= since]


def restate(ctx: JobContext, manifests: list[Manifest], version: int) -> list[Manifest]:
    """Score the given partitions again with ``version`` and publish them as superseding files; oldest first."""
    return [score.score(ctx, plan.plan(ctx, m.interval, model=version, quiet=True)) for m in manifests]
