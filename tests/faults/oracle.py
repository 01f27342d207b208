"""A few intervals whose whole content follows from two numbers, and a model of what must be published of them, in memory."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from tests.worlds import day

if TYPE_CHECKING:
    from datetime import datetime
    from pathlib import Path

Identity = tuple[int, int, int]  # inode, time of change, size: what a file that was not touched keeps
DAYS = (11, 12, 13)
GENERATIONS = (0, 1, 2, 3)
_BAD_ROWS = (0, 3, 5, 0)
_REJECTED_ROWS = (0, 0, 4, 2)
BELOW = 0.0  # an amount below it is quarantined


@dataclass(frozen=True)
class Content:
    """One generation of the input of one day: which rows are scored, quarantined, and in a file that cannot be used."""

    number: int
    generation: int

    @property
    def rows(self) -> int:
        return 14 + 2 * (self.number - DAYS[0]) + 3 * self.generation

    @property
    def ids(self) -> range:
        first = self.number * 1_000_000 + self.generation * 1_000
        return range(first, first + self.rows)

    @property
    def bad(self) -> set[int]:
        return set(self.ids[: _BAD_ROWS[self.generation]])

    @property
    def good(self) -> set[int]:
        return set(self.ids) - self.bad

    @property
    def rejected(self) -> int:
        return _REJECTED_ROWS[self.generation]

    def write(self, root: Path) -> None:
        """Make this the input of the day, over whatever is there."""
        folder = root / f"ds={day(self.number):%Y-%m-%d}"
        folder.mkdir(parents=True, exist_ok=True)
        times = [day(self.number) + timedelta(minutes=n) for n in range(self.rows)]
        amounts = [BELOW - 1 if n in self.bad else 20.0 + n % 97 for n in self.ids]
        countries = [("de", "fr", "nl")[n % 3] for n in self.ids]
        event = pa.array(times, pa.timestamp("us", "UTC"))
        columns = {"row_id": list(self.ids), "event_ts": event, "amount": amounts, "country": countries}
        pq.write_table(pa.table(columns), folder / "part-0.parquet")
        unusable = folder / "part-1.parquet"
        unusable.unlink(missing_ok=True)
        if self.rejected:
            pq.write_table(pa.table({"other": list(range(self.rejected))}), unusable)


@dataclass(frozen=True)
class Outcome:
    """What a published partition holds: the rows of one generation of its input, scored by one version."""

    version: int
    generation: int


@dataclass
class Reign:
    """Who is champion: the promotions as they were recorded, and those that no rollback has undone."""

    recorded: list[tuple[int, datetime]]
    standing: list[tuple[int, datetime]]
    undone: tuple[int, datetime] | None = None

    @classmethod
    def of(cls, version: int, since: datetime) -> Reign:
        return cls([(version, since)], [(version, since)])

    @property
    def current(self) -> int:
        return self.recorded[-1][0]

    def at(self, instant: datetime) -> int:
        return next(version for version, since in reversed(self.recorded) if since <= instant)

    def promote(self, version: int, since: datetime) -> None:
        self.recorded.append((version, since))
        self.standing.append((version, since))
        self.undone = None

    def back(self, since: datetime) -> None:
        """The champion before the present one rules again, from ``since`` on."""
        self.undone = self.standing.pop()
        self.recorded.append((self.standing[-1][0], since))

    def again(self, since: datetime) -> None:
        """The present champion rules from ``since`` on as well."""
        self.recorded.append((self.current, since))


@dataclass
class Oracle:
    """What must be true of a job. ``allowed`` has more than one entry only between a crash and the next look.

    An interval is ``settled`` unless a run of it has crashed since its last complete one.
    """

    reign: Reign
    inputs: dict[int, int] = field(default_factory=lambda: dict.fromkeys(DAYS, 0))
    allowed: dict[int, set[Outcome | None]] = field(default_factory=lambda: {n: {None} for n in DAYS})
    settled: set[int] = field(default_factory=lambda: set(DAYS))

    def wanted(self, number: int, version: int) -> Outcome:
        return Outcome(version, self.inputs[number])

    def is_there(self, number: int, version: int) -> bool:
        """Whether scoring the day with the version must not change anything."""
        return number in self.settled and self.allowed[number] == {self.wanted(number, version)}

    def completed(self, number: int, version: int) -> None:
        self.allowed[number] = {self.wanted(number, version)}
        self.settled.add(number)

    def crashed(self, number: int, version: int) -> None:
        """Old or new; all else is a violation."""
        if not self.is_there(number, version):
            self.allowed[number].add(self.wanted(number, version))
            self.settled.discard(number)


def identity(path: Path) -> Identity | None:
    """What tells whether a file was touched; ``None`` when there is none."""
    if not path.exists():
        return None
    status = path.stat()
    return status.st_ino, status.st_mtime_ns, status.st_size
