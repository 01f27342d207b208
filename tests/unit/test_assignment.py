"""Assignment of entities: even, sticky, independent of everything but key and salt; and a corrupted split is noticed."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from scipy import stats

from pipeline import assignment, engine

KEYS = 1_000_000
SEQUENTIAL = pa.table({"id": pa.array(np.arange(KEYS))})
SHARES = (0.05, 0.25, 0.5, 1.0)


def places(table: pa.Table, salt: str = "rollout-1", key: tuple[str, ...] = ("id",)) -> np.ndarray:
    return assignment.places(engine.row_hashes(table, key, assignment.seed_of(salt)))


@pytest.fixture(scope="module")
def texts() -> pa.Table:
    return pa.table({"id": pa.array([f"customer-{number:07d}" for number in range(200_000)])})


def chi_square(values: np.ndarray, bins: int = 1000) -> float:
    return float(stats.chisquare(np.bincount((values * bins).astype(int), minlength=bins)).pvalue)


@pytest.mark.parametrize("salt", ["rollout-1", "rollout-2", "rollout-3"])
def test_sequential_numbers_and_texts_spread_evenly(salt, texts):
    for table in (SEQUENTIAL, texts):
        found = places(table, salt)
        assert found.min() >= 0
        assert found.max() < 1
        assert chi_square(found) > 1e-3
        assert stats.kstest(found, "uniform").pvalue > 1e-3


def test_two_salts_split_independently(texts):
    for table in (SEQUENTIAL, texts):
        one, other = places(table, "rollout-1"), places(table, "rollout-2")
        cells = np.histogram2d(one, other, bins=30, range=[[0, 1], [0, 1]])[0]
        assert stats.chisquare(cells.ravel()).pvalue > 1e-3


def test_neighbouring_keys_are_assigned_independently():
    found = places(SEQUENTIAL)
    assert stats.chisquare(np.histogram2d(found[:-1], found[1:], bins=30)[0].ravel()).pvalue > 1e-3


def test_no_entity_of_a_million_switches_back_while_the_share_grows():
    hashes = engine.row_hashes(SEQUENTIAL, ["id"], assignment.seed_of("rollout-1"))
    before = np.zeros(KEYS, dtype=bool)
    for share in SHARES:
        now = assignment.is_challengers(hashes, share)
        assert not (before & ~now).any()
        assert assignment.p_value(int(now.sum()), KEYS, share) > 1e-4
        before = now
    assert before.all()
    assert not assignment.is_challengers(hashes, 0.0).any()


def test_the_place_depends_on_the_key_alone(rng):
    keys = rng.integers(-1000, 1000, 5000)
    other = pa.array(rng.normal(size=5000))
    wide = pa.table({"id": pa.array(keys), "tag": pa.array([str(k) for k in keys]), "x": other})
    narrow = pa.table({"x": other, "tag": wide["tag"].dictionary_encode(), "id": pa.array(keys.astype("int32"))})
    expected = places(wide, key=("id", "tag"))
    assert np.array_equal(places(narrow, key=("id", "tag")), expected)
    chunked = pa.concat_tables([wide.slice(0, 17), wide.slice(17, 1), wide.slice(18)])
    assert np.array_equal(places(chunked, key=("id", "tag")), expected)
    order = rng.permutation(5000)[:700]
    assert np.array_equal(places(wide.take(pa.array(order)), key=("id", "tag")), expected[order])
    assert np.array_equal(
        np.concatenate([places(pa.table([b.columns[0]], ["id"])) for b in wide.to_batches(333)]), places(wide)
    )


@pytest.mark.parametrize("share", [0.05, 0.25, 0.5])
def test_p_values_of_clean_splits_are_uniform_over_salts(share):
    few = SEQUENTIAL.slice(0, 20_000)
    found = []
    for number in range(400):
        taken = int((places(few, f"rollout-{number}") < share).sum())
        found.append(assignment.p_value(taken, 20_000, share))
    assert stats.kstest(found, "uniform").pvalue > 1e-3


@pytest.mark.parametrize("share", [0.05, 0.5])
def test_the_p_value_is_the_exact_binomial_one_and_far_tails_keep_their_size(share):
    assert assignment.p_value(0, 0, share) == 1.0
    for taken in (0, 1, 40, 50, 60, 1000):
        tails = stats.binom.cdf(taken, 1000, share), stats.binom.sf(taken - 1, 1000, share)
        assert assignment.p_value(taken, 1000, share) == pytest.approx(min(1.0, 2 * min(tails)), rel=1e-6)
    assert 0 < assignment.p_value(int(500_000 * 1.02), 1_000_000, 0.5) < 1e-80


def test_clean_splits_pass_ninety_looks_and_a_corrupted_one_does_not():
    rng = np.random.default_rng(5)
    alarms = 0
    for _ in range(500):
        taken = rng.binomial(10_000, 0.25, 90)
        alarms += any(
            assignment.is_mismatched(assignment.p_value(int(n), 10_000, 0.25), look) for look, n in enumerate(taken, 1)
        )
    assert alarms == 0
    assert sum(6 / (np.pi * look) ** 2 for look in range(1, 100_000)) < 1
    # A tenth of the challenger's entities got lost on the way.
    assert assignment.is_mismatched(assignment.p_value(2250, 9750, 0.25), 1)
