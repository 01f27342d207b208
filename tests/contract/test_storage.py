"""Storage keeps every promise on the local disk, under ``file://`` and on an object store (fsspec's memory one)."""

from __future__ import annotations

import hashlib
import io
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb
import fsspec
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import (
    ContractViolation,
    NoData,
    PublishConflict,
    RowsUnaccounted,
    StorageUnavailable,
)
from pipeline.failpoints import NAMES
from pipeline.storage import ROW_GROUP, Current, Published, Storage, Target, disk, unique
from pipeline.storage.disk import Disk
from pipeline.storage.places import Place
from pipeline.storage.spill import Roll

if TYPE_CHECKING:
    from collections.abc import Iterator

SCHEMA = pa.schema([pa.field("row_id", pa.int64(), nullable=False), ("amount", pa.float64()), ("country", pa.string())])
DAY = "ds=2026-01-01"
PAST = datetime(2000, 1, 1, tzinfo=UTC)
FUTURE = datetime(2100, 1, 1, tzinfo=UTC)


@pytest.fixture(params=["local", "file", "memory"])
def base(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A folder on each kind of file system."""
    if request.param != "memory":
        yield f"{'file://' if request.param == 'file' else ''}{tmp_path}/data"
        return
    yield f"memory://{tmp_path.name}/data"
    fsspec.filesystem("memory").store.clear()
    fsspec.filesystem("memory").pseudo_dirs[:] = [""]


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    return tmp_path / "scratch"


@pytest.fixture
def storage(scratch: Path) -> Storage:
    return Storage(scratch)


@pytest.fixture
def target(base: str) -> Target:
    return Target(f"{base}/predictions", DAY)


def rows(count: int, first: int = 0) -> pa.Table:
    ids = np.arange(first, first + count)
    amounts = pa.array(ids / 7, mask=ids % 11 == 0)
    # Long, distinct texts fill many pages, whose ends must not depend on batches either.
    texts = [hashlib.sha256(bytes(str(i), "ascii")).hexdigest() for i in ids]
    return pa.table([ids, amounts, pa.array(texts, pa.string())], schema=SCHEMA)


def publish(
    storage: Storage, target: Target, table: pa.Table, batch_rows: int = 1000, metadata: dict[str, str] | None = None
) -> Published:
    with storage.stage(target, table.schema, metadata or {}) as staged:
        for batch in table.to_batches(max_chunksize=batch_rows):
            staged.write(batch)
        return staged.publish(expected_rows=table.num_rows)


def put(uri: str, content: bytes) -> str:
    fs, path = fsspec.core.url_to_fs(uri)
    fs.makedirs(fs._parent(path), exist_ok=True)
    fs.pipe_file(path, content)
    return uri


def content(uri: str) -> bytes:
    fs, path = fsspec.core.url_to_fs(uri)
    return bytes(fs.cat_file(path))


def files_under(uri: str) -> list[str]:
    fs, path = fsspec.core.url_to_fs(uri)
    return [found.removeprefix(f"{path}/") for found in fs.find(path)]


def parquet_bytes(table: pa.Table, **options: Any) -> bytes:
    stream = io.BytesIO()
    pq.write_table(table, stream, **options)
    return stream.getvalue()


def same(left: pa.Table, right: pa.Table) -> bool:
    return bool(left.combine_chunks().equals(right.combine_chunks()))


def test_a_published_partition_is_one_file_and_nothing_else_anywhere(
    storage: Storage, target: Target, base: str, scratch: Path
) -> None:
    made = publish(storage, target, rows(10), metadata={"job": "orders"})
    assert made == Published(target.uri, hashlib.sha256(content(target.uri)).hexdigest(), 10)
    assert files_under(base) == [f"predictions/{DAY}/part-0.parquet"]
    assert files_under(str(scratch)) == []
    assert same(storage.read(target.uri), rows(10).replace_schema_metadata(None))
    assert same(storage.read(target.uri, ["country"]), rows(10).select(["country"]))
    assert storage.published(target) == made
    assert hashlib.sha256(content(target.uri)).hexdigest() == made.sha256


@pytest.mark.parametrize("count", [0, 1, ROW_GROUP, ROW_GROUP + 1, 2 * ROW_GROUP + 5])
def test_equal_rows_give_equal_bytes_however_they_were_batched(storage: Storage, tmp_path: Path, count: int) -> None:
    table, seen = rows(count), set()
    for number, batch_rows in enumerate((997, 50_000, ROW_GROUP, 10**9)):
        target = Target(f"{tmp_path}/{number}", DAY)
        seen.add(publish(storage, target, table, batch_rows, {"b": "2", "a": "1"}).sha256)
    assert len(seen) == 1
    footer = pq.read_metadata(target.uri)
    assert [footer.row_group(i).num_rows for i in range(footer.num_row_groups)] == [
        min(ROW_GROUP, count - start) for start in range(0, count, ROW_GROUP)
    ]


def test_equal_rows_give_equal_bytes_whatever_their_dictionaries_and_slices(storage: Storage, tmp_path: Path) -> None:
    dictionary = pa.dictionary(pa.int32(), pa.string())
    schema = pa.schema([("country", dictionary), ("flag", pa.bool_())])
    values, flags = ["b", "a", None, "b", "c"], [True, None, False, True, False]
    one = pa.record_batch([pa.array(values, dictionary), pa.array(flags)], schema=schema)
    other = pa.record_batch(
        [
            pa.DictionaryArray.from_arrays(pa.array([9, 3, 2, None, 3, 1], pa.int32()), list("xcabyzuvwq")),
            pa.array([None, *flags]),
        ],
        schema=schema,
    )
    first = publish(storage, Target(f"{tmp_path}/1", DAY), pa.Table.from_batches([one]))
    with storage.stage(Target(f"{tmp_path}/2", DAY), schema, {}) as staged:
        for start in range(1, 6):
            staged.write(other.slice(start, 1))
        second = staged.publish(expected_rows=5)
    assert storage.read(first.uri).to_pydict() == {"country": values, "flag": flags}
    assert first.sha256 == second.sha256


def test_metadata_is_found_in_the_footer_without_the_libraries_own(storage: Storage, target: Target) -> None:
    assert storage.current(target) == Current(None, None)
    table = pa.Table.from_pandas(pd.DataFrame({"x": [1.0]}))
    # Metadata of the schema, such as the input file's, is not the published file's.
    schema = table.schema.with_metadata({**table.schema.metadata, "fingerprint": "of the input", "origin": "input"})
    with storage.stage(target, schema, {"fingerprint": "f"}) as staged:
        staged.write(table.to_batches()[0])
        staged.publish(expected_rows=1, metadata={"rows": "1", "reasons": '{"größer": 1}'})
    assert storage.current(target).metadata == {"fingerprint": "f", "reasons": '{"größer": 1}', "rows": "1"}


def test_an_unreadable_published_file_is_never_taken_for_absent(storage: Storage, target: Target) -> None:
    put(target.uri, b"PAR1 half a file")
    with pytest.raises(
        ContractViolation, match=r"part-0\.parquet is not readable .*copy the latest file of .*\.versions/ds="
    ):
        storage.current(target)


def test_a_partition_without_rows_is_published_with_its_schema_and_every_reader_sees_the_others(
    storage: Storage, tmp_path: Path
) -> None:
    root = f"{tmp_path}/predictions"
    publish(storage, Target(root, "ds=2026-01-01"), rows(0))
    publish(storage, Target(root, "ds=2026-01-02"), rows(7))
    publish(storage, Target(root, "ds=2026-01-02"), rows(8))
    assert storage.read(Target(root, "ds=2026-01-01").uri).schema.equals(SCHEMA)
    assert len(pd.read_parquet(root)) == 8
    assert len(duckdb.read_parquet(f"{root}/**/*.parquet")) == 8
    assert pl.read_parquet(f"{root}/**/*.parquet").height == 8


def test_an_equal_file_is_left_untouched(storage: Storage, target: Target, base: str) -> None:
    publish(storage, target, rows(10), metadata={"a": "1"})
    fs, path = fsspec.core.url_to_fs(target.uri)
    before = fs.info(path)
    again = publish(storage, target, rows(10), batch_rows=3, metadata={"a": "1"})
    assert again == storage.published(target)
    assert fs.info(path) == {**before, **({"created": fs.info(path)["created"]} if "ino" in before else {})}
    assert files_under(base) == [f"predictions/{DAY}/part-0.parquet"]


def test_a_superseded_file_is_kept_under_its_digest(storage: Storage, target: Target, base: str) -> None:
    versions = []
    for count in (1, 2, 1, 3):
        versions.append(publish(storage, target, rows(count)).sha256)
    assert versions[0] == versions[2]
    assert storage.published(target).sha256 == versions[3]
    kept = sorted(f"predictions.versions/{DAY}/{sha256}.parquet" for sha256 in set(versions[:3]))
    assert files_under(base) == sorted([f"predictions/{DAY}/part-0.parquet", *kept])
    for path in kept:
        assert hashlib.sha256(content(f"{base}/{path}")).hexdigest() == Path(path).stem


def test_leaving_without_publishing_changes_nothing(storage: Storage, target: Target, base: str, scratch: Path) -> None:
    before = publish(storage, target, rows(10))
    with storage.stage(target, SCHEMA, {}) as staged:
        staged.write(rows(3).to_batches()[0])

    def fail_midway() -> None:
        with storage.stage(target, SCHEMA, {}) as staged:
            staged.write(rows(3).to_batches()[0])
            raise KeyError("the model failed midway")

    with pytest.raises(KeyError, match="the model failed midway"):
        fail_midway()
    assert storage.published(target) == before
    assert files_under(base) == [f"predictions/{DAY}/part-0.parquet"]
    assert files_under(str(scratch)) == []


def test_rows_that_do_not_add_up_are_never_published(
    storage: Storage, target: Target, base: str, scratch: Path
) -> None:
    with storage.stage(target, SCHEMA, {}) as staged:
        staged.write(rows(3).to_batches()[0])
        assert staged.rows == 3
        with pytest.raises(
            RowsUnaccounted, match=r"expected 4 rows; got 3 rows written, 3 in the staged file; the pub"
        ):
            staged.publish(expected_rows=4)
    assert files_under(base) == files_under(str(scratch)) == []


def test_a_batch_of_another_schema_is_refused(storage: Storage, target: Target, base: str) -> None:
    with (
        pytest.raises(ContractViolation, match="a batch has another schema; expected row_id: int64 not null"),
        storage.stage(target, SCHEMA, {}) as staged,
    ):
        staged.write(rows(3).select(["amount", "row_id", "country"]).to_batches()[0])
    assert files_under(base) == []


def test_a_null_where_the_schema_allows_none_is_refused(storage: Storage, target: Target, base: str) -> None:
    batch = pa.record_batch([pa.array([None], pa.int64()), pa.array([1.0]), pa.array(["a"])], schema=SCHEMA)
    with storage.stage(target, SCHEMA, {}) as staged:
        staged.write(batch)
        with pytest.raises(ContractViolation, match="a row group does not fit the schema"):
            staged.publish(expected_rows=1)
    assert files_under(base) == []


def test_a_type_that_parquet_would_change_is_refused(storage: Storage, target: Target, base: str) -> None:
    table = pa.table({"t": pa.array([0], pa.timestamp("s"))})
    with pytest.raises(ContractViolation, match="does not give a column type back as it was"):
        publish(storage, target, table)
    assert files_under(base) == []


def test_a_type_that_parquet_lacks_is_refused(storage: Storage, target: Target, base: str) -> None:
    schema = pa.schema([("u", pa.dense_union([pa.field("a", pa.int64())]))])
    with pytest.raises(ContractViolation, match="Parquet has no such column type"), storage.stage(target, schema, {}):
        pass
    assert files_under(base) == []


def test_a_flipped_bit_in_a_published_file_is_noticed(storage: Storage, target: Target) -> None:
    publish(storage, target, rows(5000))
    damaged = bytearray(content(target.uri))
    damaged[len(damaged) // 2] ^= 1
    put(target.uri, bytes(damaged))
    with pytest.raises(ContractViolation, match=r"part-0\.parquet is not readable as Parquet"):
        storage.read(target.uri)


def test_a_full_disk_leaves_the_published_file_and_no_staged_one(storage: Storage, tmp_path: Path) -> None:
    target = Target(f"{tmp_path}/data/predictions", DAY)
    before = publish(storage, target, rows(10))
    noise = pa.table({"x": np.random.default_rng(0).normal(size=2 * ROW_GROUP)})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(
            StorageUnavailable, match=r"failed; got OSError: .*; the published file is unchanged and the"
        ):
            publish(storage, target, noise)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert storage.published(target) == before
    assert files_under(f"{tmp_path}/data") == [f"predictions/{DAY}/part-0.parquet"]


def test_a_root_that_cannot_be_written_is_unavailable(storage: Storage, tmp_path: Path) -> None:
    put(f"{tmp_path}/data", b"a file where the root should be")
    with pytest.raises(StorageUnavailable, match=r"staging .* failed"):
        publish(storage, Target(f"{tmp_path}/data/predictions", DAY), rows(1))


def test_a_file_replaced_while_it_is_kept_is_kept_as_it_was_read(tmp_path: Path) -> None:
    target = Target(f"{tmp_path}/predictions", DAY)
    put(target.uri, b"first")
    with Disk(target).opened() as present:
        assert present is not None
        put(f"{tmp_path}/next", b"second")
        (tmp_path / "next").replace(target.uri)
        kept = Disk(target).keep(present)
    assert content(kept) == b"first"
    assert Path(kept).stem == hashlib.sha256(b"first").hexdigest()
    assert files_under(target.staging) == []


# --- two writers, withdrawal, snapshots -------------------------------------------------------------------------------


def test_the_second_of_two_writers_finds_out(storage: Storage, target: Target, base: str, scratch: Path) -> None:
    publish(storage, target, rows(1), metadata={"fingerprint": "old"})
    seen = storage.current(target)
    with storage.stage(target, SCHEMA, seen=seen) as staged:
        staged.write(rows(3).to_batches()[0])
        winner = publish(storage, target, rows(2), metadata={"fingerprint": "new"})
        with pytest.raises(
            PublishConflict,
            match=rf"{DAY}/part-0.*another run .*expected .*, fingerprint old; got sha256 {winner.sha256}, "
            r"fingerprint new; .*staged one is removed; next: run the same command again",
        ):
            staged.publish(expected_rows=3)
    assert storage.published(target) == winner
    assert len(files_under(base)) == 2
    assert files_under(str(scratch)) == []


def test_a_first_writer_that_was_overtaken_by_another_first_writer_finds_out(storage: Storage, target: Target) -> None:
    with storage.stage(target, SCHEMA) as staged:
        winner = publish(storage, target, rows(2))
        with pytest.raises(PublishConflict, match=r"expected no published file; got sha256 \w{64}, fingerprint None; "):
            staged.publish(expected_rows=0)
    assert storage.published(target) == winner


def test_a_writer_finds_out_that_its_partition_was_withdrawn(storage: Storage, target: Target) -> None:
    publish(storage, target, rows(1))
    with storage.stage(target, SCHEMA) as staged:
        storage.withdraw(target)
        with pytest.raises(PublishConflict, match=r"got no published file; "):
            staged.publish(expected_rows=0)
    assert storage.exists(target.uri) is False


def test_the_same_bytes_from_two_writers_are_no_conflict(storage: Storage, target: Target, base: str) -> None:
    with storage.stage(target, SCHEMA) as staged:
        staged.write(rows(3).to_batches()[0])
        first = publish(storage, target, rows(3))
        assert staged.publish(expected_rows=3) == first
    assert files_under(base) == [f"predictions/{DAY}/part-0.parquet"]


def test_a_partition_is_not_withdrawn_when_it_is_no_longer_the_one_that_was_seen(
    storage: Storage, target: Target
) -> None:
    publish(storage, target, rows(1))
    seen = storage.current(target)
    newer = publish(storage, target, rows(2))
    with pytest.raises(PublishConflict, match=r"not withdrawing .* another run .*; the published file stays"):
        storage.withdraw(target, seen=seen)
    assert storage.published(target) == newer
    assert storage.withdraw(target, seen=storage.current(target)) is True


@pytest.mark.parametrize("keys", [["a"], ["a", "b"], ["s"]])
def test_rows_that_repeat_a_key_are_never_published(
    storage: Storage, target: Target, base: str, keys: list[str]
) -> None:
    count = ROW_GROUP + 5
    ids = np.arange(count)[::-1].copy()
    table = pa.table({"b": ids % 7, "s": pa.array([f"k{i}" for i in ids]), "a": ids})
    with storage.stage(target, table.schema) as staged:
        staged.write(table.to_batches()[0])
        before = staged.publish(expected_rows=count, unique=keys)
    twice = pa.concat_tables([table.slice(0, count - 1), table.slice(3, 1)]).combine_chunks()
    with storage.stage(target, table.schema) as staged:
        staged.write(twice.to_batches()[0])
        with pytest.raises(ContractViolation, match=f"1 rows repeat the {', '.join(keys)} of another row"):
            staged.publish(expected_rows=count, unique=keys)
    assert storage.published(target) == before


_KEYS: dict[str, pa.Array] = {
    "ascending": pa.array(range(-50, 50)),
    "small": pa.array(range(127, -101, -1), pa.int8()),
    "huge": pa.array([2**64 - 1, 2**64 - 3, 2**64 - 2], pa.uint64()),
    "far apart": pa.array([2**63 - 1, -(2**63), 0]),
    "text": pa.array(["a", "", "ab"]),
    "times": pa.array([3, 1, 2], pa.timestamp("us", "UTC")),
    "dictionary": pa.array(["b", "a", "c"]).dictionary_encode(),
    "none": pa.array([], pa.int64()),
}


@pytest.mark.parametrize("held_bytes", [1 << 30, 0])
@pytest.mark.parametrize("kind", _KEYS)
def test_repeated_keys_of_every_kind_are_counted(monkeypatch: pytest.MonkeyPatch, kind: str, held_bytes: int) -> None:
    monkeypatch.setattr(unique, "_HELD_BYTES", held_bytes)
    keys = _KEYS[kind]
    batch = pa.record_batch([keys, pa.array([1] * len(keys))], ["key", "one"])
    halves = [batch.slice(0, len(keys) // 2), batch.slice(len(keys) // 2)]
    assert unique.faults(lambda: halves, ["key"]) == unique.faults(lambda: halves, ["one", "key"]) == ""
    for columns in (["key"], ["key", "one"]):
        found = unique.faults(lambda: [*halves, *halves], columns)
        assert found == (f"{len(keys)} rows repeat the {', '.join(columns)} of another row" if len(keys) else "")


def test_a_key_without_a_value_is_never_published(storage: Storage, target: Target) -> None:
    table = pa.table({"a": pa.array([1, None, 3])})
    with storage.stage(target, table.schema) as staged:
        staged.write(table.to_batches()[0])
        with pytest.raises(ContractViolation, match="1 rows have no a"):
            staged.publish(expected_rows=3, unique=["a"])


def test_the_failpoints_of_publishing_are_passed_in_order(
    storage: Storage, target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(storage, target, rows(1))
    monkeypatch.setenv("PIPELINE_FAILPOINT_LOG", str(tmp_path / "log"))
    publish(storage, target, rows(2))
    assert (tmp_path / "log").read_text().splitlines() == [
        name for name in NAMES if name.startswith(("stage", "publish"))
    ]


def test_a_snapshot_stays_what_it_was(storage: Storage, target: Target) -> None:
    with pytest.raises(NoData, match=r"part-0\.parquet does not exist"):
        storage.snapshot(target)
    first = publish(storage, target, rows(5))
    fs, path = fsspec.core.url_to_fs(target.uri)
    before = fs.info(path)
    snapshot = storage.snapshot(target)
    assert snapshot == f"{target.versions}/{first.sha256}.parquet"
    assert storage.snapshot(target) == snapshot
    assert fs.info(path).get("mtime") == before.get("mtime")
    publish(storage, target, rows(6))
    storage.withdraw(target)
    assert hashlib.sha256(content(snapshot)).hexdigest() == first.sha256
    assert same(storage.read(snapshot), rows(5).replace_schema_metadata(None))


def test_snapshots_taken_while_others_publish_are_each_one_whole_file(storage: Storage, tmp_path: Path) -> None:
    target, done = Target(f"{tmp_path}/data/predictions", DAY), threading.Event()
    publish(storage, target, rows(1))

    def publish_many() -> None:
        for count in range(2, 60):
            publish(storage, target, rows(count))
        done.set()

    thread = threading.Thread(target=publish_many)
    thread.start()
    taken = set()
    while not done.is_set():
        taken.add(storage.snapshot(target))
    thread.join()
    assert len(taken) > 5
    for snapshot in taken:
        assert hashlib.sha256(content(snapshot)).hexdigest() == Path(snapshot).stem
    assert files_under(target.staging) == []


def test_a_version_that_is_still_published_is_never_swept(storage: Storage, tmp_path: Path) -> None:
    target = Target(f"{tmp_path}/predictions", DAY)
    publish(storage, target, rows(5))
    snapshot = storage.snapshot(target)
    assert Path(snapshot).samefile(target.uri)
    assert storage.sweep(target.root, staged_before=FUTURE, superseded_before=FUTURE) == []
    publish(storage, target, rows(6))
    assert storage.sweep(target.root, staged_before=FUTURE, superseded_before=FUTURE) == [snapshot]


def test_a_version_that_is_published_again_is_kept_again_for_its_full_time(storage: Storage, tmp_path: Path) -> None:
    target = Target(f"{tmp_path}/predictions", DAY)
    for count in (1, 2, 1):
        publish(storage, target, rows(count))
    snapshot = Path(storage.snapshot(target))
    assert snapshot.samefile(target.uri), "the present content, not the older file with equal bytes"
    superseded_at = datetime.now(UTC)
    publish(storage, target, rows(3))
    kept = {f"{storage.published(target).sha256}.parquet", snapshot.name}
    removed = storage.sweep(target.root, staged_before=PAST, superseded_before=superseded_at)
    assert [Path(uri).name for uri in removed if Path(uri).name in kept] == []
    assert snapshot.exists()


def test_a_lock_that_a_killed_process_left_is_swept_and_does_not_hinder(storage: Storage, tmp_path: Path) -> None:
    target = Target(f"{tmp_path}/predictions", DAY)
    lock = put(f"{target.staging}/{DAY}.lock", b"")
    publish(storage, target, rows(1))
    assert files_under(target.staging) == []
    put(lock, b"")
    assert storage.sweep(target.root, staged_before=PAST, superseded_before=PAST) == []
    with Disk(target).locked():
        assert storage.sweep(target.root, staged_before=FUTURE, superseded_before=FUTURE) == []
    put(lock, b"")
    assert storage.sweep(target.root, staged_before=FUTURE, superseded_before=FUTURE) == [lock]
    assert files_under(target.staging) == []


def test_a_sweep_leaves_alone_what_a_publisher_is_about_to_keep(storage: Storage, tmp_path: Path) -> None:
    target = Target(f"{tmp_path}/predictions", DAY)
    publish(storage, target, rows(1))
    os.utime(target.uri, (0, 0))
    link = Path(target.staging) / "link.staged"
    link.hardlink_to(target.uri)
    hour = datetime.now(UTC) - timedelta(hours=1)
    assert storage.sweep(target.root, staged_before=hour, superseded_before=hour) == []
    assert link.exists()


def test_a_lock_lets_one_through_at_a_time_while_others_remove_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk, "_POLL_SECONDS", 0)
    target, inside, most, through = Target(f"{tmp_path}/predictions", DAY), [0], [], []

    def run() -> None:
        for _ in range(40):
            with Disk(target).locked():
                inside.append(1)
                time.sleep(0.0005)
                most.append(sum(inside))
                inside.pop()
                through.append(1)

    threads = [threading.Thread(target=run) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (max(most), len(through)) == (1, 240)
    assert files_under(target.staging) == []


def test_a_lock_that_is_never_released_makes_the_storage_unavailable(
    storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk, "_LOCK_SECONDS", 0.05)
    target = Target(f"{tmp_path}/predictions", DAY)
    with (
        Disk(target).locked(),
        pytest.raises(StorageUnavailable, match=r"publishing .* failed; .*another process has held .*\.lock for"),
    ):
        publish(storage, target, rows(1))
    publish(storage, target, rows(1))


_WRITER = """
import sys
from pathlib import Path
import pyarrow as pa
from pipeline.errors import PublishConflict
from pipeline.storage import Storage, Target

storage, target = Storage(Path(sys.argv[1])), Target(sys.argv[2], sys.argv[3])
for line in sys.stdin:
    table = pa.table({"writer": [int(sys.argv[4])], "generation": [int(line)]})
    try:
        with storage.stage(target, table.schema) as staged:
            staged.write(table.to_batches()[0])
            print("staged", flush=True)
            sys.stdin.readline()
            print(staged.publish(expected_rows=1).sha256, flush=True)
    except PublishConflict:
        print("conflict", flush=True)
"""


def test_of_several_processes_that_publish_at_once_exactly_one_wins(storage: Storage, tmp_path: Path) -> None:
    target, writers, generations = Target(f"{tmp_path}/data/predictions", DAY), 4, 12
    command = [sys.executable, "-c", _WRITER, str(tmp_path / "scratch"), target.root, target.partition]
    processes = [
        subprocess.Popen([*command, str(number)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
        for number in range(writers)
    ]
    won = []
    with ExitStack() as stack:
        pipes = [(stack.enter_context(process).stdin, process.stdout) for process in processes]
        for generation in range(generations):
            for begin in (f"{generation}\n", "go\n"):
                for stdin, _ in pipes:
                    assert stdin is not None
                    stdin.write(begin)
                answers = [stdout.readline().strip() for _, stdout in pipes if stdout is not None]
            winners = [answer for answer in answers if answer != "conflict"]
            assert winners == [storage.published(target).sha256]
            won += winners
        for stdin, _ in pipes:
            assert stdin is not None
            stdin.close()
    assert len(set(won)) == generations
    assert sorted(files_under(target.versions)) == sorted(f"{sha256}.parquet" for sha256 in won[:-1])
    for sha256 in won[:-1]:
        assert hashlib.sha256(content(f"{target.versions}/{sha256}.parquet")).hexdigest() == sha256
    assert files_under(target.staging) == []


_PUBLISHER = """
import sys
from pathlib import Path
import numpy as np, pyarrow as pa
from pipeline.storage import Storage, Target

storage, target = Storage(Path(sys.argv[1])), Target(sys.argv[2], sys.argv[3])
for generation in range(100_000):
    table = pa.table({"generation": np.full(20_000 + generation % 3, generation), "x": np.arange(20_000.0 + generation % 3)})
    with storage.stage(target, table.schema, {}) as staged:
        for batch in table.to_batches(max_chunksize=500):
            staged.write(batch)
        staged.publish(expected_rows=table.num_rows)
    print(generation, flush=True)
"""


def test_readers_and_a_killed_publisher_never_see_a_part_of_a_partition(storage: Storage, tmp_path: Path) -> None:
    target = Target(f"{tmp_path}/data/predictions", DAY)

    def assert_whole(table: pa.Table) -> int:
        generation = table["generation"][0].as_py()
        assert table["generation"].unique().to_pylist() == [generation]
        assert table.num_rows == 20_000 + generation % 3
        return int(generation)

    for _ in range(2):
        command = [sys.executable, "-c", _PUBLISHER, str(tmp_path / "scratch"), target.root, target.partition]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as publisher:
            assert publisher.stdout is not None
            publisher.stdout.readline()
            seen: set[int] = set()
            while len(seen) < 4:  # until it has demonstrably published between and during the reads
                seen.add(assert_whole(storage.read(target.uri)))
            os.kill(publisher.pid, signal.SIGKILL)
        assert_whole(storage.read(target.uri))
        assert files_under(target.root) == [f"{DAY}/part-0.parquet"]
    storage.sweep(target.root, staged_before=FUTURE, superseded_before=FUTURE)
    # Killed between keeping a version and replacing it, the publisher leaves a second name of the published file.
    second_name = f"predictions.versions/{DAY}/{storage.published(target).sha256}.parquet"
    assert set(files_under(f"{tmp_path}/data")) - {second_name} == {f"predictions/{DAY}/part-0.parquet"}


# --- everything else --------------------------------------------------------------------------------------------------


def test_a_withdrawn_partition_is_kept_as_a_version(storage: Storage, target: Target, base: str) -> None:
    assert storage.withdraw(target) is False
    made = publish(storage, target, rows(4))
    assert storage.withdraw(target) is True
    assert files_under(base) == [f"predictions.versions/{DAY}/{made.sha256}.parquet"]
    assert storage.current(target) == Current(None, None)
    assert publish(storage, target, rows(4)) == made


def test_what_does_not_exist_is_said_so(storage: Storage, target: Target, base: str) -> None:
    assert storage.exists(target.uri) is False
    assert storage.read_text(f"{base}/x.json") is None
    with pytest.raises(NoData, match=r"part-0\.parquet does not exist"):
        storage.read(target.uri)
    with pytest.raises(NoData, match=r"part-0\.parquet does not exist"):
        storage.published(target)
    publish(storage, target, rows(1))
    assert storage.exists(target.uri) is True
    assert storage.exists(target.root) is True


def test_a_storage_that_does_not_answer_is_not_a_missing_file(storage: Storage, tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(StorageUnavailable, match=r"looking up .*loop/x failed"):
        storage.exists(f"{tmp_path}/loop/x")


def test_text_is_replaced_as_a_whole(storage: Storage, base: str) -> None:
    uri = f"{base}/predictions.manifest/hr=01/ds=1.json"
    for text in ("größer\r\n", "", '{"rows": 1}\n'):
        storage.write_text(uri, text, staging=f"{base}/predictions.staging")
        assert storage.read_text(uri) == text
    assert files_under(base) == ["predictions.manifest/hr=01/ds=1.json"]


def test_a_sweep_removes_by_age_what_is_unfinished_or_superseded_and_nothing_else(
    storage: Storage, target: Target, base: str, scratch: Path
) -> None:
    for count in (1, 2):
        publish(storage, target, rows(count))
    storage.write_text(f"{base}/predictions.manifest/{DAY}.json", "{}")
    put(f"{base}/predictions.staging/killed.staged", b"half")
    put(f"{scratch}/copy.1.staged", b"half")
    put(f"{scratch}/other.txt", b"not ours")
    kept = [f"predictions.manifest/{DAY}.json", f"predictions/{DAY}/part-0.parquet"]

    assert storage.sweep(target.root, staged_before=PAST, superseded_before=PAST) == []
    removed = storage.sweep(target.root, staged_before=FUTURE, superseded_before=PAST)
    assert removed == [
        f"{base}/predictions.staging/killed.staged",
        f"{scratch}/copy.1.staged",
    ]
    removed = storage.sweep(target.root, staged_before=PAST, superseded_before=FUTURE)
    assert [uri.rsplit("/", 1)[0] for uri in removed] == [f"{base}/predictions.versions/{DAY}"]
    assert files_under(base) == kept
    assert files_under(str(scratch)) == ["other.txt"]
    if not base.startswith("memory"):
        assert not Path(f"{base.removeprefix('file://')}/predictions.versions/{DAY}").exists()


def test_a_sweep_does_not_look_at_published_partitions_however_many_there_are(storage: Storage, tmp_path: Path) -> None:
    for published in ("predictions", "predictions.manifest"):
        (tmp_path / published).mkdir()
        # Whatever lists this fails.
        (tmp_path / published / "loop").symlink_to(tmp_path / published / "loop")
    (tmp_path / "predictions.staging").mkdir()
    (tmp_path / "predictions.staging" / "killed.staged").write_bytes(b"half")
    removed = storage.sweep(f"{tmp_path}/predictions", staged_before=FUTURE, superseded_before=FUTURE)
    assert removed == [f"{tmp_path}/predictions.staging/killed.staged"]


def test_a_superseded_file_is_kept_for_its_full_time_however_old_it_was(storage: Storage, tmp_path: Path) -> None:
    target = Target(f"{tmp_path}/predictions", DAY)
    publish(storage, target, rows(1))
    long_ago = (datetime.now(UTC) - timedelta(days=365)).timestamp()
    os.utime(target.uri, (long_ago, long_ago))
    publish(storage, target, rows(2))
    week = datetime.now(UTC) - timedelta(days=7)
    assert storage.sweep(target.root, staged_before=week, superseded_before=week) == []
    assert len(files_under(target.versions)) == 1


def test_a_roll_gives_back_what_was_added_and_leaves_no_file(tmp_path: Path) -> None:
    roll = Roll(tmp_path / "scratch")
    starts = [roll.append(memoryview(content)) for content in (b"abc", b"", b"defgh")]
    assert starts == [0, 3, 3]
    assert [roll.read(1, 2), roll.read(3, 5), roll.read(2, 2)] == [b"bc", b"defgh", b"cd"]
    assert files_under(str(tmp_path)) == []


def test_a_roll_on_a_broken_disk_says_so(tmp_path: Path) -> None:
    (tmp_path / "scratch").write_text("no folder")
    with pytest.raises(StorageUnavailable, match=r"keeping columns in .*scratch failed.*nothing was published"):
        Roll(tmp_path / "scratch")


def test_a_relative_name_means_the_file_in_the_working_directory_of_the_moment(tmp_path, monkeypatch):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        assert Place.of("part.parquet").local == tmp_path / name / "part.parquet"
