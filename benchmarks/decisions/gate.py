"""The promotion gate: how often equal models pass, how often a true gain does, and whether a hidden loss is seen.

Two models score the same rows through the real `pipeline.gates.compare` with the policy's defaults, and again on twice as
many days, as often as ``promote.looks`` allows, while the challenger is better and not proven so. Binary models are binormal:
the score of a row is ``separation * label + noise``, both models' noise correlated by ``rho``, and its probability is exactly
right; regressions add correlated noise to the truth. ``day_noise`` lets each model's noise grow and shrink from day to day by a
log-normal factor of that sigma, independently of the other model: a bad day of one model.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.special import expit, logit, ndtri
from scipy.stats import binomtest

from pipeline import gates, guards
from pipeline.metrics import Outcomes
from pipeline.release import Promote

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from pipeline.policies import MetricName
    from pipeline.reports import GateDecision

_SEED = 20_260_101
_NULL_TRIALS, _POWER_TRIALS, _SLICE_TRIALS = 1000, 400, 400
# Ten segments of one column, one of which hides the loss, and five regions that cut across them.
_SEGMENTS, _REGIONS, _HIDDEN = 10, 5, 3


@dataclass(frozen=True)
class Design:
    """How the rows of a comparison come about; ``rows`` and ``days`` are those of its first look."""

    metric: MetricName
    rows: int
    days: int
    rho: float
    day_noise: float = 0.0
    positives: float = 0.3


_NULLS = {
    "roc_auc, rows independent": Design("roc_auc", 2_000, 14, 0.9),
    "roc_auc, noise of days": Design("roc_auc", 2_000, 28, 0.7, 0.5),
    "roc_auc, hardly different models": Design("roc_auc", 2_000, 14, 0.999),
    "accuracy, noise of days": Design("accuracy", 2_000, 14, 0.7, 0.5),
    "log_loss, noise of days": Design("log_loss", 2_000, 14, 0.7, 0.5),
    "mae, noise of days": Design("mae", 2_000, 14, 0.7, 0.5),
    "rmse, seven days": Design("rmse", 1_400, 7, 0.9, 0.3),
    "roc_auc, three days, rows independent": Design("roc_auc", 1_500, 3, 0.9),
    "accuracy, three days, rows independent": Design("accuracy", 1_500, 3, 0.9),
    "mae, three days, rows independent": Design("mae", 1_500, 3, 0.9),
}
# Three days do not tell how much days differ: no promise, told all the same.
_UNTELLABLE = {
    "roc_auc, three days, noise of days": Design("roc_auc", 1_500, 3, 0.7, 0.5),
    "mae, three days, noise of days": Design("mae", 1_500, 3, 0.7, 0.5),
}
_GAINS = {
    "28 days, correlation 0.9": Design("roc_auc", 20_000, 28, 0.9),
    "14 days, correlation 0.9": Design("roc_auc", 20_000, 14, 0.9),
    "14 days, correlation 0.9, noise of days": Design("roc_auc", 20_000, 14, 0.9, 0.03),
    "14 days, correlation 0.5": Design("roc_auc", 20_000, 14, 0.5),
    "5 days, correlation 0.9": Design("roc_auc", 20_000, 5, 0.9),
}
_HIDDEN_LOSSES = {
    "roc_auc 0.75 to 0.70": Design("roc_auc", 20_000, 14, 0.9),
    "accuracy 0.75 to 0.70": Design("accuracy", 20_000, 14, 0.9, positives=0.5),
    "roc_auc 0.75 to 0.70, five days": Design("roc_auc", 20_000, 5, 0.9),
}


def measure(cases: Callable[[int], int]) -> dict[str, Any]:
    """Shares of trials with exact 95 % intervals (Clopper & Pearson); ``cases`` turns a full number of trials into that run.

    ``equal models promoted``: at most 5 %, at any look. ``gain of 0.01 promoted``: a challenger with an AUC of 0.76 against
    0.75, at least 80 %, ``at once`` being the share at the first look. ``hidden loss blocked``: in one of ten segments the
    challenger loses five points and gains two in the others; it is blocked when the guard names that slice, at least 95 %.
    ``equal models blocked by a slice``: the price of that.
    """
    return {
        "seed": _SEED,
        "equal models promoted": {name: _promoted(d, cases(_NULL_TRIALS), 0.0) for name, d in _NULLS.items()},
        "equal models promoted, no promise": {
            name: _promoted(d, cases(_NULL_TRIALS), 0.0) for name, d in _UNTELLABLE.items()
        },
        "gain of 0.01 promoted": {name: _promoted(d, cases(_POWER_TRIALS), 0.01) for name, d in _GAINS.items()},
        "hidden loss blocked": {name: _blocked(d, cases(_SLICE_TRIALS), 0.05) for name, d in _HIDDEN_LOSSES.items()},
        "equal models blocked by a slice": {
            name: _blocked(d, cases(_SLICE_TRIALS), 0.0) for name, d in _HIDDEN_LOSSES.items()
        },
        "milliseconds at 20,000 rows and 14 days": round(1000 * _seconds(_GAINS["14 days, correlation 0.9"]), 1),
    }


def _promoted(design: Design, trials: int, gain: float) -> dict[str, Any]:
    longest = 2 ** (Promote().looks - 1)
    lived = replace(design, rows=longest * design.rows, days=longest * design.days)
    looks = [_look(lived, np.random.default_rng([_SEED, trial]), gain, design.rows, trial) for trial in range(trials)]
    at_once = sum(look == 1 for look in looks)
    return {**_share(sum(look > 0 for look in looks), trials, design), "at once": round(at_once / trials, 4)}


def _look(lived: Design, rng: np.random.Generator, gain: float, rows: int, seed: int) -> int:
    """The number of the look that promotes the challenger; 0 when none does. The first sees ``rows`` rows."""
    champion, challenger = _pair(lived, rng, np.full(lived.rows, 0.75), np.full(lived.rows, 0.75 + gain))
    for look in range(1, Promote().looks + 1):
        first = np.arange(lived.rows) < rows * 2 ** (look - 1)
        found = _decided(lived, champion.take(first), challenger.take(first), seed, look=look)
        if found.outcome == "promote":
            return look
        if found.gain is None or found.gain <= 0:
            return 0
    return 0


def _blocked(design: Design, trials: int, loss: float) -> dict[str, Any]:
    hits, promising = 0, 0
    for trial in range(trials):
        rng = np.random.default_rng([_SEED, trial])
        segment, region = rng.integers(_SEGMENTS, size=design.rows), rng.integers(_REGIONS, size=design.rows)
        old = np.full(design.rows, 0.75)
        new = np.where(segment == _HIDDEN, 0.75 - loss, 0.77) if loss else old
        champion, challenger = _pair(design, rng, old, new)
        slices = {name: guards.levels(codes.astype(str)) for name, codes in (("segment", segment), ("region", region))}
        found = _decided(design, champion, challenger, trial, slices)
        assert found.gain is not None
        promising += found.gain >= 0
        worse = [gain.slice for gain in found.slices if gain.is_worse]
        hits += found.outcome == "keep" and (f"segment={_HIDDEN}" in worse if loss else bool(worse))
    return {**_share(hits, trials, design), "overall no worse": promising}


def _pair(
    design: Design, rng: np.random.Generator, old: NDArray[np.float64], new: NDArray[np.float64]
) -> tuple[Outcomes, Outcomes]:
    """Both models' outcomes; ``old`` and ``new`` are their AUC, or accuracy, per row."""
    shared, *own = rng.normal(size=(3, design.rows))
    day = _days(design)
    sizes = [np.exp(design.day_noise * rng.normal(size=design.days))[day] for _ in own]
    noise = [
        (np.sqrt(design.rho) * shared + np.sqrt(1 - design.rho) * mine) * size
        for mine, size in zip(own, sizes, strict=True)
    ]
    if design.metric in ("mae", "rmse"):
        truth = rng.normal(size=design.rows)
        return Outcomes(truth, truth + noise[0]), Outcomes(truth, truth + noise[1])
    labels = (rng.random(design.rows) < design.positives).astype(np.int64)
    # Two normal distributions that lie d apart: the AUC is Phi(d / sqrt 2), the best accuracy of equal halves Phi(d / 2).
    scale = 2.0 if design.metric == "accuracy" else np.sqrt(2)
    made = []
    for level, error in zip((old, new), noise, strict=True):
        apart = scale * ndtri(level)
        score = expit(apart * (apart * labels + error) - apart**2 / 2 + logit(design.positives))
        made.append(Outcomes(labels, (score > 0.5).astype(np.int64), np.column_stack([1 - score, score]), (0, 1)))
    return made[0], made[1]


