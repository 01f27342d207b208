"""Files are opened in a process of its own: whatever happens to it, the caller gets rows or a reason, and nothing is left."""

from __future__ import annotations

import gc
import io
import signal
import subprocess
import sys
import time
from contextlib import closing
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import FileRejected, StorageUnavailable
from pipeline.storage import Inputs, ReadLimits, reader

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    return tmp_path / "scratch"


@pytest.fixture
def inputs(scratch: Path) -> Iterator[Inputs]:
    opened = Inputs(scratch)
    yield opened
    opened.close()


def rows(count: int) -> pa.Table:
    return pa.table({"row_id": np.arange(count), "country": ["de"] * count})


def put_file(folder: Path, table: pa.Table, name: str = "a", **options: Any) -> Path:
    path = folder / "in" / f"{name}.parquet"
    path.parent.mkdir(exist_ok=True)
    stream = io.BytesIO()
    pq.write_table(table, stream, **options)
    path.write_bytes(stream.getvalue())
    return path


def big(count: int = 400_000) -> pa.Table:
    """More than the pipe holds, in several batches."""
    return pa.table({"x": np.random.default_rng(0).normal(size=count)})


def readers() -> list[psutil.Process]:
    programs = ("reader.py", "liar.py")
    return [child for child in psutil.Process().children() if any(word.endswith(programs) for word in child.cmdline())]


def test_one_process_reads_all_files_one_after_the_other(inputs: Inputs, tmp_path: Path) -> None:
    for number in range(20):
        put_file(tmp_path, rows(3), f"{number:02d}")
    files = inputs.files(f"{tmp_path}/in", [""])
    inputs.schema(files[0])
    (reader,) = readers()
    assert [inputs.schema(file).names for file in files] == [rows(3).column_names] * 20
    assert sum(batch.num_rows for batch in inputs.batches(files)) == 60
    assert readers() == [reader]
    inputs.close()
    assert readers() == []


def test_files_may_be_read_side_by_side(inputs: Inputs, tmp_path: Path) -> None:
    put_file(tmp_path, rows(3000))
    files = inputs.files(f"{tmp_path}/in", [""])
    pairs = zip(inputs.batches(files, batch_rows=100), inputs.batches(files, batch_rows=100), strict=True)
    for left, right in pairs:
        assert inputs.schema(files[0]).names == rows(3).column_names
        assert left.equals(right)
    assert len(readers()) == 1


def test_the_reading_process_knows_no_secrets(inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
    put_file(tmp_path, rows(3))
    # Once it has answered, it surely goes by its own name.
    inputs.schema(inputs.files(f"{tmp_path}/in", [""])[0])
    (reader,) = readers()
    assert set(reader.environ()) <= {
        *("LC_ALL", "OMP_NUM_THREADS", "MALLOC_ARENA_MAX", "ARROW_DEFAULT_MEMORY_POOL", "LD_LIBRARY_PATH"),
    }


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS])
def test_a_file_at_which_the_reader_dies_is_rejected_and_the_next_one_is_read(
    inputs: Inputs, tmp_path: Path, number: signal.Signals
) -> None:
    put_file(tmp_path, big())
    (file,) = inputs.files(f"{tmp_path}/in", [""])
    batches = inputs.batches([file])
    next(batches)
    readers()[0].send_signal(number)
    with pytest.raises(FileRejected, match=f"crashed: {number.name}") as caught:
        list(batches)
    assert (caught.value.code, caught.value.path, caught.value.rows) == ("crashed", "a.parquet", 400_000)
    assert readers() == []
    assert sum(batch.num_rows for batch in inputs.batches([file])) == 400_000


def test_a_reader_that_the_machine_ends_is_no_fault_of_the_file_and_the_run_is_repeated(
    inputs: Inputs, tmp_path: Path
) -> None:
    put_file(tmp_path, big())
    (file,) = inputs.files(f"{tmp_path}/in", [""])
    batches = inputs.batches([file])
    next(batches)
    readers()[0].send_signal(signal.SIGKILL)
    with pytest.raises(StorageUnavailable, match="ended from outside; got SIGKILL"):
        list(batches)
    assert sum(batch.num_rows for batch in inputs.batches([file])) == 400_000


