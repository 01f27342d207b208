"""Types meet only where every value survives, and a value that does not survive is an error, never another value."""

from __future__ import annotations

import datetime as dt
import decimal
from itertools import permutations
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pipeline.casts import carried_type, cast, common_type
from pipeline.errors import ContractViolation

if TYPE_CHECKING:
    from collections.abc import Sequence

INTEGERS = [pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64()]
FLOATS = [pa.float16(), pa.float32(), pa.float64()]
DECIMALS = [
    pa.decimal32(7, 3),
    pa.decimal64(12, 12),
    pa.decimal128(5, 2),
    pa.decimal128(38, 0),
    pa.decimal128(21, 18),
    pa.decimal256(60, 20),
]
TEXTS = [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string())]
BYTES = [pa.binary(), pa.large_binary(), pa.binary_view(), pa.binary(3), pa.dictionary(pa.int32(), pa.binary())]
TIMESTAMPS = [
    pa.timestamp(unit, zone) for unit in ("s", "ms", "us", "ns") for zone in (None, "UTC", "Europe/Amsterdam")
]
TIMES = [pa.time32("s"), pa.time32("ms"), pa.time64("us"), pa.time64("ns")]
DURATIONS = [pa.duration("s"), pa.duration("ns")]
DATES = [pa.date32(), pa.date64()]
NESTED = [pa.list_(pa.int8()), pa.list_(pa.int16()), pa.struct({"a": pa.int8()}), pa.map_(pa.string(), pa.int8())]
FAMILIES = [[*INTEGERS, *FLOATS, *DECIMALS], TEXTS, BYTES, TIMESTAMPS, TIMES, DURATIONS, DATES]
KINDS = [pa.null(), pa.bool_(), *(kind for family in FAMILIES for kind in family), *NESTED, pa.uuid()]
# Like with like four times out of five: random pairs of all types mostly have nothing in common.
SETS = st.one_of(
    *[
        st.sampled_from([[*family, pa.null()] for family in FAMILIES]).flatmap(
            lambda family: st.lists(st.sampled_from(family), min_size=2, max_size=4)
        )
    ]
    * 4,
    st.lists(st.sampled_from(KINDS), min_size=2, max_size=4),
)
PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
MOST_DIGITS = decimal.Context(prec=80)


def values(kind: pa.DataType) -> st.SearchStrategy[pa.Array]:
    """Arrays of up to eight values of the type, nulls and extremes among them."""
    types = pa.types
    if types.is_dictionary(kind):
        return values(kind.value_type).map(lambda array: array.dictionary_encode().cast(kind))
    if types.is_null(kind):
        return st.integers(0, 3).map(lambda n: pa.nulls(n))
    if types.is_temporal(kind):
        return numbers(kind).map(lambda array: array.view(kind))
    if types.is_integer(kind):
        return numbers(kind)
    return arrays(single(kind), kind)


def single(kind: pa.DataType) -> st.SearchStrategy[Any]:
    types = pa.types
    if types.is_floating(kind):
        return st.floats(width=kind.bit_width).map(lambda value: np.array(value, kind.to_pandas_dtype())[()])
    if types.is_decimal(kind):
        limit = 10**kind.precision - 1
        return st.integers(-limit, limit).map(lambda n: decimal.Decimal(n).scaleb(-kind.scale, MOST_DIGITS))
    if types.is_fixed_size_binary(kind):
        return st.binary(min_size=kind.byte_width, max_size=kind.byte_width)
    if kind in BYTES:
        return st.binary(max_size=4)
    return st.booleans() if types.is_boolean(kind) else st.text(max_size=4)


def numbers(kind: pa.DataType) -> st.SearchStrategy[pa.Array]:
    """Integers of the type, or such as stand for its times."""
    storage, factor = (kind if pa.types.is_integer(kind) else pa.int32() if kind.bit_width == 32 else pa.int64()), 1
    bits = storage.bit_width - pa.types.is_signed_integer(storage)
    least, most = -(2**bits) if bits < storage.bit_width else 0, 2**bits - 1
    if pa.types.is_time(kind):
        least, most = 0, 86_400 * PER_SECOND[kind.unit] - 1
    elif kind == pa.date64():
        least, most, factor = -(10**7), 10**7, 86_400_000
    return arrays(st.integers(least, most).map(lambda n: n * factor), storage)


def arrays(items: st.SearchStrategy[Any], kind: pa.DataType) -> st.SearchStrategy[pa.Array]:
    return st.lists(st.none() | items, max_size=8).map(lambda content: pa.array(content, kind))


