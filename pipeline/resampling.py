"""A metric under resampling of whole blocks of rows: what a block adds is computed once, a replicate costs a few products.

Pure functions of numpy arrays; no result depends on the order of rows beyond the rounding of sums.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from pipeline import grouped
from pipeline.metrics import Outcomes, class_codes, row_losses

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.policies import MetricName

    Floats = NDArray[np.float64]


class Totals(Protocol):
    """What the blocks of one model's outcomes add to a metric."""

    def values(self, drawn: Floats) -> Floats:
        """The metric of every replicate ``(replicates,)``, NaN where undefined.

        ``drawn`` ``(replicates, blocks)`` says how often each block is in a replicate.
        """


def totals(metric: MetricName, outcomes: Outcomes, block: NDArray[np.intp], blocks: int) -> Totals:
    """The totals of a metric that decides; ``block`` ``(n,)`` is the block of each row, from 0 to ``blocks`` - 1.

    roc_auc is that within blocks (`pipeline.grouped`).
    """
    if metric == "roc_auc":
        ranking = grouped.ranking(outcomes, block, blocks)
        return _Means(ranking.areas * ranking.weights, ranking.weights, False)
    if metric == "macro_f1":
        happened, predicted, count = class_codes(outcomes)
        shape, hit = (blocks, count), happened == predicted
        tables = [
            np.bincount(block[rows] * count + codes[rows], minlength=blocks * count).reshape(shape).astype(np.float64)
            for codes, rows in ((happened, hit), (happened, slice(None)), (predicted, slice(None)))
        ]
        return _Confusions(tables[0], tables[1] + tables[2])
    sums = np.asarray(np.bincount(block, row_losses(metric, outcomes), blocks), dtype=np.float64)
    return _Means(sums, np.bincount(block, minlength=blocks) * 1.0, metric == "rmse")


@dataclass(frozen=True, slots=True)
class _Means:
    """A weighted mean, or its root, from sums and weights per block."""

    sums: Floats
    sizes: Floats
    is_root: bool

    def values(self, drawn: Floats) -> Floats:
        with np.errstate(invalid="ignore"):
            means: Floats = (drawn @ self.sums) / (drawn @ self.sizes)
        return np.sqrt(means) if self.is_root else means


@dataclass(frozen=True, slots=True)
class _Confusions:
    """macro_f1 from counts per block and class; a class that a replicate lacks is left out of it."""

    hits: Floats
    sizes: Floats

    def values(self, drawn: Floats) -> Floats:
        hits, sizes = drawn @ self.hits, drawn @ self.sizes
        scores = np.divide(2 * hits, sizes, out=np.zeros_like(hits), where=sizes > 0)
        found: Floats = scores.sum(axis=1) / (sizes > 0).sum(axis=1)
        return found
