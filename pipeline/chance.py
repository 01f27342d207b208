"""What chance alone shows when two samples of one distribution are compared: moments of distances and divergences.

Everything is conditional on both samples put together, as in a permutation test: of ``k`` marked rows the number that falls
on one side is hypergeometric. No distribution is assumed, and rare categories and far tails are as right as the middle.
Pure functions of counts; must not know which column they come from.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import gammaincc, gammaln

Array = npt.NDArray[Any]
# The contribution of bins to a divergence, from their numbers of reference and of current rows.
Terms = Callable[[Array, Array], Array]

# From this many expected rows on, a count is summed over as if it were normal: the terms are smooth and the error is small.
_NORMAL_FROM = 25.0
_NODES = 81
_DOUBT = 0.05


@dataclass(frozen=True, slots=True)
class Noise:
    """A statistic under chance alone: its mean and the root of its second moment."""

    mean: float
    rms: float

    @property
    def deviation(self) -> float:
        """How much the statistic varies by chance: its standard deviation."""
        return math.sqrt(max(self.rms**2 - self.mean**2, 0.0))

    @property
    def left_over(self) -> float:
        """The mean square of what `without` leaves when there is nothing but noise.

        The statistic is taken for gamma distributed: distances are skewed.
        """
        if self.deviation <= 0:
            return 0.0
        shape = (self.mean / self.deviation) ** 2
        place = self.rms * self.mean / self.deviation**2
        return self.rms**2 * float(gammaincc(shape + 2, place) - gammaincc(shape, place))

    def without(self, value: float) -> float:
        """What is left of ``value`` when the noise is taken off in quadrature: ``sqrt(value^2 - rms^2)``, at least 0."""
        return value * math.sqrt(max(0.0, 1 - (self.rms / value) ** 2)) if value > self.rms else 0.0


@dataclass(frozen=True, slots=True)
class Moves:
    """A total variation distance in two parts: categories that moved beyond doubt, and all others.

    ``sure`` is the distance that the former make; as many rows as ``net`` must have come from or gone to the latter, whose
    distance is subject to ``noise``. Noise adds in quadrature to a move spread over many categories, but in full to a move
    of a few: those must not be charged with it, nor hide in it.
    """

    sure: float
    net: float
    noise: Noise

    @classmethod
    def of(cls, reference: Array, current: Array) -> Moves:
        """From rows per category; beyond doubt is what Bernstein's inequality allows in one of twenty comparisons."""
        rows, moved = int(reference.sum()), int(current.sum())
        pooled = reference + current
        apart = current / moved - reference / rows
        share = pooled / (rows + moved)
        variance = share * (1 - share) * (1 / rows + 1 / moved)
        limit = 2 * math.log(2 * len(apart) / _DOUBT) * (variance + np.abs(apart) / (3 * min(rows, moved)))
        is_sure = apart**2 > limit
        # fsum: the order of the categories must not show.
        sure, net = math.fsum(np.abs(apart[is_sure])), abs(math.fsum(apart[is_sure]))
        held = int(pooled[is_sure].sum())
        chance = math.sqrt(held * (rows + moved - held) / (rows * moved * max(rows + moved - 1, 1)))
        return cls(sure / 2, Noise(0.0, chance).without(net) / 2, of_shares(pooled[~is_sure], rows, moved))

    def corrected(self, value: float) -> float:
        """What is left of the total variation ``value`` when the noise of its unsure part is taken off."""
        return min(1.0, self.sure + max(self.net, self.noise.without(value - self.sure)))


def of_area(gaps: Array, ranks: Array, reference: int, current: int) -> Noise:
    """The area between two empirical distribution functions, of so many rows each.

    ``ranks`` (ascending) are the numbers of pooled rows at or below the places where the functions may differ, ``gaps`` the
    widths over which they keep that difference. Differences at two places correlate as those of a Brownian bridge.
    """
    mean, spread = _deviation(ranks, reference, current)
    odds = ranks / (reference + current - ranks)
    weighted = gaps * spread
    # Squared correlation of |X| and |Y| under correlation r is close to r^2, and r^2 = odds_i / odds_j for i before j.
    before = np.cumsum(weighted * odds) - weighted * odds
    variance = float(np.sum(weighted**2)) + 2 * float(np.sum(weighted / odds * before))
    return _noise(float(np.sum(gaps * mean)), variance)


