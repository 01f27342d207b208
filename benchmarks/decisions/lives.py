"""Simulated lives of a job, on disk: what is delivered, what it means, and what breaks, day by day."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.job import JobSpec

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

# Day 0 is the first that is lived; the days before are history to learn from.
FIRST = datetime(2026, 3, 2, tzinfo=UTC)
HISTORY_DAYS = 60
_ROWS = 400
_LABEL_DELAY = timedelta(days=1)
_NUMBERS = ("amount", "temperature", "distance", "items", "age")

Concept = str


@dataclass(frozen=True)
class Life:
    """``concept`` says what the inputs mean on a day; ``faults`` change what is delivered, given the day before's delivery."""

    days: int
    concept: Callable[[int], Concept] = lambda day: "usual"
    faults: Mapping[int, Callable[[pa.Table, pa.Table], pa.Table]] = field(default_factory=dict)
    seed: int = 0

    def write(self, root: Path) -> JobSpec:
        """Write all days under ``root``; the job has the policies that every job has by default, and may promote."""
        before = None
        for day in range(-HISTORY_DAYS, self.days):
            table, label = self._drawn(day)
            delivered = table if day not in self.faults or before is None else self.faults[day](table, before)
            start = FIRST + timedelta(days=day)
            _put(delivered, root / "features" / f"ds={start:%Y-%m-%d}")
            arrival = pa.array([start + timedelta(days=1) + _LABEL_DELAY] * len(label), pa.timestamp("us", "UTC"))
            labels = pa.table({"order_id": table["order_id"], "returned": label, "known_at": arrival})
            _put(labels, root / "labels" / f"ds={start:%Y-%m-%d}")
            before = table
        return _job(root)

    def _drawn(self, day: int) -> tuple[pa.Table, pa.Array]:
        rng = np.random.default_rng((self.seed, day + 10_000))
        start = FIRST + timedelta(days=day)
        numbers = {
            "amount": rng.gamma(2.0, 50.0, _ROWS),
            "temperature": 15 + 8 * rng.normal(size=_ROWS),
            "distance": rng.lognormal(2.0, 0.8, _ROWS),
            "items": 1.0 + rng.poisson(3.0, _ROWS),
            "age": rng.uniform(18, 80, _ROWS),
        }
        country = rng.choice(["de", "fr", "nl", "pl"], _ROWS, p=[0.5, 0.25, 0.15, 0.1])
        channel = rng.choice(["web", "app", "shop"], _ROWS, p=[0.5, 0.4, 0.1])
        usual = 0.02 * (numbers["amount"] - 100) + 0.6 * (country == "fr") - 0.08 * (numbers["temperature"] - 15)
        other = -0.02 * (numbers["amount"] - 100) + 0.6 * (channel == "app") + 0.08 * (numbers["temperature"] - 15)
        logit = {"usual": usual, "other": other, "noise": np.zeros(_ROWS)}[self.concept(day)]
        label = (rng.uniform(size=_ROWS) < 1 / (1 + np.exp(-logit))).astype("int64")
        times = [start + timedelta(seconds=int(s)) for s in np.sort(rng.integers(0, 86_400, _ROWS))]
        ids = pa.array(np.arange(_ROWS) + (day + HISTORY_DAYS) * _ROWS, pa.int64())
        columns = {"order_id": ids, "at": pa.array(times, pa.timestamp("us", "UTC")), **numbers}
        return pa.table({**columns, "country": country, "channel": channel}), pa.array(label)


def _put(table: pa.Table, folder: Path) -> None:
    folder.mkdir(parents=True)
    pq.write_table(table, folder / "part-0.parquet")


def _job(root: Path) -> JobSpec:
    columns: dict[str, dict[str, str]] = {name: {"type": "number"} for name in _NUMBERS}
    columns |= {name: {"type": "category"} for name in ("country", "channel")}
    return JobSpec.model_validate(
        {
            "name": "orders",
            "task": "binary",
            "schedule": {"interval": "1d", "start": FIRST - timedelta(days=HISTORY_DAYS)},
            "features": {"uri": str(root / "features"), "key": ("order_id",), "time": "at", "columns": columns},
            "labels": {
                "uri": str(root / "labels"),
                "column": "returned",
                "available_at": "known_at",
                "mature_after": timedelta(days=2),
            },
            "drift": {"detector": "scipy"},
            "model": {"parameters": {"max_iter": 50}},
            "promote": {"mode": "enabled"},
        }
    )


def _with(table: pa.Table, name: str, values: pa.Array) -> pa.Table:
    return table.set_column(table.column_names.index(name), name, values)


def _nothing(table: pa.Table, name: str, share: float) -> pa.Table:
    kept = pa.array(np.arange(table.num_rows) >= share * table.num_rows)
    return _with(table, name, pc.if_else(kept, table[name], pa.scalar(None, table[name].type)))


def _exchanged(table: pa.Table) -> pa.Table:
    return _with(_with(table, "age", table["distance"]), "distance", table["age"])


FAULTS: dict[str, Callable[[pa.Table, pa.Table], pa.Table]] = {
    "missing values": lambda table, before: _nothing(table, "amount", 0.6),
    "a column without values": lambda table, before: _nothing(table, "temperature", 1.0),
    "a constant": lambda table, before: _with(table, "amount", pa.array([99.0] * table.num_rows)),
    "a stuck sensor": lambda table, before: _with(
        table, "temperature", pc.if_else(pa.array(np.arange(table.num_rows) % 10 < 7), 21.5, table["temperature"])
    ),
    "thousandths": lambda table, before: _with(table, "amount", pc.multiply(table["amount"], 1000.0)),
    "Fahrenheit": lambda table, before: _with(
        table, "temperature", pc.add(pc.multiply(table["temperature"], 1.8), 32.0)
    ),
    "columns exchanged": lambda table, before: _exchanged(table),
    "categories recoded": lambda table, before: _with(table, "country", pc.utf8_upper(table["country"])),
    "a column gone": lambda table, before: table.drop_columns(["amount"]),
    "a partition cut short": lambda table, before: table.slice(0, 40),
    "yesterday's rows again": lambda table, before: _with(before, "at", table["at"]),
    "twice the rows": lambda table, before: pa.concat_tables(
        [table, _with(table, "order_id", pc.add(table["order_id"], 10_000_000))]
    ),
}
