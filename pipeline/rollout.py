"""What becomes of a challenger in rollout: a pure decision on the matured intervals so far, valid however often it is asked.

Equal models are told apart with at most ``1 - confidence``, over all looks together.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Literal

import numpy as np

from pipeline import assignment, paired

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from pipeline.release import Rollout
    from pipeline.verdicts import Arms

Action = Literal["advance", "hold", "rollback", "complete"]
Cause = Literal["fault", "split", "worse", "time"]
_SECONDS_PER_DAY = 24 * 60 * 60
_UNITS = "intervals (days, if shorter)"
# A share does not grow while the challenger trails by so many standard errors: holding costs nothing but time.
_TRAILING = 2.0
# The part of the error probability that is spent on noticing gross harm before the noise of days can be measured.
_EARLY = 0.2


@dataclass(frozen=True, slots=True)
class Evidence:
    """The mean gain of the challenger, and the ends of its confidence sequence: infinite while there is too little to tell.

    ``trails`` says that the challenger is behind by more than the noise of the rows, proven or not.
    """

    gain: float | None
    low: float
    high: float
    units: int
    trails: bool


@dataclass(frozen=True, slots=True)
class Judgement:
    """What to do, why in one sentence, the share from now on (of ``advance`` and ``hold``), the cause (of ``rollback``)."""

    action: Action
    reason: str
    share: float
    evidence: Evidence
    cause: Cause | None = None


def judge(policy: Rollout, seen: Sequence[Arms], *, share: float, elapsed: int) -> Judgement:
    """What becomes of the rollout, from its matured intervals ``seen`` by start.

    ``share`` is the present one; ``elapsed`` counts the intervals, or whole days of shorter ones, that have matured since the
    start, those included that could not be compared. Faults come first, then proof, then the ramp: a ``canary`` advances when
    its stay is over, enough labels came, and it is neither proven worse nor trailing; ``ab`` and ``shadow`` complete on proof
    only. Any of them is rolled back when proven worse or when ``max_intervals`` are over.
    """
    evidence = compare(seen, 1 - policy.confidence)
    if fault := next((f"{arms.fault} ({arms.start:%Y-%m-%dT%H:%MZ})" for arms in seen if arms.fault), ""):
        return Judgement("rollback", f"The challenger is withdrawn: {fault}.", share, evidence, "fault")
    if mismatch := _mismatch(seen):
        return Judgement("rollback", f"The split cannot be trusted: {mismatch}.", share, evidence, "split")
    numbers, rounding = _numbers(evidence, policy.confidence), paired.ROUNDING * _scale(seen)
    if evidence.high < -rounding:
        return Judgement("rollback", f"The challenger is proven worse: {numbers}.", share, evidence, "worse")
    if policy.kind != "canary" and evidence.low > rounding:
        return Judgement("complete", f"The challenger is proven better: {numbers}.", share, evidence)
    if policy.kind == "canary" and (found := _ramp(policy, seen, share, evidence, numbers)).action != "hold":
        return found
    if elapsed >= policy.max_intervals:
        reason = f"{elapsed} {_UNITS} have matured, {policy.max_intervals} are allowed, without an end: {numbers}."
        return Judgement("rollback", reason, share, evidence, "time")
    return found if policy.kind == "canary" else Judgement("hold", f"Not proven yet: {numbers}.", share, evidence)


def compare(seen: Sequence[Arms], alpha: float) -> Evidence:
    """The mean gain over the comparable intervals with a confidence sequence: at all looks together it errs with ``alpha``.

    The sequence belongs to the scale-invariant mixture test of a normal mean with unknown variance, effect sizes being
    standard normal: its Bayes factor is an e-process (Lai 1976; Perez-Ortiz, Lardy, de Heide and Gruenwald 2022,
    E-statistics, group invariance and anytime-valid testing). So it is exact from the first look on for normal gains,
    whatever the noise from day to day, and infinite while fewer than five units are known (at 5 %).

    Gross harm does not wait for that. As far as the deviations at training bound the noise of days (``by_day``), the upper end is
    also that of the normal mixture with known variance (Robbins 1970), for a fifth of ``alpha``, from the first unit on.

    A unit is an interval, or a whole day of shorter ones; it is weighed by the root of its rows, because early shares give few.
    Entities that come again carry what chance gave to their arm from unit to unit, which no variance between units shows:
    the variance of the assignment is added for them, undiminished.
    """
    units = [_Unit.of(list(group)) for _, group in groupby(_whole(seen), key=lambda arms: arms.start.date())]
    if not units:
        return Evidence(None, -math.inf, math.inf, 0, trails=False)
    weight = np.array([unit.weight for unit in units])
    weight /= weight.mean()
    weighted = weight * np.array([unit.gain for unit in units])
    errors = np.array([unit.error for unit in units])
    gain, n = float(weighted.mean()), len(units)
    by_rows = math.sqrt(float(np.sum((weight * errors) ** 2))) / n
    trails = by_rows > 0 and gain < -_TRAILING * by_rows
    shared = float(np.average(errors**2, weights=weight)) * (1 / _cohorts([unit.sketch for unit in units]) - 1 / n)
    by_day = np.array([unit.by_day for unit in units])
    known = float(np.mean(weight**2 * (errors**2 + by_day**2))) / n
    early = _early_reach(n, _EARLY * alpha) * math.sqrt(known + max(shared, 0.0))
    reach = _reach(n, (1 - _EARLY) * alpha)
    if not math.isfinite(reach):
        return Evidence(gain, -math.inf, gain + early, n, trails)
    half = reach * math.sqrt(float(np.var(weighted, ddof=1)) / n + max(shared, 0.0))
    return Evidence(gain, gain - half, gain + min(half, early), n, trails)


@dataclass(frozen=True, slots=True)
class _Unit:
    """What counts as one independent observation."""

    gain: float
    weight: float
    error: float
    by_day: float
    sketch: tuple[int, ...]

    @classmethod
    def of(cls, parts: list[Arms]) -> _Unit:
        rows = np.array([_rows(arms) for arms in parts])
        share = rows / rows.sum()
        gains: NDArray[np.float64] = np.array([arms.gain for arms in parts], dtype=np.float64)
        errors = np.array([arms.error or 0.0 for arms in parts])
        hashes = sorted({value for arms in parts for value in arms.sketch})
        size = max(len(arms.sketch) for arms in parts)
        error = math.sqrt(float(np.sum((share * errors) ** 2)))
        by_day = max(arms.by_day or math.inf for arms in parts)
        return cls(float(share @ gains), math.sqrt(float(rows.sum())), error, by_day, tuple(hashes[:size]))


def _whole(seen: Sequence[Arms]) -> list[Arms]:
    """The comparable intervals; of those shorter than a day only whole days, since the last one still changes."""
    usable = [arms for arms in seen if arms.gain is not None and math.isfinite(arms.gain) and _rows(arms) > 0]
    if not seen or (seen[-1].end - seen[-1].start).total_seconds() >= _SECONDS_PER_DAY:
        return usable
    last = seen[-1].end.date()
    return [arms for arms in usable if arms.start.date() < last]


def _rows(arms: Arms) -> float:
    """As many rows an arm would give the gain the same precision: of a shadow, which scores all rows, all of them."""
    both = arms.n_champion + arms.n_challenger
    if arms.share == 0:
        return float(arms.n_champion)
    return arms.n_champion * arms.n_challenger / both if both else 0.0


def _reach(n: int, alpha: float) -> float:
    """How many standard errors of the mean of ``n`` the confidence sequence reaches; infinite for too few."""
    if n < 2:
        return math.inf
    prior = 1.0 + n
    level = (prior / alpha**2) ** (1 / n)
    return math.sqrt((n - 1) * (level - 1) / (1 - level / prior)) if level < prior else math.inf


def _early_reach(n: int, alpha: float) -> float:
    """The same for one side and a known variance: a boundary of the two-sided mixture errs with half of its level on each."""
    return math.sqrt((n + 1) / n * math.log((n + 1) / (2 * alpha) ** 2))


def _cohorts(sketches: Sequence[tuple[int, ...]]) -> float:
    """How many units' worth of different entities there are: their number when none recurs, 1 when all always do."""
    if not any(sketches):
        return float(len(sketches))
    full = max(map(len, sketches))
    # What a set holds beyond the largest hash of its full sketch is unknown.
    limit = min((sketch[-1] for sketch in sketches if len(sketch) == full), default=math.inf)
    known = [{value for value in sketch if value <= limit} for sketch in sketches]
    visits = sum(map(len, known))
    return max(len(sketches) * len(set().union(*known)) / visits, 1.0) if visits else 1.0


