"""A small parcel service that changes on a known day: daily Parquet features and labels for demos and tests.

What is planted, so that whoever watches the pipeline can check what it claims:

* The question is whether a parcel arrives late (``label`` 1, about three in ten). Lateness depends on distance, on how
  full the depot is, on the carrier and on express handling. Region, weight and the number of items matter little.
* Mondays are busy and Sundays are quiet (rows and depot load), every week alike: a pattern, not a drift.
* Every day has `DIRTY` rows: a missing key, an impossible weight, an impossible distance.
* A label becomes known 2 to 20 hours after the event; 6 % take one to four days, 2 % never come.
* On the day of the change a new depot opens. The **inputs** shift: parcels travel further and weigh more, the depot is
  fuller, and a carrier nobody has seen, ``kestrel``, takes over a third of the parcels. The **relation** changes as well:
  the best carrier becomes the worst, distance matters less, a full depot no longer delays (it has more staff), express is
  hardly faster, and heavy parcels are late. The model of the old world ranks parcels hardly better than chance; one
  trained on the new world does well.

A day's content depends on the seed and the day alone, so a longer period extends a shorter one byte for byte.
"""

from __future__ import annotations

import argparse
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

# Rows per day that must not be scored, by the column that is wrong.
DIRTY = {"row_id": 3, "weight_kg": 4, "distance_km": 2}
CARRIERS = ("heron", "plover", "swift")
REGIONS = ("north", "east", "south", "west")
# Monday to Sunday, relative to the mean day.
_RHYTHM = (1.12, 1.04, 1.0, 1.0, 1.02, 0.94, 0.88)
_NEVER, _LATE = 0.02, 0.06
_SECONDS_PER_DAY = 86_400


def simulate(
    out: Path, start: date, days: int, change_on: date | None, *, rows: int = 2_000, seed: int = 7
) -> dict[date, int]:
    """Write ``days`` days from ``start`` and return the feature rows of each; ``rows`` is the mean per day.

    Files are ``features/ds=YYYY-MM-DD/part-0.parquet`` (row_id, event_ts and seven feature columns) and
    ``labels/ds=YYYY-MM-DD/part-0.parquet`` (row_id, label, label_available_at) under ``out``; ``ds`` is the day of the
    event, also for labels that come later. ``change_on`` is the first day of the new world, ``None`` for no change.
    """
    written = {}
    for day in (start + timedelta(days=n) for n in range(days)):
        features, labels = _day(day, rows, seed, is_changed=change_on is not None and day >= change_on)
        for name, table in (("features", features), ("labels", labels)):
            folder = out / name / f"ds={day.isoformat()}"
            folder.mkdir(parents=True, exist_ok=True)
            pq.write_table(table, folder / "part-0.parquet")
        written[day] = features.num_rows
    return written


def _day(day: date, mean_rows: int, seed: int, *, is_changed: bool) -> tuple[pa.Table, pa.Table]:
    rng = np.random.default_rng([seed, day.toordinal()])
    n = round(mean_rows * _RHYTHM[day.weekday()])
    columns = _inputs(rng, n, _RHYTHM[day.weekday()], is_changed=is_changed)
    late = rng.random(n) < _late_probability(columns, is_changed=is_changed)
    midnight = datetime(day.year, day.month, day.day, tzinfo=UTC)
    seconds = np.sort(rng.integers(0, _SECONDS_PER_DAY, n))
    row_id = [f"{day:%Y%m%d}-{i:06d}" for i in range(n)]
    labels = _labels(rng, row_id, late, midnight, seconds)
    columns = {"row_id": np.array(row_id, dtype=object), "event_ts": _instants(midnight, seconds), **columns}
    _spoil(rng, columns)
    features = pa.table({name: pa.array(values, from_pandas=True) for name, values in columns.items()})
    return features.cast(_FEATURES), labels


_INSTANT = pa.timestamp("us", tz="UTC")
_FEATURES = pa.schema(
    {
        "row_id": pa.string(),
        "event_ts": _INSTANT,
        "distance_km": pa.float64(),
        "weight_kg": pa.float64(),
        "items": pa.int64(),
        "depot_load": pa.float64(),
        "carrier": pa.string(),
        "region": pa.string(),
        "express": pa.bool_(),
    }
)
_LABELS = pa.schema({"row_id": pa.string(), "label": pa.int64(), "label_available_at": _INSTANT})


