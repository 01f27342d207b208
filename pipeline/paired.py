"""Paired tests of two models on the same rows: what the difference of a metric is at least, and how sure that is.

Pure functions of numpy arrays. The gain is positive where the challenger is better. No result depends on the order of rows
beyond the rounding of sums.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from scipy.special import bdtrc, betaincinv, ndtr, ndtri, stdtr, stdtrit

from pipeline import grouped
from pipeline.metrics import Outcomes, macro_f1_pulls, row_losses
from pipeline.policies import HIGHER_IS_BETTER, MetricName
from pipeline.resampling import totals

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

# Rows of one day share its weather, its outages and its campaigns, so days are the units; with fewer of them than this a
# bootstrap has too few distinct replicates, and rows are taken as the units instead.
FEWEST_BLOCKS = 7
# A gain below this share of the metric is rounding of float64 sums, not a difference between models.
ROUNDING = 1e-9
_REPLICATES = 10_000
_MINUTES_PER_DAY = 24 * 60
_USED_ERROR = 0.8
# Replicates that are computed at once: bounds the memory of a history of many days.
_AT_ONCE = 2_000


class PairedTest(Protocol):
    """A paired test of two models on the same rows."""

    @property
    def name(self) -> str:
        """The test in the field's words, with its units."""

    @property
    def units(self) -> int:
        """How many independent units it counts on."""

    def low(self, confidence: float) -> float:
        """The lower one-sided confidence bound of the gain."""

    def exceeds(self, bar: float) -> float:
        """The p-value against a gain of at most ``bar``."""


def days(starts: NDArray[np.int64]) -> NDArray[np.int64]:
    """The day of each row, from its interval's start in minutes since 1970: what rows share that are not independent.

    Noise that a whole day shares makes hours far from independent. Measured on 14 days of hourly intervals with noise per
    day: equal models are promoted in 31 % of trials when hours are the blocks, in at most 5 % when days are.
    """
    found: NDArray[np.int64] = starts // _MINUTES_PER_DAY
    return found


def values(
    metric: MetricName, champion: Outcomes, challenger: Outcomes, day: NDArray[np.int64]
) -> tuple[float, float, float]:
    """The metric of both models over all rows, roc_auc within days, and the gain; NaN where it is undefined."""
    old, new = (grouped.value(metric, outcomes, day) for outcomes in (champion, challenger))
    return old, new, (new - old) if HIGHER_IS_BETTER[metric] else (old - new)


def compare(
    metric: MetricName, champion: Outcomes, challenger: Outcomes, day: NDArray[np.int64], seed: int
) -> PairedTest | None:
    """The test that fits: the block bootstrap of at least seven days, else one whose units are rows (see `by_rows`).

    Both outcomes hold the same rows in the same order, ``day`` the day of each. Neither test is surer than the spread between
    the days allows (see `Braked`). ``None`` where the rows cannot tell.
    """
    champion, challenger, day = _telling(metric, champion, challenger, day)
    block, blocks = grouped.codes(day)
    found = _pulls(metric, champion, challenger, block, blocks)
    if found is None:
        return None
    gain, error = found[0], clustered_error(found[1], block, blocks) if blocks > 1 else 0.0
    if blocks >= FEWEST_BLOCKS:
        drawn = _bootstrap(metric, champion, challenger, block, blocks, seed)
        return Braked(drawn, Student(gain, error, blocks - 1, f"Student's t on {blocks} days", blocks))
    rows = by_rows(metric, champion, challenger, day)
    # Student's t would want the impossible of two days; the normal distribution at least sees that they differ.
    return rows and Braked(rows, Student(gain, error, np.inf, f"normal approximation on {blocks} days", blocks))


