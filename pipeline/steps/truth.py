"""The labels of an interval against those of the training: whether what happens has become another thing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from pipeline import detectors, drift, seasons, variation
from pipeline.steps.context import INTERVAL, LABEL
from pipeline.steps.sampling import KeySample

if TYPE_CHECKING:
    from datetime import datetime

    from pipeline.pooling import Kinds
    from pipeline.registry import LoadedModel
    from pipeline.reports import Manifest
    from pipeline.steps.context import JobContext
    from pipeline.verdicts import ColumnDrift

# How far back reports are looked for: some intervals may have had too few labels to be compared.
_BACK = 10


def compare(
    ctx: JobContext, model: LoadedModel, manifest: Manifest, labelled: pa.Table, as_of: datetime
) -> ColumnDrift | None:
    """The labels as a column of the drift report, judged like one: it drifts once it moved in several intervals.

    They are compared with the training labels of the same season. ``None`` when the model travels without labels.
    """
    job, reference = ctx.job, model.reference
    if not {LABEL, INTERVAL} <= set(reference.column_names) or not labelled.num_rows:
        return None
    reference = reference.filter(reference[LABEL].is_valid())
    kinds: Kinds = {job.labels.column: "number" if job.task == "regression" else "category"}
    starts = reference[INTERVAL].to_numpy()
    season, alike = seasons.alike(
        seasons.ladder(job.drift.reference, job.cadence, 1),
        starts,
        seasons.starts_of([manifest.start]),
        min_intervals=job.drift.reference.min_intervals,
        min_rows=job.drift.min_rows,
    )
    own = reference.filter(pa.array(alike))
    known, seen = _sample(ctx, own), _sample(ctx, _few(ctx, labelled))
    policy = job.drift.model_copy(update={"window": 1, "thresholds": {}})
    (found,) = drift.columns(
        policy,
        reference=known,
        current=seen,
        kinds=kinds,
        roles={job.labels.column: "label"},
        p_values=detectors.detector(policy.detector).p_values(known, seen, kinds)
        if labelled.num_rows >= policy.min_rows
        else {},
        natural=variation.natural(policy, known, kinds, own[INTERVAL].to_numpy(), season),
        earlier=[[column] for column in _earlier(ctx, manifest, as_of)],
        seed=job.model.seed,
    )
    return found


def _sample(ctx: JobContext, rows: pa.Table) -> dict[str, np.ndarray[Any, Any]]:
    if ctx.job.task == "regression":
        return {ctx.job.labels.column: rows[LABEL].to_numpy()}
    return {ctx.job.labels.column: np.array([str(value) for value in rows[LABEL].to_pylist()], dtype=object)}


def _few(ctx: JobContext, rows: pa.Table) -> pa.Table:
    sample = KeySample(ctx.job.features.key, ctx.job.drift.sample_rows, ctx.job.model.seed)
    sample.add(rows)
    return sample.table()


def _earlier(ctx: JobContext, manifest: Manifest, as_of: datetime) -> list[ColumnDrift]:
    """The labels of the latest intervals before, oldest first, that were scored by the same model."""
    policy = ctx.job.drift
    since = ctx.job.cadence.shift(manifest.start, -_BACK * policy.of_last)
    found = [
        report.label
        for report in ctx.ledger.performance(ctx.job.name, since=since, as_of=as_of)
        if report.end <= manifest.start and report.model_version == manifest.model_version and report.label is not None
    ]
    return found[-(policy.of_last - 1) :] if policy.of_last > 1 else []
