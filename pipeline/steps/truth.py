"""The labels of an interval against those of the training: whether what happens has become another thing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from pipeline import detectors, drift, seasons, variation
from pipeline.steps import kept
from pipeline.steps.context import INTERVAL, LABEL
from pipeline.steps.sampling import KeySample

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from pipeline.policies import Drift
    from pipeline.pooling import Kinds
    from pipeline.registry import LoadedModel
    from pipeline.reports import Manifest
    from pipeline.seasons import Season
    from pipeline.steps.context import JobContext
    from pipeline.verdicts import ColumnDrift, PerformanceReport


def compare(
    ctx: JobContext,
    model: LoadedModel,
    manifest: Manifest,
    labelled: pa.Table,
    before: Sequence[PerformanceReport],
) -> ColumnDrift | None:
    """The labels as a column of the drift report, judged like one: it drifts once it moved in several intervals.

    They are compared with the training labels of the same season; ``before`` are the reports on earlier intervals, oldest
    first. ``None`` when the model travels without labels.
    """
    job, policy = ctx.job, ctx.job.drift.model_copy(update={"window": 1, "thresholds": {}})
    if not {LABEL, INTERVAL} <= set(model.reference.column_names) or not labelled.num_rows:
        return None
    ladder = seasons.ladder(policy.reference, job.cadence, 1)
    (start,) = seasons.starts_of([manifest.start])
    cell = tuple(int(seasons.cells(season, np.array([start]))[0]) for season in ladder)
    known = kept.with_model(
        ctx,
        model,
        "labels",
        lambda: _known(ctx, model, policy, ladder, start),
        (job.labels.column, policy.model_dump_json(), ladder, cell),
    )
    kinds, seen = _kinds(ctx), _sample(ctx, _few(ctx, labelled))
    same = (report for report in before if report.model_version == manifest.model_version)
    (found,) = drift.columns(
        policy,
        reference=known.sample,
        current=seen,
        kinds=kinds,
        roles={job.labels.column: "label"},
        p_values=detectors.detector(policy.detector).p_values(known.sample, seen, kinds)
        if labelled.num_rows >= policy.min_rows
        else {},
        natural=known.natural,
        earlier=[[report.label] for report in same if report.label is not None],
        seed=job.model.seed,
    )
    return found


@dataclass(frozen=True, slots=True)
class _Known:
    """The training labels of a season, and what variation is natural to them."""

    sample: dict[str, NDArray[Any]]
    natural: Mapping[str, float]


def _known(ctx: JobContext, model: LoadedModel, policy: Drift, ladder: tuple[Season, ...], start: int) -> _Known:
    reference = model.reference.filter(model.reference[LABEL].is_valid())
    season, alike = seasons.alike(
        ladder,
        reference[INTERVAL].to_numpy(),
        np.array([start]),
        min_intervals=policy.reference.min_intervals,
        min_rows=policy.min_rows,
    )
    own = reference.filter(pa.array(alike))
    sample = _sample(ctx, own)
    return _Known(sample, variation.natural(policy, sample, _kinds(ctx), own[INTERVAL].to_numpy(), season))


def _kinds(ctx: JobContext) -> Kinds:
    return {ctx.job.labels.column: "number" if ctx.job.task == "regression" else "category"}


def _sample(ctx: JobContext, rows: pa.Table) -> dict[str, NDArray[Any]]:
    if ctx.job.task == "regression":
        return {ctx.job.labels.column: rows[LABEL].to_numpy()}
    return {ctx.job.labels.column: np.array([str(value) for value in rows[LABEL].to_pylist()], dtype=object)}


def _few(ctx: JobContext, rows: pa.Table) -> pa.Table:
    sample = KeySample(ctx.job.features.key, ctx.job.drift.sample_rows, ctx.job.model.seed)
    sample.add(rows)
    return sample.table()
