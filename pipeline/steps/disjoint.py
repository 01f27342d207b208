"""Prove that the rows on which models are compared are none of those that they have learnt from."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pipeline import engine
from pipeline.intervals import format_instant

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pyarrow as pa
    from numpy.typing import NDArray

    from pipeline.registry import LoadedModel
    from pipeline.steps.context import JobContext


def identities(ctx: JobContext, rows: pa.Table) -> NDArray[np.uint64]:
    """A 64-bit identity per row, ascending: of its key and its event time, whatever partition delivered it."""
    return np.sort(_identities(ctx, rows))


def overlap(ctx: JobContext, rows: pa.Table, models: Sequence[LoadedModel]) -> str:
    """The first of the rows that one of the models was trained on, in words; empty when there is none.

    Models of before identities were kept have none: of those the training window alone speaks.
    """
    found = _identities(ctx, rows)
    for model in models:
        known = model.learnt
        at = np.minimum(np.searchsorted(known, found), max(len(known) - 1, 0))
        shared = np.flatnonzero(known[at] == found) if len(known) else np.empty(0, dtype=np.intp)
        if len(shared):
            row = rows.slice(int(shared[0]), 1).to_pylist()[0]
            named = ", ".join(f"{name} = {row[name]!r}" for name in ctx.job.features.key)
            time = format_instant(row[ctx.job.features.time])
            return (
                f"{len(shared)} of {rows.num_rows} rows to compare on are among those that version {model.ref.version} was "
                f"trained on; the first is {named} at {time}"
            )
    return ""


def _identities(ctx: JobContext, rows: pa.Table) -> NDArray[np.uint64]:
    found: NDArray[np.uint64] = engine.row_hashes(rows, [*ctx.job.features.key, ctx.job.features.time])
    return found
