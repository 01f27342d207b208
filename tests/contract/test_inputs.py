"""Inputs are frozen and read with every promise kept, on the local disk and on an object store (fsspec's memory one)."""

from __future__ import annotations

import hashlib
import io
import os
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import (
    ContractViolation,
    InputChanged,
    InvalidRequest,
    StorageUnavailable,
)
from pipeline.reports import InputFile
from pipeline.storage import Inputs, Target

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

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
def inputs(scratch: Path) -> Iterator[Inputs]:
    opened = Inputs(scratch)
    yield opened
    opened.close()


def rows(count: int, first: int = 0) -> pa.Table:
    ids = np.arange(first, first + count)
    amounts = pa.array(ids / 7, mask=ids % 11 == 0)
    # Long, distinct texts fill many pages, whose ends must not depend on batches either.
    texts = [hashlib.sha256(bytes(str(i), "ascii")).hexdigest() for i in ids]
    return pa.table([ids, amounts, pa.array(texts, pa.string())], schema=SCHEMA)


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


def put_file(folder: Path, table: pa.Table, **options: Any) -> str:
    return put(f"{folder}/in/a.parquet", parquet_bytes(table, **options))


def same(left: pa.Table, right: pa.Table) -> bool:
    return bool(left.combine_chunks().equals(right.combine_chunks()))


def test_inputs_are_the_parquet_files_of_the_named_partitions_sorted_by_path(inputs: Inputs, base: str) -> None:
    data = parquet_bytes(rows(3))
    for path in ("ds=2/b.parquet", "ds=2/a.parquet", "ds=1/deep/er/c.parquet", "ds=3/d.parquet"):
        put(f"{base}/in/{path}", data)
    for path in ("ds=1/_SUCCESS", "ds=1/_temporary/x.parquet", "ds=1/.x.parquet", "ds=1/x.csv", "ds=1/x.parquet.crc"):
        put(f"{base}/in/{path}", b"x")

    found = inputs.files(f"{base}/in/", ["ds=2", "ds=1", "ds=2", "ds=9"])

    assert [file.path for file in found] == ["ds=1/deep/er/c.parquet", "ds=2/a.parquet", "ds=2/b.parquet"]
    assert found[0] == InputFile(
        uri=f"{base}/in/ds=1/deep/er/c.parquet",
        path="ds=1/deep/er/c.parquet",
        size=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        mark=found[0].mark,
    )
    assert [file.path for file in inputs.files(f"{base}/in", [""])] == [*(f.path for f in found), "ds=3/d.parquet"]
    assert inputs.files(f"{base}/nowhere", ["", "ds=1"]) == []


@pytest.mark.parametrize("partition", ["..", "../other", "/etc", "ds=1/../../x", "ds=1//x", "."])
def test_a_partition_that_leaves_its_root_is_refused(inputs: Inputs, base: str, partition: str) -> None:
    with pytest.raises(InvalidRequest, match="does not name a folder below its root"):
        inputs.files(base, [partition])
    with pytest.raises(InvalidRequest, match="does not name a folder below its root"):
        Target(base, partition)


def test_linked_files_are_inputs_and_what_is_no_file_is_refused_by_name(inputs: Inputs, tmp_path: Path) -> None:
    put(f"{tmp_path}/elsewhere/a.parquet", parquet_bytes(rows(3)))
    (tmp_path / "in").mkdir()
    (tmp_path / "in/linked.parquet").symlink_to(tmp_path / "elsewhere/a.parquet")
    (tmp_path / "in/folder").symlink_to(tmp_path / "elsewhere")
    assert [f.path for f in inputs.files(f"{tmp_path}/in", [""])] == ["folder/a.parquet", "linked.parquet"]

    (tmp_path / "in/gone.parquet").symlink_to(tmp_path / "elsewhere/b.parquet")
    with pytest.raises(
        ContractViolation, match=r"in/gone\.parquet is not readable as Parquet; got not_a_file: not a regular file"
    ):
        inputs.files(f"{tmp_path}/in", [""])
    (tmp_path / "in/gone.parquet").unlink()
    os.mkfifo(tmp_path / "in/pipe.parquet")
    with pytest.raises(ContractViolation, match=r"in/pipe\.parquet .* not a regular file"):
        inputs.files(f"{tmp_path}/in", [""])


def test_a_folder_that_cannot_be_listed_is_an_error_and_not_an_empty_one(inputs: Inputs, tmp_path: Path) -> None:
    put(f"{tmp_path}/in/file", b"")
    with pytest.raises(StorageUnavailable, match=r"listing .*file/ds=1 failed; got NotADirectoryError"):
        inputs.files(f"{tmp_path}/in/file", ["ds=1"])
    (tmp_path / "in/loop").symlink_to(tmp_path / "in")
    with pytest.raises(StorageUnavailable, match="Too many levels of symbolic links"):
        inputs.files(f"{tmp_path}/in", [""])


