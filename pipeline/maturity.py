"""How complete the labels of an interval are, against what earlier intervals had at the same age.

Labels that come early are rarely like those that come late (chargebacks, cancellations), so a metric of few of them is
biased rather than noisy, and no confidence interval shows that. Pure functions of recorded reports.
"""

from __future__ import annotations

from dataclasses import dataclass
from operator import itemgetter
from statistics import median
from typing import TYPE_CHECKING

from pipeline.verdicts import Maturity

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime, timedelta

    from pipeline.verdicts import PerformanceReport

# Reports that the curve is learnt from, the latest ones, and how many of them are asked about one age: a feed that became
# slower or thinner for good is what is expected after half as many intervals.
REPORTS = 100
_NEAREST = 15
# With fewer intervals nothing is promised.
_FEWEST = 3


@dataclass(frozen=True, slots=True)
class Curve:
    """What earlier intervals had: ``points`` of age and share labelled, by age and recording; ``final`` the share in the end."""

    points: tuple[tuple[timedelta, float], ...] = ()
    final: float | None = None


def learn(reports: Sequence[PerformanceReport], *, settled_before: datetime) -> Curve:
    """The curve from recorded reports in order of recording, restated intervals counting with every report on them.

    An interval that ended by ``settled_before`` is not looked at again: what it had last is what it reached in the end.
    Fewer than three intervals teach nothing.
    """
    known = [(report, found) for report in reports[-REPORTS:] if (found := report.maturity) and found.share is not None]
    # Of one age the latest stay last, where `expected` looks first.
    points = sorted(((found.age, found.share) for _, found in known if found.share is not None), key=itemgetter(0))
    last = {report.start: found.share for report, found in known if report.end <= settled_before}
    finals = [share for share in last.values() if share is not None]
    return Curve(
        points=tuple(points) if len({report.start for report, _ in known}) >= _FEWEST else (),
        final=median(finals) if len(finals) >= _FEWEST else None,
    )


def expected(curve: Curve, age: timedelta) -> float | None:
    """The share that intervals had by ``age``: the median of the 15 nearest seen at that age or younger, latest first.

    Older ones say nothing of what is to be expected now. ``None`` when fewer than three were seen.
    """
    younger = [share for seen, share in curve.points if seen <= age]
    return median(younger[-_NEAREST:]) if len(younger) >= _FEWEST else None


def assess(curve: Curve, *, age: timedelta, labelled: int, rows: int) -> Maturity:
    """How complete the labels of one interval are, beside what its age promises."""
    return Maturity(
        age=age,
        labelled=labelled,
        rows=rows,
        share=labelled / rows if rows else None,
        expected=expected(curve, age),
        final=curve.final,
    )


def shortfall(found: Maturity, min_completeness: float) -> str | None:
    """Why the labels are too few to judge by, as a sentence; ``None`` when they are not, or nothing was to be expected."""
    if found.share is None or found.expected is None or found.share >= min_completeness * found.expected:
        return None
    return (
        f"Only {found.share:.0%} of {found.rows} rows are labelled; earlier intervals had {found.expected:.0%} at this age, "
        f"and {min_completeness:.0%} of that is needed: those that come first are not like the rest."
    )
