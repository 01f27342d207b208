"""Whoever reads the data set while partitions are overwritten sees each of them whole, as it was or as it is now."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

from tests.faults.generations import PARTITIONS, READERS, Tally, name_of, overwriting, prepare, reading, table_of
from tests.faults.workers import Worker, WorkerDied
from tests.faults.writers import DeleteMatching, InPlace, Product, Writer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    Scale = Callable[[float, float], float]

LOUD = {"duckdb", "polars"}  # these open the path again in the middle of a query, and say so when the file is another
_CATCH_SECONDS, _SLICE_SECONDS = 60.0, 1.5


class Processes:
    """One writing process and one per reader; a dead one is replaced when it is needed again."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._workers = {name: self._begin(name) for name in ("writer", *READERS)}
        for worker in self._workers.values():
            worker.result(120)

    def __getitem__(self, name: str) -> Worker:
        return self._workers[name]

    def renew(self, name: str) -> None:
        self._workers[name] = self._begin(name)
        self._workers[name].result(120)

    def _begin(self, name: str) -> Worker:
        worker = self._stack.enter_context(Worker())
        worker.order(prepare, {"writer": "pyarrow", "pyarrow": "pyarrow.dataset"}.get(name, name))
        return worker


@pytest.fixture(scope="module")
def processes() -> Iterator[Processes]:
    with ExitStack() as stack:
        yield Processes(stack)


@dataclass
class Attack:
    """Four readers against one writer, in as many turns as wanted, and what came of it."""

    processes: Processes
    root: str
    writer: Writer | None
    scratch: str | None = None
    overwrites: int = 0
    seconds: float = 0.0
    generation: int = PARTITIONS
    tallies: dict[str, Tally] = field(default_factory=lambda: {name: Tally() for name in READERS})

    def run(self, seconds: float, at_least: int) -> None:
        """Attack for so long, and on a busy machine for up to five times longer to reach the number of overwrites."""
        self.turn(seconds)
        while self.overwrites < at_least and self.seconds < 6 * seconds:
            self.turn(max(1.0, seconds / 6))

    def turn(self, seconds: float) -> None:
        """Let everybody run for so long; the reading is judged, and whoever died is counted and replaced."""
        began = time.monotonic()
        for name in READERS:
            self.processes[name].order(reading, name, self.root, self.scratch)
        self.processes["writer"].order(overwriting, self.writer, self.root, self.generation)
        time.sleep(seconds)
        self.processes["writer"].stop()
        changed, self.generation = self.processes["writer"].result()
        for name in READERS:
            self.processes[name].stop()
        for name, tally in self.tallies.items():
            try:
                tally.add(self.processes[name].result())
            except WorkerDied as died:
                tally.count("died", f"exit code {died}")
                self.processes.renew(name)
        self.overwrites += changed
        self.seconds += time.monotonic() - began

    def require_struck(self, overwrites: int) -> None:
        """Nothing is proven by readers that read nothing, or always the same."""
        assert self.overwrites >= overwrites, f"{self.overwrites} overwrites happened, {overwrites} were asked for"
        for name, tally in self.tallies.items():
            assert tally.counts.total() > 0, f"{name} has read nothing"
            assert len(tally.generations) > PARTITIONS, f"{name} has not seen any overwrite"

    @property
    def violations(self) -> dict[str, str]:
        """What readers must never meet, by reader: rows that are silently wrong, and their own death."""
        return {
            name: f"{tally.counts[kind]} {kind}, such as: {tally.said[kind]}"
            for name, tally in self.tallies.items()
            for kind in ("wrong", "died")
            if tally.counts[kind]
        }

    @property
    def errors(self) -> dict[str, str]:
        """Loud errors by reader."""
        return {name: tally.said["errors"] for name, tally in self.tallies.items() if tally.counts["errors"]}

    def report(self, figures: Callable[..., None], name: str) -> None:
        figures(name, overwrites=self.overwrites, seconds=round(self.seconds, 1))
        for reader, tally in self.tallies.items():
            kinds = {kind: tally.counts[kind] for kind in ("right", "wrong", "errors", "died")}
            figures(f"{name}: {reader}", **kinds, generations=len(tally.generations))


@pytest.fixture
def against(processes: Processes, tmp_path: Path) -> Callable[..., Attack]:
    """An attack on a data set whose first generations are published by the writer itself."""

    def make(writer: Writer | None, *, snapshots: bool = False) -> Attack:
        root, scratch = tmp_path / "predictions", tmp_path / "scratch"
        scratch.mkdir()
        for part in range(PARTITIONS):
            (writer or product(tmp_path)).publish(str(root), name_of(part), table_of(part, part))
        return Attack(processes, str(root), writer, str(scratch) if snapshots else None)

    return make


def product(tmp_path: Path) -> Product:
    return Product(str(tmp_path / "scratch"))


def test_nobody_reads_the_root_silently_wrong_and_pyarrow_and_pandas_never_fail(
    against: Callable[..., Attack], tmp_path: Path, scale: Scale, figures: Callable[..., None]
) -> None:
    attack = against(product(tmp_path))
    wanted = int(scale(10, 500))
    attack.run(scale(3, 60), wanted)
    attack.report(figures, "readers of the root")
    attack.require_struck(wanted)
    assert attack.violations == {}
    assert {name: said for name, said in attack.errors.items() if name not in LOUD} == {}


def test_nobody_fails_or_reads_wrong_through_a_snapshot(
    against: Callable[..., Attack], tmp_path: Path, scale: Scale, figures: Callable[..., None]
) -> None:
    attack = against(product(tmp_path), snapshots=True)
    wanted = int(scale(10, 500))
    attack.run(scale(3, 60), wanted)
    attack.report(figures, "readers of snapshots")
    attack.require_struck(wanted)
    assert (attack.violations, attack.errors) == ({}, {})


@pytest.mark.parametrize("writer", [DeleteMatching(), InPlace()], ids=lambda writer: type(writer).__name__)
def test_the_same_readers_catch_a_writer_that_is_wrong(
    against: Callable[..., Attack], writer: Writer, figures: Callable[..., None]
) -> None:
    attack = against(writer)
    while not attack.violations and attack.seconds < _CATCH_SECONDS:
        attack.turn(_SLICE_SECONDS)
    attack.report(figures, f"readers against {type(writer).__name__}")
    assert attack.overwrites > 0
    assert attack.violations


def test_an_attack_in_which_nothing_was_overwritten_proves_nothing(against: Callable[..., Attack]) -> None:
    attack = against(None)
    attack.turn(0.2)
    assert attack.violations == {}
    with pytest.raises(AssertionError, match="0 overwrites happened, 1 were asked for"):
        attack.require_struck(1)
    with pytest.raises(AssertionError, match="has not seen any overwrite"):
        attack.require_struck(0)