def test_a_protocol_that_nothing_serves_is_refused(inputs: Inputs) -> None:
    with pytest.raises(InvalidRequest, match=r"cannot open nosuch://x/ds=1; got Protocol not known"):
        inputs.files("nosuch://x", ["ds=1"])


def test_batches_give_the_rows_in_order_without_partition_columns(inputs: Inputs, base: str, scratch: Path) -> None:
    put(f"{base}/in/ds=1/a.parquet", parquet_bytes(rows(2500), row_group_size=600))
    put(f"{base}/in/ds=1/b.parquet", parquet_bytes(rows(10, first=2500)))
    files = inputs.files(f"{base}/in", ["ds=1"])
    batches = list(inputs.batches(files, batch_rows=1000))
    assert max(batch.num_rows for batch in batches) <= 1000
    assert same(pa.Table.from_batches(batches), rows(2510))
    assert files_under(str(scratch)) == []
    assert inputs.schema(files[0]).equals(SCHEMA)
    inputs.close()
    assert files_under(str(scratch)) == []


def test_batches_project_in_the_given_order_and_refuse_an_absent_column(inputs: Inputs, base: str) -> None:
    put(f"{base}/in/a.parquet", parquet_bytes(rows(10)))
    files = inputs.files(f"{base}/in", [""])
    assert same(
        pa.Table.from_batches(inputs.batches(files, ["country", "row_id"])), rows(10).select(["country", "row_id"])
    )
    with pytest.raises(
        ContractViolation, match=r"a\.parquet lacks columns; expected fare; got row_id, amount, country"
    ):
        list(inputs.batches(files, ["row_id", "fare"]))


def test_a_projected_column_is_not_confused_with_one_whose_name_continues_it(inputs: Inputs, base: str) -> None:
    table = pa.table({"a.b": [1], "a": [{"b": 2}], "c": [3]})
    put(f"{base}/in/a.parquet", parquet_bytes(table))
    files = inputs.files(f"{base}/in", [""])
    assert next(inputs.batches(files, ["a"])).to_pylist() == [{"a": {"b": 2}}]


def test_column_names_that_occur_twice_are_refused(inputs: Inputs, base: str) -> None:
    put(f"{base}/in/a.parquet", parquet_bytes(pa.table([[1], [2]], names=["x", "x"])))
    with pytest.raises(ContractViolation, match="column names occur twice: x"):
        list(inputs.batches(inputs.files(f"{base}/in", [""])))


def test_memory_stays_bounded_while_a_huge_row_group_is_read(inputs: Inputs, tmp_path: Path) -> None:
    table = pa.table({f"c{i}": np.random.default_rng(i).normal(size=1_000_000) for i in range(8)})
    put(f"{tmp_path}/in/a.parquet", parquet_bytes(table, row_group_size=1_000_000, use_dictionary=False))
    total = table.nbytes
    del table
    files = inputs.files(f"{tmp_path}/in", [""])
    before, peak = pa.total_allocated_bytes(), 0
    for batch in inputs.batches(files, batch_rows=50_000):
        assert batch.num_rows <= 50_000
        peak = max(peak, pa.total_allocated_bytes() - before)
    assert peak < total / 3