def read_as(array: pa.Array, kind: pa.DataType) -> pa.Array:
    """What `cast` makes of one column."""
    batch = pa.RecordBatch.from_arrays([array], ["x"])
    return cast(batch, pa.schema({"x": kind})).column(0)


def attempted(array: pa.Array, kind: pa.DataType) -> pa.Array | ContractViolation:
    try:
        return read_as(array, kind)
    except ContractViolation as err:
        return err


def content(array: pa.Array) -> list[str]:
    """The values, so that NaN equals itself and -0.0 does not equal 0.0."""
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if pa.types.is_temporal(array.type):
        array = array.view(pa.int32() if array.type.bit_width == 32 else pa.int64())
    return [repr(value) for value in array.to_pylist()]


class TestTable:
    @pytest.mark.parametrize(
        ("left", "right", "expected"),
        [
            (pa.int8(), pa.int64(), pa.int64()),
            (pa.uint8(), pa.int8(), pa.int16()),
            (pa.uint8(), pa.int32(), pa.int32()),
            (pa.uint32(), pa.int8(), pa.int64()),
            (pa.uint64(), pa.uint8(), pa.uint64()),
            (pa.float16(), pa.float32(), pa.float32()),
            (pa.float32(), pa.float64(), pa.float64()),
            (pa.int8(), pa.float16(), pa.float16()),
            (pa.int16(), pa.float16(), pa.float32()),
            (pa.uint16(), pa.float32(), pa.float32()),
            (pa.int32(), pa.float32(), pa.float64()),
            (pa.uint32(), pa.float64(), pa.float64()),
            (pa.decimal128(9, 2), pa.decimal128(12, 4), pa.decimal128(12, 4)),
            (pa.decimal128(9, 2), pa.decimal128(9, 4), pa.decimal128(11, 4)),
            (pa.decimal128(38, 2), pa.decimal128(38, 4), pa.decimal256(40, 4)),
            (pa.decimal128(9, 2), pa.int32(), pa.decimal128(12, 2)),
            (pa.decimal128(5, -2), pa.int8(), pa.decimal128(7, 0)),
            (pa.decimal32(5, 2), pa.uint64(), pa.decimal128(22, 2)),
            (pa.string(), pa.large_string(), pa.large_string()),
            (pa.string(), pa.string_view(), pa.large_string()),
            (pa.dictionary(pa.int8(), pa.string()), pa.string(), pa.string()),
            (pa.dictionary(pa.int8(), pa.int8()), pa.dictionary(pa.int8(), pa.int16()), pa.int16()),
            (pa.binary(4), pa.binary(5), pa.binary()),
            (pa.binary(), pa.large_binary(), pa.large_binary()),
            (pa.timestamp("s"), pa.timestamp("us"), pa.timestamp("us")),
            (pa.timestamp("ns", "UTC"), pa.timestamp("us", "UTC"), pa.timestamp("ns", "UTC")),
            (pa.timestamp("us", "Europe/Rome"), pa.timestamp("ms", "+02:00"), pa.timestamp("us", "UTC")),
            (pa.date32(), pa.date64(), pa.date64()),
            (pa.time32("s"), pa.time64("us"), pa.time64("us")),
            (pa.time32("s"), pa.time32("ms"), pa.time32("ms")),
            (pa.duration("s"), pa.duration("ms"), pa.duration("ms")),
            (pa.null(), pa.list_(pa.int8()), pa.list_(pa.int8())),
            (pa.null(), pa.dictionary(pa.int8(), pa.string()), pa.string()),
            (pa.null(), pa.null(), pa.null()),
        ],
        ids=str,
    )
    def test_two_types_meet_in_the_narrowest_that_holds_both(
        self, left: pa.DataType, right: pa.DataType, expected: pa.DataType
    ) -> None:
        assert common_type(left, right) == expected
        assert common_type(right, left) == expected

    @pytest.mark.parametrize(
        ("left", "right"),
        [
            (pa.uint64(), pa.int8()),
            (pa.uint64(), pa.int64()),
            (pa.int64(), pa.float64()),
            (pa.uint64(), pa.float64()),
            (pa.decimal128(5, 2), pa.float64()),
            (pa.decimal256(76, 0), pa.decimal256(76, 1)),
            (pa.int64(), pa.string()),
            (pa.float64(), pa.large_string()),
            (pa.dictionary(pa.int8(), pa.string()), pa.int8()),
            (pa.bool_(), pa.int8()),
            (pa.bool_(), pa.string()),
            (pa.string(), pa.binary()),
            (pa.timestamp("us"), pa.timestamp("us", "UTC")),
            (pa.date32(), pa.timestamp("us")),
            (pa.date32(), pa.string()),
            (pa.time64("us"), pa.timestamp("us")),
            (pa.duration("us"), pa.int64()),
            (pa.list_(pa.int8()), pa.list_(pa.int16())),
            (pa.list_(pa.int8()), pa.large_list(pa.int8())),
            (pa.uuid(), pa.binary(16)),
        ],
        ids=str,
    )
    def test_types_that_do_not_hold_each_others_values_never_meet(self, left: pa.DataType, right: pa.DataType) -> None:
        assert common_type(left, right) is None
        assert common_type(right, left) is None

    def test_a_zone_is_neither_dropped_nor_invented_among_three(self) -> None:
        zoned, other, naive = pa.timestamp("s", "Asia/Tokyo"), pa.timestamp("ms", "UTC"), pa.timestamp("us")
        assert common_type(zoned, other, naive) is None
        assert common_type(zoned, other, zoned) == pa.timestamp("ms", "UTC")

    def test_several_types_meet_where_folding_pairs_would_fail(self) -> None:
        folded = common_type(pa.uint32(), pa.int32())
        assert folded == pa.int64()
        assert common_type(folded, pa.float64()) is None
        assert common_type(pa.uint32(), pa.int32(), pa.float64()) == pa.float64()


