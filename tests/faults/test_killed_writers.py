"""A writer that dies at any instant, or whose disk refuses any byte, leaves each partition whole: the product's, and no other."""

from __future__ import annotations

import os
import random
import resource
import shutil
import signal
import time
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.faults.generations import COLUMNS, faults, name_of, prepare, table_of, with_pyarrow
from tests.faults.workers import Worker
from tests.faults.writers import DeleteMatching, InPlace, Product, Writer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from multiprocessing.connection import Connection

    import pyarrow as pa

    Scale = Callable[[int, int], int]

# Every seventh generation has the largest size, of three row groups: writing it takes long enough to be killed in.
FIRST, STEP = 3, 7
PARTITION = name_of(0)
FAR = datetime(2100, 1, 1, tzinfo=UTC)
MOST_ATTEMPTS = 300  # until a wrong writer is caught; one attempt in three is enough for that
KILLED, DONE = str(-int(signal.SIGKILL)), "0"


def publishing(orders: Connection, writer: Writer, root: str, generation: int, most_bytes: int | None) -> str:
    """Publish in a forked process, whose number is told first; what it raised, or its exit code.

    No file may grow beyond ``most_bytes``. The process is waited for only when there is word that nobody kills it any
    more, so that its number is never another's.
    """
    table = table_of(0, generation)
    told, tell = os.pipe()
    child = os.fork()
    if child == 0:
        with suppress(BaseException):
            os.write(tell, _raised(writer, root, table, most_bytes).encode())
        os._exit(0)
    os.close(tell)
    orders.send((True, child))
    orders.recv()
    _, status = os.waitpid(child, 0)
    with os.fdopen(told) as stream:
        return stream.read() or str(os.waitstatus_to_exitcode(status))


def _raised(writer: Writer, root: str, table: pa.Table, most_bytes: int | None) -> str:
    if most_bytes is not None:
        # Python ignores the signal that comes with it, so that a write beyond it ends in an error.
        resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, most_bytes))
    try:
        writer.publish(root, PARTITION, table)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


@dataclass
class Killing:
    """A writer that overwrites one partition again and again, and is killed meanwhile.

    ``held`` is the generation that is published. ``late`` counts the kills that came when all was over. ``seconds`` is
    about how long publishing takes now: a machine that is busy may be idle in a moment, and the other way round.
    """

    worker: Worker
    writer: Writer
    root: Path
    generation: int = FIRST
    held: int | None = None
    seconds: float = 0.0
    kills: int = 0
    late: int = 0
    violations: list[str] = field(default_factory=list)
    _draw: random.Random = field(default_factory=lambda: random.Random(2013))

    def measure(self) -> None:
        """How long publishing takes when nobody disturbs it, and it is not done for the first time."""
        for _ in range(3):
            self.succeed()

    def succeed(self) -> None:
        """Publish the next generation, undisturbed."""
        began = time.monotonic()
        assert self.publish() == DONE
        self.seconds = time.monotonic() - began
        self.held = self.found()
        assert self.held == self.generation

    def publish(self, *, most_bytes: int | None = None, kill_after: float | None = None) -> str:
        """Try to publish the next generation; how that ended."""
        self.generation += STEP
        self.worker.order(publishing, self.writer, str(self.root), self.generation, most_bytes)
        child = self.worker.result()
        if kill_after is not None:
            time.sleep(kill_after)
            os.kill(child, signal.SIGKILL)
        self.worker.tell("it may be waited for")
        ended: str = self.worker.result()
        return ended

    def attempt(self) -> None:
        """Kill at a random instant, and look at what is there."""
        instant = self._draw.uniform(0, self.seconds)
        ended = self.publish(kill_after=instant)
        assert ended in (KILLED, DONE), ended
        if ended == DONE:
            self.late += 1
            self.seconds = instant
        else:
            self.kills += 1
            self.seconds *= 1.1
        self.judge()

    def judge(self) -> None:
        """What must be there is the generation before, or the one that was being published."""
        before = self.held
        try:
            self.held = self.found()
            assert self.held in (before, self.generation), f"not {before} or {self.generation}, but {self.held}"
        except (OSError, ValueError, AssertionError) as error:
            self.violations.append(str(error))

    def found(self) -> int | None:
        """The generation of all rows that a reader of the root gets; raises what the reader raises, or what is wrong."""
        if not list(self.root.glob("**/*.parquet")):
            return None
        rows = with_pyarrow(str(self.root))
        trouble, generation = faults(0, rows) if len(rows[COLUMNS[0]]) else ("no rows", -1)
        assert not trouble, trouble
        return generation

    def forget(self) -> None:
        """As before the first publication."""
        for path in self.root.parent.glob(f"{self.root.name}*"):
            shutil.rmtree(path)
        self.held = None

    def require_struck(self, kills: int) -> None:
        """Nothing is proven by a writer that nobody has killed."""
        assert self.kills >= kills, f"{self.kills} kills struck, {kills} were asked for"


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    with Worker() as started:
        for module in ("pyarrow.dataset", "tests.faults.writers"):
            started.order(prepare, module)
            started.result(120)
        yield started