def _bootstrap(
    metric: MetricName,
    champion: Outcomes,
    challenger: Outcomes,
    block: NDArray[np.intp],
    blocks: int,
    seed: int,
) -> Bootstrap:
    rng = np.random.default_rng(seed)
    sign = 1.0 if HIGHER_IS_BETTER[metric] else -1.0
    both = [totals(metric, outcomes, block, blocks) for outcomes in (champion, challenger)]
    gains = []
    for _ in range(_REPLICATES // _AT_ONCE):
        drawn = rng.multinomial(blocks, np.full(blocks, 1 / blocks), size=_AT_ONCE).astype(np.float64)
        old, new = (total.values(drawn) for total in both)
        gains.append(sign * (new - old))
    return Bootstrap(np.sort(np.concatenate(gains)), blocks)


def by_rows(
    metric: MetricName, champion: Outcomes, challenger: Outcomes, day: NDArray[np.int64]
) -> Student | McNemar | None:
    """The test whose units are rows: DeLong's for roc_auc (within days), McNemar's for accuracy, else Student's.

    DeLong, DeLong & Clarke-Pearson (1988); McNemar (1947), exact. The mean of a loss is compared by Student's t on the
    differences of rows; rmse and macro_f1, which are no means of rows, by that on their linear approximation (delta method).
    ``None`` with fewer than two rows, or two of a class where the metric is roc_auc.
    """
    champion, challenger, day = _telling(metric, champion, challenger, day)
    if metric == "accuracy":
        hits = [row_losses(metric, outcomes) for outcomes in (champion, challenger)]
        return McNemar(int(np.sum(hits[1] > hits[0])), int(np.sum(hits[1] < hits[0])), len(champion))
    found = _pulls(metric, champion, challenger, *grouped.codes(day))
    if found is None:
        return None
    gain, pulls = found
    if metric == "roc_auc":
        positive = champion.truth == champion.classes[-1]
        groups = [pulls[positive], pulls[~positive]]
        if min(map(len, groups)) < 2:
            return None
        n = len(pulls)
        variance = sum(float(np.var(group, ddof=1)) * len(group) for group in groups) / n**2
        return Student(gain, variance**0.5, np.inf, f"DeLong's test on {n} rows", n)
    n = len(pulls)
    name = "Student's t (delta method)" if metric in ("rmse", "macro_f1") else "Student's t"
    return Student(gain, float(np.std(pulls, ddof=1)) / n**0.5, n - 1, f"{name} on {n} rows", n)


def by_sums(
    metric: MetricName, champion: Outcomes, challenger: Outcomes, day: NDArray[np.int64]
) -> Student | McNemar | None:
    """The same without a bootstrap, for many small slices: Student's t on the sums of days (cluster-robust variance).

    With fewer than seven days it is `by_rows`. The sums are of each row's part in the metric: for roc_auc those of DeLong
    (Obuchowski 1997).
    """
    champion, challenger, day = _telling(metric, champion, challenger, day)
    block, blocks = grouped.codes(day)
    if blocks < FEWEST_BLOCKS:
        return by_rows(metric, champion, challenger, day)
    found = _pulls(metric, champion, challenger, block, blocks)
    if found is None:
        return None
    error = clustered_error(found[1], block, blocks)
    return Student(found[0], error, blocks - 1, f"Student's t on {blocks} days", blocks)


def clustered_error(pulls: Floats, block: NDArray[np.intp], blocks: int) -> float:
    """The standard error of a mean of rows whose deviations from it are ``pulls``, where blocks are independent, not rows."""
    sums = np.bincount(block, pulls, blocks)
    return float(np.sqrt(blocks / (blocks - 1) * np.sum(sums**2))) / len(pulls)


def independent(day: NDArray[np.int64]) -> tuple[NDArray[np.intp], int]:
    """What is independent, as a code per row, and how many there are: the days, or the rows of fewer than seven days."""
    block, blocks = grouped.codes(day)
    return (block, blocks) if blocks >= FEWEST_BLOCKS else (np.arange(len(day)), len(day))


@dataclass(frozen=True, slots=True)
class Student:
    """Student's t, or with infinite degrees of freedom the normal distribution, around an estimate."""

    gain: float
    error: float
    freedom: float
    name: str
    units: int

    def low(self, confidence: float) -> float:
        """The lower one-sided confidence bound of the gain."""
        return self.gain - float(stdtrit(self.freedom, confidence)) * self.error

    def exceeds(self, bar: float) -> float:
        """The p-value against a gain of at most ``bar``."""
        return self._beyond(bar - self.gain)

    def falls_short(self, bar: float) -> float:
        """The p-value against a gain of at least ``bar``."""
        return self._beyond(self.gain - bar)

    def _beyond(self, distance: float) -> float:
        if self.error == 0:
            return 0.0 if distance < 0 else 1.0
        return float(stdtr(self.freedom, distance / self.error))


@dataclass(frozen=True, slots=True)
class McNemar:
    """The exact test of two accuracies: of the rows that one model alone gets right, how many are the challenger's.

    Given how many those are, they are binomial; the bound is that of Clopper & Pearson (1934).
    """

    wins: int
    losses: int
    rows: int

    @property
    def name(self) -> str:
        """The test in the field's words, with its units."""
        told = f"{self.wins} rows right with the challenger alone, {self.losses} with the champion alone"
        return f"McNemar's exact test on {self.rows} rows ({told})"

    @property
    def units(self) -> int:
        """How many independent units it counts on."""
        return self.rows

    def low(self, confidence: float) -> float:
        """The lower one-sided confidence bound of the gain."""
        discordant = self.wins + self.losses
        if discordant == 0:
            return 0.0
        share = float(betaincinv(self.wins, self.losses + 1, 1 - confidence)) if self.wins else 0.0
        return discordant * (2 * share - 1) / self.rows

    def exceeds(self, bar: float) -> float:
        """The p-value against a gain of at most ``bar``."""
        return self._tail(bar, self.wins, self.losses)

    def falls_short(self, bar: float) -> float:
        """The p-value against a gain of at least ``bar``."""
        return self._tail(-bar, self.losses, self.wins)

    def _tail(self, bar: float, hits: int, misses: int) -> float:
        """Chance of at least ``hits`` when hits exceed misses by the share ``bar`` of all rows on average."""
        discordant = hits + misses
        if abs(bar) * self.rows >= discordant:
            # So few rows cannot differ by more than that: the gain is surely beyond the bar, or surely not.
            return 0.0 if bar < 0 else 1.0
        if hits == 0:
            return 1.0
        return float(bdtrc(hits - 1, discordant, (1 + bar * self.rows / discordant) / 2))


@dataclass(frozen=True, slots=True)
class Bootstrap:
    """The percentile bootstrap (Efron & Tibshirani 1993, ch. 13) of whole days; ``gains`` ascends.

    Paired: one replicate weighs both models' rows alike. The bound is expanded for few days (Hesterberg 2015): the bootstrap
    has neither the heavier tail of Student's t nor the ``n - 1`` of an unbiased variance.
    """

    gains: Floats
    units: int

    @property
    def name(self) -> str:
        """The test in the field's words, with its units."""
        return f"block bootstrap of {self.units} days"

    def low(self, confidence: float) -> float:
        """The lower one-sided confidence bound of the gain."""
        level = ndtr(-np.sqrt(self.units / (self.units - 1)) * stdtrit(self.units - 1, confidence))
        return float(np.quantile(self.gains, level))

    def exceeds(self, bar: float) -> float:
        """The p-value against a gain of at most ``bar``."""
        share = (1 + int(np.searchsorted(self.gains, bar, side="right"))) / (len(self.gains) + 2)
        return float(stdtr(self.units - 1, np.sqrt((self.units - 1) / self.units) * ndtri(share)))


@dataclass(frozen=True, slots=True)
class Braked:
    """A test that is no surer than a second one: the lower of both bounds, the larger of both p-values.

    Measured on equal models with noise that whole days share, at 5 %: the bootstrap alone promotes up to 6.3 % of them over 14
    and 28 days, and tests of rows up to 34 % over three. All of these tests are approximate, so a fifth of the error that is
    allowed is kept back: at 95 % they are asked for 96 %.
    """

    first: PairedTest
    second: PairedTest

    @property
    def name(self) -> str:
        """The test in the field's words, with its units."""
        return self.first.name

    @property
    def units(self) -> int:
        """How many independent units it counts on."""
        return self.first.units

    def low(self, confidence: float) -> float:
        """The lower one-sided confidence bound of the gain."""
        asked = 1 - _USED_ERROR * (1 - confidence)
        return min(self.first.low(asked), self.second.low(asked))

    def exceeds(self, bar: float) -> float:
        """The p-value against a gain of at most ``bar``."""
        return min(1.0, max(self.first.exceeds(bar), self.second.exceeds(bar)) / _USED_ERROR)


def _telling(
    metric: MetricName, champion: Outcomes, challenger: Outcomes, day: NDArray[np.int64]
) -> tuple[Outcomes, Outcomes, NDArray[np.int64]]:
    """The rows that tell something: a day with a single class tells nothing of roc_auc, and is no unit of a test either."""
    if metric != "roc_auc":
        return champion, challenger, day
    block, blocks = grouped.codes(day)
    positives = np.bincount(block, champion.truth == champion.classes[-1], blocks)
    has_both = (positives > 0) & (positives < np.bincount(block, minlength=blocks))
    rows = has_both[block]
    return (champion, challenger, day) if rows.all() else (champion.take(rows), challenger.take(rows), day[rows])


def _pulls(
    metric: MetricName, champion: Outcomes, challenger: Outcomes, block: NDArray[np.intp], blocks: int
) -> tuple[float, Floats] | None:
    """The gain, and what each row adds to it, ``n`` times; ``None`` with fewer than two rows or one class for roc_auc."""
    if len(champion) < 2:
        return None
    found = [_pull(metric, outcomes, block, blocks) for outcomes in (champion, challenger)]
    if found[0] is None or found[1] is None:
        return None
    sign = 1.0 if HIGHER_IS_BETTER[metric] else -1.0
    (old, pulled), (new, pulls) = found[0], found[1]
    return sign * (new - old), sign * (pulls - pulled)


def _pull(metric: MetricName, outcomes: Outcomes, block: NDArray[np.intp], blocks: int) -> tuple[float, Floats] | None:
    if metric == "roc_auc":
        ranking = grouped.ranking(outcomes, block, blocks)
        return (ranking.area, ranking.pulls) if np.isfinite(ranking.area) else None
    if metric == "macro_f1":
        return macro_f1_pulls(outcomes)
    losses = row_losses(metric, outcomes)
    mean = float(np.mean(losses))
    if metric == "rmse":
        # d sqrt(m) = dm / (2 sqrt(m))
        root = mean**0.5
        return root, (losses - mean) / (2 * root) if root else losses
    return mean, losses - mean
