"""Champion and challenger of a rollout beside each other on one matured interval."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import breakage, engine, metrics
from pipeline.errors import TerminalError
from pipeline.intervals import Interval
from pipeline.policies import HIGHER_IS_BETTER
from pipeline.steps import measure, plan, variants
from pipeline.steps.context import LABEL
from pipeline.steps.sampling import KeySample
from pipeline.verdicts import Arms, SliceMetric

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.metrics import Measured
    from pipeline.registry import LoadedModel
    from pipeline.reports import Challenger, Manifest
    from pipeline.steps.context import JobContext

# A 95 % interval reaches so many standard errors to either side.
_NORMAL_95 = 1.959963984540054
# A deviation between fewer intervals is hardly known.
_FEWEST = 7


def compared(ctx: JobContext, manifest: Manifest, model: LoadedModel, labelled: pa.Table) -> Arms | None:
    """Both versions on the interval's labelled rows; ``None`` when no challenger took part in it.

    ``labelled`` holds the published rows of both arms with their labels, ``model`` is the champion. Of a split partition
    each version is measured on its own rows, and the assignment of every row is checked; of a shadow on all rows. Raises
    `ContractViolation` for labels that cannot be classes of the model.
    """
    challenger = plan.challenger_of(ctx, manifest)
    if challenger is None:
        return None
    if challenger.kind == "shadow":
        return _beside(ctx, manifest, challenger, model, labelled)
    fault = manifest.challenger_fault
    if fault or labelled.num_rows == 0:
        return _arms(ctx, manifest, challenger, fault=fault)
    mine = variants.is_challengers(labelled, challenger)
    told = pc.equal(labelled["variant"], engine.CHALLENGER).to_numpy()
    strange = int(np.count_nonzero(mine != told))
    if strange:
        fault = f"{strange} of {len(mine)} labelled rows were scored by the version that their key does not belong to"
    sides = [_measured(ctx, model, labelled.filter(pa.array(side))) for side in (~told, told)]
    hashes = engine.row_hashes(labelled, challenger.key)
    _, first = np.unique(hashes, return_index=True)
    return _arms(
        ctx,
        manifest,
        challenger,
        champion=sides[0],
        challengers=sides[1],
        rows=(int(np.count_nonzero(~told)), int(np.count_nonzero(told))),
        entities=(len(first), int(np.count_nonzero(told[first]))),
        sketch=breakage.sketch(hashes),
        by_day=_by_day(ctx, model, challenger),
        fault=fault,
    )


def slices(ctx: JobContext, found: Arms | None) -> tuple[SliceMetric, ...]:
    """Both arms as slices of the job's metric, ``variant=champion`` and ``variant=challenger``."""
    if found is None:
        return ()
    both = (
        (engine.CHAMPION, found.champion, found.n_champion),
        (engine.CHALLENGER, found.challenger, found.n_challenger),
    )
    return tuple(SliceMetric(metric=ctx.job.metric, slice=f"variant={name}", value=v, n=n) for name, v, n in both)


def _beside(
    ctx: JobContext, manifest: Manifest, challenger: Challenger, model: LoadedModel, labelled: pa.Table
) -> Arms | None:
    """A shadow's rows are not the published ones: they are found by key in a file of their own."""
    target = ctx.target("shadow", manifest.interval)
    known = ctx.storage.current(target).metadata or {}
    if known.get("fingerprint") != plan.shadow_fingerprint(manifest.fingerprint, challenger):
        # Nothing, or what stood beside an earlier version of the partition.
        return None
    if known["fault"]:
        return _arms(ctx, manifest, challenger, fault=known["fault"])
    key = ctx.job.features.key
    sample = KeySample(key, ctx.job.performance.max_rows, ctx.job.model.seed)
    files = ctx.inputs.files(f"{ctx.output}/shadow", [ctx.job.output_partition(manifest.interval)])
    for batch in ctx.inputs.batches(
        files, [name for name in ctx.inputs.schema(files[0]).names if name != "model_version"]
    ):
        sample.add(batch)
    shadow = sample.table()
    rows = _places(engine.row_hashes(labelled, key), engine.row_hashes(shadow, key)) if shadow is not None else None
    if shadow is None or rows is None:
        return None
    table = shadow.take(pa.array(rows)).append_column(LABEL, labelled[LABEL])
    n = labelled.num_rows
    return _arms(
        ctx,
        manifest,
        challenger,
        champion=_measured(ctx, model, labelled),
        challengers=_measured(ctx, model, table),
        rows=(n, n),
    )


def _places(wanted: NDArray[np.uint64], known: NDArray[np.uint64]) -> NDArray[np.intp] | None:
    """Where each of the wanted hashes is among the known ones; ``None`` when one is not."""
    if len(known) == 0:
        return None if len(wanted) else np.empty(0, dtype=np.intp)
    order = np.argsort(known)
    at = np.minimum(np.searchsorted(known, wanted, sorter=order), len(order) - 1)
    places: NDArray[np.intp] = order[at]
    return places if np.array_equal(known[places], wanted) else None


def _measured(ctx: JobContext, model: LoadedModel, table: pa.Table) -> Measured:
    return metrics.measure(ctx.job.metric, measure.outcomes(ctx, table, model))


def _arms(
    ctx: JobContext,
    manifest: Manifest,
    challenger: Challenger,
    *,
    champion: Measured | None = None,
    challengers: Measured | None = None,
    rows: tuple[int, int] = (0, 0),
    entities: tuple[int, int] = (0, 0),
    sketch: tuple[int, ...] = (),
    by_day: float | None = None,
    fault: str = "",
) -> Arms:
    old, new = (side.value if side else None for side in (champion, challengers))
    sign = 1.0 if HIGHER_IS_BETTER[ctx.job.metric] else -1.0
    gain = sign * (new - old) if old is not None and new is not None else None
    error = None
    if challenger.kind != "shadow" and champion and challengers:
        errors = [found for side in (champion, challengers) if (found := _error(side)) is not None]
        error = math.hypot(*errors) if len(errors) == 2 else None
        # Without its error a gain cannot be weighed against luck of the split.
        gain = gain if error is not None else None
    return Arms(
        start=manifest.start,
        end=manifest.end,
        salt=challenger.salt,
        share=challenger.share,
        champion=old,
        challenger=new,
        gain=gain,
        error=error,
        by_day=by_day,
        n_champion=rows[0],
        n_challenger=rows[1],
        entities=entities[0],
        assigned=entities[1],
        sketch=sketch,
        fault=fault,
    )


def _by_day(ctx: JobContext, model: LoadedModel, challenger: Challenger) -> float | None:
    """What the gain varies by from interval to interval at most: as much as both versions together did at training.

    ``None`` when the holdout of either had too few intervals to tell, or was measured by another metric.
    """
    try:
        profiles = (model.profile, ctx.load(challenger.model.version).profile)
    except TerminalError:  # the challenger's own trouble, which scoring reports
        return None
    held = [len(list(ctx.job.cadence.split(Interval(found.train_end, found.holdout_end)))) for found in profiles]
    both = [found.baseline for found in profiles]
    is_known = all(found.metric == ctx.job.metric and found.spread > 0 for found in both)
    return sum(found.spread for found in both) if is_known and min(held) >= _FEWEST else None


def _error(found: Measured) -> float | None:
    return None if found.low is None or found.high is None else (found.high - found.low) / (2 * _NORMAL_95)
