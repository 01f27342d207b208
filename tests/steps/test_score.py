"""Planning, validating, scoring and publishing one interval."""

from __future__ import annotations

import json
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from pipeline import engine, progress, registry
from pipeline.errors import (
    AliasConflict,
    ContractViolation,
    InvalidRequest,
    ModelTampered,
    NoChampion,
    NoData,
    TooManyQuarantined,
)
from pipeline.ledger import Ledger
from pipeline.policies import Engine
from pipeline.runtime import Runtime
from pipeline.steps import plan
from pipeline.steps import score as scoring
from pipeline.storage import ROW_GROUP


@pytest.fixture
def ready(runtime, orders, day):
    """The deployment with a first champion, trained on what was known on day 10."""
    runtime.retrain(orders, day(10), bootstrap=True)
    return runtime


def score(runtime, job, start, **options):
    (manifest,) = runtime.score(job, start, **options)
    return manifest


def test_score_publishes_every_row_with_exactly_one_model_version(ready, orders, day, world):
    manifest = score(ready, orders, day(10))
    published = pq.read_table(manifest.path, partitioning=None)
    assert (manifest.rows_in, manifest.rows_scored, manifest.rows_quarantined) == (300, 300, 0)
    assert published["row_id"].to_pylist() == pq.read_table(world.features(10), partitioning=None)["row_id"].to_pylist()
    assert set(published["model_version"].to_pylist()) == {1} == {manifest.model_version}
    assert published.column_names == ["row_id", "event_ts", "prediction", "score", "model_version"]
    assert set(published["prediction"].to_pylist()) <= {0, 1}
    assert 0 <= pc.min(published["score"]).as_py() <= pc.max(published["score"]).as_py() <= 1


def test_score_writes_a_manifest_that_is_derivable_from_the_footer(ready, orders, day):
    manifest = score(ready, orders, day(10))
    footer = {k.decode(): v.decode() for k, v in pq.read_metadata(manifest.path).metadata.items()}
    for name in ("fingerprint", "job", "model_name", "model_digest", "code_version"):
        assert footer[name] == getattr(manifest, name)
    assert int(footer["rows_in"]) == manifest.rows_in
    beside = Path(f"{ready.context(orders).output}/predictions.manifest/ds=2026-01-10.json")
    assert json.loads(beside.read_text())["sha256"] == manifest.sha256


def test_score_repeated_touches_no_file_and_repairs_a_lost_manifest(ready, orders, day):
    first = score(ready, orders, day(10))
    before = Path(first.path).stat()
    beside = Path(f"{ready.context(orders).output}/predictions.manifest/ds=2026-01-10.json")
    beside.unlink()
    again = score(ready, orders, day(10))
    after = Path(first.path).stat()
    assert again.status == "unchanged"
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert beside.exists()


def test_score_of_changed_input_supersedes_the_partition_and_keeps_the_previous_file(ready, orders, day, world):
    first = score(ready, orders, day(10))
    world.rewrite(10, lambda table: table.slice(0, 200))
    second = score(ready, orders, day(10))
    assert (second.status, second.rows_scored) == ("published", 200)
    assert second.fingerprint != first.fingerprint
    kept = Path(f"{ready.context(orders).output}/predictions.versions/ds=2026-01-10/{first.sha256}.parquet")
    assert pq.read_metadata(kept).num_rows == 300


def test_score_quarantines_bad_rows_with_reason_and_accounts_for_all(ready, orders, day, world):
    def spoil(table: pa.Table) -> pa.Table:
        amount = table["amount"].to_numpy().copy()
        amount[3] = np.inf
        ids = table["row_id"].to_pylist()
        ids[7] = ids[6]
        ids[9] = None
        return table.set_column(0, "row_id", pa.array(ids, pa.int64())).set_column(2, "amount", pa.array(amount))

    world.rewrite(11, spoil)
    manifest = score(ready, orders, day(11))
    assert manifest.reasons == {"duplicate_key": 1, "not_finite:amount": 1, "null_key:row_id": 1}
    assert manifest.rows_in == 300 == manifest.rows_scored + manifest.rows_quarantined
    quarantine = pq.read_table(manifest.quarantine_path, partitioning=None)
    assert sorted(quarantine["reason_code"].to_pylist()) == sorted(manifest.reasons)
    assert {"row_id", "event_ts", "amount", "country"} <= set(quarantine.column_names)


