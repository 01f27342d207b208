"""Late and changed input: find the published intervals whose files are no longer those that were scored."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.steps import plan, score

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from pipeline.intervals import Interval
    from pipeline.reports import InputFile, Manifest
    from pipeline.steps.context import JobContext


def changed(ctx: JobContext, before: datetime) -> list[Interval]:
    """The published intervals that ended by ``before``, within ``features.lookback``, whose input grew or changed since.

    Looks at names, sizes and times first and reads only files that differ in one of them. A file that has only gone is
    no change: inputs are deleted after a while, and restating what is left would lose rows that were scored.
    """
    job, found = ctx.job, []
    for manifest in ctx.ledger.manifests(job.name, since=before - job.features.lookback, ended_by=before):
        planned = ctx.ledger.plan(job.name, manifest.interval, manifest.fingerprint)
        if planned and _new(plan.input_files(ctx, manifest.interval, planned.files), planned.files):
            found.append(manifest.interval)
    return found


def restate(ctx: JobContext, interval: Interval, *, quiet: bool = False) -> Manifest:
    """The manifest of a published interval, scored again from its present input by the version that had scored it.

    Quiet if the interval was published quietly. Raises `InvalidRequest` for one that was never published, and what
    planning and scoring raise; then the published partition stays as it is.
    """
    manifest = ctx.published(interval)
    other = plan.challenger_of(ctx, manifest)
    made = plan.plan(ctx, interval, model=manifest.model_version, challenger=other, quiet=quiet or manifest.quiet)
    return score.score(ctx, made)


def _new(present: Sequence[InputFile], planned: Sequence[InputFile]) -> bool:
    return bool({(file.path, file.sha256) for file in present} - {(file.path, file.sha256) for file in planned})
