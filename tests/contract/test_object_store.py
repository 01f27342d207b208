"""Storage keeps its promises on an S3-compatible store: one conditional request decides, and no one sees a part."""

from __future__ import annotations

import hashlib
import re
import threading
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import fsspec
import numpy as np
import pyarrow as pa
import pytest

from pipeline.errors import ContractViolation, NoData, PublishConflict, StorageUnavailable
from pipeline.failpoints import NAMES
from pipeline.storage import Current, Inputs, Published, Storage, Target, objects
from tests.faults.object_store import BREAKS, Proxy, configured, server

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

DAY = "ds=2026-01-01"
SCHEMA = pa.schema([pa.field("row_id", pa.int64(), nullable=False), ("score", pa.float64())])
PAST = datetime(2000, 1, 1, tzinfo=UTC)
FUTURE = datetime(2100, 1, 1, tzinfo=UTC)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with server() as url:
        yield url


@pytest.fixture
def proxy(url: str) -> Iterator[Proxy]:
    proxy = Proxy(url)
    yield proxy
    proxy.close()


@pytest.fixture
def target(url: str, tmp_path: Path) -> Iterator[Target]:
    with configured(url):
        yield Target(f"s3://bucket/{tmp_path.name}/predictions", DAY)


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(tmp_path / "scratch")


def rows(count: int, seed: int = 0) -> pa.Table:
    return pa.table([np.arange(count), np.random.default_rng(seed).random(count)], schema=SCHEMA)


def publish(
    storage: Storage, target: Target, table: pa.Table, seen: Current | None = None, **metadata: str
) -> Published:
    with storage.stage(target, table.schema, metadata, seen=seen) as staged:
        for batch in table.to_batches():
            staged.write(batch)
        return staged.publish(expected_rows=table.num_rows, unique=["row_id"])


def store() -> Any:
    fs = fsspec.filesystem("s3")
    fs.invalidate_cache()
    return fs


def content(uri: str) -> bytes:
    return bytes(store().cat_file(uri))


def under(target: Target) -> list[str]:
    """The keys beside the root and below it, from the name of the root on."""
    base = target.root.removeprefix("s3://").rpartition("/")[0]
    return sorted(path.removeprefix(f"{base}/") for path in store().find(base))


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_an_object_is_published_replaced_kept_and_withdrawn(storage: Storage, target: Target, tmp_path: Path) -> None:
    assert storage.current(target) == Current(None, None)
    first = publish(storage, target, rows(10), fingerprint="1")
    assert first == storage.published(target) == Published(target.uri, sha(content(target.uri)), 10)
    assert storage.current(target).metadata == {"fingerprint": "1"}
    second = publish(storage, target, rows(11), fingerprint="2")
    assert storage.read(target.uri).equals(rows(11))
    version = f"predictions.versions/{DAY}/{first.sha256}.parquet"
    assert under(target) == [version, f"predictions/{DAY}/part-0.parquet"]
    assert sha(content(f"{target.versions}/{first.sha256}.parquet")) == first.sha256
    assert storage.withdraw(target, seen=storage.current(target)) is True
    assert storage.withdraw(target) is False
    assert storage.current(target) == Current(None, None)
    assert under(target) == sorted([version, f"predictions.versions/{DAY}/{second.sha256}.parquet"])
    assert list((tmp_path / "scratch").iterdir()) == []


def test_an_equal_object_is_left_untouched(storage: Storage, target: Target) -> None:
    made = publish(storage, target, rows(10))
    before = store().info(target.uri)
    assert publish(storage, target, rows(10)) == made
    assert store().info(target.uri) == before


def test_an_object_that_something_else_has_put_is_read_for_its_digest(storage: Storage, target: Target) -> None:
    publish(storage, target, rows(10))
    foreign = content(target.uri)
    store().pipe_file(target.uri, foreign)
    assert storage.published(target) == Published(target.uri, sha(foreign), 10)
    publish(storage, target, rows(3))
    assert content(f"{target.versions}/{sha(foreign)}.parquet") == foreign
    store().pipe_file(target.uri, b"PAR1 half a file")
    with pytest.raises(ContractViolation, match=r"part-0\.parquet is not readable .*copy the latest file of s3://"):
        storage.current(target)


def test_the_second_of_two_writers_finds_out(storage: Storage, target: Target) -> None:
    publish(storage, target, rows(1), fingerprint="old")
    seen = storage.current(target)
    winner = publish(storage, target, rows(2), fingerprint="new")
    with pytest.raises(
        PublishConflict,
        match=rf"another run .*, fingerprint old; got sha256 {winner.sha256}, fingerprint new; its file stays",
    ):
        publish(storage, target, rows(3), seen=seen)
    with pytest.raises(PublishConflict, match=r"not withdrawing .*; the published file stays"):
        storage.withdraw(target, seen=seen)
    with pytest.raises(PublishConflict, match=r"expected no published file; got sha256"):
        publish(storage, target, rows(3), seen=Current(None, None))
    assert publish(storage, target, rows(2), seen=seen, fingerprint="new") == winner
    assert storage.published(target) == winner


