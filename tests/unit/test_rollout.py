"""The judge of a rollout: what it proves, how often it is fooled, and what it does about it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from pipeline.release import Rollout
from pipeline.rollout import Judgement, compare, judge
from pipeline.verdicts import Arms

START = datetime(2026, 1, 1, tzinfo=UTC)
DAY = timedelta(days=1)
CANARY = Rollout(kind="canary")
AB = Rollout(kind="ab")
SHADOW = Rollout(kind="shadow")


def arms(number: int, gain: float | None, *, share: float = 0.5, length: timedelta = DAY, **changes: Any) -> Arms:
    start = START + number * length
    facts: dict[str, Any] = {
        "champion": 1.0,
        "challenger": None if gain is None else 1.0 - gain,
        "gain": gain,
        "n_champion": 1000,
        "n_challenger": 1000,
        **changes,
    }
    return Arms(start=start, end=start + length, salt="rollout-1", share=share, **facts)


def course(gains: Any, **changes: Any) -> list[Arms]:
    return [arms(number, float(gain), **changes) for number, gain in enumerate(gains)]


def judged(policy: Rollout, seen: list[Arms], *, share: float = 0.5, elapsed: int | None = None) -> Judgement:
    return judge(policy, seen, share=share, elapsed=len(seen) if elapsed is None else elapsed)


def sketches(rng: np.random.Generator, count: int) -> list[tuple[int, ...]]:
    """Of so many sets of other entities each, 64 hashes each."""
    return [tuple(sorted(int(v) for v in rng.integers(0, 2**50, 64))) for _ in range(count)]


def first_proof(gains: np.ndarray, looks: int) -> int:
    """+1 or -1 when the look after some interval proves a difference, else 0."""
    seen = course(gains)
    for n in range(1, looks + 1):
        found = compare(seen[:n], 0.05)
        if found.low > 0 or found.high < 0:
            return 1 if found.low > 0 else -1
    return 0


@pytest.mark.parametrize("noise", ["normal", "heavy", "skewed differences"])
def test_equal_models_are_told_apart_in_at_most_five_percent_of_rollouts_of_ninety_looks(noise):
    rng = np.random.default_rng(3)
    draw = {
        "normal": lambda: rng.normal(size=90),
        "heavy": lambda: rng.standard_t(3, size=90),
        "skewed differences": lambda: np.exp(rng.normal(size=90)) - np.exp(rng.normal(size=90)),
    }[noise]
    # A rate of 5 % shows more than 7 in 1 % of such tests; benchmarks/decisions/rollout.py measures it.
    assert sum(first_proof(draw(), 90) != 0 for _ in range(60)) <= 7


def test_a_difference_of_one_deviation_between_days_is_found_within_a_month():
    rng = np.random.default_rng(4)
    assert sum(first_proof(rng.normal(1, 1, 30), 30) == 1 for _ in range(50)) >= 45
    assert sum(first_proof(rng.normal(-1, 1, 30), 30) == -1 for _ in range(50)) >= 45


def test_nothing_is_proven_by_four_days_however_clear_they_are():
    found = compare(course([5.0, 5.1, 4.9, 5.0]), 0.05)
    assert (found.gain, found.low, found.high) == (pytest.approx(5.0), -np.inf, np.inf)
    assert compare(course([5.0, 5.1, 4.9, 5.0, 5.0]), 0.05).low > 0
    assert compare([], 0.05).gain is None


def test_gross_harm_is_found_at_once_where_the_noise_of_days_is_known():
    facts = {"error": 0.03, "by_day": 0.02}
    found = judged(CANARY, [arms(0, -0.3, share=0.05, **facts)], share=0.05)
    assert (found.action, found.evidence.low) == ("rollback", -np.inf)
    assert "gain -0.3 over 1 compared intervals (days, if shorter), 95% at all looks: at most -0." in found.reason
    assert judged(CANARY, [arms(0, -0.1, share=0.05, **facts)], share=0.05).action == "hold"
    assert judged(CANARY, [arms(0, -0.3, share=0.05, error=0.03)], share=0.05).action == "hold"
    assert judged(CANARY, [arms(0, -0.3, share=0.05, error=0.03, by_day=0.2)], share=0.05).action == "hold"
    # However good, a challenger is not proven better so early.
    assert judged(AB, [arms(0, 3.0, **facts)]).action == "hold"


def test_noise_within_what_was_known_of_days_is_rarely_taken_for_harm():
    rng = np.random.default_rng(8)
    fooled = 0
    for _ in range(60):
        gains = rng.normal(0, np.hypot(0.03, 0.02), 90)
        seen = course(gains, error=0.03, by_day=0.02)
        found = [compare(seen[:n], 0.05) for n in range(1, 91)]
        fooled += any(one.low > 0 or one.high < 0 for one in found)
    assert fooled <= 7


def test_the_sequence_is_that_of_the_mixture_test():
    gains = np.random.default_rng(1).normal(0.3, 1, 12)
    found = compare(course(gains), 0.05)
    n, spread = 12, gains.std(ddof=1) / np.sqrt(12)

    def bayes_factor(null: float) -> float:
        square = ((gains.mean() - null) / spread) ** 2 / (n - 1)
        return (1 + n) ** -0.5 * ((1 + square) / (1 + square / (1 + n))) ** (n / 2)

    # Four fifths of 5 %: the rest is spent on early harm.
    assert bayes_factor(found.low) == pytest.approx(25)
    assert bayes_factor(found.high) == pytest.approx(25)


def test_hours_of_one_day_count_as_one_observation_and_an_unfinished_day_as_none():
    rng = np.random.default_rng(2)
    by_day = rng.normal(size=8)
    hours = [
        arms(24 * number + hour, float(gain), length=timedelta(hours=1))
        for number, gain in enumerate(by_day)
        for hour in range(24)
    ]
    whole, days = compare(hours, 0.05), compare(course(by_day), 0.05)
    assert (whole.low, whole.high, whole.units) == (pytest.approx(days.low), pytest.approx(days.high), 8)
    assert compare(hours[:-1], 0.05).units == 7


def test_entities_that_come_again_do_not_prove_their_arms_luck():
    """The same customers every day: by chance one arm has the easier ones, on every day."""
    rng = np.random.default_rng(6)
    luck = 0.5
    gains = luck + rng.normal(0, 0.01, 60)
    known = sketches(rng, 60)
    same = [arms(n, g, error=0.4, sketch=known[0]) for n, g in enumerate(gains)]
    others = [arms(n, g, error=0.4, sketch=known[n]) for n, g in enumerate(gains)]
    assert compare(same, 0.05).low < 0 < compare(same, 0.05).high
    assert compare(others, 0.05).low > 0


def test_gains_of_few_rows_weigh_less():
    early = [arms(n, -1.0, n_challenger=10, share=0.01) for n in range(5)]
    late = [arms(n, 1.0) for n in range(5, 10)]
    assert compare([*early, *late], 0.05).gain > 0.5


def test_a_canary_advances_step_by_step_and_completes_after_the_last_share_below_one():
    seen: list[Arms] = []
    shares, share = [], CANARY.first_share
    for number, gain in enumerate(np.random.default_rng(0).normal(0, 0.1, 9)):
        seen.append(arms(number, float(gain), share=share))
        found = judged(CANARY, seen, share=share)
        shares.append((found.action, found.share))
        share = found.share
    assert [s for s in shares if s[0] != "hold"] == [("advance", 0.25), ("advance", 0.5), ("complete", 1.0)]
    assert [action for action, _ in shares].index("advance") == 2


def test_a_share_does_not_grow_by_the_hour():
    hours = [arms(n, 0.01 * (-1) ** n, share=0.05, length=timedelta(hours=1)) for n in range(72)]
    actions = [judged(CANARY, hours[:n], share=0.05, elapsed=n // 24).action for n in (3, 24, 48, 71, 72)]
    assert actions == ["hold"] * 4 + ["advance"]


def test_a_canary_holds_for_labels_and_while_the_challenger_trails():
    few = [arms(n, 0.0, share=0.05, n_challenger=20) for n in range(4)]
    assert "80 labelled rows of the challenger at 5%, 3 with 100 are needed" in judged(CANARY, few, share=0.05).reason
    assert judged(CANARY, few, share=0.05).action == "hold"
    blind = [arms(n, None, share=0.05) for n in range(9)]
    assert judged(CANARY, blind, share=0.05).action == "hold"
    trailing = [arms(n, -1.0 - 0.1 * n, share=0.05, error=0.3) for n in range(3)]
    assert "the challenger trails" in judged(CANARY, trailing, share=0.05).reason
    assert judged(CANARY, [arms(n, -0.1, share=0.05, error=0.3) for n in range(3)], share=0.05).action == "advance"


@pytest.mark.parametrize("policy", [CANARY, AB, SHADOW], ids=lambda policy: policy.kind)
def test_a_challenger_that_is_proven_worse_is_rolled_back(policy):
    found = judged(policy, course([-1.0, -1.1, -0.9, -1.0, -1.05]))
    assert (found.action, found.cause) == ("rollback", "worse")
    assert "proven worse: gain -1.01 over 5 compared intervals (days, if shorter), 95% at all looks" in found.reason


@pytest.mark.parametrize("policy", [AB, SHADOW], ids=lambda policy: policy.kind)
def test_a_trial_completes_on_proof_holds_without_and_is_given_up_in_the_end(policy):
    assert judged(policy, course([1.0, 1.1, 0.9, 1.0, 1.05])).action == "complete"
    level = course([1.0, -1.1, 0.9, -1.0, 0.2])
    assert judged(policy, level).action == "hold"
    given_up = judged(policy, level, elapsed=60)
    assert (given_up.action, given_up.reason.split(":")[0]) == (
        "rollback",
        "60 intervals (days, if shorter) have matured, 60 are allowed, without an end",
    )
    assert judged(policy, [], elapsed=60).cause == "time"


@pytest.mark.parametrize("policy", [AB, SHADOW], ids=lambda policy: policy.kind)
def test_a_challenger_that_answers_like_the_champion_is_never_proven_better(policy):
    assert judged(policy, course([0.0] * 50)).action == "hold"
    assert judged(policy, course([1e-17] * 50)).action == "hold"


def test_a_fault_ends_the_rollout_before_anything_else_counts():
    seen = course([1.0, 1.1, 0.9, 1.0, 1.05])
    seen[1] = seen[1].model_copy(update={"fault": "version 2 predicted NaN"})
    found = judged(AB, seen)
    assert (found.cause, found.reason) == (
        "fault",
        "The challenger is withdrawn: version 2 predicted NaN (2026-01-02T00:00Z).",
    )


def test_a_corrupted_split_ends_the_rollout_and_says_what_was_counted():
    clean = [arms(n, 1.0 + n / 100, entities=10_000, assigned=5_000 + n) for n in range(5)]
    assert judged(AB, clean).action == "complete"
    found = judged(AB, [*clean, arms(5, 1.0, entities=9_500, assigned=4_500)])
    assert (found.action, found.cause) == ("rollback", "split")
    assert "4500 of the 9500 labelled entities of 2026-01-06T00:00Z belong to the challenger, 50.0%" in found.reason


@pytest.mark.parametrize("steps", [[0.5], [0.5, 0.25, 1.0], [0.1, 0.5], [0.5, 0.5, 1.0]])
def test_a_ramp_that_does_not_grow_to_everything_is_refused(steps):
    with pytest.raises(ValidationError, match=r"must grow and end with 1|at least 2 items"):
        Rollout(kind="canary", steps=tuple(steps))
