"""What a better metric may not cost: losses in slices, calibration, decisions that flip, scoring speed and model size.

And what it must be worth: more than a constant prediction.

Pure functions of both models' outcomes on the same rows; each gives the `Guard` that a gate decision records.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from scipy.special import stdtrit

from pipeline import paired
from pipeline.metrics import Outcomes, calibration_bins, measure
from pipeline.policies import BOUNDED
from pipeline.reports import Guard, SliceGain

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from typing import Any

    from numpy.typing import NDArray

    from pipeline.policies import MetricName
    from pipeline.release import Promote

# Rows of either class that a slice needs where the metric is roc_auc: the normal distribution is wrong for fewer.
_FEWEST_OF_CLASS = 5
_MOST_LEVELS = 100
# Numbers with more different values than this are cut at their quartiles.
_MOST_VALUES = 12
_SHOWN_SLICES, _SHOWN_NAME = 3, 60
# Below this a model is small, whatever it is compared with.
_SMALL_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Levels:
    """The slices of one column: their names, and which of them each row is in."""

    names: tuple[str, ...]
    codes: NDArray[np.int64]


def levels(texts: NDArray[Any], numbers: NDArray[np.float64] | None = None) -> Levels:
    """The slices of a column: one per text, ``(null)`` for ``None``, or one per quarter of ``numbers``.

    Numbers of more than twelve different values are cut at their quartiles. Of many texts the hundred most frequent
    stay; the rows of the others are ``(other)``.
    """
    if numbers is not None and len(np.unique(numbers[np.isfinite(numbers)])) > _MOST_VALUES:
        return _quarters(numbers)
    encoded = pa.array(texts, pa.large_string()).dictionary_encode(null_encoding="encode")
    codes = encoded.indices.to_numpy().astype(np.int64)
    names = ["(null)" if name is None else name for name in encoded.dictionary.to_pylist()]
    counts = np.bincount(codes, minlength=len(names))
    ranked = sorted(range(len(names)), key=lambda code: (-counts[code], names[code]))
    kept = ranked[:_MOST_LEVELS]
    place = np.full(len(names), len(kept))
    place[kept] = np.arange(len(kept))
    rest = ["(other)"] if len(kept) < len(names) else []
    return Levels((*(names[code] for code in kept), *rest), place[codes])


def _quarters(numbers: NDArray[np.float64]) -> Levels:
    known = np.isfinite(numbers)
    edges = np.unique(np.quantile(numbers[known], [0.25, 0.5, 0.75]))
    ends = [f"{edge:.4g}" for edge in edges]
    between = (f"{low} to {high}" for low, high in pairwise(ends))
    codes = np.searchsorted(edges, numbers, side="right").astype(np.int64)
    codes[~known] = len(edges) + 1
    return Levels((f"below {ends[0]}", *between, f"from {ends[-1]}", "(null)"), codes)


def slices(
    policy: Promote,
    metric: MetricName,
    champion: Outcomes,
    challenger: Outcomes,
    day: NDArray[np.int64],
    by: Mapping[str, Levels],
    min_slice: int,
) -> tuple[Guard, tuple[SliceGain, ...]]:
    """Whether no slice is proven worse and by more than ``policy.max_slice_loss``; and the three with most evidence.

    ``by`` holds the slices of each column. Slices of fewer than ``min_slice`` rows, or of too few of a class for
    roc_auc, are not judged. As with drift, evidence and size both count: a slice is worse when a loss is proven, by
    `paired.by_sums` and over all slices by Benjamini & Hochberg (1995) at a false discovery rate of 1 -
    ``policy.confidence``, and is larger than accepted.
    """
    tested = []
    for column, known in by.items():
        for code, level in enumerate(known.names):
            rows = np.flatnonzero(known.codes == code)
            if len(rows) >= min_slice:
                name = f"{column}={level}"[:_SHOWN_NAME]
                sides = (champion.take(rows), challenger.take(rows))
                tested += list(_slice(metric, name, *sides, day[rows]))
    proven = discoveries([gain.p_value for gain in tested], 1 - policy.confidence)
    told = [
        gain.model_copy(update={"is_worse": is_proven and _loss(metric, gain) > policy.max_slice_loss})
        for gain, is_proven in zip(tested, proven, strict=True)
    ]
    told.sort(key=lambda gain: (not gain.is_worse, gain.p_value, gain.gain, gain.slice))
    return _slice_guard(policy, metric, told), tuple(told[:_SHOWN_SLICES])


def _slice(
    metric: MetricName, name: str, champion: Outcomes, challenger: Outcomes, day: NDArray[np.int64]
) -> Iterator[SliceGain]:
    if metric == "roc_auc":
        positives = int(np.sum(champion.truth == champion.classes[-1]))
        if min(positives, len(champion) - positives) < _FEWEST_OF_CLASS:
            return
    test = paired.by_sums(metric, champion, challenger, day)
    old, new, gain = paired.values(metric, champion, challenger, day)
    if test is not None and np.isfinite(gain):
        yield SliceGain(
            slice=name,
            n=len(champion),
            champion=old,
            challenger=new,
            gain=gain,
            p_value=test.falls_short(0.0),
            is_worse=False,
        )


def unit(metric: MetricName, champion: float) -> float:
    """What limits on gains and losses are counted in: 1, or for a metric without an upper end the champion's value."""
    return 1.0 if metric in BOUNDED else abs(champion)