def test_score_withdraws_the_quarantine_once_the_input_is_mended(ready, orders, day, world):
    healthy = pq.read_table(world.features(11), partitioning=None)
    world.rewrite(11, lambda t: t.set_column(0, "row_id", pa.array([None, *t["row_id"].to_pylist()[1:]], pa.int64())))
    spoilt = score(ready, orders, day(11))
    world.rewrite(11, lambda _: healthy)
    mended = score(ready, orders, day(11))
    assert (mended.quarantine_path, mended.rows_scored) == (None, 300)
    assert not Path(spoilt.quarantine_path).exists()


def test_score_publishes_nothing_when_too_many_rows_are_bad(ready, orders, day, world):
    world.rewrite(
        11, lambda t: t.set_column(0, "row_id", pa.array([None] * 100 + t["row_id"].to_pylist()[100:], pa.int64()))
    )
    with pytest.raises(
        TooManyQuarantined, match=r"100 of 300 rows .* expected at most 5.0% .* got 33.3%.*no prediction"
    ):
        score(ready, orders, day(11))
    assert not list(Path(ready.context(orders).output).glob("predictions/*"))


def test_score_refuses_another_schema_and_names_every_column(ready, orders, day, world):
    earlier = score(ready, orders, day(11))
    world.rewrite(11, lambda t: t.drop_columns(["country"]).set_column(2, "amount", t["amount"].cast(pa.string())))
    with pytest.raises(ContractViolation, match=r"amount.*number.*string") as caught:
        score(ready, orders, day(11))
    assert "country" in str(caught.value)
    assert "pipeline check orders" in str(caught.value)
    assert pq.read_metadata(earlier.path).num_rows == 300


def test_score_publishes_nothing_when_a_blocking_expectation_fails(runtime, orders_on, day, world):
    mean = {"type": "expect_column_mean_to_be_between", "kwargs": {"column": "amount", "max_value": 1.0}}
    job = orders_on(world, checks={"expectations": [mean]})
    runtime.retrain(job, day(10), bootstrap=True)
    with pytest.raises(ContractViolation, match=r"expect_column_mean_to_be_between\(amount\)"):
        score(runtime, job, day(10))
    output = Path(runtime.context(job).output)
    assert not list(output.glob("predictions/*"))
    assert (output / "reports/ds=2026-01-10/validation.html").exists()


