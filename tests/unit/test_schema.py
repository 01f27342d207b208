"""The input contract and the row rules: what is refused, what is quarantined, what is counted."""

from __future__ import annotations

import decimal
from collections import Counter
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pytest

from pipeline import casts, keys
from pipeline.errors import ContractViolation
from pipeline.intervals import Interval
from pipeline.keys import SeenKeys
from pipeline.schema import RowChecker, common_schema, contract_problems, mixed_schema_problems

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipeline.job import JobSpec

    MakeJob = Callable[..., JobSpec]

DAY = Interval(datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 2, tzinfo=UTC))
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
STAMP = pa.timestamp("us", "UTC")
GOOD = pa.schema({"row_id": pa.int64(), "event_ts": STAMP, "amount": pa.float64(), "country": pa.string()})


def with_type(column: str, kind: pa.DataType) -> pa.Schema:
    return GOOD.set(GOOD.get_field_index(column), pa.field(column, kind))


def rows(n: int = 4, **columns: pa.Array) -> pa.RecordBatch:
    content = {
        "row_id": pa.array(range(n), pa.int64()),
        "event_ts": pa.array([NOON] * n, STAMP),
        "amount": pa.array([1.0] * n, pa.float64()),
        "country": pa.array(["NL"] * n, pa.string()),
    }
    return pa.RecordBatch.from_pydict({**content, **columns})


def check_one(job: JobSpec, batch: pa.RecordBatch) -> tuple[RowChecker, list[int], list[dict[str, Any]]]:
    """The checker, the good rows' positions by row_id, and the quarantined rows."""
    checker = RowChecker(job, DAY, batch.schema)
    checked = checker.check(batch)
    assert checked.good.schema == batch.schema
    bad = [] if checked.bad is None else checked.bad.to_pylist()
    assert checker.rows_in == checked.good.num_rows + len(bad)
    assert sum(checker.reasons.values()) == len(bad)
    assert Counter(row["reason_code"] for row in bad) == checker.reasons
    return checker, checked.good.column("row_id").to_pylist(), bad


class TestContract:
    def test_the_declared_columns_fit(self, make_job: MakeJob) -> None:
        assert contract_problems(GOOD, make_job()) == []

    def test_extra_columns_are_no_problem(self, make_job: MakeJob) -> None:
        assert contract_problems(GOOD.append(pa.field("note", pa.list_(pa.int8()))), make_job()) == []

    @pytest.mark.parametrize(
        ("column", "kind"),
        [
            *[("row_id", kind) for kind in (pa.int8(), pa.uint64(), pa.string(), pa.large_string())],
            ("row_id", pa.dictionary(pa.int32(), pa.string())),
            *[("event_ts", kind) for kind in (pa.timestamp("s"), pa.timestamp("ns", "Europe/Amsterdam"), pa.date32())],
            *[("amount", kind) for kind in (pa.int8(), pa.uint16(), pa.float16(), pa.float32(), pa.decimal128(9, 2))],
            ("amount", pa.null()),
            *[("country", kind) for kind in (pa.large_string(), pa.int32(), pa.bool_(), pa.float64(), pa.null())],
            ("country", pa.dictionary(pa.int8(), pa.large_string())),
        ],
    )
    def test_every_allowed_physical_type_fits(self, make_job: MakeJob, column: str, kind: pa.DataType) -> None:
        assert contract_problems(with_type(column, kind), make_job()) == []

    @pytest.mark.parametrize(
        ("column", "kind", "expected"),
        [
            ("amount", pa.string(), "column 'amount': expected a number, got string"),
            ("amount", pa.bool_(), "column 'amount': expected a number, got bool"),
            ("amount", pa.timestamp("us"), "column 'amount': expected a number, got timestamp[us]"),
            ("country", pa.binary(), "column 'country': expected text, integer codes or a boolean, got binary"),
            ("country", pa.list_(pa.string()), "column 'country': expected text, integer codes or a boolean, got list"),
            ("event_ts", pa.string(), "column 'event_ts': expected a timestamp or a date, got string"),
            ("event_ts", pa.null(), "column 'event_ts': expected a timestamp or a date, got null"),
            ("row_id", pa.float64(), "column 'row_id': expected an integer or text, got double"),
            ("row_id", pa.binary(), "column 'row_id': expected an integer or text, got binary"),
            ("row_id", pa.null(), "column 'row_id': expected an integer or text, got null"),
        ],
    )
    def test_a_wrong_physical_type_is_one_sentence(
        self, make_job: MakeJob, column: str, kind: pa.DataType, expected: str
    ) -> None:
        (problem,) = contract_problems(with_type(column, kind), make_job())
        assert problem.startswith(expected)

    def test_a_boolean_feature_takes_booleans_only(self, make_job: MakeJob) -> None:
        job = make_job(features={"columns": {"amount": {"type": "boolean"}}})
        assert contract_problems(with_type("amount", pa.bool_()), job) == []
        assert contract_problems(with_type("amount", pa.int8()), job) == [
            "column 'amount': expected a boolean, got int8"
        ]

    def test_a_key_column_that_is_also_the_time_is_judged_as_a_time(self, make_job: MakeJob) -> None:
        assert contract_problems(GOOD, make_job(features={"key": ["row_id", "event_ts"]})) == []

    def test_all_problems_are_reported_at_once(self, make_job: MakeJob) -> None:
        broken = pa.schema([("amount", pa.string()), ("country", pa.string()), ("country", pa.string())])
        problems = contract_problems(broken, make_job())
        assert problems == [
            "column 'country': appears 2 times, expected once",
            "column 'row_id': expected an integer or text, but the column is missing",
            "column 'event_ts': expected a timestamp or a date, but the column is missing",
            "column 'amount': expected a number, got string",
        ]

    @pytest.mark.parametrize(
        ("rule", "expected"),
        [
            ({"column": "country", "rule": "between", "min": 1}, "rule between:country: needs a number"),
            ({"column": "amount", "rule": "matches", "pattern": "x"}, "rule matches:amount: needs text"),
            ({"column": "amount", "rule": "in_set", "values": ["1", True]}, "rule in_set:amount: none of its values"),
        ],
    )
    def test_a_rule_that_can_never_be_asked_is_a_problem(
        self, make_job: MakeJob, rule: dict[str, Any], expected: str
    ) -> None:
        (problem,) = contract_problems(GOOD, make_job(checks={"rules": [rule]}))
        assert problem.startswith(expected)

    def test_the_checker_refuses_an_input_that_breaks_the_contract(self, make_job: MakeJob) -> None:
        with pytest.raises(ContractViolation, match=r"column 'amount': expected a number, got string.*pipeline check"):
            RowChecker(make_job(), DAY, with_type("amount", pa.string()))


