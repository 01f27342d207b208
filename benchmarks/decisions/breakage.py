"""Broken data against genuine shifts: how often each is told for what it is, on random tables of mixed columns.

``python -m benchmarks.decisions.breakage`` prints a table; `measure` returns it.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.stats import wasserstein_distance

from benchmarks.decisions.populations import Population, Rows
from pipeline import breakage

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from pipeline.verdicts import Fault

_DAYS = 8
_NULL_CASES = 200
_LARGE = (50, 50_000)
_FACTORS = (1000.0, 100.0, 10.0, 60.0, 3600.0, 1.609344, 2.54, 0.3048, 2.20462262)
_CONVERSIONS: tuple[tuple[float, float], ...] = (
    *((factor, 0.0) for factor in _FACTORS),
    *((1 / factor, 0.0) for factor in _FACTORS),
    (-1.0, 0.0),
)
_TEMPERATURES = ((1.8, 32.0), (1.0, 273.15))
# A conversion or an exchange that moves a column by less than this many standard deviations, or an exchange of fewer
# categories than this share of the rows, is as large as ordinary drift: nobody can tell it, so it is not asked for.
_VISIBLE_CONVERSION, _VISIBLE_EXCHANGE, _VISIBLE_CATEGORIES = 1.0, 0.75, 0.5


@dataclass
class Case:
    """One delivered interval with all that is known when it is judged."""

    population: Population
    reference: Rows
    current: Rows
    rows: int
    usual_rows: list[int]
    earlier: dict[str, tuple[int, ...]] = field(default_factory=dict)

    @classmethod
    def drawn(cls, rng: np.random.Generator) -> Case:
        """An interval in which nothing but the day has changed; 500 to 50,000 rows a side."""
        population = Population.drawn(rng)
        rows, known = (int(np.exp(rng.uniform(np.log(500), np.log(50_000)))) for _ in range(2))
        days = [population.day(rng, known // _DAYS) for _ in range(_DAYS)]
        reference = {name: np.concatenate([day[name] for day in days]) for name in population.kinds}
        usual = [int(rows * rng.lognormal(sigma=0.15)) for _ in range(int(rng.integers(5, 13)))]
        case = cls(population, reference, population.day(rng, rows), rows, usual)
        case.earlier["2024-01-01"] = breakage.sketch(_hashes(population.day(rng, rows)))
        return case

    def find(self) -> tuple[Fault, ...]:
        """What the product finds in it."""
        return breakage.find(
            self.reference,
            self.current,
            self.population.kinds,
            rows=self.rows,
            usual_rows=self.usual_rows,
            sketch=breakage.sketch(_hashes(self.current)),
            earlier=self.earlier,
            duplicated_share=_repeated(self.current),
            usual_duplicated_share=_repeated(self.reference),
        )

    def take(self, rows: NDArray[np.int64]) -> None:
        """Let these rows be the delivered ones."""
        self.current = {name: values[rows] for name, values in self.current.items()}
        self.rows = len(rows)


def _hashes(rows: Rows) -> NDArray[np.uint64]:
    state = np.zeros(len(next(iter(rows.values()))), dtype=np.uint64)
    for values in rows.values():
        if values.dtype == np.float64:
            state = (state ^ values.view(np.uint64)) * np.uint64(0x9E3779B97F4A7C15)
            state ^= state >> np.uint64(29)
    return state


def _repeated(rows: Rows) -> float:
    hashes = _hashes(rows)
    return 1 - len(np.unique(hashes)) / len(hashes)


# The kind of fault, and the columns of which one has to be named.
Expected = tuple[str, set[str | None]]


def _number(rng: np.random.Generator, case: Case) -> str:
    return str(rng.choice(case.population.numbers))


def _category(rng: np.random.Generator, case: Case) -> str:
    return str(rng.choice(case.population.categories))


def _any(rng: np.random.Generator, case: Case) -> str:
    return str(rng.choice(list(case.population.kinds)))


def _hit(rng: np.random.Generator, values: NDArray[Any], share: float, what: Any) -> NDArray[Any]:
    """The values with ``what`` in this share of the rows; an array gives each row its own."""
    return np.where(rng.random(len(values)) < share, what, values)


def missing(rng: np.random.Generator, case: Case) -> Expected:
    """Forty per cent of the values up to all but a few do not come."""
    name = _any(rng, case)
    nothing = np.nan if name in case.population.numbers else None
    case.current[name] = _hit(rng, case.current[name], rng.uniform(0.4, 0.98), nothing)
    return "missing", {name}


def schema(rng: np.random.Generator, case: Case) -> Expected:
    """A column is absent, or has no value at all."""
    name = _any(rng, case)
    if rng.random() < 0.5:
        del case.current[name]
    else:
        is_number = name in case.population.numbers
        case.current[name] = np.full(case.rows, np.nan if is_number else None, dtype=float if is_number else object)
    return "schema", {name}


def constant(rng: np.random.Generator, case: Case) -> Expected:
    """One value everywhere: a default, or one that the column had."""
    name = _any(rng, case)
    default: Any = 0.0 if name in case.population.numbers else "unknown"
    value = default if rng.random() < 0.5 else _some(rng, case.current[name])
    case.current[name] = _hit(rng, case.current[name], 1.0, value)
    return "constant", {name}


def stuck(rng: np.random.Generator, case: Case) -> Expected:
    """One value, a sentinel or one that the column had, fills at least 25 points more of the rows than usual.

    A category that was there takes 40 points: up to 30 may be drift.
    """
    while True:
        name = _any(rng, case)
        is_number = name in case.population.numbers
        values, known = case.current[name], case.reference[name]
        sentinel: Any = rng.choice([-999.0, 0.0, 9999.0]) if is_number else "unknown"
        value = sentinel if rng.random() < 0.5 else _some(rng, values)
        before = float(np.mean(known == value))
        share = rng.uniform(0.35, 0.9)
        least = 0.4 if before and not is_number else 0.25
        # Where two values share all rows, a move between them is drift.
        if share * (1 - before) >= least and (is_number or len(set(known) - {None}) > 2):
            case.current[name] = _hit(rng, values, share, value)
            return "stuck", {name}


def unit(rng: np.random.Generator, case: Case) -> Expected:
    """Another unit or sign, or another scale of temperature, far enough off to be seen."""
    while True:
        name = _number(rng, case)
        scales = _CONVERSIONS
        if name == "temperature" and rng.random() < 0.7:
            scales = _TEMPERATURES
        factor, offset = scales[int(rng.integers(len(scales)))]
        converted = case.current[name] * factor + offset
        if _apart(converted, case.reference[name]) >= _VISIBLE_CONVERSION:
            case.current[name] = converted
            return "unit", {name}


def swapped_numbers(rng: np.random.Generator, case: Case) -> Expected:
    """Two or three numbers have changed places."""
    return _swapped(rng, case, case.population.numbers, _VISIBLE_EXCHANGE, _apart)


def swapped_categories(rng: np.random.Generator, case: Case) -> Expected:
    """Two or three categories have changed places."""
    return _swapped(rng, case, case.population.categories, _VISIBLE_CATEGORIES, _different)


def _swapped(
    rng: np.random.Generator,
    case: Case,
    names: list[str],
    least: float,
    apart: Callable[[NDArray[Any], NDArray[Any]], float],
) -> Expected:
    while True:
        chosen = [str(name) for name in rng.choice(names, size=int(rng.choice([2, 2, 3])), replace=False)]
        contents = [case.current[name] for name in chosen[1:] + chosen[:1]]
        if all(apart(values, case.reference[name]) >= least for name, values in zip(chosen, contents, strict=True)):
            case.current.update(zip(chosen, contents, strict=True))
            return "swapped", set(chosen)


def recoded(rng: np.random.Generator, case: Case) -> Expected:
    """Another case, surrounding spaces, or codes, in all rows or in 60 % and more."""
    name = _category(rng, case)
    values = case.current[name]
    codes = {level: str(1000 + code) for code, level in enumerate(sorted(set(values) - {None}))}
    recode: Callable[[str], str] = [str.upper, lambda level: f"{level} ", codes.__getitem__][int(rng.integers(3))]
    share = 1.0 if rng.random() < 0.5 else rng.uniform(0.6, 1.0)
    new = np.array([None if value is None else recode(value) for value in values], dtype=object)
    case.current[name] = _hit(rng, values, share, new)
    return "recoded", {name}


def duplicated_partition(rng: np.random.Generator, case: Case) -> Expected:
    """The rows of an earlier interval once more, up to three per cent of them replaced."""
    other = case.population.day(rng, case.rows)
    is_new = rng.random(case.rows) < rng.uniform(0, 0.03)
    earlier = {name: np.where(is_new, other[name], values) for name, values in case.current.items()}
    case.earlier["2024-01-02"] = breakage.sketch(_hashes(earlier))
    return "duplicated", {None}


def duplicated_rows(rng: np.random.Generator, case: Case) -> Expected:
    """Thirty to a hundred per cent of the rows come twice."""
    again = rng.choice(case.rows, size=int(rng.uniform(0.3, 1.0) * case.rows), replace=False)
    case.take(np.concatenate([np.arange(case.rows), again]))
    return "duplicated", {None}


def truncated(rng: np.random.Generator, case: Case) -> Expected:
    """Five to forty per cent of the usual rows."""
    case.take(np.arange(int(np.median(case.usual_rows) * rng.uniform(0.05, 0.4))) % case.rows)
    return "truncated", {None}


def surplus(rng: np.random.Generator, case: Case) -> Expected:
    """Two to four times the usual rows, all of them different."""
    case.rows = int(np.median(case.usual_rows) * rng.uniform(2.0, 4.0))
    case.current = case.population.day(rng, case.rows)
    return "surplus", {None}


def mean_shifted(rng: np.random.Generator, case: Case) -> None:
    """One to four numbers lie 0.25 to 2 standard deviations higher or lower."""
    for name in rng.choice(case.population.numbers, size=int(rng.integers(1, 5)), replace=False):
        by = rng.uniform(0.25, 2.0) * rng.choice([-1, 1]) * np.nanstd(case.reference[name])
        case.current[name] = case.current[name] + by


def scaled(rng: np.random.Generator, case: Case) -> None:
    """One to four numbers are half as large again or smaller by 0.3, seen from zero or from their mean."""
    for name in rng.choice(case.population.numbers, size=int(rng.integers(1, 5)), replace=False):
        centre = rng.choice([0.0, float(np.nanmean(case.reference[name]))])
        case.current[name] = centre + (case.current[name] - centre) * rng.choice([1.5, 0.7])


def mass_moved(rng: np.random.Generator, case: Case) -> None:
    """In one to three categories 10 to 30 % of all rows go over to one category that was there."""
    for name in rng.choice(case.population.categories, size=int(rng.integers(1, 4)), replace=False):
        values = case.current[name]
        case.current[name] = _hit(rng, values, rng.uniform(0.1, 0.3), _some(rng, values))


def new_category(rng: np.random.Generator, case: Case) -> None:
    """A category that was never there takes 10 to 20 % of the rows."""
    name = _category(rng, case)
    case.current[name] = _hit(rng, case.current[name], rng.uniform(0.1, 0.2), "newcomer")


def more_missing(rng: np.random.Generator, case: Case) -> None:
    """Missing in a quarter of the rows instead of in a twentieth."""
    name = _any(rng, case)
    nothing = np.nan if name in case.population.numbers else None
    for side, share in ((case.reference, 0.05), (case.current, 0.25)):
        side[name] = _hit(rng, side[name], share, nothing)


def mixture(rng: np.random.Generator, case: Case) -> None:
    """Thirty per cent of the rows come from another population: other places, other shares."""
    other = case.population.segment(rng).day(rng, case.rows)
    is_other = rng.random(case.rows) < 0.3
    case.current = {name: np.where(is_other, other[name], values) for name, values in case.current.items()}


FAULTS: dict[str, Callable[[np.random.Generator, Case], Expected]] = {
    fault.__name__: fault
    for fault in (
        *(missing, schema, constant, stuck, unit, swapped_numbers, swapped_categories, recoded),
        *(duplicated_partition, duplicated_rows, truncated, surplus),
    )
}
SHIFTS: dict[str, Callable[[np.random.Generator, Case], None]] = {
    shift.__name__: shift for shift in (mean_shifted, scaled, mass_moved, new_category, more_missing, mixture)
}


def measure(cases: int = 50, seed: int = 0) -> dict[str, Any]:
    """How many of ``cases`` of every kind are told right, as ``{"right": ..., "of": ..., "wrong": examples}`` by kind.

    A fault is told right when a fault of its kind is found in one of its columns and none in any other column; a shift, and a
    day on which nothing happens (``nothing``, at least 200 cases when ``cases`` is 50), when no fault is found. ``seconds`` is
    the time for 50 columns of 50,000 rows a side.
    """
    told: dict[str, Any] = {}
    for name, fault in FAULTS.items():
        told[name] = _count(seed, name, cases, fault)
    for name, shift in SHIFTS.items():
        told[name] = _count(seed, name, cases, shift)
    told["nothing"] = _count(seed, "nothing", cases * _NULL_CASES // 50, lambda rng, case: None)
    return {"seed": seed, "kinds": told, "seconds": round(_seconds(seed), 3)}


def _count(seed: int, name: str, cases: int, change: Callable[[np.random.Generator, Case], Expected | None]) -> Any:
    wrong = []
    for number in range(cases):
        rng = np.random.default_rng([seed, number, *name.encode()])
        case = Case.drawn(rng)
        expected = change(rng, case)
        found = case.find()
        if not _is_right(expected, found):
            said = "; ".join(f"{fault.kind} {fault.column}: {fault.detail}" for fault in found)
            wrong.append(f"case {number}, expected {expected}: {said or 'nothing'}")
    return {"right": cases - len(wrong), "of": cases, "wrong": wrong}


def _is_right(expected: Expected | None, found: tuple[Fault, ...]) -> bool:
    if expected is None:
        return not found
    kind, columns = expected
    is_named = any(fault.kind == kind and fault.column in columns for fault in found)
    return is_named and all(fault.column in columns | {None} for fault in found)


def _apart(values: NDArray[Any], known: NDArray[Any]) -> float:
    """Wasserstein distance in standard deviations of the narrower side."""
    values, known = values[np.isfinite(values)], known[np.isfinite(known)]
    return float(wasserstein_distance(values, known) / min(np.std(values), np.std(known)))


def _different(values: NDArray[Any], known: NDArray[Any]) -> float:
    """Share of rows that would have to change category."""
    sides = [{level: float(np.mean(side == level)) for level in set(side)} for side in (values, known)]
    return sum(abs(sides[0].get(level, 0) - sides[1].get(level, 0)) for level in {**sides[0], **sides[1]}) / 2


def _some(rng: np.random.Generator, values: NDArray[Any]) -> Any:
    present = values[values == values] if values.dtype == np.float64 else values[values != np.array(None)]
    return present[int(rng.integers(len(present)))]


def _seconds(seed: int) -> float:
    rng = np.random.default_rng(seed)
    columns, rows = _LARGE
    population = Population.drawn(rng)
    sides: list[Rows] = [{}, {}]
    kinds = {}
    for number in range(-(-columns // len(population.kinds))):
        for side in sides:
            side.update({f"{name}{number}": values for name, values in population.day(rng, rows).items()})
        kinds.update({f"{name}{number}": kind for name, kind in population.kinds.items()})
    kinds = dict(list(kinds.items())[:columns])
    spent = []
    for _ in range(3):
        start = time.perf_counter()
        breakage.find(sides[0], sides[1], kinds, rows=rows, usual_rows=[rows] * 8)
        spent.append(time.perf_counter() - start)
    return min(spent)


def main() -> None:
    """Print the table, and what was told wrong below it."""
    found = measure()
    for name, told in found["kinds"].items():
        print(f"{name:22} {told['right']:4} of {told['of']:4}  {told['right'] / told['of']:7.1%}")
    print(f"{_LARGE[0]} columns of {_LARGE[1]} rows a side: {found['seconds']} s")
    print(json.dumps({name: told["wrong"] for name, told in found["kinds"].items() if told["wrong"]}, indent=1))


if __name__ == "__main__":
    main()
