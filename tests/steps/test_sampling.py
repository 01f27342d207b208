"""Samples by key: bounded, and the same whatever the order of arrival, the batches or the files' types."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pytest

from pipeline.errors import ContractViolation
from pipeline.steps.sampling import KeySample, comparable


def sampled(batches, size=50):
    sample = KeySample(["id"], size, seed=3)
    for batch in batches:
        sample.add(batch)
    return sample


def rows(count):
    return pa.table({"id": np.arange(count), "x": np.arange(count) * 2.0})


def test_a_sample_has_the_size_asked_for_and_keeps_rows_whole_and_in_order():
    sample = sampled(rows(1000).to_batches(max_chunksize=30))
    found = sample.table()
    assert (found.num_rows, sample.seen) == (50, 1000)
    assert found["id"].to_pylist() == sorted(found["id"].to_pylist())
    assert (found["x"].to_numpy() == 2 * found["id"].to_numpy()).all()


def test_few_rows_are_all_kept_and_nothing_offered_is_none():
    assert sampled([rows(50)]).table() == rows(50)
    assert sampled([]).table() is None
    assert sampled([rows(0), rows(3), rows(0)]).table() == rows(3)


def test_the_same_rows_are_kept_whatever_their_order_and_batches(rng):
    shuffled = rows(1000).take(pa.array(rng.permutation(1000)))
    kept = [
        set(sampled(table.to_batches(max_chunksize=step)).table()["id"].to_pylist())
        for table in (rows(1000), shuffled)
        for step in (7, 90, 1000)
    ]
    assert all(one == kept[0] for one in kept)


def test_a_sample_of_samples_is_the_sample_of_all():
    parts = [sampled([rows(1000).slice(start, 250)]).table() for start in range(0, 1000, 250)]
    assert sampled(parts).table() == sampled([rows(1000)]).table()


def test_of_a_key_at_the_limit_the_first_rows_stay_and_no_other_key_loses_any():
    repeated = pa.table({"id": np.tile(np.arange(10), 20), "x": np.repeat(np.arange(20.0), 10)})
    found = sampled([repeated], size=50).table()
    ids, counts = np.unique(found["id"].to_numpy(), return_counts=True)
    assert sorted(counts) == [10, 20, 20]
    cut = ids[counts == 10][0]
    assert found.filter(pa.compute.equal(found["id"], cut))["x"].to_pylist() == list(range(10))


def test_rows_of_another_schema_are_refused_by_column():
    with pytest.raises(ContractViolation, match=r"disagree.*expected x: double; got x: string"):
        sampled([rows(3), rows(3).set_column(1, "x", pa.array(["a", "b", "c"]))])


def test_equal_values_become_equal_columns_whatever_types_the_files_have(make_job):
    job = make_job(features={"columns": {"amount": {"type": "number"}, "country": {"type": "category"}}})
    at = datetime(2026, 1, 1, 12, tzinfo=UTC)
    plain = pa.table({"row_id": [7], "event_ts": pa.array([at]), "amount": [2.0], "country": ["7"]})
    other = pa.table(
        {
            "row_id": pa.array([7], pa.int16()),
            "event_ts": pa.array([at.replace(tzinfo=None)], pa.timestamp("ns")),
            "amount": pa.array([2], pa.int8()),
            "country": pa.array([7.0]),
            "unused": [[1]],
        }
    )
    (first,), (second,) = (list(comparable(job, table.to_batches())) for table in (plain, other))
    assert first == second
    assert [str(field.type) for field in first.schema] == ["int64", "timestamp[us, tz=UTC]", "double", "string"]


def test_shares_in_a_sample_are_off_by_no_more_than_is_stated_in_95_of_100():
    # The bound of the documentation: with 95 % confidence no share is off by more than sqrt(ln(2 / 0.05) / (2 n)).
    size, population = 500, 10_000
    stated = np.sqrt(np.log(2 / 0.05) / (2 * size))
    table, beyond = rows(population), 0
    for seed in range(200):
        sample = KeySample(["id"], size, seed)
        sample.add(table)
        ranks = np.sort(sample.table()["id"].to_numpy())
        # Distance between the sample's distribution function and that of all rows, at its steps and just before them.
        own, true = np.arange(1, size + 1) / size, (ranks + 1) / population
        beyond += max(np.abs(own - true).max(), np.abs(own - 1 / size - (true - 1 / population)).max()) > stated
    assert beyond <= 10