@pytest.fixture
def product(worker: Worker, tmp_path: Path) -> Killing:
    (tmp_path / "scratch").mkdir()
    return Killing(worker, Product(str(tmp_path / "scratch")), tmp_path / "predictions")


def swept(killing: Killing, scratch: Path) -> list[Path]:
    """All files that are left after a sweep of the far future."""
    assert isinstance(killing.writer, Product)
    killing.writer.sweep(str(killing.root), FAR)
    beside = killing.root.parent.glob(f"{killing.root.name}*/**/*")
    return [path for path in (*beside, *scratch.rglob("*")) if path.is_file()]


def identity(path: Path) -> tuple[int, int, int]:
    status = path.stat()
    return status.st_ino, status.st_mtime_ns, status.st_size


def require_no_orphan(killing: Killing, scratch: Path) -> None:
    """The published file is there, under its own name and as a version, and nothing else."""
    published = killing.root / PARTITION / "part-0.parquet"
    others = [path for path in swept(killing, scratch) if path != published]
    assert [path.parents[1].name for path in others] in ([], [f"{killing.root.name}.versions"])
    assert all(path.samefile(published) for path in others)


def test_a_killed_writer_leaves_the_generation_before_or_the_new_one(
    product: Killing, tmp_path: Path, scale: Scale, figures: Callable[..., None]
) -> None:
    product.measure()
    wanted, attempts = scale(15, 300), 0
    while product.kills < wanted and attempts < 4 * wanted:
        attempts += 1
        if attempts % 5 == 0:
            product.forget()
        product.attempt()
        if attempts % 5 == 4:
            product.succeed()
    figures("killed writers: Product", kills=product.kills, late=product.late, violations=len(product.violations))
    product.require_struck(wanted)
    assert product.violations == []
    product.succeed()
    require_no_orphan(product, tmp_path / "scratch")


@pytest.mark.parametrize("writer", [DeleteMatching(), InPlace()], ids=lambda writer: type(writer).__name__)
def test_the_same_kills_catch_a_writer_that_is_wrong(
    worker: Worker, writer: Writer, tmp_path: Path, figures: Callable[..., None]
) -> None:
    killing = Killing(worker, writer, tmp_path / "predictions")
    killing.measure()
    while not killing.violations and killing.kills + killing.late < MOST_ATTEMPTS:
        killing.attempt()
    figures(f"killed writers: {type(writer).__name__}", kills_until_caught=killing.kills)
    killing.require_struck(1)
    assert killing.violations


def test_an_attack_in_which_nobody_was_killed_proves_nothing(product: Killing) -> None:
    product.succeed()
    product.succeed()
    assert (product.violations, product.kills) == ([], 0)
    with pytest.raises(AssertionError, match="0 kills struck, 1 were asked for"):
        product.require_struck(1)


def test_a_disk_that_refuses_any_byte_changes_nothing_and_the_error_says_so(
    product: Killing, tmp_path: Path, scale: Scale, figures: Callable[..., None]
) -> None:
    product.succeed()
    published = product.root / PARTITION / "part-0.parquet"
    before, size = identity(published), published.stat().st_size
    limits = sorted({0, 4, size // 2, size - 1, *range(1, size, size // scale(4, 100))})
    for limit in limits:
        ended = product.publish(most_bytes=limit)
        said = tuple(f"StorageUnavailable: {doing} {published} failed" for doing in ("writing", "publishing"))
        assert ended.startswith(said), f"at byte {limit}: {ended}"
        assert "the published file is unchanged and the staged one is removed" in ended
        assert identity(published) == before
        assert not list(Path(f"{product.root}.staging").iterdir())
    figures("refused bytes", limits=len(limits), size=size, violations=0)
    product.succeed()
    require_no_orphan(product, tmp_path / "scratch")
