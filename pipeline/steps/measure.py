"""Metrics of one published interval: its predictions joined with the labels that had arrived."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import engine, metrics
from pipeline.errors import ContractViolation
from pipeline.intervals import format_instant
from pipeline.job import Column
from pipeline.metrics import Measured, Outcomes
from pipeline.policies import METRICS
from pipeline.steps import kept, labels, plan, user_metrics, validate
from pipeline.steps.context import LABEL
from pipeline.steps.sampling import KeySample
from pipeline.verdicts import SliceMetric

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from datetime import datetime

    from numpy.typing import NDArray

    from pipeline.metrics import UserMetric
    from pipeline.registry import LoadedModel
    from pipeline.reports import Manifest
    from pipeline.steps.context import JobContext

ALL = "all"
_AS_TEXT = Column(type="category")
# The hashes of some rows, and per column of the slices their levels.
_Piece = tuple["NDArray[Any]", dict[str, "NDArray[Any]"]]
# Slices of one column at most; the rows of rarer levels are measured together.
_MOST_LEVELS = 100


@dataclass(frozen=True, slots=True)
class Labelled:
    """The labelled rows of an interval out of ``rows`` that were looked at.

    ``files`` and ``pending`` tell when another look can find more: once the label files are others than these, or at that
    instant.
    """

    table: pa.Table
    rows: int
    files: str
    pending: datetime | None


def of_champion(table: pa.Table) -> pa.Table:
    """The rows that the champion scored: all but those of a rollout's challenger."""
    if "variant" not in table.column_names:
        return table
    return table.filter(pc.equal(table["variant"], engine.CHAMPION))


def labelled(ctx: JobContext, manifest: Manifest, as_of: datetime) -> Labelled | None:
    """The published rows of the interval whose label had arrived; ``None`` while there is no label file.

    At most ``performance.max_rows`` rows are looked at. A feed that stopped leaves many intervals to look at again and
    again: that costs no more than a listing each. Raises `ContractViolation` when the published file is not the one that
    the manifest records, or labels cannot be used.
    """
    files = labels.state(ctx, manifest.interval)
    if not files:
        return None
    predictions = _predictions(ctx, manifest)
    found = labels.joined(ctx, predictions, manifest.interval, as_of)
    return Labelled(found.rows, predictions.num_rows, files, found.pending)


def measure(
    ctx: JobContext, manifest: Manifest, model: LoadedModel, table: pa.Table, extra: Mapping[str, UserMetric]
) -> tuple[Measured, tuple[SliceMetric, ...]]:
    """The job's metric over the labelled rows of ``table``; and every metric over them, and the job's over each slice.

    ``table`` holds rows of one version only.

    Raises `ContractViolation` for labels that cannot be classes of the model.
    """
    job, found = ctx.job, outcomes(ctx, table, model)
    overall = {name: metrics.measure(name, found) for name in METRICS[job.task]}
    rows = [_slice(name, ALL, value, len(found)) for name, value in overall.items()]
    rows += user_metrics.measure(extra, found, seed=job.model.seed)
    rows += _slices(ctx, found, _slice_levels(ctx, manifest, table))
    return overall[job.metric], tuple(rows)


def _predictions(ctx: JobContext, manifest: Manifest) -> pa.Table:
    """Key, time, prediction and score columns of the published rows, at most ``performance.max_rows`` of them."""
    job = ctx.job
    files = ctx.inputs.files(f"{ctx.output}/predictions", [job.output_partition(manifest.interval)])
    if [file.sha256 for file in files] != [manifest.sha256]:
        raise ContractViolation(
            f"job {job.name!r}: the published file of {manifest.interval} is not the one that its manifest records",
            expected=f"one file with sha256 {manifest.sha256}",
            got=", ".join(f"sha256 {file.sha256}" for file in files) or "no file",
            next_step=f"pipeline score {job.name} --start {format_instant(manifest.start)} publishes it again",
        )

    def read() -> pa.Table:
        names = [name for name in ctx.inputs.schema(files[0]).names if name != "model_version"]
        sample = KeySample(job.features.key, job.performance.max_rows, job.model.seed)
        for batch in ctx.inputs.batches(files, names):
            sample.add(batch)
        table = sample.table()
        return ctx.storage.read(manifest.path, names) if table is None else table

    sampled = (job.features.key, job.performance.max_rows, job.model.seed)
    return kept.with_small(ctx, manifest, "predictions", read, sampled)


