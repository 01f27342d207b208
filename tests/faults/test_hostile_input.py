"""Files that somebody made to do harm, or that no reader foresaw: each gives exactly its rows or is refused for a reason.

Nothing crashes, hangs, or takes more than 2 GiB; and no partition that was published earlier suffers.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import ContractViolation, FileRejected, PipelineError, StorageUnavailable
from pipeline.storage import Inputs
from pipeline.storage.refusals import REFUSALS
from tests.faults import hostile, lies

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.faults.hostile import Hostile

CORPUS = Path(os.environ.get("PIPELINE_REAL_DATA", Path(__file__).parents[3] / "shared/data")) / "parquet-testing"
MOST_SECONDS, MOST_BYTES = 30, 2 << 30
# What a scoring task holds before it reads anything.
OWN_BYTES = 512 << 20


@dataclass
class Gauge:
    """The memory that this process takes more than before, and that of what it started, watched all the time."""

    peak: int = 0
    _over: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Gauge:
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        mine = psutil.Process()
        # The process has run other tests before: what they left in its memory is none of the files' doing.
        before = mine.memory_info().rss
        own = Path("/proc/self/cmdline").read_bytes()
        highest: dict[int, int] = {}
        while not self._over.wait(0.02):
            for child in mine.children(recursive=True):
                with suppress(OSError, StopIteration):
                    # Until it executes its own program a child shares this process's memory.
                    if Path(f"/proc/{child.pid}/cmdline").read_bytes() == own:
                        continue
                    lines = Path(f"/proc/{child.pid}/status").read_text().splitlines()
                    said = next(line for line in lines if line.startswith("VmHWM"))
                    highest[child.pid] = int(said.split()[1]) << 10
            self.peak = max(self.peak, mine.memory_info().rss - before + max(highest.values(), default=0))


@dataclass
class Record:
    """How the files of one attack ended: by outcome, with what took longest."""

    outcomes: Counter[str] = field(default_factory=Counter)
    slowest: tuple[float, str] = (0.0, "")

    def add(self, name: str, outcome: str, seconds: float) -> None:
        self.outcomes[outcome] += 1
        self.slowest = max(self.slowest, (seconds, name))
        assert seconds < MOST_SECONDS, name

    def figures(self, gauge: Gauge) -> dict[str, Any]:
        assert gauge.peak < MOST_BYTES - OWN_BYTES
        seconds, name = self.slowest
        slowest = f"{name} ({seconds:.1f} s)"
        return {**dict(self.outcomes.most_common()), "slowest": slowest, "peak_mb": gauge.peak >> 20}


@pytest.fixture
def inputs(tmp_path: Path) -> Iterator[Inputs]:
    opened = Inputs(tmp_path / "scratch")
    yield opened
    opened.close()


def read(inputs: Inputs, folder: Path) -> pa.Table | FileRejected | StorageUnavailable:
    """The rows of the one file in the folder, or why it was refused, on the way that every input goes."""
    try:
        (file,) = inputs.files(str(folder), [""])
        schema = inputs.schema(file)
        return pa.Table.from_batches(inputs.batches([file]), schema)
    except (FileRejected, StorageUnavailable) as refusal:
        return refusal


def exactly(left: pa.Table, right: pa.Table) -> bool:
    """Whether two tables agree in every bit of every value: NaN equals NaN, and zero is not minus zero."""
    return bool(
        left.schema.equals(right.schema)
        and left.num_rows == right.num_rows
        and all(same(a, b) for a, b in zip(left.columns, right.columns, strict=True))
    )


def same(left: pa.ChunkedArray, right: pa.ChunkedArray) -> bool:
    if pa.types.is_floating(left.type):
        whole = {16: pa.int16(), 32: pa.int32(), 64: pa.int64()}[left.type.bit_width]
        return bool(as_type(left, whole).equals(as_type(right, whole)))
    if left.equals(right) or not pa.types.is_dictionary(left.type):
        return bool(left.equals(right))
    # Values of the dictionary that no row has are not kept.
    return bool(left.cast(left.type.value_type).equals(right.cast(right.type.value_type)))


def as_type(column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    return pa.chunked_array([part.view(kind) for part in column.chunks], kind)


def test_every_hostile_file_gives_exactly_its_rows_or_is_refused_for_its_reason(
    inputs: Inputs, tmp_path: Path, scale: Callable[..., Any], figures: Callable[..., None]
) -> None:
    cases = [*hostile.catalogue(full=scale(False, True)), *lies.catalogue()]
    assert len({case.name for case in cases}) == len(cases) >= 60
    record = Record()
    with Gauge() as gauge:
        for number, case in enumerate(cases[:: scale(2, 1)]):
            record.add(case.name, *ended(inputs, case, tmp_path / str(number)))
    assert set(record.outcomes) - {"exact", "storage"} <= set(REFUSALS)
    files = sum(record.outcomes.values())
    assert record.outcomes["exact"] > 0.2 * files
    assert files - record.outcomes["exact"] > 0.5 * files
    figures("hostile files", files=files, **record.figures(gauge))


def ended(inputs: Inputs, case: Hostile, folder: Path) -> tuple[str, float]:
    folder.mkdir()
    case.make(folder / "part-0.parquet")
    start = time.perf_counter()
    result = read(inputs, folder)
    seconds = time.perf_counter() - start
    if isinstance(result, pa.Table):
        assert case.rows is not None, f"{case.name}: {result.num_rows} rows were read"
        assert exactly(result, case.rows), case.name
        return "exact", seconds
    if isinstance(result, StorageUnavailable):
        # The file system's own refusal, which is told as such.
        assert case.name == "a link to itself"
        assert "symbolic links" in str(result)
        return "storage", seconds
    assert result.code in case.codes, f"{case.name}: {result}"
    assert result.got
    assert "\n" not in str(result).replace(str(folder), "") or "line" in case.name
    return result.code, seconds


@pytest.mark.skipif(
    not CORPUS.is_dir(), reason="parquet-testing is absent; PIPELINE_REAL_DATA names the folder beside it"
)
def test_every_file_of_the_corpus_of_odd_files_is_read_as_it_is_or_refused_for_its_reason(
    inputs: Inputs, scale: Callable[[int, int], int], figures: Callable[..., None], tmp_path: Path
) -> None:
    files = sorted(path for path in CORPUS.rglob("*.parquet*") if path.suffix in (".parquet", ".encrypted"))
    assert len(files) > 200
    record, bad = Record(), set()
    with Gauge() as gauge:
        for number, path in enumerate(files[:: scale(2, 1)]):
            folder = tmp_path / str(number)
            folder.mkdir()
            (folder / "part-0.parquet").symlink_to(path)
            start = time.perf_counter()
            result = read(inputs, folder)
            seconds = time.perf_counter() - start
            if isinstance(result, pa.Table):
                plain = pq.ParquetFile(path)
                assert result.schema.equals(plain.schema_arrow)
                assert exactly(result, plain.read()), path
                bad |= {path.name} if path.parent.name == "bad_data" else set()
            else:
                assert isinstance(result, FileRejected), path
                assert (result.code == "encrypted") == (path.suffix == ".encrypted"), path
            record.add(path.name, "read" if isinstance(result, pa.Table) else result.code, seconds)
    # Written by a version with a fault; what it holds can be read all the same.
    assert bad <= {"ARROW-GH-43605.parquet"}
    assert record.outcomes["read"] > 0.7 * sum(record.outcomes.values())
    figures("odd files corpus", files=sum(record.outcomes.values()), **record.figures(gauge))


HARMFUL = (
    *("an empty file", "a table of text", "an encrypted footer", "5 tenths of a file", "a footer of noise"),
    *("a dictionary bomb, zstd", "501 rows in the row group", "columns nested 1000 deep", "a name that occurs twice"),
    *("a column of another name", "a trillion rows without columns", "a page with another checksum", "a device"),
)


def test_a_partition_of_hostile_files_is_refused_and_the_one_that_was_published_stays(
    runtime: Any, orders: Any, world: Any, day: Any, scale: Callable[[int, int], int], figures: Callable[..., None]
) -> None:
    runtime.retrain(orders, day(10), bootstrap=True)
    (manifest,) = runtime.score(orders, day(11))
    before = hashlib.sha256(Path(manifest.path).read_bytes()).hexdigest()
    cases = {case.name: case for case in (*hostile.catalogue(full=False), *lies.catalogue())}
    outcomes: Counter[str] = Counter()
    attacks = HARMFUL[:: scale(4, 1)]
    for name in attacks:
        world.features(11).unlink()
        cases[name].make(world.features(11))
        with pytest.raises(PipelineError, match=r"part-0\.parquet") as caught:
            list(runtime.score(orders, day(11)))
        assert isinstance(caught.value, ContractViolation), name
        outcomes[caught.value.code if isinstance(caught.value, FileRejected) else "contract"] += 1
        assert hashlib.sha256(Path(manifest.path).read_bytes()).hexdigest() == before
    assert sum(outcomes.values()) == len(attacks) >= 4
    figures("hostile partitions", **outcomes)