def test_score_of_many_rows_is_stopped_by_one_bad_value_in_the_last_batch(runtime, orders_on, day, world):
    most = {"type": "expect_column_values_to_be_between", "kwargs": {"column": "amount", "max_value": 1e6}}
    job = orders_on(world, checks={"expectations": [most]})
    runtime.retrain(job, day(10), bootstrap=True)
    few = pq.read_table(world.features(10), partitioning=None)
    rows = pa.concat_tables([few] * (140_000 // few.num_rows + 1))
    amounts = rows["amount"].to_numpy().copy()
    amounts[-1] = 2e6
    ids = pa.array(np.arange(rows.num_rows), few.schema.field("row_id").type)
    rows = rows.set_column(rows.column_names.index("row_id"), "row_id", ids)
    rows = rows.set_column(rows.column_names.index("amount"), "amount", pa.array(amounts))
    pq.write_table(rows, world.features(10))
    with pytest.raises(ContractViolation, match=rf"1 of {rows.num_rows:,} rows unexpected: 2000000"):
        score(runtime, job, day(10))


def test_score_without_a_champion_says_how_to_make_one(runtime, orders, day):
    with pytest.raises(
        NoChampion, match=r"no champion as of 2026-01-11.*nothing was written.*retrain orders .*--bootstrap"
    ):
        score(runtime, orders, day(10))


def test_score_before_the_first_champion_names_it_and_the_way_out(ready, orders, day):
    with pytest.raises(NoChampion, match=r"version 1, takes effect at 2026-01-10.*--model current"):
        score(ready, orders, day(2))
    assert score(ready, orders, day(2), model="current").model_version == 1
    assert score(ready, orders, day(3), model=1).model_version == 1


def test_score_of_an_interval_without_data_names_the_folder(ready, orders, day):
    with pytest.raises(NoData, match=r"no input for \[2026-02-10.*features/ds=2026-02-10.*nothing was written"):
        score(ready, orders, day(41))


def test_score_off_the_grid_names_the_nearest_starts(ready, orders, day):
    with pytest.raises(InvalidRequest, match=r"2026-01-10T00:00:00Z and 2026-01-11T00:00:00Z"):
        score(ready, orders, day(10).replace(hour=5))


def test_score_refuses_a_champion_whose_files_changed(ready, orders, day, tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "_loaded", {})  # as in another process than the one that trained it
    (file,) = (tmp_path / "home" / "models").rglob("model.skops")
    file.write_bytes(file.read_bytes()[:-1] + b"!")
    with pytest.raises(ModelTampered, match=r"model\.skops"):
        score(ready, orders, day(10))
    assert not list(Path(ready.context(orders).output).glob("predictions/*"))


def test_score_notices_an_alias_that_was_moved_elsewhere(ready, orders, day):
    ready.retrain(
        orders.model_copy(update={"promote": orders.promote.model_copy(update={"mode": "disabled"})}), day(14)
    )
    ready.registry.move_alias("orders", 2, expected=1)
    with pytest.raises(AliasConflict, match=r"expected version 1.*got version 2.*pipeline promote"):
        score(ready, orders, day(15))


def test_every_reader_sees_each_partition_of_the_root_once(ready, orders, day):
    for number in (10, 11, 12):
        score(ready, orders, day(number))
    root = Path(ready.context(orders).output) / "predictions"
    assert pq.read_table(root).num_rows == 900
    assert len(pd.read_parquet(root)) == 900
    assert duckdb.execute(
        f"select count(*) from read_parquet('{root}/**/*.parquet', hive_partitioning=true)"
    ).fetchone() == (900,)
    assert pl.scan_parquet(f"{root}/**/*.parquet").collect().height == 900


@pytest.mark.parametrize("task", ["multiclass", "regression"])
def test_score_publishes_the_columns_of_the_task(runtime, orders_on, worlds, day, task):
    job = orders_on(worlds(days=12, rows=300, task=task), task=task)
    runtime.retrain(job, day(10), bootstrap=True)
    published = pq.read_table(score(runtime, job, day(10)).path, partitioning=None)
    if task == "regression":
        assert published.column_names == ["row_id", "event_ts", "prediction", "model_version"]
        assert published.schema.field("prediction").type == pa.float64()
    else:
        assert published.column_names[3:-1] == ["score_keep", "score_return", "score_swap"]
        total = sum(published[name].to_numpy() for name in published.column_names[3:-1])
        assert np.allclose(total, 1)


def test_an_empty_partition_is_published_with_its_schema_when_the_job_allows_it(runtime, orders_on, day, world):
    job = orders_on(world, checks={"min_rows": 0})
    runtime.retrain(job, day(10), bootstrap=True)
    world.rewrite(11, lambda t: t.slice(0, 0))
    manifest = score(runtime, job, day(11))
    assert (manifest.rows_in, manifest.rows_scored) == (0, 0)
    assert pq.read_schema(manifest.path).names == ["row_id", "event_ts", "prediction", "score", "model_version"]


class Killed(BaseException):
    """Nothing that any handler expects, as a signal would be."""


class DiesBeforeManifest(Ledger):
    def record_manifest(self, manifest):
        raise Killed


def test_score_killed_between_publication_and_record_is_repaired_by_the_next_run(ready, orders, day, world):
    with Runtime(ready.settings, ready.clock) as dying:
        dying.ledger.close()
        dying.ledger = DiesBeforeManifest(ready.settings.ledger_url, ready.clock)
        with pytest.raises(Killed):
            list(dying.score(orders, day(10)))
    (published,) = Path(ready.context(orders).output, "predictions").rglob("*.parquet")
    before = published.stat()
    assert ready.ledger.manifests("orders") == []
    manifest = score(ready, orders, day(10))
    assert (manifest.status, published.stat().st_mtime_ns) == ("unchanged", before.st_mtime_ns)
    assert [m.sha256 for m in ready.ledger.manifests("orders")] == [manifest.sha256]


def test_a_plan_is_scored_by_its_own_version_whatever_becomes_champion_meanwhile(ready, orders, day):
    context = ready.context(orders)
    planned = plan.plan(context, orders.interval(day(14)))
    ready.retrain(orders, day(14))
    ready.promote(orders, 2, "meanwhile", day(14))
    manifest = scoring.score(context, planned)
    assert manifest.model_version == 1
    assert set(pq.read_table(manifest.path, partitioning=None)["model_version"].to_pylist()) == {1}
    assert score(ready, orders, day(14)).model_version == 2


def test_a_scheduled_run_makes_a_backfilled_interval_count(ready, orders, day):
    score(ready, orders, day(10), quiet=True)
    assert [m.quiet for m in ready.ledger.manifests("orders")] == [True]
    assert score(ready, orders, day(10)).status == "unchanged"
    assert [m.quiet for m in ready.ledger.manifests("orders")] == [False]
    score(ready, orders, day(10), quiet=True)
    assert [m.quiet for m in ready.ledger.manifests("orders")] == [False]


def spread(table: pa.Table, rows: int) -> pa.Table:
    """Many rows out of a day's few, some of them bad in every batch, with texts that no dictionary of texts may hold."""
    index = np.arange(rows)
    ids = pa.array(np.where(index % 50_000 == 7, 5, index * 3), pa.int64())
    amount = np.where(index % 40_000 == 9, np.inf, table["amount"].to_numpy()[index % table.num_rows] + index % 97)
    country = table["country"].take(pa.array(index % table.num_rows)).combine_chunks()
    stained = pa.array([b"\xff\xfe"] * 3).cast(pa.binary()).view(pa.string())
    return pa.table(
        {
            "row_id": ids,
            "event_ts": table["event_ts"].take(pa.array(index % table.num_rows)),
            "amount": amount,
            "country": pa.chunked_array([country.slice(0, rows - 3), stained]),
        }
    )


ROWS = 2 * ROW_GROUP + 1000


@pytest.mark.parametrize("group_rows", [ROWS, 90_000, 20_000])
def test_score_publishes_the_same_bytes_with_any_number_of_workers(ready, orders, day, world, group_rows):
    pq.write_table(
        spread(pq.read_table(world.features(10), partitioning=None), ROWS),
        world.features(10),
        row_group_size=group_rows,
    )
    found = set()
    for workers, backend in ((1, "threads"), (2, "threads"), (4, "threads"), (2, "processes")):
        job = orders.model_copy(update={"engine": Engine(backend=backend)})
        with Runtime(ready.settings.model_copy(update={"workers": workers}), ready.clock) as runtime:
            context = runtime.context(job)
            made = scoring.score(context, plan.plan(context, job.interval(day(10))), again=True)
        found.add((made.sha256, Path(made.quarantine_path).read_bytes(), str(made.reasons)))
    assert made.reasons == {"duplicate_key": 5, "not_finite:amount": 7, "not_text:country": 3}
    assert made.rows_in == ROWS == made.rows_scored + made.rows_quarantined
    assert len(found) == 1


def test_categories_that_come_as_codes_are_scored_as_their_texts(ready, orders, day, world):
    pq.write_table(
        spread(pq.read_table(world.features(10), partitioning=None), ROWS).slice(0, ROWS - 3), world.features(10)
    )
    manifest = score(ready, orders, day(10))
    context = ready.context(orders)
    model = context.load(1)
    rows = pq.read_table(world.features(10), partitioning=None)
    rows = rows.filter(pc.is_in(rows["row_id"], pq.read_table(manifest.path, partitioning=None)["row_id"]))
    rows = rows.take(pa.array(np.unique(rows["row_id"].to_numpy(), return_index=True)[1])).sort_by("row_id")
    expected = engine.predict(model.estimator, engine.to_frame(rows, context.model_columns(model)), "binary")
    published = pq.read_table(manifest.path, partitioning=None).sort_by("row_id")
    np.testing.assert_array_equal(published["score"].to_numpy(), expected.scores[:, 1])


def test_a_job_asks_for_no_more_workers_than_the_machine_allows(ready, orders):
    ready.settings = ready.settings.model_copy(update={"workers": 3})
    assert ready.context(orders).workers == 3
    assert ready.context(orders.model_copy(update={"engine": Engine(workers=2)})).workers == 2
    assert ready.context(orders.model_copy(update={"engine": Engine(workers=9)})).workers == 3


def test_a_long_pass_says_how_far_it_has_come(ready, orders, day, monkeypatch, caplog):
    monkeypatch.setattr(progress, "_LOG_SECONDS", 0.0)
    with caplog.at_level("INFO", logger="pipeline.progress"):
        score(ready, orders, day(10))
    assert "orders 2026-01-10T00:00:00Z: 300 of 300 rows" in caplog.text
    assert "rows/s" in caplog.text
