"""Republish the partitions that a withdrawn version had scored."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.steps import plan, score

if TYPE_CHECKING:
    from datetime import datetime

    from pipeline.reports import Manifest
    from pipeline.steps.context import JobContext


def affected(ctx: JobContext, version: int, since: datetime) -> list[Manifest]:
    """The published partitions that ``version`` scored and that ended after ``since``: the blast radius."""
    return [m for m in ctx.ledger.manifests(ctx.job.name, since=since) if m.model_version == version]


def restate(ctx: JobContext, manifests: list[Manifest], version: int) -> list[Manifest]:
    """Score the given partitions again with ``version`` and publish them as superseding files; oldest first."""
    return [score.score(ctx, plan.plan(ctx, m.interval, model=version, quiet=True)) for m in manifests]