@pytest.mark.parametrize("damage", ["empty", "text", "truncated", "footer", "page"])
def test_a_corrupt_file_is_a_contract_violation_that_names_it(inputs: Inputs, base: str, damage: str) -> None:
    whole = parquet_bytes(rows(5000), write_page_checksum=True, use_dictionary=False, compression="none")
    flipped = bytearray(whole)
    flipped[5000] ^= 1  # one bit of one value
    broken = {
        "empty": b"",
        "text": b"row_id,amount\n1,2\n",
        "truncated": whole[: len(whole) // 2],
        "footer": whole[:-300] + bytes(200) + whole[-100:],
        "page": bytes(flipped),
    }[damage]
    put(f"{base}/in/ds=1/bad.parquet", broken)
    files = inputs.files(f"{base}/in", ["ds=1"])
    with pytest.raises(ContractViolation, match=r"in/ds=1/bad\.parquet is not readable as Parquet; got .+; nothing"):
        list(inputs.batches(files))
    if damage != "page":
        with pytest.raises(ContractViolation, match=r"bad\.parquet is not readable as Parquet"):
            inputs.schema(files[0])


def test_a_row_group_that_hides_rows_is_refused(inputs: Inputs, base: str) -> None:
    table = pa.table({"x": list(range(10)), "s": list("abcdefghij")})
    whole = parquet_bytes(table, store_schema=False, write_statistics=False, use_dictionary=False, compression="none")
    last_ten = whole.rindex(b"\x14")  # ten, as the footer spells it; the last one is the row group's count
    lying = whole[:last_ten] + b"\x10" + whole[last_ten + 1 :]
    assert pq.read_metadata(io.BytesIO(lying)).row_group(0).num_rows == 8
    put(f"{base}/in/a.parquet", lying)
    with pytest.raises(ContractViolation, match="got corrupt: 8 rows in its row groups where its footer promises 10"):
        list(inputs.batches(inputs.files(f"{base}/in", [""])))


def test_a_file_that_is_not_the_planned_one_has_changed(inputs: Inputs, base: str) -> None:
    uri = put(f"{base}/in/a.parquet", parquet_bytes(rows(10)))
    files = inputs.files(f"{base}/in", [""])
    put(uri, parquet_bytes(rows(11)) + b"PAR1")
    with pytest.raises(
        InputChanged, match=r"a\.parquet changed since it was planned; expected \d+ bytes; got \d+ bytes"
    ):
        list(inputs.batches(files))
    fs, path = fsspec.core.url_to_fs(uri)
    fs.rm_file(path)
    with pytest.raises(InputChanged, match=r"expected \d+ bytes; got no file"):
        list(inputs.batches(files))
    with pytest.raises(InputChanged, match=r"expected \d+ bytes; got no file"):
        inputs.schema(files[0])


def test_a_file_rewritten_while_it_is_read_has_changed_even_at_the_same_size(inputs: Inputs, base: str) -> None:
    uri = put(f"{base}/in/a.parquet", parquet_bytes(rows(5000)))
    batches = inputs.batches(inputs.files(f"{base}/in", [""]), batch_rows=100)
    next(batches)
    put(uri, content(uri))
    with pytest.raises(InputChanged, match="expected the file that was planned; got a newer file"):
        list(batches)


def test_a_file_truncated_while_it_is_read_has_changed_and_is_not_called_corrupt(
    inputs: Inputs, tmp_path: Path
) -> None:
    table = pa.table({"x": np.random.default_rng(0).normal(size=600_000)})
    uri = put(f"{tmp_path}/in/a.parquet", parquet_bytes(table, use_dictionary=False))
    batches = inputs.batches(inputs.files(f"{tmp_path}/in", [""]), batch_rows=1000)
    next(batches)
    os.truncate(uri, 1000)
    with pytest.raises(InputChanged, match="got 1000 bytes"):
        list(batches)


def test_an_object_with_other_bytes_of_the_same_size_has_changed(inputs: Inputs) -> None:
    uri = put("memory://changed/in/a.parquet", parquet_bytes(rows(10), compression="none"))
    files = inputs.files("memory://changed/in", [""])
    put(uri, content(uri).replace(b"\x07", b"\x08"))
    with pytest.raises(InputChanged, match="expected the file that was planned; got a newer file"):
        list(inputs.batches(files))
    inputs.close()  # with the copy that is the planned file
    unmarked = [file.model_copy(update={"mark": ""}) for file in files]
    with pytest.raises(InputChanged, match=r"expected sha256 .*; got sha256"):
        list(inputs.batches(unmarked))
    with pytest.raises(InputChanged, match="expected the file that was planned; got a newer file"):
        list(inputs.batches(files))


def test_a_reader_that_stops_early_leaves_no_copy_behind(inputs: Inputs, base: str, scratch: Path) -> None:
    put(f"{base}/in/a.parquet", parquet_bytes(rows(5000)))
    batches = inputs.batches(inputs.files(f"{base}/in", [""]), batch_rows=100)
    next(batches)
    batches.close()  # type: ignore[attr-defined]
    assert files_under(str(scratch)) == []


def test_the_footer_tells_columns_and_rows(inputs: Inputs, base: str) -> None:
    put(f"{base}/in/a.parquet", parquet_bytes(rows(10)))
    footer = inputs.footer(inputs.files(f"{base}/in", [""])[0])
    assert footer.schema.equals(SCHEMA)
    assert footer.rows == 10


def test_a_file_of_another_mark_has_changed_unless_its_bytes_are_the_planned_ones(
    inputs: Inputs, tmp_path: Path
) -> None:
    uri = put_file(tmp_path, rows(10), compression="none")
    (file,) = inputs.files(f"{tmp_path}/in", [""])
    os.utime(uri, (0, 0))
    assert inputs.footer(file).rows == 10
    put(uri, content(uri).replace(b"\x07", b"\x08"))
    for read in (inputs.schema, lambda planned: list(inputs.batches([planned]))):
        with pytest.raises(InputChanged, match="expected the file that was planned; got a newer file of the same size"):
            read(file)


def test_a_remote_file_is_fetched_once(inputs: Inputs, scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put("memory://once/in/a.parquet", parquet_bytes(rows(10)))
    opened = []
    remote = fsspec.filesystem("memory")
    reading = remote._open
    monkeypatch.setattr(
        remote, "_open", lambda path, *args, **options: opened.append(path) or reading(path, *args, **options)
    )
    files = inputs.files("memory://once/in", [""])
    assert inputs.schema(files[0]).equals(SCHEMA)
    assert len(files_under(str(scratch))) == 1
    assert sum(batch.num_rows for batch in inputs.batches(files)) == 10
    assert len(opened) == 1
    assert files_under(str(scratch)) == []