def test_a_reader_that_died_while_nobody_asked_is_replaced_without_a_word(inputs: Inputs, tmp_path: Path) -> None:
    put_file(tmp_path, rows(3))
    files = inputs.files(f"{tmp_path}/in", [""])
    assert inputs.schema(files[0]).equals(rows(3).schema)
    (reader,) = readers()
    reader.kill()
    reader.wait(5)
    assert sum(batch.num_rows for batch in inputs.batches(files)) == 3


def test_a_reader_that_stalls_is_ended_and_the_file_rejected(tmp_path: Path, scratch: Path) -> None:
    put_file(tmp_path, big())
    inputs = Inputs(scratch, ReadLimits(stall_seconds=0.5))
    files = inputs.files(f"{tmp_path}/in", [""])
    batches = inputs.batches(files, batch_rows=10_000)
    next(batches)
    readers()[0].suspend()
    with pytest.raises(FileRejected, match=r"timeout: nothing for 0\.5 s") as caught:
        list(batches)
    assert (caught.value.code, caught.value.rows) == ("timeout", 400_000)
    assert readers() == []
    inputs.close()


def test_a_slow_caller_is_no_stalled_reader(tmp_path: Path, scratch: Path) -> None:
    put_file(tmp_path, big(50_000))
    inputs = Inputs(scratch, ReadLimits(stall_seconds=0.5))
    read = 0
    for batch in inputs.batches(inputs.files(f"{tmp_path}/in", [""]), batch_rows=25_000):
        read += batch.num_rows
        time.sleep(0.7)
    assert read == 50_000
    inputs.close()


def test_a_file_that_needs_more_memory_than_allowed_is_rejected(tmp_path: Path, scratch: Path) -> None:
    words = pa.DictionaryArray.from_arrays(pa.array(np.zeros(500, "int32")), pa.array(["x" * 1_000_000]))
    put_file(tmp_path, pa.table({"x": words}), store_schema=False)
    inputs = Inputs(scratch, ReadLimits(memory_bytes=300 << 20))
    files = inputs.files(f"{tmp_path}/in", [""])
    with pytest.raises(FileRejected, match="needs more memory than reading may take; got memory: ") as caught:
        list(inputs.batches(files))
    assert (caught.value.code, caught.value.rows) == ("memory", 500)
    put_file(tmp_path, rows(3))
    assert sum(batch.num_rows for batch in inputs.batches(inputs.files(f"{tmp_path}/in", [""]))) == 3
    inputs.close()


def test_rows_that_are_long_come_in_smaller_batches(tmp_path: Path, scratch: Path) -> None:
    table = pa.table({"x": [f"{i}".zfill(1_000_000) for i in range(300)]})
    put_file(tmp_path, table, use_dictionary=False, compression="zstd", row_group_size=300, write_batch_size=10)
    inputs = Inputs(scratch, ReadLimits(memory_bytes=300 << 20))
    batches = list(inputs.batches(inputs.files(f"{tmp_path}/in", [""])))
    assert max(batch.num_rows for batch in batches) < 100
    assert pa.Table.from_batches(batches).equals(table)
    inputs.close()


def test_a_reader_that_cannot_start_is_no_fault_of_the_file(tmp_path: Path, scratch: Path) -> None:
    put_file(tmp_path, rows(3))
    inputs = Inputs(scratch, ReadLimits(memory_bytes=1 << 20))
    with pytest.raises(StorageUnavailable, match="the process that reads input files did not start"):
        inputs.schema(inputs.files(f"{tmp_path}/in", [""])[0])
    assert readers() == []
    inputs.close()


@pytest.mark.parametrize("how", ["close", "raise", "forget"])
def test_rows_that_nobody_wants_any_more_leave_no_process(inputs: Inputs, tmp_path: Path, how: str) -> None:
    put_file(tmp_path, big())
    files = inputs.files(f"{tmp_path}/in", [""])
    batches = inputs.batches(files, batch_rows=1000)
    next(batches)
    if how == "close":
        batches.close()  # type: ignore[attr-defined]
    elif how == "raise":
        with pytest.raises(RuntimeError, match="enough"):
            _work_until_it_fails(batches)
    del batches
    gc.collect()
    assert readers() == []


def _work_until_it_fails(batches: Iterator[pa.RecordBatch]) -> None:
    for _ in batches:
        raise RuntimeError("enough")