@pytest.mark.parametrize("present", [False, True])
def test_the_store_itself_refuses_a_put_that_comes_too_late(
    storage: Storage, target: Target, tmp_path: Path, present: bool
) -> None:
    late = tmp_path / "late.parquet"
    late.write_bytes(b"late")
    if present:
        publish(storage, target, rows(1))
    shelf = objects.S3(target)
    with shelf.opened() as before:
        assert (before is not None) is present
        winner = publish(storage, target, rows(2))
        assert shelf.put(late, sha(b"late"), before) is False
        assert before is None or shelf.remove(before) is False
        assert before is None or shelf.keep(before) is None
    assert storage.published(target) == winner


def test_a_reader_gets_the_object_that_it_has_opened_or_an_error(storage: Storage, target: Target) -> None:
    publish(storage, target, rows(1))
    with objects.S3(target).opened() as early, objects.S3(target).opened() as late:
        assert early is not None
        assert late is not None
        assert early.stream.closed is False
        publish(storage, target, rows(2))
        with pytest.raises(OSError, match=r"part-0\.parquet"):
            early.stream.read()
        with pytest.raises(OSError, match=r"part-0\.parquet was replaced while it was opened"):
            assert late.stream


def test_the_failpoints_of_publishing_are_passed_in_order(
    storage: Storage, target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(storage, target, rows(1))
    monkeypatch.setenv("PIPELINE_FAILPOINT_LOG", str(tmp_path / "log"))
    publish(storage, target, rows(2))
    assert (tmp_path / "log").read_text().splitlines() == [
        name for name in NAMES if name.startswith(("stage", "publish"))
    ]


def test_of_several_writers_at_once_exactly_one_wins(storage: Storage, target: Target) -> None:
    writers, generations = 8, 6
    staged_by_all, done = threading.Barrier(writers), threading.Barrier(writers + 1)
    outcomes: list[list[str]] = [[] for _ in range(generations)]

    def run(writer: int) -> None:
        for generation in range(generations):
            table = rows(1000, seed=generation * writers + writer)
            try:
                with storage.stage(target, SCHEMA) as staged:
                    staged.write(table.to_batches()[0])
                    staged_by_all.wait()
                    outcomes[generation].append(staged.publish(expected_rows=1000).sha256)
            except PublishConflict:
                outcomes[generation].append("conflict")
            except Exception as err:
                outcomes[generation].append(repr(err))
            done.wait()

    threads = [threading.Thread(target=run, args=(writer,)) for writer in range(writers)]
    for thread in threads:
        thread.start()
    visible = []
    for _ in range(generations):
        done.wait()
        visible.append(None)
    for thread in threads:
        thread.join()
    winners = []
    for outcome in outcomes:
        assert outcome.count("conflict") == writers - 1, outcome
        winners += [sha256 for sha256 in outcome if sha256 != "conflict"]
    assert storage.published(target).sha256 == winners[-1]
    kept = store().find(target.versions)
    assert sorted(path.rpartition("/")[2] for path in kept) == sorted(f"{sha256}.parquet" for sha256 in winners[:-1])
    assert [sha(content(f"s3://{path}")) for path in kept] == [path[-72:-8] for path in kept]


def test_a_snapshot_stays_what_it_was(storage: Storage, target: Target) -> None:
    with pytest.raises(NoData, match=r"part-0\.parquet does not exist"):
        storage.snapshot(target)
    first = publish(storage, target, rows(5))
    before = store().info(target.uri)
    snapshot = storage.snapshot(target)
    assert snapshot == storage.snapshot(target) == f"{target.versions}/{first.sha256}.parquet"
    assert store().info(target.uri) == before
    publish(storage, target, rows(6))
    storage.withdraw(target)
    assert storage.read(snapshot).equals(rows(5))


def test_a_sweep_removes_by_age_versions_and_uploads_that_nobody_completed(storage: Storage, target: Target) -> None:
    publish(storage, target, rows(1))
    publish(storage, target, rows(2))
    fs, key = store(), target.uri.removeprefix("s3://bucket/")
    fs.call_s3("create_multipart_upload", Bucket="bucket", Key=key)
    fs.call_s3("create_multipart_upload", Bucket="bucket", Key="elsewhere/predictions/part-0.parquet")
    assert storage.sweep(target.root, staged_before=PAST, superseded_before=PAST) == []
    aborted = storage.sweep(target.root, staged_before=FUTURE, superseded_before=PAST)
    assert [uri.partition("?")[0] for uri in aborted] == [target.uri]
    removed = storage.sweep(target.root, staged_before=FUTURE, superseded_before=FUTURE)
    assert [uri.rpartition("/")[0] for uri in removed] == [target.versions]
    assert under(target) == [f"predictions/{DAY}/part-0.parquet"]
    left = fs.call_s3("list_multipart_uploads", Bucket="bucket")["Uploads"]
    assert [upload["Key"] for upload in left] == ["elsewhere/predictions/part-0.parquet"]
    fs.call_s3("abort_multipart_upload", Bucket="bucket", Key=left[0]["Key"], UploadId=left[0]["UploadId"])


def test_an_object_too_large_for_one_request_is_put_and_copied_in_parts_under_the_same_fence(
    storage: Storage, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objects, "SINGLE_REQUEST_BYTES", 1 << 20)
    monkeypatch.setattr(objects, "PART_BYTES", 5 << 20)
    first = publish(storage, target, rows(900_000, seed=1))
    assert re.search(r'-\d+"$', store().info(target.uri)["ETag"]), "an ETag of several parts"
    seen = storage.current(target)
    second = publish(storage, target, rows(900_000, seed=2))
    with pytest.raises(PublishConflict, match="another run has published"):
        publish(storage, target, rows(900_000, seed=3), seen=seen)
    assert (sha(content(target.uri)), storage.published(target)) == (second.sha256, second)
    assert sha(content(f"{target.versions}/{first.sha256}.parquet")) == first.sha256
    shelf, late = objects.S3(target), storage.snapshot(target)
    local = storage._scratch / "late"
    local.write_bytes(content(late) + b"later")
    assert shelf.put(local, sha(local.read_bytes()), None) is False
    assert store().call_s3("list_multipart_uploads", Bucket="bucket").get("Uploads", []) == []


@pytest.mark.parametrize("how", BREAKS)
def test_a_put_whose_answer_or_first_attempt_is_lost_counts_as_published(
    storage: Storage, target: Target, proxy: Proxy, how: str
) -> None:
    old = publish(storage, target, rows(20_000, seed=1))
    with configured(proxy.url, retries=3), storage.stage(target, SCHEMA) as staged:
        staged.write(rows(20_000, seed=2).to_batches()[0])
        # The requests of publishing: one looks, one copies, the third puts.
        proxy.break_at(3, how)
        made = staged.publish(expected_rows=20_000)
    assert proxy.struck == 1
    assert made == storage.published(target)
    assert sha(content(target.uri)) == made.sha256 != old.sha256
    assert sha(content(f"{target.versions}/{old.sha256}.parquet")) == old.sha256


@pytest.mark.parametrize("how", ["unanswered", "half_answered"])
def test_a_put_that_has_arrived_counts_as_published_when_no_attempt_was_answered(
    storage: Storage, target: Target, proxy: Proxy, how: str
) -> None:
    publish(storage, target, rows(20_000, seed=1))
    with configured(proxy.url), storage.stage(target, SCHEMA) as staged:
        staged.write(rows(20_000, seed=2).to_batches()[0])
        # The client repeats a request once on its own; nothing but looking tells what became of it.
        proxy.break_at(3, how, times=2)
        made = staged.publish(expected_rows=20_000)
    assert proxy.struck == 2
    assert made == storage.published(target)


@pytest.mark.parametrize("how", BREAKS)
def test_an_outage_in_the_middle_of_a_put_leaves_one_whole_object(
    storage: Storage, target: Target, proxy: Proxy, how: str
) -> None:
    old = publish(storage, target, rows(20_000, seed=1))
    with configured(proxy.url), storage.stage(target, SCHEMA) as staged:
        staged.write(rows(20_000, seed=2).to_batches()[0])
        proxy.break_at(3, how, times=100)
        with pytest.raises(StorageUnavailable, match=r"publishing .* failed; .*previous one or the new one"):
            staged.publish(expected_rows=20_000)
    assert proxy.struck > 1
    left = sha(content(target.uri))
    made = publish(storage, target, rows(20_000, seed=2))
    assert sha(content(target.uri)) == made.sha256
    assert left == (made.sha256 if "answered" in how else old.sha256)


def test_inputs_are_read_from_an_object_store(target: Target, storage: Storage, tmp_path: Path) -> None:
    publish(storage, target, rows(1000))
    inputs = Inputs(tmp_path / "scratch")
    files = inputs.files(target.root, [DAY])
    assert [(file.path, file.sha256) for file in files] == [(f"{DAY}/part-0.parquet", sha(content(target.uri)))]
    read = pa.Table.from_batches(inputs.batches(files))
    assert read.equals(rows(1000))


def test_texts_are_replaced_as_a_whole(storage: Storage, target: Target) -> None:
    uri = f"{target.root}.manifest/{DAY}.json"
    assert storage.read_text(uri) is None
    for text in ("größer", "", "{}"):
        storage.write_text(uri, text)
        assert storage.read_text(uri) == text