def _loss(metric: MetricName, gain: SliceGain) -> float:
    counted = unit(metric, gain.champion)
    return -gain.gain / counted if counted else math.inf if gain.gain < 0 else 0.0


def _slice_guard(policy: Promote, metric: MetricName, told: Sequence[SliceGain]) -> Guard:
    limit = policy.max_slice_loss
    if not told:
        return Guard(name="slices", value=None, limit=limit, is_met=True, detail="no slice with enough labelled rows")
    worse, first = [gain for gain in told if gain.is_worse], told[0]
    loss = _loss(metric, first)
    detail = (
        f"{len(worse)} of {len(told)} slices proven worse; {'first' if worse else 'nearest to it'} {first.slice}: {metric} "
        f"{first.challenger:.4g} against {first.champion:.4g} on {first.n} rows, p = {first.p_value:.2g}"
    )
    value = loss if math.isfinite(loss) else None
    return Guard(name="slices", value=value, limit=limit, is_met=not worse, detail=detail)


def discoveries(p_values: Sequence[float], rate: float) -> list[bool]:
    """Which hypotheses Benjamini & Hochberg (1995) reject at the false discovery rate ``rate``."""
    count = len(p_values)
    ordered = sorted(p_values)
    passing = [p for rank, p in enumerate(ordered, 1) if p <= rate * rank / count]
    return [bool(passing) and p <= passing[-1] for p in p_values]


def calibration(policy: Promote, champion: Outcomes, challenger: Outcomes, day: NDArray[np.int64]) -> Guard:
    """Whether the expected calibration error is not proven to exceed the champion's by more than the limit.

    It is that of the positive class (binary), or of the most probable one being right (multiclass), freed of what it is
    under perfect calibration (`pipeline.metrics.measure`). Proven means that the lower bound of the difference, by
    Student's t on rows or, from seven days on, on the sums of days, lies above the limit.
    """
    limit = policy.max_calibration_loss
    if champion.scores is None or limit is None or len(champion) < 2:
        detail = "no limit is set" if limit is None else "numbers have no calibration"
        return Guard(name="calibration", value=None, limit=limit, is_met=True, detail=detail)
    sides = [champion, challenger]
    if any(len(outcomes.classes) > 2 for outcomes in sides):
        sides = [_rightness(outcomes) for outcomes in sides]
    old, new = (measure("calibration_error", side).value for side in sides)
    if old is None or new is None:
        return Guard(name="calibration", value=None, limit=limit, is_met=True, detail="undefined on these rows")
    pulls = _calibration_pulls(sides[1]) - _calibration_pulls(sides[0])
    unit, units = paired.independent(day)
    error = paired.clustered_error(pulls - pulls.mean(), unit, units)
    low = new - old - float(stdtrit(units - 1, policy.confidence)) * error
    proof = f"higher by at least {low:.3g}" if low > 0 else "not proven higher"
    detail = f"calibration error {new:.4g} against {old:.4g}, {proof}"
    return Guard(name="calibration", value=new - old, limit=limit, is_met=low <= limit, detail=detail)


def _rightness(outcomes: Outcomes) -> Outcomes:
    """Whether the most probable class was right, with its probability."""
    assert outcomes.scores is not None  # the caller has looked
    sure = outcomes.scores.max(axis=1)
    right = outcomes.prediction == outcomes.truth
    return Outcomes(right, sure > 0.5, np.column_stack([1 - sure, sure]), (False, True))