class TestMixedSchemas:
    def test_equal_files_and_a_single_file_are_no_problem(self, make_job: MakeJob) -> None:
        assert mixed_schema_problems({"a": GOOD, "b": GOOD}, make_job()) == []
        assert mixed_schema_problems({"a": GOOD}, make_job()) == []
        assert mixed_schema_problems({}, make_job()) == []

    def test_order_and_unused_columns_may_differ(self, make_job: MakeJob) -> None:
        other = pa.schema([pa.field("note", pa.int8()), *reversed(list(GOOD))])
        assert mixed_schema_problems({"a": GOOD, "b": other}, make_job()) == []

    @pytest.mark.parametrize("kind", [pa.int32(), pa.float32(), pa.null()])
    def test_types_that_meet_without_loss_are_no_problem(self, make_job: MakeJob, kind: pa.DataType) -> None:
        schemas = {"a": GOOD, "b": with_type("amount", kind)}
        assert mixed_schema_problems(schemas, make_job()) == []
        assert common_schema(schemas, make_job()) == GOOD

    @pytest.mark.parametrize("kind", [pa.string(), pa.int64(), pa.decimal128(9, 2)])
    def test_a_used_column_whose_types_do_not_meet_is_named_with_its_files(
        self, make_job: MakeJob, kind: pa.DataType
    ) -> None:
        schemas = {"a": GOOD, "b": GOOD, "c": with_type("amount", kind)}
        problem = f"column 'amount': no type holds the values of all files without loss: double in 'a', {kind} in 'c'"
        assert mixed_schema_problems(schemas, make_job()) == [problem]
        with pytest.raises(ContractViolation, match=r"do not go together: column 'amount': no type holds"):
            common_schema(schemas, make_job())

    def test_a_lost_time_zone_and_a_missing_column_are_named(self, make_job: MakeJob) -> None:
        other = with_type("event_ts", pa.timestamp("us")).remove(GOOD.get_field_index("country"))
        assert mixed_schema_problems({"a": GOOD, "b": other}, make_job()) == [
            "column 'event_ts': no type holds the values of all files without loss: timestamp[us, tz=UTC] in 'a', "
            "timestamp[us] in 'b'",
            "file 'b': column 'country' is missing, but string in 'a'",
        ]

    def test_a_column_that_only_a_later_file_has_is_the_first_files_problem(self, make_job: MakeJob) -> None:
        first = GOOD.remove(GOOD.get_field_index("country"))
        assert mixed_schema_problems({"a": first, "b": GOOD}, make_job()) == [
            "file 'a': column 'country' is missing, but string in 'b'"
        ]

    def test_no_file_has_no_columns(self, make_job: MakeJob) -> None:
        assert common_schema({}, make_job()) == pa.schema([])