def outcomes(ctx: JobContext, joined: pa.Table, model: LoadedModel) -> Outcomes:
    """The outcomes of published rows that have been joined with their labels.

    Raises `ContractViolation` for labels that cannot be classes of the model.
    """
    if ctx.job.task == "regression":
        return Outcomes(joined[LABEL].to_numpy(), joined["prediction"].to_numpy())
    names = [name for name in joined.column_names if name == "score" or name.startswith("score_")]
    scores = np.column_stack([joined[name].to_numpy() for name in names])
    if ctx.job.task == "binary":
        scores = np.column_stack([1 - scores, scores])
    classes = tuple(np.asarray(model.estimator.classes_).tolist())
    truth = joined[LABEL].to_numpy()
    known = pa.array(classes)
    strange = sorted({str(v) for v in pc.unique(joined[LABEL]).to_pylist()} - {str(v) for v in classes})
    if joined[LABEL].type != known.type or (strange and ctx.job.task == "binary"):
        raise ContractViolation(
            f"job {ctx.job.name!r}: the labels in column {ctx.job.labels.column!r} are no classes of version "
            f"{model.ref.version}",
            expected=f"{known.type} values {', '.join(map(str, classes))}",
            got=f"{joined[LABEL].type} values {', '.join((strange or [str(v) for v in truth])[:5])}",
            next_step=f"fix the labels, or train on the new ones: pipeline retrain {ctx.job.name} --as-of T --reason TEXT",
        )
    return Outcomes(truth, joined["prediction"].to_numpy(), scores, classes)


def _slices(ctx: JobContext, found: Outcomes, levels: Mapping[str, NDArray[Any]]) -> Iterator[SliceMetric]:
    """The job's metric on every slice; one with fewer than ``performance.min_slice`` rows has no value."""
    metric = ctx.job.metric
    for column, values in levels.items():
        counts = Counter(values.tolist())
        named = sorted(counts, key=lambda level: (-counts[level], level))[:_MOST_LEVELS]
        parts = {level: values == level for level in sorted(named)}
        if len(named) < len(counts):
            parts["(other)"] = ~np.isin(values, named)
        for level, mask in parts.items():
            part = found.take(mask)
            is_enough = len(part) >= ctx.job.performance.min_slice
            value = metrics.measure(metric, part) if is_enough else Measured(None)
            yield _slice(metric, f"{column}={level}", value, len(part))


def _slice(metric: str, name: str, found: Measured, n: int) -> SliceMetric:
    return SliceMetric(metric=metric, slice=name, value=found.value, n=n, low=found.low, high=found.high)


def _slice_levels(ctx: JobContext, manifest: Manifest, joined: pa.Table) -> dict[str, NDArray[Any]]:
    """Per column of ``performance.slices`` the level of each row, as text; read again from the input."""
    job = ctx.job
    if not job.performance.slices:
        return {}
    order = np.argsort(hashes := engine.row_hashes(joined, job.features.key))
    ordered = hashes[order]
    levels = {name: np.full(joined.num_rows, "(null)", dtype=object) for name in job.performance.slices}
    for asked, texts in _pieces(ctx, manifest, ordered):
        at = np.minimum(np.searchsorted(ordered, asked), len(ordered) - 1)
        mine = ordered[at] == asked
        for name, values in levels.items():
            held = mine & np.array([text is not None for text in texts[name]], dtype=bool)
            values[order[at[held]]] = texts[name][held]
    return levels


def _pieces(ctx: JobContext, manifest: Manifest, wanted: NDArray[Any]) -> Iterable[_Piece]:
    """The levels of the interval's rows; of a large one only those of rows with one of the ``wanted`` hashes."""
    if manifest.rows_in > kept.SMALL:
        return _read_levels(ctx, manifest, wanted)
    read = (ctx.job.performance.slices, tuple(ctx.job.features.columns.items()))
    return kept.with_small(ctx, manifest, "levels", lambda: list(_read_levels(ctx, manifest, None)), read)


def _read_levels(ctx: JobContext, manifest: Manifest, wanted: NDArray[Any] | None) -> Iterator[_Piece]:
    job = ctx.job
    for batch in validate.accepted(ctx, manifest.interval, plan.scored_files(ctx, manifest.interval)):
        hashes, rows = engine.row_hashes(batch, job.features.key), batch
        if wanted is not None:
            kept = np.flatnonzero(np.isin(hashes, wanted))
            hashes, rows = hashes[kept], batch.take(pa.array(kept))
        frame = engine.to_frame(rows, dict.fromkeys(job.performance.slices, _AS_TEXT))
        yield hashes, {name: frame[name].to_numpy() for name in job.performance.slices}
