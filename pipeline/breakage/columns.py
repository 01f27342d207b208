"""Faults of single columns, and columns that have exchanged their contents.

Every limit states a principle; none is fitted to data. Pure functions of values; must not look at other intervals.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from scipy.optimize import linear_sum_assignment

from pipeline.breakage.contents import Categories, Contents, Numbers, apart, is_sure, ranks_apart, texts
from pipeline.breakage.variation import Variation
from pipeline.verdicts import Fault

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from pipeline.effects import Array, Kind, Kinds, Sample
    from pipeline.verdicts import FaultKind

# Values that a side needs before anything is said of its distribution; rows before anything at all.
_MIN_VALUES = 50
_FEW_ROWS = 10

# Drift moves up to 0.3 of the rows; a jump of the missing share is at least that, or takes nearly all that used to come.
_MISSING_JUMP = 0.3
_NEARLY_ALL = 0.95
_LEFT_OF_VALUES = 0.25

# A quarter of the rows does not gather on one value by drift, unless it is one of a few that are common anyway: there the
# share has to exceed what drift moves. Where there are only two values, losing one may be drift as well.
_STUCK_SHARE = 0.25
_STUCK_SHARE_COMMON = 0.35
_CONSTANT_OF_TWO = 0.3
# A new category may win a third of the rows in a day, as a new supplier does; half of them, or a word for nothing, is a default.
_STUCK_SHARE_NEW = 0.5
_WORDS_FOR_NOTHING = frozenset(
    {"", "-", "?", "default", "empty", "error", "missing", "n/a", "na", "nan", "nil", "none", "null", "other"}
    | {"undefined", "unknown", "unspecified"}
)
_RARE = 0.01
_SEVERAL = 3
_MANY = 10
# A commonest value of the reference with this share is an atom; when it has gone, values have moved, not stuck.
_ATOM = 0.1
_STAYS = 0.5
# A fault is a quarter beyond what is natural.
_HEADROOM = 1.25

# A recoded column is mostly new, and keeps at least a quarter of the variety outside of its commonest value.
_RECODED_SHARE = 0.5
_KEPT_VARIETY = 0.25

# Distances of numbers are in standard deviations, those of categories in shares of rows. Ordinary variation between
# intervals explains a quarter, or 0.15 of the rows. A column is displaced from three times that, or from more than the 0.3 of
# the rows that drift moves. The right explanation leaves at most twice the ordinary, and a third of what any other one
# leaves; sampling noise comes on top, unless it is itself above the ordinary.
_ORDINARY: Mapping[Kind, float] = {"number": 0.25, "category": 0.15}
_DISPLACED_FROM: Mapping[Kind, float] = {"number": 0.75, "category": 0.35}
_BETTER = 1 / 3
# Changes of numbers that are ordinary: a shift in standard deviations, a scale.
_ORDINARY_SHIFT = 3.0
_ORDINARY_SCALE = (0.7, 1.5)
# Quiet days and dry ones differ by such factors; there, a conversion may leave no more than ordinary variation.
_NEAR_FACTOR = 4.0
# The tenth of the rows that is left beside one value carries all the spread, and tells no conversion from a rainy day.
_MOSTLY_ONE_VALUE = 0.9
# Density of a normal distribution in the middle: ranks that change by a shift of one standard deviation, if it is small.
_RANKS_PER_DEVIATION = 0.4

_FACTORS = {
    "1000": 1000.0,
    "100": 100.0,
    "10": 10.0,
    "60": 60.0,
    "3600": 3600.0,
    "1.609344 (miles, kilometres)": 1.609344,
    "2.54 (inches, centimetres)": 2.54,
    "0.3048 (feet, metres)": 0.3048,
    "2.2046 (kilograms, pounds)": 2.20462262,
}
# What was done to the values: factor and offset.
_CONVERSIONS: tuple[tuple[str, float, float], ...] = (
    *((f"multiplied by {name}", factor, 0.0) for name, factor in _FACTORS.items()),
    *((f"divided by {name}", 1 / factor, 0.0) for name, factor in _FACTORS.items()),
    ("of the opposite sign", -1.0, 0.0),
    ("converted from Celsius to Fahrenheit", 1.8, 32.0),
    ("converted from Fahrenheit to Celsius", 1 / 1.8, -32 / 1.8),
    ("converted from Celsius to Kelvin", 1.0, 273.15),
    ("converted from Kelvin to Celsius", 1.0, -273.15),
)


def faults(reference: Sample, current: Sample, kinds: Kinds, history: Sample, stretch: Array | None) -> Iterator[Fault]:
    """The faults of the columns of ``kinds`` that the reference has, at most two a column: of missing and of present values.

    ``stretch`` is the interval of each row of ``history``, if known; see `pipeline.breakage.find`.
    """
    pairs: list[_Pair] = []
    for column, kind in kinds.items():
        if column not in reference:
            continue
        if column not in current:
            detail = f"the column is absent; the reference has {len(reference[column])} rows of it"
            yield Fault(kind="schema", column=column, detail=detail)
            continue
        contents: Callable[[Array], Contents] = Numbers.of if kind == "number" else Categories.of
        sides = (contents(reference[column]), contents(current[column]))
        pair = _Pair(column, kind, *sides, history[column], stretch)
        yield from _gone(pair)
        if min(pair.usual.count, pair.seen.count) >= _MIN_VALUES:
            pairs.append(pair)
    exchanged = {column: fault for kind in _ORDINARY for column, fault in _exchanged(pairs, kind)}
    for pair in pairs:
        fault = exchanged.get(pair.column) or _in_values(pair)
        if fault is not None:
            yield fault


@dataclass(frozen=True)
class _Pair:
    """One column, as the reference has it (usual) and as it was delivered (seen).

    ``values`` are the rows of the history and ``stretch`` their intervals, if known.
    """

    column: str
    kind: Kind
    usual: Any
    seen: Any
    values: Array
    stretch: Array | None

    @cached_property
    def distance(self) -> float:
        return float(self.usual.distance(self.seen))

    @cached_property
    def noise(self) -> float:
        return float(self.usual.noise(self.seen.count))

    def limit(self, other: _Pair, otherwise: float) -> float:
        """What the explanation may leave that these are the other column's contents, if any other leaves ``otherwise``.

        Negative if noise hides what is left.
        """
        noise = other.usual.noise(self.seen.count)
        ordinary = _ORDINARY[self.kind]
        return min(2 * ordinary, _BETTER * otherwise) + noise if noise <= ordinary else -1.0

    @property
    def variation(self) -> Variation | None:
        """What is natural to the column's intervals, if they are known."""
        if self.stretch is None:
            return None
        is_number = self.kind == "number"
        values = pa.array(_finite(self.values), from_pandas=True) if is_number else texts(self.values)
        return Variation.of(values, self.stretch)

    def fault(self, kind: FaultKind, detail: str) -> Fault:
        return Fault(kind=kind, column=self.column, detail=detail)