def of_shares(counts: Array, reference: int, current: int) -> Noise:
    """Half the summed absolute differences of shares, for categories with so many pooled rows each."""
    distinct, times = np.unique(counts[(counts > 0) & (counts < reference + current)], return_counts=True)
    mean, spread = _deviation(distinct, reference, current)
    odds = distinct / (reference + current - distinct)
    # The differences of two categories correlate by -sqrt(odds_i * odds_j), squared as in `of_area`.
    variance = float(np.sum(times * spread**2 * (1 - odds**2)) + np.sum(times * spread * odds) ** 2)
    return _noise(float(np.sum(times * mean)) / 2, variance / 4)


def of_divergence(terms: Terms, counts: Array, reference: int, current: int) -> float:
    """The mean of a sum of ``terms`` over bins with so many pooled rows each; small bins are summed over exactly.

    For frequent bins it comes to the chi-squared result: ``(bins - 1) * (1/n + 1/m)`` for Jeffreys' divergence, an eighth of
    it (in nats) for Jensen and Shannon's.
    """
    distinct, times = np.unique(counts, return_counts=True)
    few, total = min(reference, current), reference + current
    # Of a bin that holds nearly all rows, the rows that it does not hold are counted.
    is_most = distinct > total / 2
    marked = np.where(is_most, total - distinct, distinct)
    drawn, weights = _counts_by_chance(marked, few, total)
    drawn = np.where(is_most[:, None], few - drawn, drawn)
    rest = distinct[:, None] - drawn
    values = terms(rest, drawn) if few == current else terms(drawn, rest)
    return float(np.sum(times * np.sum(weights * values, axis=1)))


def root_mean(bins: int) -> float:
    """The mean root of a divergence in units of the root of its mean: that of a chi distribution of ``bins - 1``."""
    freedom = max(bins - 1, 1)
    return math.sqrt(2 / freedom) * math.exp(float(gammaln((freedom + 1) / 2) - gammaln(freedom / 2)))


def _noise(mean: float, variance: float) -> Noise:
    return Noise(mean, math.sqrt(mean**2 + max(variance, 0.0)))


def _deviation(marked: Array, reference: int, current: int) -> tuple[Array, Array]:
    """Mean and standard deviation of the absolute difference of the two sides' shares of so many marked rows.

    The mean absolute deviation of a hypergeometric count is ``2 v (N - k - n + v) / N * P(v)``, ``v`` the first integer
    above the mean (de Moivre's formula; Diaconis and Zabell 1991, Closed form summation for classical distributions); of
    many rows it is that of a normal distribution.
    """
    total = reference + current
    square = marked * (total - marked) / (reference * current * max(total - 1, 1))
    mean = np.sqrt(square * (2 / math.pi))
    is_small = np.minimum(marked, total - marked) * (min(reference, current) / total) < _NORMAL_FROM
    few = marked[is_small]
    first = few * current // total + 1
    below = total - few - current + first
    mean[is_small] = 2 * first * below / (reference * current) * _hypergeometric(first, few, current, total)
    return mean, np.sqrt(np.maximum(square - mean**2, 0))


def _counts_by_chance(marked: Array, draws: int, total: int) -> tuple[Array, Array]:
    """How many of so many marked rows may be drawn, one line each, and the weights of these numbers, which sum to 1."""
    expected = marked * (draws / total)
    spread = np.sqrt(expected * (1 - marked / total) * ((total - draws) / max(total - 1, 1)))
    place = np.linspace(-5, 5, _NODES)
    drawn = np.clip(expected[:, None] + spread[:, None] * place, 0, np.minimum(marked, draws)[:, None])
    weights = np.tile(np.exp(-(place**2) / 2), (len(marked), 1))
    is_small = expected < _NORMAL_FROM
    drawn[is_small] = np.minimum(np.arange(_NODES), np.minimum(marked[is_small], draws)[:, None])
    weights[is_small] = _hypergeometric(np.arange(_NODES), marked[is_small, None], draws, total)
    return drawn, weights / weights.sum(axis=1, keepdims=True)


def _hypergeometric(drawn: Array, marked: Array, draws: int, total: int) -> Array:
    """The probability of ``drawn`` marked rows among ``draws`` out of ``total``; impossible counts are 0."""
    outside = (drawn > marked) | (drawn > draws) | (drawn < marked + draws - total)
    drawn = np.where(outside, np.maximum(0, marked + draws - total), drawn)
    factorial = _log_factorials(total)

    def log_choose(size: Any, chosen: Any) -> Any:
        return factorial[size] - factorial[chosen] - factorial[size - chosen]

    logs = log_choose(marked, drawn) + log_choose(total - marked, draws - drawn) - log_choose(total, draws)
    return np.where(outside, 0.0, np.exp(logs))


@lru_cache(maxsize=4)
def _log_factorials(largest: int) -> Array:
    """ln(i!) for i = 0..largest; many look-ups in a table are faster than as many gamma functions."""
    return np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, largest + 1)))])