def _days(design: Design) -> NDArray[np.int64]:
    return np.arange(design.rows) * design.days // design.rows


def _decided(
    design: Design,
    champion: Outcomes,
    challenger: Outcomes,
    seed: int,
    slices: dict[str, guards.Levels] | None = None,
    look: int = 1,
) -> GateDecision:
    """The decision on the first rows of the design, as many as the outcomes hold."""
    return gates.compare(
        Promote().at_look(look),
        design.metric,
        champion=champion,
        challenger=challenger,
        interval=_days(design)[: len(challenger)],
        seed=seed,
        slices=slices,
    )


def _share(hits: int, trials: int, design: Design) -> dict[str, Any]:
    interval = binomtest(hits, trials).proportion_ci(method="exact")
    return {
        "of": trials,
        "hits": hits,
        "share": round(hits / trials, 4),
        "low": round(float(interval.low), 4),
        "high": round(float(interval.high), 4),
        "rows": design.rows,
        "days": design.days,
    }


def _seconds(design: Design) -> float:
    champion, challenger = _pair(
        design, np.random.default_rng(_SEED), *(np.full(design.rows, auc) for auc in (0.75, 0.76))
    )
    spent = []
    for _ in range(3):
        began = time.perf_counter()
        _decided(design, champion, challenger, 0)
        spent.append(time.perf_counter() - began)
    return min(spent)


def main() -> None:
    """Print the figures."""
    print(json.dumps(measure(lambda full: full), indent=1))


if __name__ == "__main__":
    main()