def _finite(values: Array) -> Array:
    numbers = np.asarray(values, dtype=np.float64)
    return np.where(np.isfinite(numbers), numbers, np.nan)


def _in_values(pair: _Pair) -> Fault | None:
    """The fault that explains the values of one column; what explains more comes first."""
    found = _converted(pair) if pair.kind == "number" else _recoded(pair)
    if found is not None:
        return found
    found = _constant(pair) if pair.seen.distinct == 1 else _stuck(pair)
    if found is None or (variation := pair.variation) is None:
        return found
    share, rise = variation.top()
    now, before = pair.seen.top_share, pair.usual.share(pair.seen.top)
    return None if share >= now or now - before < _HEADROOM * rise else found


def _gone(pair: _Pair) -> Iterator[Fault]:
    """Values that no longer come, in all or in many rows."""
    usual, seen = pair.usual, pair.seen
    if not usual.count or seen.rows < _FEW_ROWS:
        return
    before, now = 1 - usual.count / usual.rows, 1 - seen.count / seen.rows
    is_enough = min(seen.rows, usual.rows) >= _MIN_VALUES
    is_nearly_all = now >= _NEARLY_ALL and 1 - now <= _LEFT_OF_VALUES * (1 - before)
    is_jump = is_enough and (now - before >= _MISSING_JUMP or is_nearly_all)
    if not (is_jump or not seen.count) or not is_sure(now, before, seen.rows, usual.rows):
        return
    if (variation := pair.variation) and now - before < _HEADROOM * (variation.missing() - before):
        return
    numbers = f"{seen.rows} rows hold a value; in the reference {before:.1%} of {usual.rows} hold none"
    if seen.count:
        yield pair.fault("missing", f"{1 - now:.1%} of {numbers}")
    else:
        yield pair.fault("schema", f"none of {numbers}")


