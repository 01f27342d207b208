"""Rounds of writers that overwrite one partition at the same instant, each in a process of its own."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow.parquet as pq

from pipeline.errors import PublishConflict
from pipeline.storage import Current, Storage, Target
from tests.faults.generations import COLUMNS, faults, name_of, table_of
from tests.faults.writers import InPlace

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.connection import Connection

    from tests.faults.workers import Worker

_HEAD_START_SECONDS = 0.05


@dataclass(frozen=True)
class Outcome:
    """What became of one writer's attempt: ``sha256`` when it published, the conflict's words when it did not."""

    generation: int
    began: float
    ended: float
    sha256: str = ""
    conflict: str = ""


def competing(orders: Connection, scratch: str, target: Target, generation: int, seen: Current) -> Outcome:
    """Write a generation, wait for the word, and publish it over what was ``seen``."""
    table = table_of(0, generation)
    with Storage(Path(scratch)).stage(target, table.schema, seen=seen) as staged:
        for batch in table.to_batches():
            staged.write(batch)
        began = _together(orders)
        try:
            published = staged.publish(expected_rows=table.num_rows, unique=["id"])
        except PublishConflict as conflict:
            return Outcome(generation, began, time.monotonic(), conflict=str(conflict))
        return Outcome(generation, began, time.monotonic(), published.sha256)


def overwriting_blindly(orders: Connection, scratch: str, target: Target, generation: int, seen: Current) -> Outcome:
    """As `competing`, by a writer that does not care what is there."""
    table = table_of(0, generation)
    began = _together(orders)
    InPlace().publish(target.root, target.partition, table)
    return Outcome(generation, began, time.monotonic(), sha256_of(Path(target.uri)))


def _together(orders: Connection) -> float:
    """When the order to go was given; everybody goes at the same instant of the machine's clock."""
    orders.send((True, "ready"))
    go: float = orders.recv()
    time.sleep(max(0.0, go - time.monotonic()))
    return time.monotonic()


def sha256_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


class Contest:
    """Rounds of writers that all start from the same published file."""

    def __init__(self, workers: list[Worker], place: Path) -> None:
        self.workers, self.scratch = workers, place / "scratch"
        self.scratch.mkdir()
        self.target = Target(str(place / "predictions"), name_of(0))
        self.storage = Storage(self.scratch)
        self.contended = 0

    def hold(self, round_: int, writer: Callable[..., Outcome], *, equal: bool = False) -> list[Outcome]:
        """One round: what became of each writer; ``equal`` lets all of them write the same rows."""
        seen = self.storage.current(self.target)
        for number, worker in enumerate(self.workers):
            generation = round_ * len(self.workers) + (0 if equal else number)
            worker.order(writer, str(self.scratch), self.target, generation, seen)
        assert [worker.result() for worker in self.workers] == ["ready"] * len(self.workers)
        go = time.monotonic() + _HEAD_START_SECONDS
        for worker in self.workers:
            worker.tell(go)
        outcomes: list[Outcome] = [worker.result() for worker in self.workers]
        self.contended += max(o.began for o in outcomes) < min(o.ended for o in outcomes)
        return outcomes

    def require_one_winner(self, outcomes: list[Outcome]) -> Outcome:
        """The one whose file is there, whole, while all others were told that it is somebody else's."""
        winners = [outcome for outcome in outcomes if outcome.sha256]
        assert len(winners) == 1, f"{len(winners)} of {len(outcomes)} writers believe that they have published"
        (winner,) = winners
        for loser in outcomes:
            assert loser is winner or "another run has published" in loser.conflict
        self.require_whole(winner)
        return winner

    def require_whole(self, winner: Outcome) -> None:
        path = Path(self.target.uri)
        assert sha256_of(path) == winner.sha256
        table = pq.ParquetFile(path).read()
        found = faults(0, {name: table[name].to_numpy() for name in COLUMNS})
        assert found == ("", winner.generation)