def with_note(kind: pa.DataType) -> pa.Schema:
    return GOOD.append(pa.field("note", kind, nullable=False, metadata={"unit": "none"}))


class TestCommonSchema:
    def test_columns_of_later_files_follow_and_every_field_may_be_null(self, make_job: MakeJob) -> None:
        other = pa.schema([pa.field("extra", pa.int8(), nullable=False), *reversed(list(with_note(pa.int16())))])
        schemas = {"a": with_note(pa.int8()), "b": other.with_metadata({"pandas": "{}"})}
        expected = pa.schema([*GOOD, pa.field("note", pa.int16()), pa.field("extra", pa.int8())])
        assert common_schema(schemas, make_job()).equals(expected, check_metadata=True)

    @pytest.mark.parametrize(
        ("kinds", "expected"),
        [
            ([pa.dictionary(pa.int8(), pa.string())], pa.string()),
            ([pa.int64(), pa.string(), pa.float64()], pa.string()),
            ([pa.timestamp("us"), pa.timestamp("us", "UTC")], pa.string()),
            ([pa.binary(), pa.string()], pa.large_binary()),
            ([pa.list_(pa.int8())] * 2, pa.list_(pa.int8())),
            ([pa.list_(pa.int8()), pa.string()], None),
        ],
        ids=str,
    )
    def test_an_unused_column_is_carried_in_a_type_that_loses_nothing_or_left_out(
        self, make_job: MakeJob, kinds: list[pa.DataType], expected: pa.DataType | None
    ) -> None:
        schemas = {str(position): with_note(kind) for position, kind in enumerate(kinds)}
        assert mixed_schema_problems(schemas, make_job()) == []
        found = common_schema(schemas, make_job())
        assert found == (GOOD if expected is None else GOOD.append(pa.field("note", expected)))


AMOUNTS, EVENTS = pa.array([1.5, 2.5]), pa.array([NOON, NOON], STAMP)
# What two files of one partition hold in a used column: values that survive, or a refusal. Readers that take the first
# file's schema for all turn the 7 of case 1 into a number, drop the zone of case 8, and round case 6.
MATRIX: dict[str, tuple[str, pa.Array, pa.Array, pa.DataType | None]] = {
    "1 number, then text that looks like one": ("row_id", pa.array([5, 6]), pa.array(["7", "8"]), None),
    "2 text, then numbers": ("country", pa.array(["1", "2"]), pa.array([3, 4]), None),
    "3 int32, then int64": ("row_id", pa.array([5, 6], pa.int32()), pa.array([2**40, 8]), pa.int64()),
    "4 int64, then uint64": ("row_id", pa.array([5, -6]), pa.array([2**63, 8], pa.uint64()), None),
    "5 int32, then double": ("amount", pa.array([2**31 - 1, 6], pa.int32()), AMOUNTS, pa.float64()),
    "6 int64, then double": ("amount", pa.array([2**53 + 1, 6]), AMOUNTS, None),
    "7 decimals of two scales": (
        "amount",
        pa.array([decimal.Decimal("1.25")] * 2, pa.decimal128(9, 2)),
        pa.array([decimal.Decimal("1.2345")] * 2, pa.decimal128(6, 4)),
        pa.decimal128(11, 4),
    ),
    "8 a time with a zone, then without": ("event_ts", EVENTS, EVENTS.cast(pa.timestamp("us")), None),
    "9 times of two units and zones": (
        "event_ts",
        EVENTS,
        EVENTS.cast(pa.timestamp("ns", "Europe/Amsterdam")),
        pa.timestamp("ns", "UTC"),
    ),
    "10 a date, then a time": ("event_ts", pa.array([NOON.date()] * 2), EVENTS.cast(pa.timestamp("us")), None),
    "11 null throughout, then numbers": ("amount", pa.nulls(2), AMOUNTS, pa.float64()),
    "12 a dictionary, then text": (
        "country",
        pa.array(["NL", None]).dictionary_encode(),
        pa.array(["BE", "é"], pa.large_string()),
        pa.large_string(),
    ),
    "13 booleans, then numbers": ("country", pa.array([True, False]), pa.array([1, 0]), None),
}