def _converted(pair: _Pair) -> Fault | None:
    """A known conversion that explains the numbers, as no ordinary change does."""
    ordinary = _ORDINARY[pair.kind]
    if pair.distance < _DISPLACED_FROM[pair.kind] + pair.noise:
        return None
    if max(pair.usual.top_share, pair.seen.top_share) > _MOSTLY_ONE_VALUE:
        return None
    # An offset that ordinary variation hides is no evidence of a scale of temperature.
    conversions = [c for c in _CONVERSIONS if c[2] == 0 or abs(c[2]) >= ordinary * pair.seen.spread]
    left, name, factor = min((_left(pair, factor, offset), name, factor) for name, factor, offset in conversions)
    otherwise = _ordinarily_left(pair)
    if otherwise <= ordinary + pair.noise or not left <= pair.limit(pair, otherwise):
        return None
    if 1 / _NEAR_FACTOR < factor < _NEAR_FACTOR and left > ordinary + pair.noise:
        return None
    if (variation := pair.variation) and pair.distance < _HEADROOM * variation.distance(
        pair.values, lambda values: pair.usual.distance(Numbers.of(values))
    ):
        return None
    return pair.fault(
        "unit",
        f"the values look {name}: as delivered they lie {pair.distance:.3g} standard deviations from the reference, "
        f"converted back {left:.2g}; the median is {pair.seen.median:.4g}, in the reference {pair.usual.median:.4g}",
    )


def _ordinarily_left(pair: _Pair) -> float:
    """The distance that the best ordinary change leaves: a shift, or a scale fitted by least squares."""
    usual, seen = pair.usual.quantiles, pair.seen.quantiles
    largest = _ORDINARY_SHIFT * pair.usual.spread
    shift = float(np.clip(np.median(seen - usual), -largest, largest))
    scale = float(np.clip(np.sum(seen * usual) / np.sum(usual**2), *_ORDINARY_SCALE))
    return min(_left(pair, 1.0, shift), _left(pair, scale, 0.0))


def _left(pair: _Pair, factor: float, offset: float) -> float:
    """The distance that is left when numbers were multiplied by ``factor``, then moved by ``offset``.

    At least the shift that would change ranks as much: far tails weigh in distances, and hide what the middle shows.
    """
    usual, before = pair.usual.quantiles, (pair.seen.quantiles - offset) / factor
    if factor < 0:
        before = before[::-1]
    unit = min(pair.usual.spread, pair.seen.spread / abs(factor))
    return max(apart(usual, before, unit), ranks_apart(usual, before, unit) / _RANKS_PER_DEVIATION)


def _exchanged(pairs: Sequence[_Pair], kind: Kind) -> Iterator[tuple[str, Fault]]:
    """Columns of one kind that hold each other's contents, in twos or in a longer cycle, each with its fault."""
    displaced = [p for p in pairs if p.kind == kind and p.distance >= _DISPLACED_FROM[kind] + p.noise]
    if len(displaced) < 2:
        return
    limits = np.array([[own.limit(other, own.distance) for other in displaced] for own in displaced])
    distances = np.full_like(limits, np.inf)
    for at, other_at in np.argwhere(limits > 0):
        distances[at, other_at] = displaced[at].seen.distance(displaced[other_at].usual)
    agrees = distances <= limits
    np.fill_diagonal(agrees, val=False)
    # As many columns as possible find what they agree with, each another one.
    holds = linear_sum_assignment(np.where(agrees, distances, len(displaced)))[1]
    for place, own in enumerate(displaced):
        if all(agrees[at, holds[at]] for at in _cycle(holds, place)):
            other = displaced[holds[place]]
            detail = (
                f"holds what the reference has in {other.column!r}: distance {distances[place, holds[place]]:.2g} from that, "
                f"{own.distance:.3g} from its own"
            )
            yield own.column, own.fault("swapped", detail)


