"""What an estimate of performance is worth: its error on matured intervals, whether it may be believed, its verdict.

Pure functions of values. How an estimate is made is the business of `pipeline.estimation`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from pipeline.policies import HIGHER_IS_BETTER, MetricName
from pipeline.verdicts import Estimate

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from pipeline.verdicts import Verdict

# Matured intervals whose errors are averaged.
_REMEMBERED = 20
# So many matured intervals inside their bands, one after the other, make estimates valid again.
_PROOF = 3
# From the half width of a 95 % interval (1.96 standard deviations) to three of them: one honest band in 370 is left by
# chance, and the bands of estimates under a shift are allowed to be a little less than honest.
_SLACK = 3 / 1.96


@dataclass(frozen=True)
class Expected:
    """A metric as it is expected on ``n`` rows without labels, and its 95 % interval for what labels will show.

    ``support`` is the share of the rows, 0 to 1, that lie inside the support of the holdout: what was never seen in the
    holdout is extrapolated.
    """

    value: float
    low: float
    high: float
    n: int
    support: float


class Matured(NamedTuple):
    """An earlier estimate beside what labels showed; ``realised_low`` and ``realised_high`` are a 95 % interval."""

    value: float
    low: float
    high: float
    realised: float
    start: datetime | None = None
    realised_low: float | None = None
    realised_high: float | None = None


def left_band(matured: Matured) -> bool:
    """Whether the realised metric lies clearly outside the band of its estimate.

    Clearly: by more than three standard deviations, those of the band and of the realised value (where it has an interval)
    added in quadrature.
    """
    above = matured.realised > matured.value
    band = matured.high - matured.value if above else matured.value - matured.low
    # The end of the realised value's own interval that faces the estimate.
    facing = matured.realised_low if above else matured.realised_high
    own = 0.0 if facing is None else abs(matured.realised - facing)
    return abs(matured.realised - matured.value) > _SLACK * math.hypot(band, own)


def judge(expected: Expected, *, metric: MetricName, limit: float | None, history: Sequence[Matured] = ()) -> Estimate:
    """The estimate with its verdict; ``history`` is what labels showed of earlier ones, oldest first.

    Invalid from the first matured interval that `left_band` until three in a row are inside again: the labels no longer
    follow from the inputs as they did in the holdout. The verdict is ``drift`` when a valid estimate is worse than ``limit``
    with its whole interval, and ``insufficient_data`` when it is invalid or there is no limit. Matured intervals without
    a finite realised value are left out.
    """
    known = [past for past in history if math.isfinite(past.realised)]
    recent = known[-_REMEMBERED:]
    error = math.fsum(abs(past.value - past.realised) for past in recent) / len(recent) if recent else None
    culprit = _culprit(known)
    text = f"Estimated {metric} {expected.value:.3g} ({_band(expected.low, expected.high)}) on {expected.n} rows"
    return Estimate(
        metric=metric,
        value=expected.value,
        low=expected.low,
        high=expected.high,
        n=expected.n,
        error=error,
        compared=len(recent),
        is_valid=culprit is None,
        verdict="insufficient_data" if culprit else _verdict(expected, metric, limit),
        reason=text + (_doubt(metric, culprit) if culprit else _trust(expected, metric, limit, error, len(recent))),
    )


def _culprit(known: list[Matured]) -> Matured | None:
    """The latest matured interval that left its band, unless enough of them have stayed inside since."""
    return next((past for past in reversed(known[-_PROOF:]) if left_band(past)), None)


def _verdict(expected: Expected, metric: MetricName, limit: float | None) -> Verdict:
    if limit is None:
        return "insufficient_data"
    is_worse = expected.high < limit if HIGHER_IS_BETTER[metric] else expected.low > limit
    return "drift" if is_worse else "stable"


def _doubt(metric: MetricName, culprit: Matured) -> str:
    when = f" on {culprit.start:%Y-%m-%d}" if culprit.start else ""
    return (
        f" is not valid: realised {metric} {culprit.realised:.3g}{when} left the band "
        f"{_band(culprit.low, culprit.high)}: suspected concept drift."
    )


def _trust(expected: Expected, metric: MetricName, limit: float | None, error: float | None, compared: int) -> str:
    against = {
        "drift": f" is worse than the limit {limit:.3g}" if limit is not None else "",
        "stable": f" is not clearly worse than the limit {limit:.3g}" if limit is not None else "",
        "insufficient_data": " has no limit to be compared with",
    }[_verdict(expected, metric, limit)]
    past = (
        "no estimate has matured yet"
        if error is None
        else (f"earlier estimates were off by {error:.2g} on {compared} matured intervals")
    )
    return f"{against}; {past}."


def _band(low: float, high: float) -> str:
    return f"{low:.3g}-{high:.3g}"