@pytest.mark.parametrize(("column", "first", "second", "kind"), MATRIX.values(), ids=MATRIX)
def test_files_of_different_types_are_read_exactly_or_refused(
    make_job: MakeJob, column: str, first: pa.Array, second: pa.Array, kind: pa.DataType | None
) -> None:
    job = make_job()
    for one, other in ((first, second), (second, first)):
        batches = {name: rows(2, **{column: array}) for name, array in (("a", one), ("b", other))}
        schemas = {name: batch.schema for name, batch in batches.items()}
        for schema in schemas.values():
            assert contract_problems(schema, job) == []
        problems = mixed_schema_problems(schemas, job)
        assert bool(problems) == (kind is None)
        if kind is None:
            assert all(text in problems[0] for text in (repr(column), str(one.type), str(other.type)))
            continue
        whole = common_schema(schemas, job)
        assert whole.field(column).type == kind
        for name, array in (("a", one), ("b", other)):
            read = casts.cast(batches[name], whole)
            assert read.schema == whole
            assert read.column(column).to_pylist() == array.to_pylist()


class TestPrecedence:
    def test_a_clean_batch_passes_unchanged(self, make_job: MakeJob) -> None:
        checker, good, bad = check_one(make_job(), rows())
        assert (good, bad, checker.rows_in, checker.reasons) == ([0, 1, 2, 3], [], 4, {})

    def test_an_empty_batch_passes(self, make_job: MakeJob) -> None:
        _, good, bad = check_one(make_job(), rows(0))
        assert (good, bad) == ([], [])

    def test_each_row_counts_once_under_the_first_reason(self, make_job: MakeJob) -> None:
        job = make_job(checks={"rules": [{"column": "amount", "rule": "between", "max": 10}]})
        late, none = NOON + timedelta(days=1), None
        batch = rows(
            7,
            row_id=pa.array([none, 1, 2, 3, 4, 5, 5]),
            event_ts=pa.array([none, none, late, NOON, NOON, NOON, NOON], STAMP),
            amount=pa.array([99, 99, 99, 99, -np.inf, 1, 1], pa.float64()),
        )
        checker, good, bad = check_one(job, batch)
        assert good == [5]
        assert [(row["rule_id"], row["reason_code"], row["value"]) for row in bad] == [
            ("null_key", "null_key:row_id", None),
            ("null_time", "null_time", None),
            ("outside_interval", "outside_interval", "2026-01-02 12:00:00.000000Z"),
            ("checks.rules[0]", "between:amount", "99"),
            ("not_finite", "not_finite:amount", "-inf"),
            ("duplicate_key", "duplicate_key", "5"),
        ]
        assert list(checker.reasons) == sorted(checker.reasons)

    def test_rules_are_asked_in_the_order_of_the_job_file(self, make_job: MakeJob) -> None:
        rules = [
            {"column": "country", "rule": "in_set", "values": ["NL"]},
            {"column": "amount", "rule": "between", "max": 0},
        ]
        batch = rows(2, country=pa.array(["XX", "NL"]))
        _, _, bad = check_one(make_job(checks={"rules": rules}), batch)
        assert [row["rule_id"] for row in bad] == ["checks.rules[0]", "checks.rules[1]"]

    def test_a_warning_only_counts(self, make_job: MakeJob) -> None:
        rules = [{"column": "amount", "rule": "between", "max": 0, "action": "warn"}]
        checker, good, bad = check_one(make_job(checks={"rules": rules}), rows(3))
        assert (good, bad, checker.reasons, checker.warnings) == ([0, 1, 2], [], {}, {"between:amount": 3})

    def test_totals_add_up_over_batches(self, make_job: MakeJob) -> None:
        checker = RowChecker(make_job(), DAY, GOOD)
        for _ in range(3):
            checker.check(rows(4))
        assert (checker.rows_in, checker.reasons) == (12, {"duplicate_key": 8})


