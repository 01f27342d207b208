"""Questions to one Arrow column at a time: what kind it is, and which of its rows fail a rule.

Every check takes a column without dictionary encoding and marks the failing rows; null passes all but `missing`, and NaN
counts as null. Must not loop over rows in Python, except over rows that have already failed.
"""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from pipeline.intervals import Interval
    from pipeline.policies import Rule

    Mask = NDArray[np.bool_]

NUMERIC = ("integer", "float", "decimal")
VALUE_LENGTH = 200

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_NANOSECONDS = {"s": 10**9, "ms": 10**6, "us": 10**3, "ns": 1}
_NANOSECONDS_PER_DAY = 86_400 * 10**9


def kind_of(column_type: pa.DataType) -> str:
    """One of integer, float, decimal, text, boolean, time, null and other; for a dictionary, the kind of its values."""
    types = pa.types
    if types.is_dictionary(column_type):
        return kind_of(column_type.value_type)
    tests: dict[str, Callable[[Any], bool]] = {
        "integer": types.is_integer,
        "float": types.is_floating,
        "decimal": types.is_decimal,
        "text": lambda t: types.is_string(t) or types.is_large_string(t) or types.is_string_view(t),
        "boolean": types.is_boolean,
        "time": lambda t: types.is_timestamp(t) or types.is_date32(t),
        "null": types.is_null,
    }
    return next((name for name, fits in tests.items() if fits(column_type)), "other")


def rule_problem(rule: Rule, kind: str) -> str | None:
    """Why the rule can never be asked of a column of this kind, or ``None``."""
    if kind == "null":
        return None
    if rule.rule == "between" and kind not in NUMERIC:
        return f"rule {rule.code}: needs a number, but the column holds {kind} values"
    if rule.rule == "matches" and kind != "text":
        return f"rule {rule.code}: needs text, but the column holds {kind} values"
    if rule.rule == "in_set" and not _comparable(rule.values or (), kind):
        return f"rule {rule.code}: none of its values can equal a value of the column, which holds {kind} values"
    return None