def test_inputs_that_were_never_closed_leave_no_process(tmp_path: Path, scratch: Path) -> None:
    put_file(tmp_path, rows(3))
    inputs = Inputs(scratch)
    inputs.schema(inputs.files(f"{tmp_path}/in", [""])[0])  # its answer proves that the process has begun
    assert len(readers()) == 1
    del inputs
    gc.collect()
    assert readers() == []


@pytest.mark.parametrize("thread", [False, True], ids=["main thread", "other thread"])
@pytest.mark.parametrize("doing", ["waits", "reads"])
def test_a_reader_dies_with_the_process_that_started_it(tmp_path: Path, doing: str, thread: bool) -> None:
    put_file(tmp_path, big())
    program = f"""
import threading, time
from pathlib import Path
from pipeline.storage import Inputs
inputs = Inputs(Path({str(tmp_path)!r}))
def work():
    files = inputs.files({str(tmp_path / "in")!r}, [""])
    rows = inputs.batches(files, batch_rows=1000)
    if {doing == "reads"}: next(rows)
    print([reader.pid for reader in inputs._readers._all][0], flush=True)
    time.sleep(60)
if {thread}: threading.Thread(target=work).start()
else: work()
"""
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    reader = psutil.Process(int(parent.stdout.readline()))
    assert reader.is_running()
    parent.kill()
    parent.wait(5)
    parent.stdout.close()
    assert psutil.wait_procs([reader], timeout=5)[1] == []


def test_bytes_that_are_not_text_are_passed_on(inputs: Inputs, tmp_path: Path) -> None:
    odd = pa.table({"x": pa.array([b"\xff", b"ok"], pa.binary()).view(pa.string())})
    put_file(tmp_path, odd)
    (batch,) = inputs.batches(inputs.files(f"{tmp_path}/in", [""]))
    assert batch.column(0).type == pa.string()
    assert batch.column(0).view(pa.binary()).to_pylist() == [b"\xff", b"ok"]


def test_dictionaries_stay_dictionaries_also_where_they_change(inputs: Inputs, tmp_path: Path) -> None:
    parts = [pa.array(words).dictionary_encode() for words in (["a", "b"], ["c", None], ["b", "b"])]
    table = pa.table({"x": pa.chunked_array(parts)})
    put_file(tmp_path, table, row_group_size=2)
    files = inputs.files(f"{tmp_path}/in", [""])
    batches = list(inputs.batches(files, batch_rows=3))
    assert all(batch.schema.equals(inputs.schema(files[0])) for batch in batches)
    assert pa.types.is_dictionary(batches[0].schema.field("x").type)
    assert [value for batch in batches for value in batch.column(0).to_pylist()] == ["a", "b", "c", None, "b", "b"]


def test_a_disk_that_fails_is_no_fault_of_the_file(inputs: Inputs, tmp_path: Path) -> None:
    path = put_file(tmp_path, rows(10))
    (file,) = inputs.files(f"{tmp_path}/in", [""])
    name = "x" * 300  # longer than any name on the disk: the system refuses it with a number
    odd = file.model_copy(update={"uri": str(path.with_name(name))})
    with pytest.raises(StorageUnavailable, match="File name too long"):
        inputs.schema(odd)


def test_rows_are_given_up_when_the_inputs_are_closed(inputs: Inputs, tmp_path: Path) -> None:
    put_file(tmp_path, big())
    batches = inputs.batches(inputs.files(f"{tmp_path}/in", [""]), batch_rows=1000)
    next(batches)
    inputs.close()
    assert readers() == []
    with pytest.raises(StorageUnavailable, match="the inputs were closed while they were being read"):
        list(batches)