class TestEventTime:
    @pytest.mark.parametrize("kind", [*(pa.timestamp(unit) for unit in ("s", "ms", "us", "ns")), STAMP])
    def test_the_interval_is_half_open_in_every_unit(self, make_job: MakeJob, kind: pa.DataType) -> None:
        per_second = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[kind.unit]
        start, end = (int(t.timestamp()) * per_second for t in (DAY.start, DAY.end))
        ticks = pa.array([start - 1, start, end - 1, end], pa.int64()).view(kind)
        _, good, bad = check_one(make_job(), rows(4, event_ts=ticks))
        assert good == [1, 2]
        assert {row["reason_code"] for row in bad} == {"outside_interval"}

    def test_another_zone_is_the_same_instant(self, make_job: MakeJob) -> None:
        times = pa.array([DAY.start, DAY.end], STAMP).cast(pa.timestamp("us", "America/New_York"))
        _, good, bad = check_one(make_job(), rows(2, event_ts=times))
        assert good == [0]
        assert bad[0]["value"] == "2026-01-02 00:00:00.000000Z"

    def test_dates_and_dictionaries_of_times_work(self, make_job: MakeJob) -> None:
        dates = pa.array([date(2025, 12, 31), date(2026, 1, 1), date(2026, 1, 2), None], pa.date32())
        for column in (dates, dates.cast(pa.timestamp("s")).dictionary_encode()):
            checker, good, _ = check_one(make_job(), rows(4, event_ts=column))
            assert good == [1]
            assert checker.reasons == {"null_time": 1, "outside_interval": 2}

    def test_a_bound_between_two_ticks_is_exact(self, make_job: MakeJob) -> None:
        odd = Interval(DAY.start + timedelta(microseconds=1), DAY.end)
        batch = rows(2, event_ts=pa.array([DAY.start, DAY.start + timedelta(seconds=1)], pa.timestamp("s")))
        assert RowChecker(make_job(), odd, batch.schema).check(batch).good.column("row_id").to_pylist() == [1]

    def test_rows_of_another_interval_do_not_belong_when_the_job_filters_by_time(self, make_job: MakeJob) -> None:
        job = make_job(features={"partition": ""})
        assert job.filters_by_time
        times = pa.array([NOON - timedelta(days=1), NOON, None, NOON + timedelta(days=1)], STAMP)
        checker = RowChecker(job, DAY, GOOD)
        checked = checker.check(rows(4, row_id=pa.array([None, 1, 2, 1]), event_ts=times))
        assert (checked.outside, checker.rows_in, checker.reasons) == (2, 2, {"null_time": 1})
        assert checked.good.column("row_id").to_pylist() == [1]


