"""What is in quarantine, and the second look at it once the cause is mended."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from pipeline.errors import NoData
from pipeline.reports import QuarantinedReason, QuarantineSummary
from pipeline.schema import QUARANTINE_COLUMNS
from pipeline.steps import plan, score

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pipeline.intervals import Interval
    from pipeline.reports import Manifest
    from pipeline.steps.context import JobContext

_EXAMPLES = 5


def summarise(ctx: JobContext, manifests: Sequence[Manifest]) -> QuarantineSummary:
    """The quarantined rows of the given partitions by reason, most rows first, and their rejected files.

    Counts come from the manifests; example values from the quarantine file of the reason's last interval.
    """
    by_reason: dict[str, list[Manifest]] = {}
    for manifest in manifests:
        for reason in manifest.reasons:
            by_reason.setdefault(reason, []).append(manifest)
    reasons = [_reason(ctx, reason, found) for reason, found in by_reason.items()]
    return QuarantineSummary(
        job=ctx.job.name,
        intervals=len(manifests),
        rows_in=sum(manifest.rows_in for manifest in manifests),
        rows_quarantined=sum(manifest.rows_quarantined for manifest in manifests),
        reasons=tuple(sorted(reasons, key=lambda found: (-found.rows, found.reason))),
        rejected_files=tuple(file for manifest in manifests for file in manifest.rejected_files),
    )


def replay(ctx: JobContext, interval: Interval) -> Manifest:
    """The manifest of a published interval after all of its rows were validated and scored again by the same version.

    For a rule that was corrected, or a file that was mended or could not be read in time. Publishes a superseding
    partition when anything comes out otherwise, else ``status`` is ``unchanged``. Raises what `pipeline.steps.changes.restate`
    raises.
    """
    manifest = ctx.published(interval)
    other = plan.challenger_of(ctx, manifest)
    made = plan.plan(ctx, interval, model=manifest.model_version, challenger=other, quiet=manifest.quiet)
    return score.score(ctx, made, again=True)


def _reason(ctx: JobContext, reason: str, manifests: Sequence[Manifest]) -> QuarantinedReason:
    latest = manifests[-1]
    return QuarantinedReason(
        reason=reason,
        rows=sum(manifest.reasons[reason] for manifest in manifests),
        intervals=len(manifests),
        first=manifests[0].start,
        last=latest.start,
        examples=tuple(value for value, _ in Counter(_values(ctx, latest, reason)).most_common(_EXAMPLES)),
    )


def _values(ctx: JobContext, manifest: Manifest, reason: str) -> Iterator[str]:
    """The offending values as text; none when the quarantine file was removed by hand."""
    try:
        rows = ctx.storage.read(ctx.target("quarantine", manifest.interval).uri)
    except NoData:
        return
    # The checker puts its own columns last, under names that the raw columns do not have.
    _, code, value = rows.column_names[-len(QUARANTINE_COLUMNS) :]
    for found, offending in zip(rows[code].to_pylist(), rows[value].to_pylist(), strict=True):
        if found == reason:
            yield "null" if offending is None else offending