class TestAllTypes:
    def test_every_type_meets_itself_decoded(self) -> None:
        for kind in KINDS:
            itself = common_type(kind)
            assert itself is not None
            assert common_type(kind, kind) == itself == common_type(itself, itself)
            assert not pa.types.is_dictionary(itself)

    def test_the_order_of_types_means_nothing_and_the_answer_absorbs_them(self) -> None:
        met = 0
        for left in KINDS:
            for right in KINDS:
                found = common_type(left, right)
                assert found == common_type(right, left), (left, right)
                if found is not None:
                    met += 1
                    assert common_type(left, found) == common_type(right, found) == found, (left, right)
        assert met > 400

    @settings(max_examples=300, deadline=None, derandomize=True)
    @given(kinds=SETS)
    def test_any_order_of_several_types_gives_the_same_answer(self, kinds: list[pa.DataType]) -> None:
        assert len({common_type(*order) for order in permutations(kinds)}) == 1
        assert len({carried_type(*order) for order in permutations(kinds)}) == 1


class TestValues:
    @settings(max_examples=600, deadline=None, derandomize=True)
    @given(data=st.data(), kinds=SETS)
    def test_the_way_to_the_common_type_and_back_gives_the_same_values(
        self, data: st.DataObject, kinds: list[pa.DataType]
    ) -> None:
        found = common_type(*kinds)
        assume(found is not None and kinds[0] not in (*NESTED, pa.uuid()))
        array = data.draw(values(kinds[0]))
        there = attempted(array, found)
        if isinstance(there, ContractViolation):
            # Only times of a coarser unit may lie outside the finer unit's range.
            assert pa.types.is_temporal(found)
            assert "out of bounds" in there.got
            return
        assert there.type == found
        if pa.types.is_null(array.type):
            assert there.null_count == len(there) == len(array)
        else:
            assert content(there.cast(common_type(array.type), safe=True)) == content(array)

    @settings(max_examples=300, deadline=None, derandomize=True)
    @given(data=st.data(), kind=st.sampled_from([pa.bool_(), *INTEGERS, *FLOATS, *DECIMALS, *TEXTS]))
    def test_carried_values_can_be_read_again_from_their_text(self, data: st.DataObject, kind: pa.DataType) -> None:
        found = carried_type(kind, pa.string() if kind not in TEXTS else pa.int8())
        assert found in (pa.string(), pa.large_string())
        array = data.draw(values(kind))
        assert content(read_as(array, found).cast(common_type(kind))) == content(array)

    @pytest.mark.parametrize(
        ("kind", "text"),
        [
            (pa.timestamp("ns"), "1970-01-01 00:00:01.000000007"),
            (pa.timestamp("us", "UTC"), "1970-01-01 00:16:40.000007Z"),
            (pa.timestamp("us", "Europe/Amsterdam"), "1970-01-01 01:16:40.000007+0100"),
            (pa.time64("us"), "00:16:40.000007"),
        ],
        ids=str,
    )
    def test_a_carried_time_keeps_its_unit_and_its_offset(self, kind: pa.DataType, text: str) -> None:
        assert read_as(pa.array([1_000_000_007], pa.int64()).view(kind), pa.string()).to_pylist() == [text]

    @pytest.mark.parametrize("zone", [None, "UTC", "Europe/Amsterdam"])
    def test_a_time_beyond_the_finer_unit_is_an_error_and_not_another_time(self, zone: str | None) -> None:
        late = pa.array([0, 2**40], pa.timestamp("s", zone))
        with pytest.raises(
            ContractViolation,
            match=r"column 'x' cannot be read as timestamp\[ns.*its type is timestamp\[s.*1099511627776",
        ):
            read_as(late, pa.timestamp("ns", zone))

    @pytest.mark.parametrize(
        ("array", "kind"),
        [
            (pa.array(["7"]), pa.int64()),
            (pa.array([7.0]), pa.int64()),
            (pa.array([7], pa.int64()), pa.int32()),
            (pa.array([7], pa.int64()), pa.float64()),
            (pa.array([1], pa.int8()), pa.bool_()),
            (pa.array([0], pa.timestamp("us")), pa.timestamp("us", "UTC")),
            (pa.array([0], pa.timestamp("us", "UTC")), pa.timestamp("us")),
            (pa.array([0], pa.timestamp("us", "UTC")), pa.date32()),
            (pa.array([b"x"]), pa.string()),
            (pa.array([decimal.Decimal("1.5")]), pa.float64()),
        ],
        ids=str,
    )
    def test_a_conversion_outside_the_table_is_refused_even_when_these_values_would_survive(
        self, array: pa.Array, kind: pa.DataType
    ) -> None:
        with pytest.raises(ContractViolation, match="a conversion that may lose values"):
            read_as(array, kind)

    def test_two_zones_become_utc_and_the_instants_stay(self) -> None:
        noon = pa.array([dt.datetime(2026, 7, 1, 12, tzinfo=dt.UTC)], pa.timestamp("us", "Europe/Amsterdam"))
        assert read_as(noon, pa.timestamp("ns", "UTC")).to_pylist()[0] == dt.datetime(2026, 7, 1, 12, tzinfo=dt.UTC)