class TestRules:
    @pytest.mark.parametrize(
        ("rule", "column", "failing"),
        [
            ({"rule": "between", "min": 1, "max": 2}, pa.array([0.9, 1, 2, 2.1, None, np.nan]), [0, 3]),
            ({"rule": "between", "min": 1.5}, pa.array([1, 2, None], pa.uint8()), [0]),
            ({"rule": "between", "min": -5, "max": 300}, pa.array([0, 255], pa.uint8()), []),
            ({"rule": "between", "max": 2.0**53}, pa.array([2**53, 2**53 + 1]), [1]),
            ({"rule": "between", "min": float(2**63)}, pa.array([2**63 - 1, 2**63], pa.uint64()), [0]),
            ({"rule": "between", "min": 1}, pa.array([None, np.float16(0.5), np.float16(1)], pa.float16()), [1]),
            ({"rule": "between", "max": 1}, pa.array([decimal.Decimal("1.01"), None], pa.decimal128(9, 2)), [0]),
            ({"rule": "between", "max": 1}, pa.array([2, 1, 2]).dictionary_encode(), [0, 2]),
            ({"rule": "between", "max": 1}, pa.nulls(2), []),
            ({"rule": "not_null"}, pa.array([1.0, None, np.nan]), [1, 2]),
            ({"rule": "not_null"}, pa.array([1.0, None, np.nan], pa.float32()), [1, 2]),
            ({"rule": "not_null"}, pa.nulls(2), [0, 1]),
            ({"rule": "in_set", "values": [7, 8.5]}, pa.array([7.0, 8.5, 8, None, np.nan]), [2]),
            ({"rule": "in_set", "values": [7.0, 8.5, 999]}, pa.array([7, 8, None], pa.int8()), [1]),
            ({"rule": "in_set", "values": [0.1]}, pa.array([0.1, 0.2], pa.float32()), [1]),
            ({"rule": "in_set", "values": [1]}, pa.array([decimal.Decimal("1.00")], pa.decimal128(9, 2)), []),
            ({"rule": "in_set", "values": [7]}, pa.array([7, 8, 7]).dictionary_encode(), [1]),
        ],
    )
    def test_a_number_rule_fails_exactly_these_rows(
        self, make_job: MakeJob, rule: dict[str, Any], column: pa.Array, failing: list[int]
    ) -> None:
        job = make_job(checks={"rules": [{"column": "amount", **rule}]})
        _, good, bad = check_one(job, rows(len(column), amount=column))
        assert [row["row_id"] for row in bad] == failing
        assert good == [i for i in range(len(column)) if i not in failing]

    @pytest.mark.parametrize(
        ("rule", "column", "failing"),
        [
            ({"rule": "in_set", "values": ["a", "7"]}, pa.array(["a", "A", "7", "7 ", None]), [1, 3]),
            ({"rule": "in_set", "values": ["a"]}, pa.array(["a", "b"], pa.large_string()), [1]),
            ({"rule": "in_set", "values": ["a"]}, pa.array(["a", "b", None]).dictionary_encode(), [1]),
            ({"rule": "in_set", "values": [True]}, pa.array([True, False, None]), [1]),
            ({"rule": "matches", "pattern": "[A-Z]{2}"}, pa.array(["NL", "NLD", "nl", "NL\n", "", None]), [1, 2, 3, 4]),
            ({"rule": "matches", "pattern": "a|bc"}, pa.array(["a", "bc", "ac"], pa.large_string()), [2]),
            ({"rule": "matches", "pattern": r"(\w)\1"}, pa.array(["aa", "ab", None, "aab"]), [1, 3]),
            ({"rule": "matches", "pattern": r"(?!x)\d"}, pa.array(["1", "x", "٣", None]), [1, 2]),
            ({"rule": "matches", "pattern": r"\d"}, pa.array(["1", "x", "٣", None]), [1, 2]),
            ({"rule": "not_null"}, pa.array(["", None]), [1]),
        ],
    )
    def test_a_text_rule_fails_exactly_these_rows(
        self, make_job: MakeJob, rule: dict[str, Any], column: pa.Array, failing: list[int]
    ) -> None:
        job = make_job(checks={"rules": [{"column": "country", **rule}]})
        _, _, bad = check_one(job, rows(len(column), country=column))
        assert [row["row_id"] for row in bad] == failing

    def test_infinity_is_refused_in_number_features_only(self, make_job: MakeJob) -> None:
        endless = pa.array([np.inf, -np.inf, np.nan, 1.0], pa.float32())
        checker, good, _ = check_one(make_job(), rows(4, amount=endless, note=endless))
        assert good == [2, 3]
        assert checker.reasons == {"not_finite:amount": 2}

    def test_text_that_is_not_utf8_is_quarantined(self, make_job: MakeJob) -> None:
        latin = pa.Array.from_buffers(
            pa.string(), 3, [None, pa.py_buffer(np.array([0, 2, 4, 6], np.int32)), pa.py_buffer(b"NL\xe9\xe9BE")]
        )
        batch = rows(3, country=latin)
        checker = RowChecker(make_job(), DAY, batch.schema)
        checked = checker.check(batch)
        assert checked.bad is not None
        assert checked.good.column("row_id").to_pylist() == [0, 2]
        assert checker.reasons == {"not_text:country": 1}
        assert checked.bad.column("value").to_pylist() == ["\ufffd\ufffd"]


class TestQuarantine:
    def test_a_quarantined_row_keeps_its_raw_columns_and_says_why(self, make_job: MakeJob) -> None:
        batch = rows(2, amount=pa.array([np.inf, 1.0]), note=pa.array(["x", "y"]))
        checker = RowChecker(make_job(), DAY, batch.schema)
        checked = checker.check(batch)
        assert checked.bad is not None
        assert checked.bad.schema == checker.quarantine_schema
        assert checked.bad.schema.names == [*batch.schema.names, "rule_id", "reason_code", "value"]
        assert checked.bad.select(batch.schema.names) == batch.slice(0, 1)

    def test_a_long_value_is_cut_and_null_stays_null(self, make_job: MakeJob) -> None:
        rules = [{"column": "country", "rule": rule, "pattern": "x"} for rule in ("matches", "not_null")]
        batch = rows(2, country=pa.array(["é" * 300, None], pa.large_string()))
        _, _, bad = check_one(make_job(checks={"rules": rules}), batch)
        assert [row["value"] for row in bad] == ["é" * 200, None]

    def test_column_names_that_the_input_already_has_get_underscores(self, make_job: MakeJob) -> None:
        taken = {name: pa.array(["raw"]) for name in ("Rule_ID", "value", "_value")}
        checker, _, bad = check_one(make_job(), rows(1, amount=pa.array([np.inf]), **taken))
        assert checker.quarantine_schema.names[-3:] == ["_rule_id", "reason_code", "__value"]
        assert (bad[0]["value"], bad[0]["_rule_id"], bad[0]["__value"]) == ("raw", "not_finite", "inf")

    def test_values_of_different_reasons_stay_with_their_rows(self, make_job: MakeJob) -> None:
        rules = [
            {"column": "amount", "rule": "between", "max": 5},
            {"column": "country", "rule": "in_set", "values": ["NL"]},
        ]
        batch = rows(
            5,
            row_id=pa.array([7, 8, 9, 7, 10]),
            amount=pa.array([1.0, 6, 2, 1, 7.5]),
            country=pa.array(["NL", "NL", "BE", "NL", "NL"]),
        )
        _, _, bad = check_one(make_job(checks={"rules": rules}), batch)
        assert [(row["row_id"], row["value"]) for row in bad] == [(8, "6"), (9, "BE"), (7, "7"), (10, "7.5")]


