"""Whether an accelerated model says what its estimator says: on real rows, and on rows made to tell them apart."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from pipeline.acceleration.features import UNKNOWN
from pipeline.engine import categories, numbers
from pipeline.errors import ContractViolation
from pipeline.reports import Acceleration

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from pipeline.engine import Predictions, Scorer
    from pipeline.job import Column

# The largest difference of two scores; of two numbers, relative to the larger of 1 and the number.
LARGEST = 1e-9
_REAL_ROWS = 20_000
_MADE_FROM = 512
# Rows that are made with limits of one column, and of them with each limit: other columns decide whether it is reached.
_EDGES, _EACH = 1_500, 4
_VALUES: Mapping[str, tuple[float | str | None, ...]] = {
    "missing": (None,),
    "infinite": (np.inf, -np.inf),
    "extreme": (1e300, -1e300, 1e39, -1e39, 1e30, -1e30, 5e-324, 0.0, -0.0),
    "unknown": (UNKNOWN, "", "\N{SNOWMAN}", "0", "nan"),
}


def proven(
    kind: str,
    fast: Scorer,
    exact: Scorer,
    rows: pa.Table,
    columns: Mapping[str, Column],
    edges: Mapping[str, NDArray[np.float64]],
    slices: Sequence[str] = (),
) -> Acceleration:
    """What ``fast`` says of real ``rows`` and of adversarial ones, held against ``exact``; no ``kind`` when it failed.

    ``edges`` are values of a column at which predictions may jump: rows are made with them and with their neighbours.
    Decisions that differ are counted for each level of ``slices``. Rows that ``exact`` refuses ``fast`` must refuse too.
    """
    some = _some(_canonical(rows, columns), _REAL_ROWS)
    difference, differs = compared(fast.predict(some), exact.predict(some))
    flips = {"overall": int(differs.sum()), **_by_slice(some, differs, columns, slices)}
    seen = 0
    try:
        for group in adversarial(_some(some, _MADE_FROM), columns, edges):
            for batch in group:
                expected, found = _answer(exact, batch), _answer(fast, batch)
                if (expected is None) != (found is None):
                    return _failed("it refuses other rows than the estimator", some, seen, difference, flips)
                if expected is not None and found is not None:
                    further, odd = compared(found, expected)
                    difference, seen = max(difference, further), seen + batch.num_rows
                    flips["overall"] += int(odd.sum())
                if batch is group[0] and expected is not None:
                    break
    except (ArithmeticError, LookupError, ValueError) as err:
        return _failed(f"{type(err).__name__}: {err}", some, seen, difference, flips)
    if difference > LARGEST or flips["overall"]:
        why = f"scores differ by up to {difference:.3g} and {flips['overall']} decisions"
        return _failed(f"{why}, allowed are {LARGEST:g} and none", some, seen, difference, flips)
    return Acceleration(
        kind=kind,
        reason=f"scores differ by at most {LARGEST:g} and no decision",
        rows=some.num_rows,
        adversarial_rows=seen,
        max_difference=difference,
        flips=flips,
    )


def compared(fast: Predictions, exact: Predictions) -> tuple[float, NDArray[np.bool_]]:
    """The largest difference of scores, and of which rows the decision differs; numbers have no decisions."""
    if exact.scores is None or fast.scores is None:
        scale = np.maximum(np.abs(exact.labels), 1.0)
        gaps = np.abs(fast.labels - exact.labels) / scale
        return float(gaps.max(initial=0.0)), np.zeros(len(gaps), dtype=bool)
    return float(np.abs(fast.scores - exact.scores).max(initial=0.0)), np.asarray(fast.labels != exact.labels)


def adversarial(
    rows: pa.Table, columns: Mapping[str, Column], edges: Mapping[str, NDArray[np.float64]]
) -> Iterator[list[pa.Table]]:
    """Rows with values that models stumble over, in groups of one kind: first all columns, then each of them alone.

    The first table of a group tells as much as the others, unless the estimator refuses it.
    """
    frame = {name: rows[name].to_pylist() for name in columns}
    count = rows.num_rows
    numeric = [name for name, column in columns.items() if column.type != "category"]
    texts = [name for name in columns if name not in numeric]
    for name, values in _VALUES.items():
        fitting = {"missing": list(columns), "unknown": texts}.get(name, numeric)
        plans = [fitting, *([column] for column in fitting)]
        yield [_made(frame, chosen, values, rows) for chosen in plans if chosen]
    yield [_table({name: [None] * min(count, 2) for name in columns}, rows)]
    near = [_near(rows, column, limits) for column, limits in edges.items()]
    if near:
        yield [pa.concat_tables(near).combine_chunks(), *near]


def _near(rows: pa.Table, column: str, limits: NDArray[np.float64]) -> pa.Table:
    """Rows with limits and their neighbours in the column."""
    some = limits[:: -(-len(limits) * 3 * _EACH // _EDGES) or 1]
    near = np.tile(np.concatenate([some, np.nextafter(some, np.inf), np.nextafter(some, -np.inf)]), _EACH)
    table = rows.take(pa.array(np.arange(len(near)) % rows.num_rows))
    return table.set_column(table.column_names.index(column), column, pa.array(near))


def _made(frame: Mapping[str, list[Any]], chosen: Sequence[str], values: Sequence[Any], like: pa.Table) -> pa.Table:
    """The rows with ``values`` in one of the chosen columns each, in turn."""
    made = {name: list(entries) for name, entries in frame.items()}
    for i in range(like.num_rows):
        made[chosen[i % len(chosen)]][i] = values[i // len(chosen) % len(values)]
    return _table(made, like)


def _failed(reason: str, rows: pa.Table, seen: int, difference: float, flips: Mapping[str, int]) -> Acceleration:
    return Acceleration(
        kind=None,
        reason=f"not used: {reason}",
        rows=rows.num_rows,
        adversarial_rows=seen,
        max_difference=difference,
        flips=dict(flips),
    )


def _answer(scorer: Scorer, rows: pa.Table) -> Predictions | None:
    """What a scorer says; ``None`` when it refuses the rows."""
    try:
        return scorer.predict(rows)
    except (ValueError, ContractViolation):
        return None


def _canonical(rows: pa.Table, columns: Mapping[str, Column]) -> pa.Table:
    """The columns as float64 and text, which hold any value that rows are made with."""
    made = {}
    for name, column in columns.items():
        if column.type == "category":
            texts, which = categories(rows, name, column)
            made[name] = pa.array(texts, pa.string()).take(pa.array(which))
        else:
            made[name] = pa.array(numbers(rows, name, column), pa.float64(), from_pandas=True)
    return pa.table(made)


def _some(rows: pa.Table, most: int) -> pa.Table:
    """At most so many rows, evenly spread."""
    if rows.num_rows <= most:
        return rows.combine_chunks()
    return rows.take(pa.array(np.arange(most) * rows.num_rows // most)).combine_chunks()


def _table(values: Mapping[str, list[Any]], like: pa.Table) -> pa.Table:
    return pa.table({name: pa.array(values[name], like.schema.field(name).type) for name in values})


def _by_slice(
    rows: pa.Table, differs: NDArray[np.bool_], columns: Mapping[str, Column], slices: Sequence[str]
) -> dict[str, int]:
    found = {}
    for name in slices:
        if columns[name].type == "category":
            texts, which = categories(rows, name, columns[name])
            for code in np.unique(which[differs]).tolist():
                found[f"{name}={texts[code]}"] = int((differs & (which == code)).sum())
    return found