def _calibration_pulls(outcomes: Outcomes) -> NDArray[np.float64]:
    """What each row adds to the calibration error, ``n`` times: its residual, in the direction in which its bin is off."""
    gap, bin_of = calibration_bins(outcomes)
    found: NDArray[np.float64] = gap * np.sign(np.bincount(bin_of, gap))[bin_of]
    return found


def churn(policy: Promote, champion: Outcomes, challenger: Outcomes) -> Guard:
    """Which share of the rows is decided otherwise: another class, or a number beyond the noise of the champion's own.

    A number counts when it moves by more than one standard deviation of the champion's residuals.
    """
    if champion.scores is None:
        noise = float(np.std(champion.truth.astype(np.float64) - champion.prediction))
        moved = np.abs(challenger.prediction - champion.prediction) > noise
        what = f"rows whose number moves by more than {noise:.4g}, a standard deviation of the champion's residuals"
    else:
        moved = challenger.prediction != champion.prediction
        what = "rows that get another class"
    share, limit = float(np.mean(moved)), policy.max_churn
    met = limit is None or share <= limit
    return Guard(name="churn", value=share, limit=limit, is_met=met, detail=f"{share:.2%} of the {what}")


def speed(policy: Promote, slowdown: float | None) -> Guard:
    """Whether scoring is fast enough; ``slowdown`` is only given where it was measured to be beyond the limit.

    A time is another one every time, so it is told when it decides and not otherwise: a repeated comparison must be equal.
    """
    limit = policy.max_slowdown
    if limit is None or slowdown is None or slowdown <= limit:
        detail = "no limit is set" if limit is None else "within the limit"
        return Guard(name="speed", value=None, limit=limit, is_met=True, detail=detail)
    detail = f"scoring takes {slowdown:.1f} times as long as with the champion"
    return Guard(name="speed", value=round(slowdown, 1), limit=limit, is_met=False, detail=detail)


def size(policy: Promote, champion: int, challenger: int) -> Guard:
    """Whether the model's file, of so many bytes each, is small enough; what is below 1 MiB is never too large."""
    limit, ratio = policy.max_size_ratio, challenger / max(champion, 1)
    met = limit is None or ratio <= limit or challenger < _SMALL_BYTES
    detail = f"{challenger} bytes against {champion}{', small in any case' if challenger < _SMALL_BYTES else ''}"
    return Guard(name="size", value=round(ratio, 3), limit=limit, is_met=met, detail=detail)


def constant(
    policy: Promote,
    metric: MetricName,
    challenger: Outcomes,
    learnt: NDArray[Any],
    day: NDArray[np.int64],
    seed: int,
) -> Guard:
    """Whether the challenger is proven better than a constant prediction; ``learnt`` are the labels it was trained on.

    Better than the champion is not enough where the champion has become worse than that. The value is the loss against the
    constant, negative for a gain; proven is as against the champion, by `pipeline.paired.compare`.
    """
    if not policy.better_than_constant:
        return Guard(name="constant", value=None, limit=None, is_met=True, detail="no proof is asked for")
    rival = constant_outcomes(challenger, learnt)
    old, new, gain = paired.values(metric, rival, challenger, day)
    test = paired.compare(metric, rival, challenger, day, seed) if np.isfinite(gain) else None
    if test is None:
        return Guard(name="constant", value=None, limit=0.0, is_met=False, detail=f"{metric} cannot tell on these rows")
    low = test.low(policy.confidence)
    detail = (
        f"{metric} {new:.5g} against {old:.5g} of a constant prediction, a gain of at least {low:.4g} ({test.name})"
    )
    is_met = low > paired.ROUNDING * abs(old)
    return Guard(name="constant", value=-gain, limit=0.0, is_met=is_met, detail=detail)


def constant_outcomes(outcomes: Outcomes, learnt: NDArray[Any]) -> Outcomes:
    """What a constant would have predicted instead: the mean of ``learnt``, or its shares of classes and the most frequent."""
    n = len(outcomes)
    if outcomes.scores is None:
        return Outcomes(outcomes.truth, np.full(n, np.mean(learnt.astype(np.float64))))
    shares = np.array([np.mean(learnt == name) for name in outcomes.classes])
    usual = np.asarray(outcomes.classes)[[int(np.argmax(shares))]]
    return Outcomes(outcomes.truth, np.repeat(usual, n), np.tile(shares, (n, 1)), outcomes.classes)
