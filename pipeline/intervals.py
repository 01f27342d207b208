"""Half-open UTC intervals and the grid (cadence) that a job's intervals lie on.

Pure arithmetic on values; must not read a clock.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_CADENCE = re.compile(r"^([1-9]\d*)(m|h|d|w|mo)$")
_EPOCH_MONDAY = datetime(1970, 1, 5, tzinfo=UTC)
# The finest strftime directive of a partition template decides how much time one folder covers.
_GRANULES = (("%M", "1m"), ("%H", "1h"), ("%d", "1d"), ("%j", "1d"), ("%m", "1mo"))


def parse_instant(text: str) -> datetime:
    """The UTC instant of an ISO-8601 text such as ``2013-02-01`` or ``2013-02-01T06:00:00Z``.

    A text without an offset is read as UTC. Raises ``ValueError`` for anything that is not ISO-8601.
    """
    instant = datetime.fromisoformat(text)
    return instant.replace(tzinfo=UTC) if instant.tzinfo is None else instant.astimezone(UTC)


def format_instant(instant: datetime) -> str:
    """The shortest unambiguous text of an instant, ``2013-02-01T00:00:00Z``; inverse of `parse_instant`."""
    return instant.astimezone(UTC).isoformat().replace("+00:00", "Z")


@dataclass(frozen=True, slots=True, order=True)
class Interval:
    """All instants ``start <= t < end``. Both ends are aware UTC; an empty or naive interval is refused."""

    start: datetime
    end: datetime

    def __post_init__(self) -> None:
        for name in ("start", "end"):
            value: datetime = getattr(self, name)
            if value.tzinfo is None:
                raise ValueError(f"interval {name} {value.isoformat()} has no time zone; pass an aware UTC datetime")
        if self.end <= self.start:
            raise ValueError(f"interval end {self.end.isoformat()} must be after start {self.start.isoformat()}")

    def __str__(self) -> str:
        return f"[{format_instant(self.start)}, {format_instant(self.end)})"


@dataclass(frozen=True, slots=True)
class Cadence:
    """A regular grid on the UTC time line: ``15m``, ``1h``, ``6h``, ``1d``, ``1w`` (Mondays) or ``1mo``.

    Minutes must divide an hour and hours a day, so that every grid line is expressible in cron.
    """

    count: int
    unit: str

    @classmethod
    def parse(cls, text: str) -> Cadence:
        """The cadence named by ``text``; raises ``ValueError`` that lists what is allowed."""
        match = _CADENCE.match(text)
        count, unit = (int(match[1]), match[2]) if match else (0, "")
        fits = {"m": 60, "h": 24, "d": 1, "w": 1, "mo": 12}.get(unit, 0)
        if not fits or count > fits or fits % count:
            raise ValueError(
                f"{text!r} is not a cadence; use minutes dividing an hour (15m), hours dividing a day (1h, 6h), 1d, 1w, or "
                "months dividing a year (1mo, 3mo)"
            )
        return cls(count, unit)

    def __str__(self) -> str:
        return f"{self.count}{self.unit}"

    @property
    def cron(self) -> str:
        """The cron expression (UTC) that fires on every grid line."""
        every = "*" if self.count == 1 else f"*/{self.count}"
        return {
            "m": f"{every} * * * *",
            "h": f"0 {every} * * *",
            "d": "0 0 * * *",
            "w": "0 0 * * 1",
            "mo": f"0 0 1 {every} *",
        }[self.unit]

    @property
    def partition(self) -> str:
        """The Hive partition template (strftime) that names one interval of this cadence."""
        return {
            "m": "ds=%Y-%m-%d/hm=%H%M",
            "h": "ds=%Y-%m-%d/hr=%H",
            "d": "ds=%Y-%m-%d",
            "w": "ds=%Y-%m-%d",
            "mo": "month=%Y-%m",
        }[self.unit]

    def floor(self, instant: datetime) -> datetime:
        """The last grid line at or before ``instant``."""
        t = instant.astimezone(UTC).replace(second=0, microsecond=0)
        if self.unit == "m":
            return t.replace(minute=t.minute - t.minute % self.count)
        t = t.replace(minute=0)
        if self.unit == "h":
            return t.replace(hour=t.hour - t.hour % self.count)
        t = t.replace(hour=0)
        if self.unit == "d":
            return t
        if self.unit == "w":
            return t - timedelta(days=(t - _EPOCH_MONDAY).days % 7)
        return t.replace(day=1, month=t.month - (t.month - 1) % self.count)

    def next(self, line: datetime) -> datetime:
        """The first grid line after the grid line ``line``."""
        return self.shift(line, 1)

    def shift(self, line: datetime, steps: int) -> datetime:
        """The grid line ``steps`` intervals after (negative: before) the grid line ``line``."""
        if self.unit == "mo":
            month = line.year * 12 + line.month - 1 + steps * self.count
            return line.replace(year=month // 12, month=month % 12 + 1)
        unit = {"m": timedelta(minutes=1), "h": timedelta(hours=1), "d": timedelta(days=1), "w": timedelta(weeks=1)}
        return line + steps * self.count * unit[self.unit]

    def interval(self, start: datetime) -> Interval:
        """The interval that starts at ``start``; raises ``ValueError`` when ``start`` is off the grid."""
        if self.floor(start) != start:
            below = self.floor(start)
            raise ValueError(
                f"{format_instant(start)} is not on the {self} grid; the nearest starts are {format_instant(below)} "
                f"and {format_instant(self.next(below))}"
            )
        return Interval(start, self.next(start))

    def split(self, span: Interval) -> Iterator[Interval]:
        """The whole intervals that lie inside ``span``, in order."""
        line = self.floor(span.start)
        if line < span.start:
            line = self.next(line)
        while (end := self.next(line)) <= span.end:
            yield Interval(line, end)
            line = end


def granule(template: str) -> Cadence | None:
    """How much time one folder of a strftime partition template covers; ``None`` when the template names no time."""
    for directive, cadence in _GRANULES:
        if directive in template:
            return Cadence.parse(cadence)
    return Cadence.parse("12mo") if "%Y" in template else None


def mixes_intervals(template: str, cadence: Cadence) -> bool:
    """Whether a folder of the template may hold more than one interval of the cadence; always without any time in it."""
    step = granule(template)
    if step is None:
        return True
    # A month is longer than every other cadence, so its shortest length will do.
    days = {"m": 1 / 1440, "h": 1 / 24, "d": 1, "w": 7, "mo": 28}
    return step.count * days[step.unit] > cadence.count * days[cadence.unit]


def partitions(template: str, span: Interval) -> list[str]:
    """The partition strings of ``template`` that overlap ``span``, in order; ``[""]`` for a template without time."""
    step = granule(template)
    if step is None:
        return [template]
    line, names = step.floor(span.start), []
    while line < span.end:
        names.append(line.strftime(template))
        line = step.next(line)
    return names