def _cycle(holds: Array, place: int) -> list[int]:
    """The places that one comes to when every column is followed to the one whose contents it holds."""
    found = [place]
    while (following := int(holds[found[-1]])) != place:
        found.append(following)
    return found


def _constant(pair: _Pair) -> Fault | None:
    usual, seen = pair.usual, pair.seen
    before = usual.share(seen.top)
    needed = _STUCK_SHARE if usual.distinct >= _SEVERAL else _CONSTANT_OF_TWO
    if usual.distinct < 2 or 1 - before < needed or not is_sure(1.0, before, seen.count, usual.count):
        return None
    return pair.fault(
        "constant",
        f"all {seen.count} values are {seen.top!r}; the reference has {usual.distinct} different values, "
        f"{before:.1%} of them this one",
    )


def _stuck(pair: _Pair) -> Fault | None:
    """One value in the place of many others, while the rest stays what it was."""
    usual, seen = pair.usual, pair.seen
    value, now, before = seen.top, seen.top_share, usual.share(seen.top)
    is_number = pair.kind == "number"
    is_foreign = before < _RARE if is_number else before == 0
    is_free = is_foreign or (is_number and usual.distinct >= _MANY)
    needed = _STUCK_SHARE if is_free else _STUCK_SHARE_COMMON
    if is_foreign and not is_number and value.strip().casefold() not in _WORDS_FOR_NOTHING:
        needed = _STUCK_SHARE_NEW
    # Of the values a share also rises when others are missing, of the rows when fewer are.
    of_rows = now * seen.count / seen.rows - before * usual.count / usual.rows
    if usual.distinct < _SEVERAL or min(now - before, of_rows) < needed:
        return None
    if not is_sure(now, before, seen.count, usual.count) or not _rest_stays(pair, value):
        return None
    return pair.fault("stuck", f"{value!r} is {now:.1%} of {seen.count} values, of the reference's {before:.1%}")


def _rest_stays(pair: _Pair, value: Any) -> bool:
    """Whether the other values are what they were, or too few to tell; drift that gathers on a value moves them too."""
    rest, before = pair.seen.without(value), pair.usual.without(value)
    if min(rest.count, before.count) < _MIN_VALUES:
        return True
    if before.top_share >= _ATOM and rest.share(before.top) < _STAYS * before.top_share:
        return False
    is_foreign = not pair.usual.spans(value)
    return is_foreign or before.distance(rest) <= 2 * _ORDINARY[pair.kind] + before.noise(rest.count)


def _recoded(pair: _Pair) -> Fault | None:
    usual, seen = pair.usual, pair.seen
    new = [value for value in seen.counts if value not in usual.counts]
    share = sum(seen.counts[value] for value in new) / seen.count
    # Of a column with ever new values, the next one is new as often as values came once (Good 1953, The population
    # frequencies of species and the estimation of population parameters).
    natural = sum(count == 1 for count in usual.counts.values()) / usual.count
    if share - natural < _RECODED_SHARE or not is_sure(share, natural, seen.count, usual.count):
        return None
    variety = share - seen.share(new[0])
    if variety < _KEPT_VARIETY * (1 - usual.top_share) * share:
        return None
    known = {value.strip().casefold() for value in usual.counts}
    is_spelling = all(value.strip().casefold() in known for value in new)
    return pair.fault(
        "recoded",
        f"{share:.1%} of the values are categories that the reference does not know ({natural:.1%} are to be expected), such "
        f"as {', '.join(map(repr, new[:3]))}{'; but for case and spaces they are known' if is_spelling else ''}",
    )
