"""Late and changed input is found by the next run and scored again; nothing else is touched."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import ContractViolation, InvalidRequest


@pytest.fixture
def scored(runtime, orders, day):
    """Days 10 to 13 published by version 1; version 2 is champion from day 14 on."""
    runtime.retrain(orders, day(10), bootstrap=True)
    manifests = list(runtime.score(orders, day(10), day(14)))
    runtime.retrain(orders, day(14), reason="a second version", force=True)
    return manifests


def grown(table: pa.Table) -> pa.Table:
    late = table.slice(0, 5).set_column(0, "row_id", pa.array(range(5), pa.int64()))
    return pa.concat_tables([table, late])


def states(manifests):
    return {m.path: (Path(m.path).stat().st_ino, Path(m.path).stat().st_mtime_ns) for m in manifests}


def test_a_partition_that_grew_is_found_and_restated_by_the_version_that_had_scored_it(
    runtime, orders, day, world, scored
):
    before = states(scored)
    world.rewrite(12, grown)
    assert runtime.changed(orders, day(14)) == [day(12)]
    restated = runtime.restate(orders, day(12))
    assert (restated.status, restated.rows_in, restated.model_version, restated.quiet) == ("published", 305, 1, False)
    assert pq.read_metadata(restated.path).num_rows == 305
    assert runtime.changed(orders, day(14)) == []
    after = states(scored)
    assert {path for path in after if after[path] != before[path]} == {restated.path}
    assert pq.read_metadata(kept(runtime, orders, scored[2])).num_rows == 300


def kept(runtime, job, manifest):
    """Where the superseded file of a manifest lies."""
    return f"{runtime.context(job).output}/predictions.versions/ds=2026-01-12/{manifest.sha256}.parquet"


def test_a_new_file_beside_the_scored_one_is_a_change(runtime, orders, day, world, scored):
    late = pq.read_table(world.features(13), partitioning=None).slice(0, 7)
    late = late.set_column(0, "row_id", pa.array(range(7), pa.int64()))
    pq.write_table(late, world.features(13).with_name("part-1.parquet"))
    assert runtime.changed(orders, day(14)) == [day(13)]
    assert runtime.restate(orders, day(13)).rows_scored == 307


def test_touched_moved_and_deleted_inputs_are_no_change(runtime, orders, day, world, scored):
    os.utime(world.features(11), (1, 1))
    copied = world.features(12).read_bytes()
    world.features(12).unlink()
    world.features(12).write_bytes(copied)
    world.features(13).unlink()
    assert runtime.changed(orders, day(14)) == []


def test_only_the_lookback_is_looked_at_and_zero_looks_at_nothing(runtime, orders, day, world, scored):
    for number in (10, 11, 12, 13):
        world.rewrite(number, grown)
    assert runtime.changed(orders, day(14)) == [day(11), day(12), day(13)]
    assert runtime.changed(orders, day(12)) == [day(10), day(11)]

    def looking_back(length):
        return orders.model_copy(update={"features": orders.features.model_copy(update={"lookback": length})})

    assert runtime.changed(looking_back(timedelta(hours=1)), day(14)) == [day(13)]
    assert runtime.changed(looking_back(timedelta(0)), day(14)) == []


def test_a_change_that_breaks_the_contract_leaves_the_published_partition(runtime, orders, day, world, scored):
    before = states(scored)
    world.rewrite(12, lambda table: table.drop_columns(["amount"]))
    assert runtime.changed(orders, day(14)) == [day(12)]
    with pytest.raises(ContractViolation, match="'amount': expected a number, but the column is missing"):
        runtime.restate(orders, day(12))
    assert states(scored) == before


def test_an_interval_that_was_never_published_cannot_be_restated(runtime, orders, day, scored):
    with pytest.raises(
        InvalidRequest, match=r"has not published \[2026-01-15.*pipeline score orders --start 2026-01-15"
    ):
        runtime.restate(orders, day(15))


def test_a_restated_backfill_stays_quiet_and_a_restated_interval_is_measured_again(runtime, orders, day, world, scored):
    (quiet,) = runtime.score(orders, day(14), quiet=True)
    runtime.evaluate(orders, day(20))
    assert runtime.evaluate(orders, day(20)) == []
    world.rewrite(13, grown)
    world.rewrite(14, grown)
    assert [runtime.restate(orders, start).quiet for start in runtime.changed(orders, day(15))] == [False, True]
    assert [report.start for report in runtime.evaluate(orders, day(20))] == [day(13), quiet.start]