class TestCarried:
    def test_what_has_a_common_type_keeps_it(self) -> None:
        assert carried_type(pa.int8(), pa.float64()) == pa.float64()

    @pytest.mark.parametrize(
        ("kinds", "expected"),
        [
            ([pa.int64(), pa.string()], pa.string()),
            ([pa.bool_(), pa.float64(), pa.date32()], pa.string()),
            ([pa.int64(), pa.large_string()], pa.large_string()),
            ([pa.timestamp("us"), pa.timestamp("us", "UTC")], pa.string()),
            ([pa.string(), pa.binary()], pa.large_binary()),
            ([pa.binary(), pa.int8()], None),
            ([pa.list_(pa.int8()), pa.string()], None),
            ([pa.duration("s"), pa.string()], None),
            ([pa.uuid(), pa.string()], None),
        ],
        ids=str,
    )
    def test_other_types_become_text_or_bytes_or_nothing(
        self, kinds: Sequence[pa.DataType], expected: pa.DataType | None
    ) -> None:
        assert carried_type(*kinds) == expected

    @pytest.mark.parametrize(
        "array",
        [
            pa.array([2**62], pa.timestamp("s")),
            pa.array([2**31 - 1], pa.int32()).view(pa.date32()),
            pa.array([86_400_005], pa.int64()).view(pa.date64()),
            pa.array([0], pa.timestamp("us", "No/Where")),
        ],
        ids=str,
    )
    def test_a_time_that_cannot_be_printed_whole_is_an_error(self, array: pa.Array) -> None:
        with pytest.raises(ContractViolation, match="column 'x' cannot be read as string without loss"):
            read_as(array, pa.string())

    def test_text_that_is_not_utf8_survives_as_bytes(self) -> None:
        latin = pa.array([b"\xe9"]).view(pa.string())
        assert read_as(latin, pa.large_binary()).to_pylist() == [b"\xe9"]


class TestBatch:
    def test_columns_are_ordered_filled_up_and_left_out_as_the_schema_says(self) -> None:
        batch = pa.RecordBatch.from_pydict({"b": pa.array([1, 2], pa.int8()), "c": ["x", "y"], "a": [True, None]})
        schema = pa.schema({"a": pa.bool_(), "new": pa.string(), "b": pa.int64()})
        assert cast(batch, schema).schema == schema
        assert cast(batch, schema).to_pydict() == {"a": [True, None], "new": [None, None], "b": [1, 2]}

    def test_a_column_that_has_its_type_already_is_not_copied(self) -> None:
        batch = pa.RecordBatch.from_pydict({"a": pa.array([1.0, 2.0])})
        same = cast(batch, batch.schema)
        assert same.column(0).buffers()[1].address == batch.column(0).buffers()[1].address

    def test_metadata_of_one_file_does_not_spread(self) -> None:
        batch = pa.RecordBatch.from_pydict({"a": [1]}, metadata={"written": "by one file"})
        assert cast(batch, pa.schema({"a": pa.int64()})).schema.metadata is None