def _comparable(values: Sequence[Any], kind: str) -> list[Any]:
    """The listed values that a column of this kind can equal."""
    if kind == "text":
        return [value for value in values if isinstance(value, str)]
    if kind == "boolean":
        return [value for value in values if isinstance(value, bool)]
    if kind in NUMERIC:
        return [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    return []


def rule_check(rule: Rule, kind: str) -> Callable[[Any], Mask]:
    """The check of one rule of the job for a column of this kind.

    Numbers compare numerically (7 equals 7.0), text exactly, and a pattern must match the whole text.
    """
    if rule.rule == "not_null":
        return missing
    if kind == "null":
        return lambda column: np.zeros(len(column), dtype=bool)
    if rule.rule == "between":
        return _between(rule.min, rule.max, exact=kind == "integer")
    if rule.rule == "in_set":
        return _in_set(_comparable(rule.values or (), kind), kind)
    return _matches(rule.pattern or "")


def _between(low: float | None, high: float | None, *, exact: bool) -> Callable[[Any], Mask]:
    # An integer column is compared with integers: as floats, neighbours above 2**53 would be equal.
    if exact and low is not None and math.isfinite(low):
        low = math.ceil(low)
    if exact and high is not None and math.isfinite(high):
        high = math.floor(high)

    def fails(column: Any) -> Mask:
        numbers = _numbers(column)
        failed = np.zeros(len(numbers), dtype=bool)
        if low is not None:
            failed |= numbers < low
        if high is not None:
            failed |= numbers > high
        return failed & ~missing(column)

    return fails


def _in_set(allowed: list[Any], kind: str) -> Callable[[Any], Mask]:
    if kind in ("text", "boolean"):
        return lambda column: _mask(pc.invert(pc.is_in(column, pa.array(allowed, column.type)))) & ~missing(column)
    if kind == "integer":
        whole = {int(value) for value in allowed if math.isfinite(value) and value == int(value)}
        return lambda column: ~np.isin(_numbers(column), _representable(whole, column.type)) & ~missing(column)
    # The listed values are rounded like the column's own: 0.1 equals what a float32 column holds for 0.1.
    return lambda column: ~_equals_any(_numbers(column), allowed) & ~missing(column)


def _equals_any(numbers: NDArray[Any], allowed: list[Any]) -> Mask:
    with np.errstate(over="ignore"):
        return np.isin(numbers, np.array(allowed, dtype=np.float64).astype(numbers.dtype))


def _representable(values: set[int], kind: pa.DataType) -> NDArray[Any]:
    dtype = np.dtype(kind.to_pandas_dtype())
    limits = np.iinfo(dtype)
    return np.array([value for value in sorted(values) if limits.min <= value <= limits.max], dtype=dtype)


def _matches(pattern: str) -> Callable[[Any], Mask]:
    r"""Full match in RE2, Arrow's linear-time engine; what RE2 lacks (look-around, back-references) runs in `re`.

    ``\d``, ``\w``, ``\s`` and ``\b`` mean ASCII in both.
    """
    full = rf"\A(?:{pattern})\z"
    try:
        pc.match_substring_regex(pa.array([""]), full)
    except pa.ArrowInvalid:
        return _matches_slowly(re.compile(pattern, re.ASCII))
    return lambda column: _mask(pc.invert(pc.match_substring_regex(column, full)))


def _matches_slowly(pattern: re.Pattern[str]) -> Callable[[Any], Mask]:
    def fails(column: Any) -> Mask:
        encoded = column.dictionary_encode()
        distinct = encoded.dictionary.cast(pa.large_binary()).to_pylist()
        failed = pa.array([not pattern.fullmatch(text.decode(errors="replace")) for text in distinct], pa.bool_())
        return _mask(failed.take(encoded.indices))

    return fails


def outside(interval: Interval) -> Callable[[Any], Mask]:
    """The check whether an event time (without a zone: UTC) lies outside the interval, exact in the column's own unit."""
    start, end = ((instant - _EPOCH) // timedelta(microseconds=1) * 1000 for instant in (interval.start, interval.end))

    def fails(column: Any) -> Mask:
        is_date = pa.types.is_date32(column.type)
        tick = _NANOSECONDS_PER_DAY if is_date else _NANOSECONDS[column.type.unit]
        ticks = column.view(pa.int32() if is_date else pa.int64()).fill_null(0).to_numpy(zero_copy_only=False)
        # Ceiling division: the first tick that is not before the instant.
        stranger: Mask = (ticks < -(-start // tick)) | (ticks >= -(-end // tick))
        return stranger & ~missing(column)

    return fails


def not_finite(column: Any) -> Mask:
    """Which values of a float column are infinite."""
    kind = np.dtype(column.type.to_pandas_dtype())
    stored = np.frombuffer(column.buffers()[1] or b"", kind)[column.offset : column.offset + len(column)]
    # What is stored below a null may be anything, but mostly no value is infinite: that takes no copy to see.
    if not np.isinf(stored).any():
        return np.zeros(len(column), dtype=bool)
    infinite: Mask = np.isinf(_numbers(column))
    return infinite


def not_text(column: Any) -> Mask:
    """Which values of a text column are not UTF-8; Parquet readers do not look."""
    try:
        column.validate(full=True)
    except pa.ArrowInvalid:
        values = column.cast(pa.large_binary()).to_pylist()
        return np.array([value is not None and not _is_utf8(value) for value in values], dtype=bool)
    return np.zeros(len(column), dtype=bool)


def _is_utf8(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True


def plain(column: Any) -> Any:
    """The column without dictionary encoding: the values themselves, null for null."""
    return column.dictionary_decode() if pa.types.is_dictionary(column.type) else column


def _mask(booleans: Any) -> Mask:
    """An Arrow boolean array as NumPy; null is false."""
    filled: Mask = booleans.fill_null(False).to_numpy(zero_copy_only=False)
    return filled


def missing(column: Any) -> Mask:
    """Which values are null or NaN."""
    if column.null_count == 0 and not pa.types.is_floating(column.type):
        return np.zeros(len(column), dtype=bool)
    return _mask(pc.is_null(column, nan_is_null=True))


def _numbers(column: Any) -> NDArray[Any]:
    """The values as NumPy: integers keep their type (null is 0), all else becomes a float (null is NaN)."""
    if pa.types.is_integer(column.type):
        column = column.fill_null(0)
    elif pa.types.is_decimal(column.type):
        column = column.cast(pa.float64())
    numbers: NDArray[Any] = column.to_numpy(zero_copy_only=False)
    return numbers


def as_text(column: Any) -> Any:
    """The values as text of at most 200 characters; bytes that are not UTF-8 show as replacement characters."""
    if pa.types.is_timestamp(column.type) and column.type.tz is not None:
        column = column.cast(pa.timestamp(column.type.unit, "UTC"))
    if kind_of(column.type) != "text":
        return column.cast(pa.string())
    try:
        return pc.utf8_slice_codeunits(column, 0, VALUE_LENGTH).cast(pa.string())
    except pa.ArrowInvalid:
        values = column.cast(pa.large_binary()).to_pylist()
        texts = [None if value is None else value.decode(errors="replace")[:VALUE_LENGTH] for value in values]
        return pa.array(texts, pa.string())
