"""Simulated columns of many families whose truth is known: stationary with a weekly rhythm, and changed on purpose."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from pipeline.effects import Kind

DAY = 1440
MONDAY = 4 * DAY  # 5 January 1970
# Standard deviations by which a column lies higher on the weekend.
WEEKEND = 0.8

_NUMBERS: tuple[tuple[str, Callable[[np.random.Generator, int], NDArray[np.float64]]], ...] = (
    ("normal", lambda rng, n: rng.normal(size=n)),
    ("far", lambda rng, n: 5000 + 40 * rng.normal(size=n)),
    ("lognormal", lambda rng, n: rng.lognormal(sigma=1.0, size=n)),
    ("gamma", lambda rng, n: rng.gamma(2.0, 30.0, size=n)),
    ("uniform", lambda rng, n: rng.uniform(-1, 1, size=n)),
    ("count", lambda rng, n: rng.poisson(4.0, size=n).astype(np.float64)),
    ("heavy", lambda rng, n: rng.standard_t(3, size=n)),
    ("bimodal", lambda rng, n: rng.normal(size=n) + 6 * (rng.random(n) < 0.3)),
    ("sparse", lambda rng, n: np.where(rng.random(n) < 0.7, 0.0, rng.gamma(1.0, 5.0, size=n))),
    ("rounded", lambda rng, n: np.round(20 + 5 * rng.normal(size=n))),
    ("gappy", lambda rng, n: np.where(rng.random(n) < 0.05, np.nan, rng.normal(size=n))),
)


@dataclass
class World:
    """Twenty columns, twelve numbers and eight categories; half of them have a weekly rhythm.

    ``change`` alters the rows of a day after they were drawn.
    """

    seed: int
    weekly: bool = True
    levels: tuple[int, ...] = (2, 3, 5, 8, 12, 20, 40, 5)
    kinds: dict[str, Kind] = field(init=False)

    def __post_init__(self) -> None:
        rng = np.random.default_rng(self.seed)
        names = [name for name, _ in _NUMBERS] + ["correlated"]
        self.kinds = {
            **dict.fromkeys(names, "number"),
            **{f"category_{position}": "category" for position in range(len(self.levels))},
        }
        self._shares = [rng.dirichlet(np.full(levels, 2.0)) for levels in self.levels]
        self._rhythmic = {name for position, name in enumerate(self.kinds) if self.weekly and position % 2 == 0}

    def day(self, number: int, rows: int) -> dict[str, NDArray[Any]]:
        """The rows of the day ``number`` days after a Monday."""
        rng = np.random.default_rng((self.seed, number))
        weekend = number % 7 >= 5
        sample: dict[str, NDArray[Any]] = {}
        for name, draw in _NUMBERS:
            values = draw(rng, rows)
            if name in self._rhythmic and weekend:
                values = values + WEEKEND * self.spread(name)
            sample[name] = values
        sample["correlated"] = 0.8 * sample["normal"] + 0.6 * rng.normal(size=rows)
        for position, shares in enumerate(self._shares):
            name = f"category_{position}"
            drawn = np.roll(shares, 1) if name in self._rhythmic and weekend else shares
            sample[name] = np.array([f"level {level}" for level in range(len(drawn))], dtype=object)[
                rng.choice(len(drawn), size=rows, p=drawn)
            ]
        return sample

    def days(
        self, first: int, count: int, rows: int, most_rows: int | None = None
    ) -> tuple[dict[str, NDArray[Any]], NDArray[np.int64]]:
        """The rows of several days, at most ``most_rows`` in all, and the start of each row's day in minutes since 1970."""
        rows = rows if most_rows is None else min(rows, max(most_rows // count, 1))
        parts = [self.day(number, rows) for number in range(first, first + count)]
        starts = np.repeat([start_of(number) for number in range(first, first + count)], rows)
        return {name: np.concatenate([part[name] for part in parts]) for name in self.kinds}, starts

    def spread(self, name: str) -> float:
        """The standard deviation of a number, robustly: the unit of shifts."""
        values = dict(_NUMBERS)[name](np.random.default_rng(0), 20_000) if name != "correlated" else np.ones(1)
        if name == "correlated":
            return 1.0
        known = values[np.isfinite(values)]
        return float(np.std(known))


def start_of(number: int) -> int:
    """The start of a day in minutes since 1970."""
    return MONDAY + number * DAY


def planted(sample: Mapping[str, NDArray[Any]], kind: str, world: World, seed: int) -> dict[str, NDArray[Any]]:
    """The rows with one planted shift; see ``SHIFTS``."""
    rng = np.random.default_rng(seed)
    changed = dict(sample)
    name, strength = SHIFTS[kind]
    values = sample[name]
    if kind.startswith("mean"):
        changed[name] = values + strength * world.spread(name)
    elif kind.startswith("scale"):
        centre = np.nanmedian(values)
        changed[name] = centre + strength * (values - centre)
    elif kind.startswith("category"):
        moved = values.copy()
        # A share of the rows leaves the most frequent level for the next one.
        names, counts = np.unique(values.astype(str), return_counts=True)
        order = names[np.argsort(-counts)]
        leaving = np.flatnonzero(values == order[0])
        chosen = rng.choice(leaving, size=min(int(strength * len(values)), len(leaving)), replace=False)
        moved[chosen] = order[1]
        changed[name] = moved
    elif kind.startswith("missing"):
        gone = rng.random(len(values)) < (strength - 0.05) / 0.95
        changed[name] = np.where(gone, np.nan, values)
    else:
        changed[name] = -0.8 * sample["normal"] + 0.6 * rng.normal(size=len(values))
    return changed


# What is planted: the column, and how much of it.
SHIFTS: dict[str, tuple[str, float]] = {
    "mean 0.5 sd": ("far", 0.5),
    "mean 0.5 sd, heavy tails": ("heavy", 0.5),
    "scale x1.5": ("uniform", 1.5),
    "scale x1.5, heavy tails": ("heavy", 1.5),
    "category mass 10 %": ("category_2", 0.10),
    "category mass 10 %, many levels": ("category_5", 0.10),
    "missing 5 to 25 %": ("gappy", 0.25),
    "correlation flipped": ("correlated", -0.8),
}