def keys_of(kind: str, numbers: np.ndarray[Any, Any]) -> list[pa.Array]:
    texts = pa.array([f"order-{number}" for number in numbers])
    stations = pa.array((numbers % 3).astype(np.int8))
    return {
        "integer": [pa.array(numbers)],
        "unsigned": [pa.array(numbers.astype(np.uint64) + np.uint64(2**63))],
        "text": [texts.cast(pa.large_string())],
        "text and integer": [texts, stations],
        "integer, text and time": [stations, texts, pa.array(numbers).view(pa.timestamp("us"))],
    }[kind]


class Drawer:
    """A shelf that counts what it is given."""

    def __init__(self) -> None:
        self.kept = 0

    def keep(self, values: np.ndarray) -> np.ndarray:
        self.kept += 1
        return np.frombuffer(values.tobytes(), values.dtype)

    def rest(self) -> None:
        pass


class TestRepeatedKeys:
    @pytest.mark.parametrize("kind", ["integer", "unsigned", "text", "text and integer", "integer, text and time"])
    @pytest.mark.parametrize("batch_rows", [1, 37, 400, 5000])
    def test_exactly_the_rows_after_the_first_of_a_key_are_found(
        self, rng: np.random.Generator, kind: str, batch_rows: int
    ) -> None:
        numbers = rng.integers(0, 1500, 300 if batch_rows == 1 else 4000)
        columns, seen, found = keys_of(kind, numbers), SeenKeys(), []
        for start in range(0, len(numbers), batch_rows):
            found += seen.repeated([column[start : start + batch_rows] for column in columns]).tolist()
        known: set[int] = set()
        assert found == [number in known or bool(known.add(number)) for number in numbers.tolist()]

    @pytest.mark.parametrize("kind", ["integer", "unsigned", "text", "text and integer"])
    def test_keys_on_a_shelf_are_found_as_in_memory(
        self, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, kind: str
    ) -> None:
        monkeypatch.setattr(keys, "_SHELVED_BYTES", 1000)
        numbers, shelf = rng.integers(0, 1500, 4000), Drawer()
        columns, seen, found = keys_of(kind, numbers), SeenKeys(shelf), []
        for start in range(0, len(numbers), 100):
            found += seen.repeated([column[start : start + 100] for column in columns]).tolist()
        known: set[int] = set()
        assert found == [number in known or bool(known.add(number)) for number in numbers.tolist()]
        assert shelf.kept > 1
        assert sum(len(run) for run, _ in seen._runs) < 1000

    @pytest.mark.parametrize("kind", [np.int64, np.uint64])
    def test_numbers_without_gaps_take_no_memory_in_whatever_order_they_come(
        self, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, kind: type
    ) -> None:
        monkeypatch.setattr(keys, "_SHORTEST_STRETCH", 4)
        stretches = [np.arange(start, start + 10, dtype=kind) for start in range(0, 500, 10)]
        seen = SeenKeys()
        for position in rng.permutation(len(stretches)):
            assert not seen.repeated([pa.array(rng.permutation(stretches[position]))]).any()
        assert (seen._runs, len(seen._stretches._first)) == ([], 1)
        assert seen.repeated([pa.array(np.array([0, 250, 499, 500, 7000, 500], dtype=kind))]).tolist() == [
            *(True, True, True),
            *(False, False, True),
        ]

    def test_two_keys_that_share_a_hash_are_still_two_keys(self) -> None:
        one, other = "k0j5T000300Lb?Of00600i0000000J00", "0F0000GC0lQ00000Ca0?80ZR1<g;10?0"
        hashes = keys._hashes(pa.array([one, other]).cast(pa.large_binary()))
        assert hashes[0] == hashes[1]
        seen, stream = SeenKeys(), [[one, other, "x"], [other, one], ["y", other, one, "z"]]
        found = [seen.repeated([pa.array(texts)]).tolist() for texts in stream]
        assert found == [[False] * 3, [True] * 2, [False, True, True, False]]
        seen = SeenKeys()
        assert [seen.repeated([pa.array([text])]).item() for text in (one, other, one, other)] == [
            *(False, False),
            *(True, True),
        ]

    def test_parts_of_a_key_do_not_run_together(self) -> None:
        left = pa.array(["a", "ab", "1:a", "", "ab"])
        right = pa.array(["bc", "c", "b", "abc", "c"])
        assert SeenKeys().repeated([left, right]).tolist() == [False, False, False, False, True]

    def test_zero_bytes_and_empty_texts_are_different_keys(self) -> None:
        texts = pa.array(["", "\0", "\0\0", "a", "a\0", ""])
        seen = SeenKeys()
        assert [seen.repeated([texts[i : i + 1]]).item() for i in range(6)] == [False] * 5 + [True]

    def test_the_first_good_row_keeps_the_key_across_batches(self, make_job: MakeJob) -> None:
        checker = RowChecker(make_job(), DAY, GOOD)
        first = checker.check(rows(3, row_id=pa.array([1, 1, 2]), amount=pa.array([np.inf, 1, 1])))
        second = checker.check(rows(3, row_id=pa.array([3, 2, 1])))
        assert first.good.column("row_id").to_pylist() == [1, 2]
        assert second.good.column("row_id").to_pylist() == [3]
        assert checker.reasons == {"duplicate_key": 2, "not_finite:amount": 1}

    def test_a_key_of_several_columns_is_shown_whole(self, make_job: MakeJob) -> None:
        job = make_job(features={"key": ["row_id", "site"]})
        site = pa.array(["north", "south", "north"]).dictionary_encode()
        _, good, bad = check_one(job, rows(3, row_id=pa.array([1, 1, 1]), site=site))
        assert len(good) == 2
        assert [(row["reason_code"], row["value"]) for row in bad] == [("duplicate_key", "1|north")]

    def test_a_null_in_any_key_column_is_named(self, make_job: MakeJob) -> None:
        job = make_job(features={"key": ["row_id", "site"]})
        checker, _, _ = check_one(job, rows(2, site=pa.array(["a", None])))
        assert checker.reasons == {"null_key:site": 1}


