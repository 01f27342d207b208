"""Whether a challenger may replace the champion: a pure comparison on the same rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pipeline import guards, paired
from pipeline.reports import GateDecision

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from numpy.typing import NDArray

    from pipeline.guards import Levels
    from pipeline.metrics import Outcomes
    from pipeline.policies import MetricName
    from pipeline.release import Promote
    from pipeline.reports import Guard


def compare(
    policy: Promote,
    metric: MetricName,
    *,
    champion: Outcomes,
    challenger: Outcomes,
    interval: NDArray[np.int64],
    seed: int,
    slices: Mapping[str, Levels] | None = None,
    min_slice: int = 30,
    sizes: tuple[int, int] | None = None,
    slowdown: float | None = None,
    learnt: NDArray[Any] | None = None,
) -> GateDecision:
    """The decision from both models' outcomes on the same held-out rows.

    Both `Outcomes` hold the same rows in the same order; ``interval`` is the day of each row, or what else its rows
    share; ``slices`` the slices of each column, of at least ``min_slice`` rows to count. ``sizes`` are the bytes of champion
    and challenger. ``slowdown`` is how many times as long scoring takes, only where that is beyond the limit (see
    `pipeline.guards.speed`). ``learnt`` are the labels that the challenger was trained on: with them it must be better than
    a constant, too.

    The gain is the difference of the metric, positive when the challenger is better. The challenger wins when the lower
    bound of the gain at ``policy.confidence`` (one-sided; see `pipeline.paired.compare`) is above ``policy.min_gain``; with
    the criterion ``not_inferior``, when it is above minus ``policy.margin``. It is kept out when a guard of
    `pipeline.guards` is not met. Models that predict alike are a tie, and a tie keeps the champion.
    """
    n = len(challenger)
    if n < policy.min_labels:
        return insufficient(metric, n, f"{n} labelled holdout rows, {policy.min_labels} needed")
    found = _tested(policy, metric, champion, challenger, interval, seed)
    if found.outcome == "insufficient_data":
        return found
    slice_guard, told = guards.slices(policy, metric, champion, challenger, interval, slices or {}, min_slice)
    met = (
        slice_guard,
        guards.calibration(policy, champion, challenger, interval),
        guards.churn(policy, champion, challenger),
        guards.speed(policy, slowdown),
        *([guards.size(policy, *sizes)] if sizes else []),
        *([guards.constant(policy, metric, challenger, learnt, interval, seed)] if learnt is not None else []),
    )
    return _guarded(found.model_copy(update={"guards": met, "slices": told}))


def first(
    policy: Promote,
    metric: MetricName,
    *,
    outcomes: Outcomes,
    learnt: NDArray[Any],
    interval: NDArray[np.int64],
    seed: int,
) -> GateDecision:
    """The decision on a first champion, which has nobody to be compared with but a constant prediction.

    ``outcomes`` are those of its holdout, ``learnt`` the labels it was trained on (see `pipeline.guards.constant_outcomes`).
    Proven is as in `compare` with the criterion ``superior``; no guard applies, and no number of labels is asked for beyond
    what the proof needs.
    """
    superior = policy.model_copy(update={"criterion": "superior", "margin": None, "min_gain": 0.0})
    constant = guards.constant_outcomes(outcomes, learnt)
    found = _tested(superior, metric, constant, outcomes, interval, seed, "a constant prediction")
    if found.outcome == "insufficient_data":
        return found.model_copy(update={"reason": found.reason.replace("the champion stays", "nobody is promoted")})
    told = "it may be the first champion" if found.outcome == "promote" else "nobody is promoted"
    return found.model_copy(update={"reason": f"{found.reason}; {told}."})


def _tested(
    policy: Promote,
    metric: MetricName,
    champion: Outcomes,
    challenger: Outcomes,
    day: NDArray[np.int64],
    seed: int,
    against: str = "the champion",
) -> GateDecision:
    """The decision on the metric alone; but for insufficient data, the end of its reason is still to come."""
    n = len(challenger)
    old, new, gain = paired.values(metric, champion, challenger, day) if n else (np.nan,) * 3
    if not np.isfinite(gain):
        return insufficient(metric, n, f"{metric} is undefined on the holdout")
    test = paired.compare(metric, champion, challenger, day, seed)
    if test is None:
        return insufficient(metric, n, f"the {n} holdout rows cannot tell how sure a difference of {metric} is")
    low, bar = test.low(policy.confidence), _bar(policy, metric, old)
    is_tie = _alike(champion, challenger)
    better = low > bar + paired.ROUNDING * abs(old) and not is_tie
    needed = "both predict alike" if is_tie else f"a bound above {bar:.4g} is needed"
    reason = (
        f"{metric} {new:.5g} against {old:.5g} of {against} on the same {n} rows: gain {gain:.4g}, lower "
        f"{100 * policy.confidence:g}% bound {low:.4g} ({test.name}); {needed}"
    )
    return GateDecision(
        outcome="promote" if better else "keep",
        reason=reason,
        metric=metric,
        champion=old,
        challenger=new,
        gain=gain,
        low=low,
        n=n,
        bar=bar,
        test=test.name,
        units=test.units,
        p_value=test.exceeds(bar),
    )


def _bar(policy: Promote, metric: MetricName, champion: float) -> float:
    """What the gain must be proven to exceed, in the metric's own unit."""
    if policy.margin is not None:
        return -policy.margin
    return policy.min_gain * guards.unit(metric, champion)


def _alike(champion: Outcomes, challenger: Outcomes) -> bool:
    """Whether both models say the same of every row."""
    if champion.scores is not None and challenger.scores is not None:
        return bool(np.array_equal(champion.scores, challenger.scores))
    return bool(np.array_equal(champion.prediction, challenger.prediction))


def _guarded(found: GateDecision) -> GateDecision:
    """The decision with the end of its reason; kept when a guard is not met, and each that is not is named."""
    broken = "; ".join(_broken(guard) for guard in found.guards if not guard.is_met)
    wins = found.outcome == "promote"
    if not broken:
        return found.model_copy(
            update={"reason": f"{found.reason}; the {'challenger wins' if wins else 'champion stays'}."}
        )
    reason = f"{found.reason}; {'but' if wins else 'besides,'} {broken}; the champion stays."
    return found.model_copy(update={"outcome": "keep", "reason": reason})


def _broken(guard: Guard) -> str:
    limit = "none" if guard.limit is None else f"{guard.limit:g}"
    return f"the guard {guard.name} (limit {limit}) is not met: {guard.detail}"


def refused(metric: MetricName, n: int, why: str) -> GateDecision:
    """The decision when the comparison would not be fair: the champion stays."""
    return insufficient(metric, n, why).model_copy(update={"outcome": "refused"})


def insufficient(metric: MetricName, n: int, why: str) -> GateDecision:
    """The decision when the models cannot be compared: the champion stays."""
    return GateDecision(
        outcome="insufficient_data",
        reason=f"{why}; the champion stays.",
        metric=metric,
        champion=None,
        challenger=None,
        gain=None,
        low=None,
        n=n,
    )
