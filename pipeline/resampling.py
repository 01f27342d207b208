"""A metric under resampling of whole blocks of rows: what a block adds is computed once, a replicate costs a few products.

Pure functions of numpy arrays; no result depends on the order of rows beyond the rounding of sums.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

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
    """The totals of a metric that decides; ``block`` ``(n,)`` is the block of each row, from 0 to ``blocks`` - 1."""
    if metric == "roc_auc":
        return _rank_totals(outcomes, block, blocks)
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


def _rank_totals(outcomes: Outcomes, block: NDArray[np.intp], blocks: int) -> _Ranks:
    scores, positive = positive_scores(outcomes), outcomes.truth == outcomes.classes[-1]
    ups, downs = (np.flatnonzero(rows) for rows in (positive, ~positive))
    # Ascending, so that neighbouring look-ups touch neighbouring memory.
    ups, downs = (rows[np.argsort(scores[rows])] for rows in (ups, downs))
    high, low, of_high, of_low = scores[ups], scores[downs], block[ups], block[downs]
    wins = np.empty((blocks, blocks))
    for number in range(blocks):
        wins[:, number] = np.bincount(of_high, below(low[of_low == number], high), blocks)
    return _Ranks(wins, np.bincount(of_high, minlength=blocks) * 1.0, np.bincount(of_low, minlength=blocks) * 1.0)


def positive_scores(outcomes: Outcomes) -> Floats:
    """The score of the last class per row."""
    assert outcomes.scores is not None  # roc_auc is a metric of classification only
    return np.asarray(outcomes.scores[:, -1], dtype=np.float64)


def below(others: Floats, scores: Floats) -> NDArray[np.int64]:
    """Per score how many of the ascending others lie below it, twice, so that ties can count one half."""
    return np.searchsorted(others, scores, side="left") + np.searchsorted(others, scores, side="right")


@dataclass(frozen=True, slots=True)
class _Means:
    """A mean of rows, or its root, from sums per block."""

    sums: Floats
    sizes: Floats
    is_root: bool

    def values(self, drawn: Floats) -> Floats:
        means: Floats = (drawn @ self.sums) / (drawn @ self.sizes)
        return np.sqrt(means) if self.is_root else means


@dataclass(frozen=True, slots=True)
class _Ranks:
    """roc_auc from ``wins[a, b]``: twice the pairs of a positive of block a that outranks a negative of block b."""

    wins: Floats
    ups: Floats
    downs: Floats

    def values(self, drawn: Floats) -> Floats:
        with np.errstate(invalid="ignore"):
            areas: Floats = ((drawn @ self.wins) * drawn).sum(axis=1) / (2 * (drawn @ self.ups) * (drawn @ self.downs))
        return areas


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