def test_random_batches_agree_with_a_row_by_row_reading_of_the_rules(
    make_job: MakeJob, rng: np.random.Generator
) -> None:
    rules = [
        {"column": "amount", "rule": "between", "min": 0, "max": 50},
        {"column": "country", "rule": "in_set", "values": ["NL", "BE"]},
        {"column": "amount", "rule": "not_null"},
    ]
    checker = RowChecker(make_job(checks={"rules": rules}), DAY, GOOD)
    expected, known = Counter[str](), set[int]()
    for _ in range(20):
        n = int(rng.integers(0, 300))
        table = {
            "row_id": [None if rng.random() < 0.05 else int(rng.integers(0, 3000)) for _ in range(n)],
            "event_ts": [
                None if rng.random() < 0.05 else DAY.start + timedelta(hours=int(rng.integers(-2, 26)))
                for _ in range(n)
            ],
            "amount": [[None, np.nan, np.inf, -1.0, 7.0, 50.0][i] for i in rng.integers(0, 6, n)],
            "country": [[None, "NL", "BE", "XX"][i] for i in rng.integers(0, 4, n)],
        }
        reasons = [_reason(*row, known) for row in zip(*table.values(), strict=True)]
        expected.update(reason for reason in reasons if reason)
        checked = checker.check(pa.RecordBatch.from_pydict(table, schema=GOOD))
        assert ([] if checked.bad is None else checked.bad.column("reason_code").to_pylist()) == list(
            filter(None, reasons)
        )
        assert checked.good.num_rows == reasons.count(None)
    assert checker.reasons == dict(sorted(expected.items()))
    assert len(expected) == 7


def _reason(key: int | None, time: datetime | None, amount: float | None, country: str | None, known: set[int]) -> Any:
    number = None if amount is None or np.isnan(amount) else amount
    for fails, reason in (
        (key is None, "null_key:row_id"),
        (time is None, "null_time"),
        (time is not None and not DAY.start <= time < DAY.end, "outside_interval"),
        (number is not None and not 0 <= number <= 50, "between:amount"),
        (country is not None and country not in ("NL", "BE"), "in_set:country"),
        (number is None, "not_null:amount"),
        (key in known, "duplicate_key"),
    ):
        if fails:
            return reason
    assert key is not None
    known.add(key)
    return None