def _mismatch(seen: Sequence[Arms]) -> str:
    for look, arms in enumerate((arms for arms in seen if arms.entities and arms.share > 0), start=1):
        p = assignment.p_value(arms.assigned, arms.entities, arms.share)
        if assignment.is_mismatched(p, look):
            return (
                f"{arms.assigned} of the {arms.entities} labelled entities of {arms.start:%Y-%m-%dT%H:%MZ} belong to the "
                f"challenger, {arms.share:.1%} were intended (p = {p:.2g}, look {look})"
            )
    return ""


def _ramp(policy: Rollout, seen: Sequence[Arms], share: float, evidence: Evidence, numbers: str) -> Judgement:
    own = [arms for arms in _whole(seen) if arms.share == share]
    stay, labels = len({arms.start.date() for arms in own}), sum(arms.n_challenger for arms in own)
    said = f"{stay} compared {_UNITS} with {labels} labelled rows of the challenger at {share:.0%}"
    if stay < policy.intervals_per_step or labels < policy.min_labels:
        needed = f"{policy.intervals_per_step} with {policy.min_labels} are needed"
        return Judgement("hold", f"The share stays: {said}, {needed}; {numbers}.", share, evidence)
    if evidence.trails:
        return Judgement("hold", f"The share stays, because the challenger trails: {said}; {numbers}.", share, evidence)
    following = next((step for step in policy.steps if step > share), 1.0)
    if following >= 1:
        return Judgement("complete", f"The challenger passed every share: {said}; {numbers}.", 1.0, evidence)
    return Judgement("advance", f"The share grows to {following:.0%}: {said}; {numbers}.", following, evidence)


def _numbers(evidence: Evidence, confidence: float) -> str:
    if evidence.gain is None:
        return "no interval could be compared yet"
    said = f"gain {evidence.gain:.4g} over {evidence.units} compared {_UNITS}"
    if math.isinf(evidence.high):
        return f"{said}, too few to prove anything"
    if math.isinf(evidence.low):
        return f"{said}, {confidence:.0%} at all looks: at most {evidence.high:.4g}"
    return f"{said}, {confidence:.0%} at all looks: {evidence.low:.4g} to {evidence.high:.4g}"


def _scale(seen: Sequence[Arms]) -> float:
    return max((abs(arms.champion) for arms in seen if arms.champion is not None), default=0.0)
