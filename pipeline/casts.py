"""Conversions between Arrow types that keep every value: the table of them, and the conversion of a record batch.

What the table does not name does not exist: no text becomes a number or a number text that is computed with, no time zone
is dropped or invented, and no integer becomes a float that cannot hold it. Must not guess, round, or fall back to
an unsafe cast.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import ContractViolation

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Set

    Kinds = Set[pa.DataType]

_UNITS = ("s", "ms", "us", "ns")
# The widest integer, without its sign, that a float of so many bits holds exactly: IEEE 754's significand.
_SIGNIFICAND = {16: 11, 32: 24, 64: 53}
_FLOATS = {16: pa.float16(), 32: pa.float32(), 64: pa.float64()}
_SIGNED = {8: pa.int8(), 16: pa.int16(), 32: pa.int32(), 64: pa.int64()}
# Decimal digits that every value of an integer type fits into.
_DIGITS = {7: 3, 8: 3, 15: 5, 16: 5, 31: 10, 32: 10, 63: 19, 64: 20}
_DECIMALS = ((9, 32, pa.decimal32), (18, 64, pa.decimal64), (38, 128, pa.decimal128), (76, 256, pa.decimal256))
# How Arrow prints a point in time that no calendar date stands for.
_NO_DATE = "<value out of range"
_SHOWN = 200


def common_type(first: pa.DataType, *others: pa.DataType) -> pa.DataType | None:
    """The narrowest type to which every value of all the given types converts without loss; ``None`` if there is none.

    Symmetric, and of several types independent of their order (folding pairs is not: uint32 and int32 meet in int64,
    which no float holds, but both fit a double). Dictionaries count as what they encode, and views as large text or
    bytes; neither is ever the answer. The table:

    - signed and unsigned integers widen; uint64 with a signed one: none
    - floats widen; integers join a float that holds all their values (int16 float32, int32 double, int64 none)
    - decimals widen to the most integer digits and the largest scale, up to 76 digits; integers count as scale 0
    - text of any layout: text; bytes of any layout: bytes; never both
    - timestamps: the finer unit; with a zone and without: none; different zones: UTC, the instants stay
    - date32 and date64; times of day; durations: the finer unit; a date and a timestamp: none
    - null joins everything; booleans, nested and extension types only their equals

    The finer unit of two times need not hold the largest values of the coarser; `cast` refuses those when it meets them.
    """
    kinds = {_plain(kind) for kind in (first, *others)} - {pa.null()}
    if len(kinds) <= 1:
        return next(iter(kinds), pa.null())
    return next((join(kinds) for belongs, join in _TABLE if all(map(belongs, kinds))), None)


def carried_type(first: pa.DataType, *others: pa.DataType) -> pa.DataType | None:
    """The type in which values that are kept but not computed with are carried along.

    The `common_type`, or else text: every value as Arrow prints it, from which it can be read again. Text and bytes meet in
    bytes. ``None`` where nothing holds the values: nested and extension types, durations, and bytes with anything but text.
    """
    if (found := common_type(first, *others)) is not None:
        return found
    kinds = {_plain(kind) for kind in (first, *others)} - {pa.null()}
    if all(_is_text(kind) or _is_bytes(kind) for kind in kinds):
        return pa.large_binary()
    return _text({*filter(_is_text, kinds), pa.string()}) if all(map(_is_printable, kinds)) else None


def cast(batch: pa.RecordBatch, schema: pa.Schema, codes: Collection[str] = ()) -> pa.RecordBatch:
    """The columns of ``batch`` that ``schema`` names, in its order and types; one that the batch lacks is null throughout.

    A column named in ``codes`` stays a dictionary if it is one of exactly the wanted values, each of them proper text.

    Only conversions of `common_type` and `carried_type` are made, each checked value by value. Raises `ContractViolation`
    naming column and types when a conversion is not one of them, or a value does not survive it (a timestamp beyond
    the range of the finer unit).
    """
    there = set(batch.schema.names)
    columns, fields = [], []
    for field in schema:
        name, kind = field.name, field.type
        if name not in there:
            column = pa.nulls(batch.num_rows, kind)
        elif name in codes and _is_coded(batch.column(name), kind):
            column = batch.column(name)
        else:
            column = _converted(name, batch.column(name), kind)
        columns.append(column)
        fields.append(field.with_type(column.type))
    return pa.RecordBatch.from_arrays(columns, schema=pa.schema(fields, schema.metadata))


def _is_coded(column: pa.Array, kind: pa.DataType) -> bool:
    if not pa.types.is_dictionary(column.type) or column.type.value_type != kind or column.dictionary.null_count:
        return False
    try:
        column.dictionary.validate(full=True)
    except pa.ArrowInvalid:
        # Whether its rows use what is no text is a question to the rows.
        return False
    return True


def _converted(name: str, column: pa.Array, kind: pa.DataType) -> pa.Array:
    if column.type == kind:
        return column
    if not _is_lossless(column.type, kind):
        raise _loss(name, column.type, kind, "a conversion that may lose values")
    try:
        # Arrow prints the day of a date64 alone; as a date32 it must be a whole day.
        exact = column.cast(pa.date32()) if _is_text(kind) and column.type == pa.date64() else column
        converted = exact.cast(kind, safe=True)
    except pa.ArrowException as err:
        raise _loss(name, column.type, kind, str(err)[:_SHOWN]) from err
    if _is_text(kind) and pa.types.is_temporal(column.type):
        lost = pc.starts_with(converted, _NO_DATE)
        if pc.any(lost).as_py():
            raise _loss(name, column.type, kind, str(converted.filter(lost)[0]))
    return converted


@cache
def _is_lossless(source: pa.DataType, target: pa.DataType) -> bool:
    return target in (common_type(source, target), carried_type(source, target))


def _loss(name: str, source: pa.DataType, target: pa.DataType, got: str) -> ContractViolation:
    return ContractViolation(
        f"column {name!r} cannot be read as {target} without loss; its type is {source}",
        expected="values that survive the conversion unchanged",
        got=got,
        next_step=f"have the producer write column {name!r} as one type in every file",
    )


def _plain(kind: pa.DataType) -> pa.DataType:
    """The type of decoded values in a layout that every kernel of Arrow takes."""
    if pa.types.is_dictionary(kind):
        return _plain(kind.value_type)
    return {pa.string_view(): pa.large_string(), pa.binary_view(): pa.large_binary()}.get(kind, kind)


def _is_text(kind: pa.DataType) -> bool:
    return kind in (pa.string(), pa.large_string())


def _is_bytes(kind: pa.DataType) -> bool:
    return kind in (pa.binary(), pa.large_binary()) or bool(pa.types.is_fixed_size_binary(kind))


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))


def _is_exact(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_decimal(kind))


def _is_printable(kind: pa.DataType) -> bool:
    types = pa.types
    tests = (types.is_boolean, types.is_decimal, types.is_timestamp, types.is_date, types.is_time)
    return _is_text(kind) or _is_number(kind) or any(fits(kind) for fits in tests)


def _magnitude(kind: pa.DataType) -> int:
    """Bits of an integer type without its sign."""
    return int(kind.bit_width - pa.types.is_signed_integer(kind))


def _integer(kinds: Kinds) -> pa.DataType | None:
    widest = max(kinds, key=_magnitude)
    if pa.types.is_unsigned_integer(widest) and any(map(pa.types.is_signed_integer, kinds)):
        return _SIGNED.get(2 * widest.bit_width)
    return widest


def _float(kinds: Kinds) -> pa.DataType | None:
    # Every type for itself: the integer type that holds several may be wider than a float that holds them all.
    needed = max(_magnitude(kind) if pa.types.is_integer(kind) else _SIGNIFICAND[kind.bit_width] for kind in kinds)
    return next((_FLOATS[width] for width, bits in _SIGNIFICAND.items() if bits >= needed), None)


def _decimal(kinds: Kinds) -> pa.DataType | None:
    decimals = [kind for kind in kinds if pa.types.is_decimal(kind)]
    scale = max(kind.scale for kind in decimals)
    if len(decimals) < len(kinds):
        scale = max(scale, 0)
    digits = max(
        kind.precision - kind.scale if pa.types.is_decimal(kind) else _DIGITS[_magnitude(kind)] for kind in kinds
    )
    widest = max(kind.bit_width for kind in decimals)
    return next(
        (make(digits + scale, scale) for most, width, make in _DECIMALS if digits + scale <= most and width >= widest),
        None,
    )


def _text(kinds: Kinds) -> pa.DataType:
    return pa.string() if kinds <= {pa.string()} else pa.large_string()


def _bytes(kinds: Kinds) -> pa.DataType:
    return pa.large_binary() if pa.large_binary() in kinds else pa.binary()


def _finest(kinds: Kinds) -> str:
    return _UNITS[max(_UNITS.index(kind.unit) for kind in kinds)]


def _timestamp(kinds: Kinds) -> pa.DataType | None:
    zones = {kind.tz for kind in kinds}
    if len(zones) > 1 and None in zones:
        return None
    return pa.timestamp(_finest(kinds), zones.pop() if len(zones) == 1 else "UTC")


def _time(kinds: Kinds) -> pa.DataType:
    unit = _finest(kinds)
    return pa.time32(unit) if unit in ("s", "ms") else pa.time64(unit)


# Which types belong together, and the type in which they meet; the first row that all of them belong to counts.
_TABLE: tuple[tuple[Callable[[Any], bool], Callable[[Any], pa.DataType | None]], ...] = (
    (pa.types.is_integer, _integer),
    (_is_number, _float),
    (_is_exact, _decimal),
    (_is_text, _text),
    (_is_bytes, _bytes),
    (pa.types.is_timestamp, _timestamp),
    (pa.types.is_date, lambda _: pa.date64()),
    (pa.types.is_time, _time),
    (pa.types.is_duration, lambda kinds: pa.duration(_finest(kinds))),
)