def _inputs(rng: np.random.Generator, n: int, rhythm: float, *, is_changed: bool) -> dict[str, NDArray[Any]]:
    """P(x): what the parcels of a day look like."""
    carriers = (*CARRIERS, "kestrel") if is_changed else CARRIERS
    shares = (0.25, 0.20, 0.20, 0.35) if is_changed else (0.40, 0.35, 0.25)
    return {
        "distance_km": rng.lognormal(4.6 if is_changed else 4.1, 0.6, n).round(1),
        "weight_kg": rng.gamma(2.0, 2.6 if is_changed else 1.6, n).round(2) + 0.05,
        "items": 1 + rng.poisson(1.4, n),
        "depot_load": np.clip(rng.normal((0.75 if is_changed else 0.55) + 0.05 * (rhythm - 1), 0.15, n), 0, 1.5).round(
            3
        ),
        "carrier": rng.choice(carriers, n, p=shares),
        "region": rng.choice(REGIONS, n, p=(0.3, 0.3, 0.2, 0.2)),
        "express": rng.random(n) < 0.25,
    }


def _late_probability(x: dict[str, NDArray[Any]], *, is_changed: bool) -> NDArray[np.float64]:
    """P(late given x): the relation that a model learns."""
    if is_changed:
        carrier = {"heron": 0.3, "plover": 0.0, "swift": 1.4, "kestrel": -0.7}
        logit = -5.1 + 0.6 * np.log(x["distance_km"]) + 0.3 * x["weight_kg"] - 0.3 * x["express"]
    else:
        carrier = {"heron": 0.4, "plover": 0.9, "swift": -1.1}
        logit = (
            -6.3
            + 1.2 * np.log(x["distance_km"])
            + 4.0 * (x["depot_load"] - 0.55)
            + 0.02 * x["weight_kg"]
            - 1.6 * x["express"]
        )
    logit = logit + np.vectorize(carrier.__getitem__)(x["carrier"])
    probability: NDArray[np.float64] = 1 / (1 + np.exp(-logit.astype(float)))
    return probability


def _labels(
    rng: np.random.Generator, row_id: list[str], late: NDArray[np.bool_], midnight: datetime, seconds: NDArray[np.int64]
) -> pa.Table:
    n = len(row_id)
    fate = rng.random(n)
    hours = np.where(fate < _NEVER + _LATE, rng.uniform(24, 96, n), rng.triangular(2, 5, 20, n))
    table = pa.table(
        [row_id, late.astype(np.int64), _instants(midnight, seconds + (hours * 3600).astype(np.int64))], schema=_LABELS
    )
    return table.filter(pa.array(fate >= _NEVER))


def _instants(midnight: datetime, seconds: NDArray[np.int64]) -> NDArray[np.datetime64]:
    instants: NDArray[np.datetime64] = np.datetime64(midnight.replace(tzinfo=None), "us") + seconds.astype(
        "timedelta64[s]"
    )
    return instants


def _spoil(rng: np.random.Generator, columns: dict[str, NDArray[Any]]) -> None:
    """Make `DIRTY` rows unusable, in place; no row is spoilt twice."""
    rows = iter(rng.choice(len(columns["row_id"]), sum(DIRTY.values()), replace=False))
    impossible = {"row_id": None, "weight_kg": -1.0, "distance_km": 1e9}
    for column, count in DIRTY.items():
        for _ in range(count):
            columns[column][next(rows)] = impossible[column]


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the simulated data as a command-line tool."""
    parser = argparse.ArgumentParser(prog="python -m examples.simulate", description=main.__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder that receives features/ and labels/")
    parser.add_argument("--from", dest="start", type=date.fromisoformat, required=True, help="first day, YYYY-MM-DD")
    parser.add_argument("--days", type=int, required=True)
    parser.add_argument("--change-on", type=date.fromisoformat, help="first day of the new world; default: no change")
    parser.add_argument("--rows", type=int, default=2_000, help="mean rows per day")
    parser.add_argument("--seed", type=int, default=7)
    options = parser.parse_args(arguments)
    written = simulate(
        options.out, options.start, options.days, options.change_on, rows=options.rows, seed=options.seed
    )
    print(f"{sum(written.values())} rows on {len(written)} days in {options.out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