LIES = {
    "an offset beyond the text": ("batch(0, 1000, 2)", "corrupt: .*(offset|bounds)"),
    "more rows than declared": ("batch() + batch()", "corrupt: 2 rows where its footer promises 1"),
    "no rows at all": ("b''", "corrupt: 0 rows where its footer promises 1"),
    "an endless answer": ("frame(b'A', b'', 1 << 60)", "crashed: an answer of 1152921504606846976 bytes"),
    "noise for a batch": ("frame(b'A', b'noise')", "corrupt: "),
    "noise for a message": ("frame(b'J', b'noise')", "crashed: an answer that is none"),
    "another message": ("frame(b'J', b'[]') + frame(b'J', b'7')", "crashed: an answer that is none"),
    "an unheard-of reason": (r"""frame(b'J', b'{"code": "hunger"}')""", "crashed: an answer that is none"),
}
LIAR = """
import struct, sys
sys.path.append(sys.argv[1])
import pyarrow as pa
def frame(kind, content, length=None):
    return struct.pack("<cQ", kind, len(content) if length is None else length) + content
def batch(*offsets):
    offsets = offsets or (0, 2)
    sink, places = pa.BufferOutputStream(), pa.py_buffer(struct.pack(f"<{len(offsets)}i", *offsets))
    text = pa.Array.from_buffers(pa.string(), len(offsets) - 1, [None, places, pa.py_buffer(b"de")])
    rows = pa.record_batch([text], ["x"])
    with pa.ipc.new_stream(sink, rows.schema) as stream:
        stream.write_batch(rows)
    return frame(b"A", sink.getvalue().to_pybytes())
out = sys.stdout.buffer
out.write(frame(b"J", b'{"ready": true}')); out.flush()
sys.stdin.buffer.readline()
out.write(frame(b"J", b'{"rows": 1}') + LIE + frame(b"J", b'{"done": true}')); out.flush()
sys.stdin.buffer.readline()
"""


@pytest.mark.parametrize("lie", LIES)
def test_a_reading_process_that_was_taken_over_is_not_believed(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lie: str
) -> None:
    path = put_file(tmp_path, rows(1))
    text, refusal = LIES[lie]
    path.with_name("liar.py").write_text(LIAR.replace("LIE", text))
    monkeypatch.setattr(reader, "__file__", str(path.with_name("liar.py")))
    with pytest.raises(FileRejected, match=refusal):
        list(inputs.batches(inputs.files(f"{tmp_path}/in", [""])))


def test_a_reading_process_that_tells_the_truth_is_believed_whoever_it_is(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = put_file(tmp_path, rows(1))
    path.with_name("liar.py").write_text(LIAR.replace("LIE", "batch()"))
    monkeypatch.setattr(reader, "__file__", str(path.with_name("liar.py")))
    (batch,) = inputs.batches(inputs.files(f"{tmp_path}/in", [""]))
    assert batch.to_pylist() == [{"x": "de"}]


def coded(inputs: Inputs, path: Path) -> list[pa.RecordBatch]:
    """The batches of a file whose column ``text`` may come as codes."""
    (file,) = inputs.files(str(path.parent), [""])
    return list(inputs.batches([file], ["text"], codes=["text"]))


def few_texts(values: list[str], count: int) -> pa.Table:
    """The values in turn, held and written as codes."""
    return pa.table({"text": pa.DictionaryArray.from_arrays(np.arange(count, dtype=np.int32) % len(values), values)})


def test_few_short_texts_come_as_codes(inputs: Inputs, tmp_path: Path) -> None:
    table = few_texts(["a", "b", "c"], 200_000)
    found = coded(inputs, put_file(tmp_path, table, store_schema=False))
    assert {batch.schema.field("text").type for batch in found} == {pa.dictionary(pa.int32(), pa.string())}
    assert pa.Table.from_batches(found)["text"].cast(pa.string()).equals(table["text"].cast(pa.string()))


@pytest.mark.parametrize(
    ("values", "options"),
    [
        ([f"{number:07d}" for number in range(60_000)], {}),
        (["x" * 1000, "y"], {}),
        (["a", "b"], {"row_group_size": 10_000}),
    ],
    ids=["many", "long", "small row groups"],
)
def test_texts_come_plain_where_codes_would_not_pay(
    inputs: Inputs, tmp_path: Path, values: list[str], options: dict[str, Any]
) -> None:
    table = few_texts(values, 200_000)
    found = coded(inputs, put_file(tmp_path, table, store_schema=False, **options))
    assert {batch.schema.field("text").type for batch in found} == {pa.string()}
    assert pa.Table.from_batches(found)["text"].equals(table["text"].cast(pa.string()))


def test_codes_that_no_memory_could_decode_are_refused_by_the_reading_process(tmp_path: Path, scratch: Path) -> None:
    path = put_file(tmp_path, few_texts(["x" * 100_000, "y"], 200_000), store_schema=False)
    limited = Inputs(scratch, ReadLimits(memory_bytes=600 << 20))
    with closing(limited), pytest.raises(FileRejected, match=r"memory"):
        coded(limited, path)
