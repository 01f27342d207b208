"""Files and rows in quarantine: what is rejected, how much of it is allowed, how it is told and looked at again."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from pipeline.errors import ContractViolation, TooManyQuarantined

BIG = 5_000


@pytest.fixture
def ready(runtime, orders, day):
    runtime.retrain(orders, day(10), bootstrap=True)
    return runtime


def score(runtime, job, start):
    (manifest,) = runtime.score(job, start)
    return manifest


def split(world, number, small_rows=10):
    """The day in two files, a large one and a small one, with more rows than usual; the path of the small one."""
    rows = pq.read_table(world.features(number), partitioning=None)
    many = pa.concat_tables([rows] * 17).slice(0, BIG)
    many = many.set_column(0, "row_id", pa.array(range(BIG), pa.int64()))
    small = world.features(number).with_name("part-1.parquet")
    options = {"compression": "none", "use_dictionary": False, "write_page_checksum": True, "write_statistics": False}
    pq.write_table(many.slice(0, BIG - small_rows), world.features(number), **options)
    pq.write_table(many.slice(BIG - small_rows), small, **options)
    return small


def broken_footer(path):
    path.write_bytes(path.read_bytes()[:-4] + b"PAR2")


def broken_page(path):
    data = bytearray(path.read_bytes())
    data[60] ^= 1
    path.write_bytes(bytes(data))


def without_a_column(path):
    pq.write_table(pq.read_table(path, partitioning=None).drop_columns(["country"]), path)


@pytest.mark.parametrize(
    ("damage", "rows"),
    [(broken_footer, None), (broken_page, 10), (without_a_column, 10)],
    ids=["footer", "page", "column"],
)
def test_a_bad_file_is_rejected_by_name_and_the_others_are_scored(ready, orders, day, world, damage, rows):
    small = split(world, 10)
    damage(small)
    manifest = score(ready, orders, day(10))
    (file,) = manifest.rejected_files
    assert (file.path, file.rows) == ("ds=2026-01-10/part-1.parquet", rows)
    assert file.reason in ("not_parquet", "corrupt", "schema")
    assert manifest.rows_scored == BIG - 10 == pq.read_metadata(manifest.path).num_rows
    assert manifest.rows_in == manifest.rows_scored + manifest.rows_quarantined + manifest.rows_rejected
    assert "part-1.parquet" in Path(manifest.report_uri).read_text()
    again = score(ready, orders, day(10))
    assert again == manifest.model_copy(update={"status": "unchanged"})
    (drift,) = ready.monitor(orders, day(10))
    assert drift.rows == BIG - 10
    (told,) = ready.quarantined(orders).rejected_files
    assert told == file


def test_a_partition_of_which_too_much_is_in_bad_files_is_not_published(ready, orders, day, world):
    first = score(ready, orders, day(10))
    small = split(world, 10, small_rows=600)
    broken_footer(small)
    with pytest.raises(
        TooManyQuarantined, match=r"part-1\.parquet was rejected \(not_parquet.*at most 5\.0%.*got 1\d\."
    ):
        score(ready, orders, day(10))
    assert pq.read_metadata(first.path).num_rows == 300


def test_bad_files_and_bad_rows_share_one_limit(ready, orders, day, world):
    small = split(world, 10, small_rows=200)
    broken_footer(small)
    assert score(ready, orders, day(10)).rows_quarantined == 0
    rows = pq.read_table(world.features(10), partitioning=None)
    ids = pc.if_else(pc.less(rows["row_id"], 200), None, rows["row_id"])
    pq.write_table(rows.set_column(0, "row_id", ids), world.features(10), compression="none", use_dictionary=False)
    with pytest.raises(TooManyQuarantined, match=r"200 of 4800 rows.*null_key:row_id.*part-1\.parquet was rejected"):
        score(ready, orders, day(10))


def test_a_partition_without_any_usable_file_says_why(ready, orders, day, world):
    broken_footer(world.features(10))
    with pytest.raises(ContractViolation, match=r"part-0\.parquet"):
        score(ready, orders, day(10))


def test_a_rejected_file_that_is_delivered_again_is_a_change(ready, orders, day, world):
    small = split(world, 10)
    whole = small.read_bytes()
    broken_footer(small)
    score(ready, orders, day(10))
    assert ready.changed(orders, day(11)) == []
    small.write_bytes(whole)
    assert ready.changed(orders, day(11)) == [day(10)]
    manifest = ready.restate(orders, day(10))
    assert (manifest.rows_scored, manifest.rejected_files) == (BIG, ())


def test_files_of_narrower_types_are_read_together_without_loss(ready, orders, day, world):
    small = split(world, 10)
    rows = pq.read_table(small, partitioning=None)
    narrow = rows.set_column(0, "row_id", rows["row_id"].cast(pa.int32()))
    pq.write_table(narrow.append_column("note", pa.array(["late"] * 10)), small)
    manifest = score(ready, orders, day(10))
    published = pq.read_table(manifest.path, partitioning=None)
    assert published.schema.field("row_id").type == pa.int64()
    assert sorted(published["row_id"].to_pylist()) == list(range(BIG))


def test_text_that_looks_like_numbers_is_never_read_as_numbers(ready, orders, day, world):
    small = split(world, 10)
    rows = pq.read_table(small, partitioning=None)
    pq.write_table(rows.set_column(0, "row_id", rows["row_id"].cast(pa.string())), small)
    with pytest.raises(ContractViolation, match=r"'row_id': no type holds.*int64 in .*part-0.*string in .*part-1"):
        score(ready, orders, day(10))


def spoil(table, rows):
    """The first ``rows`` amounts far below what the rule allows."""
    amounts = pa.array([-1.0] * rows + table["amount"].to_pylist()[rows:])
    return table.set_column(table.schema.get_field_index("amount"), "amount", amounts)


@pytest.fixture
def ruled(orders_on, world):
    rule = {"column": "amount", "rule": "between", "min": 0}
    return orders_on(world, checks={"rules": [rule]})


def test_the_summary_counts_by_reason_with_the_latest_examples(ready, ruled, day, world):
    world.rewrite(10, lambda table: spoil(table, 3))
    world.rewrite(11, lambda table: spoil(table, 2))
    list(ready.score(ruled, day(10), day(13)))
    found = ready.quarantined(ruled)
    assert (found.intervals, found.rows_in, found.rows_quarantined) == (3, 900, 5)
    (reason,) = found.reasons
    assert (reason.reason, reason.rows, reason.intervals) == ("between:amount", 5, 2)
    assert (reason.first, reason.last, reason.examples) == (day(10), day(11), ("-1",))
    assert ready.quarantined(ruled, day(11), day(13)).rows_quarantined == 2
    assert ready.quarantined(ruled, day(12)).reasons == ()


def test_replaying_quarantine_after_a_rule_was_mended_publishes_a_superseding_partition(
    ready, ruled, orders, day, world
):
    world.rewrite(10, lambda table: spoil(table, 3))
    first = score(ready, ruled, day(10))
    assert first.rows_quarantined == 3
    ready.retrain(ruled, day(10), reason="another champion", force=True)
    before, after = ready.replay_quarantine(orders, day(10))
    assert before == first.model_copy(update={"status": "published"})
    assert (after.status, after.rows_scored, after.rows_quarantined) == ("published", 300, 0)
    assert after.model_version == first.model_version
    assert not Path(first.quarantine_path).exists()


def test_replaying_quarantine_without_a_cure_changes_nothing(ready, ruled, day, world):
    world.rewrite(10, lambda table: spoil(table, 3))
    first = score(ready, ruled, day(10))
    files = [Path(first.path), Path(first.quarantine_path)]
    states = [(file.stat().st_ino, file.stat().st_mtime_ns) for file in files]
    _, after = ready.replay_quarantine(ruled, day(10))
    assert (after.status, after.rows_quarantined) == ("unchanged", 3)
    assert [(file.stat().st_ino, file.stat().st_mtime_ns) for file in files] == states


def test_a_run_that_died_between_quarantine_and_predictions_is_made_whole_by_the_next(ready, ruled, day, world):
    whole = pq.read_table(world.features(10), partitioning=None)
    first = score(ready, ruled, day(10))
    world.rewrite(10, lambda table: spoil(table, 3))
    second = score(ready, ruled, day(10))
    aside = Path(second.quarantine_path).read_bytes()
    # The input goes back; the quarantine of the second state is still there, as a run killed in between leaves it.
    pq.write_table(whole, world.features(10))
    score(ready, ruled, day(10))
    Path(second.quarantine_path).parent.mkdir(parents=True, exist_ok=True)
    Path(second.quarantine_path).write_bytes(aside)
    again = score(ready, ruled, day(10))
    assert again.rows_quarantined == 0 == first.rows_quarantined
    assert not Path(second.quarantine_path).exists()
