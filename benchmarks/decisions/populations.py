"""Random populations of mixed columns, numbers of many families and sizes and categories, whose rows are drawn day by day."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from pipeline.effects import Kind

Rows = dict[str, NDArray[Any]]
# Numbers of a family with its parameters: generator, rows, and by how many standard deviations the day lies off.
Draw = Callable[[np.random.Generator, int, float], NDArray[np.float64]]

# Standard deviations by which ordinary days differ.
_DAY_EFFECT = 0.1
_CATEGORIES = 8
_LARGEST_MISSING = 0.1


@dataclass(frozen=True)
class Population:
    """Twelve numbers and eight categories of 2 to 50 levels, some with missing values.

    ``offsets`` are standard deviations by which a number lies off, ``shares`` those of a category's levels.
    """

    kinds: dict[str, Kind]
    draws: dict[str, Draw]
    offsets: dict[str, float]
    levels: dict[str, NDArray[Any]]
    shares: dict[str, NDArray[np.float64]]
    missing: dict[str, float]

    @classmethod
    def drawn(cls, rng: np.random.Generator) -> Population:
        """A population with random parameters."""
        draws = {name: family(rng) for name, family in _FAMILIES.items()}
        levels, shares = {}, {}
        is_shared = rng.random() < 0.5
        for number in range(_CATEGORIES):
            count = int(rng.integers(2, 51))
            prefix = "level" if is_shared else f"column{number}"
            levels[f"category_{number}"] = np.array([f"{prefix}_{level}" for level in range(count)], dtype=object)
            weights = 1 / np.arange(1, count + 1) if rng.random() < 0.5 else np.ones(count)
            shares[f"category_{number}"] = rng.permutation(weights / weights.sum())
        kinds: dict[str, Kind] = {**dict.fromkeys(draws, "number"), **dict.fromkeys(levels, "category")}
        missing = {name: float(rng.choice([0.0, rng.uniform(0, _LARGEST_MISSING)])) for name in kinds}
        return cls(kinds, draws, dict.fromkeys(draws, 0.0), levels, shares, missing)

    @property
    def numbers(self) -> list[str]:
        """The names of the numbers."""
        return list(self.draws)

    @property
    def categories(self) -> list[str]:
        """The names of the categories."""
        return list(self.levels)

    def segment(self, rng: np.random.Generator) -> Population:
        """Another population of the same columns: numbers up to two deviations off, other shares of the categories."""
        offsets = {name: float(rng.uniform(-2, 2)) for name in self.draws}
        return replace(self, offsets=offsets, shares={name: rng.permutation(s) for name, s in self.shares.items()})

    def day(self, rng: np.random.Generator, rows: int) -> Rows:
        """The rows of one day, which differs from others by 0.1 standard deviations in every column."""
        drawn: Rows = {}
        for name, draw in self.draws.items():
            values = draw(rng, rows, self.offsets[name] + rng.normal(0, _DAY_EFFECT))
            drawn[name] = np.where(rng.random(rows) < self.missing[name], np.nan, values)
        for name, levels in self.levels.items():
            weights = self.shares[name] * np.exp(rng.normal(0, _DAY_EFFECT, len(levels)))
            chosen = levels[rng.choice(len(levels), size=rows, p=weights / weights.sum())]
            drawn[name] = np.where(rng.random(rows) < self.missing[name], None, chosen)
        return drawn


def _size(rng: np.random.Generator) -> float:
    return float(10 ** rng.uniform(-2, 4))


def _normal(rng: np.random.Generator) -> Draw:
    size, place = _size(rng), rng.uniform(-10, 10)
    return lambda rng, n, off: size * (place + off + rng.normal(size=n))


def _temperature(_: np.random.Generator) -> Draw:
    return lambda rng, n, off: 15 + 8 * (off + rng.normal(size=n))


def _lognormal(rng: np.random.Generator) -> Draw:
    size, sigma = _size(rng), rng.uniform(0.3, 1.2)
    return lambda rng, n, off: size * np.exp(sigma * (off + rng.normal(size=n)))


def _gamma(rng: np.random.Generator) -> Draw:
    size, shape = _size(rng), rng.uniform(1, 6)
    return lambda rng, n, off: size * rng.gamma(shape, size=n) * max(1 + off / np.sqrt(shape), 0.1)


def _uniform(rng: np.random.Generator) -> Draw:
    size, place = _size(rng), rng.uniform(-2, 2)
    return lambda rng, n, off: size * (place + rng.uniform(-1, 1, size=n) + off / np.sqrt(3))


def _count(rng: np.random.Generator) -> Draw:
    mean = rng.uniform(1, 30)
    return lambda rng, n, off: rng.poisson(mean * np.exp(off / np.sqrt(mean)), size=n).astype(np.float64)


def _large_count(rng: np.random.Generator) -> Draw:
    mean, spread = 10 ** rng.uniform(2, 4), rng.uniform(1, 10)
    return lambda rng, n, off: (
        rng.poisson(mean * rng.gamma(spread, 1 / spread, size=n) * np.exp(off / np.sqrt(spread))) * 1.0
    )


def _bimodal(rng: np.random.Generator) -> Draw:
    size, gap, share = _size(rng), rng.uniform(3, 8), rng.uniform(0.2, 0.8)
    return lambda rng, n, off: size * (off * gap / 2 + rng.normal(size=n) + gap * (rng.random(n) < share))


def _zero_inflated(rng: np.random.Generator) -> Draw:
    size, zeros = _size(rng), rng.uniform(0.3, 0.8)

    def draw(rng: np.random.Generator, n: int, off: float) -> NDArray[np.float64]:
        is_zero = rng.random(n) < np.clip(zeros - off / 10, 0, 1)
        return np.where(is_zero, 0.0, size * rng.gamma(1.5, size=n))

    return draw


def _rounded(rng: np.random.Generator) -> Draw:
    mean, spread = rng.uniform(0, 200), rng.uniform(2, 30)
    return lambda rng, n, off: np.round(mean + spread * (off + rng.normal(size=n)))


def _heavy(rng: np.random.Generator) -> Draw:
    size, place = _size(rng), rng.uniform(-3, 3)
    return lambda rng, n, off: size * (place + off + rng.standard_t(3, size=n))


def _fraction(rng: np.random.Generator) -> Draw:
    a, b = rng.uniform(0.5, 5, size=2)
    return lambda rng, n, off: rng.beta(a * np.exp(off / 2), b, size=n)


_FAMILIES: dict[str, Callable[[np.random.Generator], Draw]] = {
    "normal": _normal,
    "temperature": _temperature,
    "lognormal": _lognormal,
    "gamma": _gamma,
    "uniform": _uniform,
    "count": _count,
    "large_count": _large_count,
    "bimodal": _bimodal,
    "zero_inflated": _zero_inflated,
    "rounded": _rounded,
    "heavy": _heavy,
    "fraction": _fraction,
}
