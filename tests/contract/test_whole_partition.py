"""What is said of a partition that passes piece by piece is what Great Expectations says of all of its rows as one frame."""

from __future__ import annotations

import datetime
import decimal
import resource
from datetime import UTC
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pytest

from pipeline.expectations import Evidence, library, validate
from pipeline.intervals import Interval
from pipeline.storage.spill import Roll

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from pipeline.job import JobSpec
    from pipeline.reports import ExpectationResult

    MakeJob = Callable[..., JobSpec]
    Declared = dict[str, Any]

START = datetime.datetime(2026, 1, 1, tzinfo=UTC)
DAY = Interval(START, START + datetime.timedelta(days=1))
TEXTS = np.array(["NL", "BE", "DE", "fr", "", "x9", "12", "2026-01-02", '{"a": 1}', "é"])
SETS: tuple[list[Any], ...] = ([1, 2, "NL", 3], [0, 1, 2.5], ["NL", "aa", ""], [True, False], ["2026-01-03"])
RANGES: tuple[Declared, ...] = (
    {"min_value": 0},
    {"max_value": 1.5, "strict_max": True},
    {"min_value": -1, "max_value": 1, "strict_min": True},
    {"min_value": "2026-01-01", "max_value": "2026-01-01T12:00:00+00:00"},
)
CONDITIONS = ("i > 10", "t == 'NL' or f > 0.5", "t in ['NL', 'BE'] and i_late <= 4", "i > 1000")
# Examples of these are the smallest values that repeat, not the first rows.
OTHER_EXAMPLES = {"expect_column_values_to_be_unique", "expect_compound_columns_to_be_unique"}
# What a sample answers, of columns that are no numbers; of booleans; and of dates.
OF_NUMBERS = {
    *("expect_column_mean_to_be_between", "expect_column_median_to_be_between", "expect_column_stdev_to_be_between"),
    *("expect_column_sum_to_be_between", "expect_column_quantile_values_to_be_between"),
    *("expect_column_value_z_scores_to_be_less_than", "expect_column_values_to_not_be_outliers"),
}
OF_ORDER = {"expect_column_values_to_be_increasing", "expect_column_values_to_be_decreasing"}
OF_KEYS = {
    *("expect_column_values_to_be_unique", "expect_column_unique_value_count_to_be_between"),
    *("expect_column_proportion_of_unique_values_to_be_between", "expect_column_most_common_value_to_be_in_set"),
    *("expect_column_distinct_values_to_be_in_set", "expect_column_distinct_values_to_contain_set"),
    *(
        "expect_column_distinct_values_to_equal_set",
        "expect_column_min_to_be_between",
        "expect_column_max_to_be_between",
    ),
}
# Of more than two columns whose types depend on whether a value is missing.
OF_MANY_TYPES = "expect_select_column_values_to_be_unique_within_record"
PIECE = 97


def columns(rng: np.random.Generator, rows: int) -> pa.Table:
    """Columns of every kind, some with holes from the beginning, one with holes near its end only."""

    def holed(values: list[Any], kind: pa.DataType, share: float, since: float = 0) -> pa.Array:
        holes = (rng.random(rows) < share) & (np.arange(rows) >= since * rows)
        return pa.array([None if hole else value for hole, value in zip(holes, values, strict=True)], kind)

    numbers = rng.normal(size=rows).round(2)
    numbers[rng.random(rows) < 0.05] = np.nan
    cents = [decimal.Decimal(int(value)) / 100 for value in rng.integers(0, 1000, rows)]
    flags = (rng.random(rows) < 0.5).tolist()
    return pa.table(
        {
            "row_id": np.arange(rows),
            "event_ts": pa.array(rng.integers(0, 86_400, rows), pa.timestamp("s", "UTC")),
            "f": numbers,
            "fn": holed(rng.normal(size=rows).tolist(), pa.float64(), 0.2),
            "f32": rng.normal(size=rows).astype(np.float32).round(1),
            "i": rng.integers(-5, 50, rows),
            "i_late": holed(rng.integers(0, 9, rows).tolist(), pa.int64(), 0.1, since=0.7),
            "u8": rng.integers(0, 4, rows).astype(np.uint8),
            "big": rng.integers(2**53, 2**53 + 6, rows),
            "dec": holed(cents, pa.decimal128(9, 2), 0.1),
            "t": holed(TEXTS[rng.integers(0, len(TEXTS), rows)].tolist(), pa.string(), 0.1),
            "code": pa.array(rng.choice(["aa", "bb", "c"], rows)).dictionary_encode(),
            "high": [f"id{value}" for value in rng.integers(0, 10**6, rows)],
            "b": flags,
            "bn": holed(flags, pa.bool_(), 0.1),
            "d": [START.date() + datetime.timedelta(days=int(value)) for value in rng.integers(0, 30, rows)],
            "none": pa.nulls(rows, pa.float64()),
            "up": np.cumsum(rng.integers(0, 2, rows)),
        }
    )


def about() -> Iterator[tuple[str, Declared]]:
    """Expectations of one column, whether they make sense of it or not."""
    values = "expect_column_values_to_"
    for kind in ("be_null", "not_be_null", "be_unique", "be_increasing", "be_json_parseable"):
        yield values + kind, {"mostly": 0.9}
    yield values + "be_decreasing", {"strictly": True, "mostly": 0.3}
    yield values + "be_dateutil_parseable", {"mostly": 0.1}
    yield values + "match_strftime_format", {"strftime_format": "%Y-%m-%d"}
    yield values + "match_regex", {"regex": "^[0-9aN]", "mostly": 0.4}
    yield values + "not_match_regex", {"regex": r"\.0$"}
    yield values + "match_regex_list", {"regex_list": ["a", "1"]}
    yield "expect_column_value_lengths_to_be_between", {"min_value": 2, "max_value": 3, "mostly": 0.5}
    for method in ("iqr", "std"):
        yield values + "not_be_outliers", {"method": method, "multiplier": 1.2}
    for both in (True, False):
        yield "expect_column_value_z_scores_to_be_less_than", {"threshold": 1.5, "double_sided": both, "mostly": 0.8}
    for bounds in RANGES:
        yield values + "be_between", {"mostly": 0.7, **bounds}
    for some in SETS:
        yield values + "be_in_set", {"value_set": some, "mostly": 0.5}
        yield values + "not_be_in_set", {"value_set": some}
        for kind in ("be_in_set", "contain_set", "equal_set"):
            yield f"expect_column_distinct_values_to_{kind}", {"value_set": some}
        yield "expect_column_most_common_value_to_be_in_set", {"value_set": some, "ties_okay": True}
    yield from aggregates()


def aggregates() -> Iterator[tuple[str, Declared]]:
    """Expectations of what a column is like as a whole, and of rows under a condition."""
    values = "expect_column_values_to_"
    for kind in ("min", "max", "mean", "median", "stdev", "sum", "unique_value_count"):
        yield f"expect_column_{kind}_to_be_between", {"min_value": 0, "max_value": 10}
    yield "expect_column_proportion_of_unique_values_to_be_between", {"min_value": 0.01, "max_value": 0.5}
    yield "expect_column_proportion_of_non_null_values_to_be_between", {"min_value": 0.85}
    ranges = {"quantiles": [0.1, 0.5, 0.93], "value_ranges": [[None, 0], [0, 9], [1, None]]}
    for method in (False, "linear", "higher", "midpoint"):
        yield "expect_column_quantile_values_to_be_between", {"quantile_ranges": ranges, "allow_relative_error": method}
    for condition in CONDITIONS:
        under = {"row_condition": condition, "condition_parser": "pandas"}
        yield values + "be_between", {"min_value": 0, **under}
        yield values + "be_in_set", {"value_set": ["NL", "aa", 1], **under}
        yield values + "be_increasing", under
        yield values + "not_be_null", under
        for kind in ("mean", "median", "max", "unique_value_count"):
            yield f"expect_column_{kind}_to_be_between", {"max_value": 3, **under}


def about_several() -> Iterator[tuple[str, Declared]]:
    """Expectations of two columns, and of more."""
    pairs = (("f", "fn"), ("i", "i_late"), ("t", "code"), ("i_late", "bn"), ("dec", "f"), ("b", "bn"))
    for first, second in pairs:
        for ignored in ("both_values_are_missing", "either_value_is_missing", "neither"):
            both = {"column_A": first, "column_B": second, "ignore_row_if": ignored}
            yield "expect_column_pair_values_to_be_equal", both
            yield "expect_column_pair_values_a_to_be_greater_than_b", {**both, "or_equal": True, "mostly": 0.3}
            yield "expect_column_pair_values_to_be_in_set", {**both, "value_pairs_set": [["NL", "aa"], [1, 2]]}
    lists = (["i", "i_late", "u8"], ["f", "fn"], ["t", "code"], ["row_id", "i"], ["b", "bn", "i"], ["big", "i"])
    for names in lists:
        for ignored in ("all_values_are_missing", "any_value_is_missing", "never"):
            several = {"column_list": names, "ignore_row_if": ignored}
            yield "expect_compound_columns_to_be_unique", several
            yield "expect_multicolumn_sum_to_equal", {**several, "sum_total": 10, "mostly": 0.01}
            yield "expect_multicolumn_values_to_be_equal", several
            yield "expect_select_column_values_to_be_unique_within_record", several


def valid(declared: list[tuple[str, Declared]]) -> list[Declared]:
    found = []
    for kind, kwargs in declared:
        with library.quiet():
            try:
                library.types()[kind](**kwargs)
            except ValueError:
                continue
        found.append({"type": kind, "kwargs": kwargs})
    return found


def outcome(
    make_job: MakeJob, declared: list[Declared], rows: pa.Table, folder: Path, **sizes: int
) -> list[ExpectationResult]:
    """What is said of the declared expectations when the rows come in small batches."""
    job = make_job(checks={"min_rows": 0, "expectations": declared})
    evidence = Evidence(job, rows.schema, lambda: Roll(folder), **sizes)
    for batch in rows.to_batches(max_chunksize=53):
        evidence.add(batch)
    results, _ = validate(job, DAY, evidence, rows_in=rows.num_rows, rows_quarantined=0, reasons={})
    return list(results[len(results) - len(declared) :])


def told(result: ExpectationResult) -> tuple[Any, ...]:
    """What must be equal: everything, but for texts of exceptions and for examples that are chosen in another way."""
    observed = result.observed
    if observed.startswith("could not be evaluated"):
        observed = "could not be evaluated"
    if result.type in OTHER_EXAMPLES or result.column == "big":
        observed = observed.partition(":")[0]
    # Which of two zeros is in the middle has no answer.
    observed = observed.replace("-0.0", "0.0")
    return (result.type, result.column, result.success, result.blocking, observed)


def assert_equal(
    make_job: MakeJob, declared: list[Declared], rows: pa.Table, folder: Path, left_to_a_sample: set[str]
) -> None:
    whole = outcome(make_job, declared, rows, folder, piece_rows=10**9, frame_rows=10**9)
    pieces = outcome(make_job, declared, rows, folder, piece_rows=PIECE, frame_rows=0)
    different = [
        (asked["kwargs"], one, other)
        for asked, one, other in zip(declared, whole, pieces, strict=True)
        if told(one) != told(other) and not other.observed.startswith("not judged")
    ]
    assert different == []
    unjudged = {
        asked["type"]
        for asked, one in zip(declared, pieces, strict=True)
        if one.observed == "not judged: needs every row"
    }
    assert unjudged <= left_to_a_sample


COLUMNS = columns(np.random.default_rng(0), 1).column_names


@pytest.mark.parametrize("column", COLUMNS)
def test_a_column_in_pieces_is_judged_like_the_whole_column(
    make_job: MakeJob, tmp_path: Path, rng: np.random.Generator, column: str
) -> None:
    declared = valid([(kind, {"column": column, **kwargs}) for kind, kwargs in about()])
    some = [declared[int(position)] for position in sorted(rng.permutation(len(declared))[:60])]
    rows = columns(rng, int(rng.integers(300, 600)))
    kind = rows.schema.field(column).type
    numbers = pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_decimal(kind)
    left = set() if numbers else OF_NUMBERS
    left = left | OF_ORDER if pa.types.is_boolean(kind) else left
    assert_equal(make_job, some, rows, tmp_path, left | OF_KEYS if pa.types.is_date(kind) else left)


def test_several_columns_in_pieces_are_judged_like_the_whole_columns(
    make_job: MakeJob, tmp_path: Path, rng: np.random.Generator
) -> None:
    assert_equal(make_job, valid(list(about_several())), columns(rng, 500), tmp_path, {OF_MANY_TYPES})


class TestLargePartitions:
    """Nothing but the size makes these differ from small ones: no switch is set."""

    rows = 150_000

    def passed(
        self, make_job: MakeJob, folder: Path, declared: list[Declared], **content: Any
    ) -> list[tuple[bool, str]]:
        table = pa.table(
            {"row_id": np.arange(self.rows), "event_ts": pa.nulls(self.rows, pa.timestamp("us")), **content}
        )
        job = make_job(checks={"min_rows": 0, "expectations": declared})
        evidence = Evidence(job, table.schema, lambda: Roll(folder))
        for batch in table.to_batches(max_chunksize=65_536):
            evidence.add(batch)
        results, _ = validate(job, DAY, evidence, rows_in=self.rows, rows_quarantined=0, reasons={})
        return [(one.success, one.observed) for one in results[len(results) - len(declared) :]]

    def test_one_bad_value_in_the_last_batch_is_found(self, make_job: MakeJob, tmp_path: Path) -> None:
        amount, country = np.zeros(self.rows), ["NL"] * self.rows
        amount[-1], country[-1] = 7.5, "XX"
        declared = [
            {"type": "expect_column_values_to_be_between", "kwargs": {"column": "amount", "max_value": 7}},
            {"type": "expect_column_max_to_be_between", "kwargs": {"column": "amount", "max_value": 7}},
            {"type": "expect_column_values_to_be_in_set", "kwargs": {"column": "country", "value_set": ["NL"]}},
            {
                "type": "expect_column_distinct_values_to_be_in_set",
                "kwargs": {"column": "country", "value_set": ["NL"]},
            },
            {"type": "expect_column_sum_to_be_between", "kwargs": {"column": "amount", "max_value": 7}},
            {"type": "expect_column_values_to_be_unique", "kwargs": {"column": "row_id"}},
        ]
        assert self.passed(make_job, tmp_path, declared, amount=amount, country=country) == [
            (False, "1 of 150,000 rows unexpected: 7.5"),
            (False, "7.5"),
            (False, "1 of 150,000 rows unexpected: XX"),
            (False, "1 unexpected: XX"),
            (False, "7.5"),
            (True, "0 of 150,000 rows unexpected"),
        ]

    def test_what_only_a_frame_answers_is_asked_of_the_sample_and_says_so(
        self, make_job: MakeJob, tmp_path: Path
    ) -> None:
        declared = [{"type": "expect_column_type_to_be", "kwargs": {"column": "row_id", "type_": "int64"}}]
        table = pa.table({"row_id": np.arange(self.rows)})
        job = make_job(checks={"min_rows": 0, "expectations": declared})
        evidence = Evidence(job, table.schema, lambda: Roll(tmp_path))
        evidence.add(table.to_batches()[0])
        assert evidence.needs_sample
        for sample, expected in (
            (None, (False, "not judged: needs every row")),
            (table.slice(0, 20), (True, "int64 (sample of 20 of 150,000 rows)")),
        ):
            results, _ = validate(job, DAY, evidence, rows_in=self.rows, rows_quarantined=0, reasons={}, sample=sample)
            assert (results[-1].success, results[-1].observed) == expected

    def test_memory_does_not_grow_with_the_rows(
        self, make_job: MakeJob, tmp_path: Path, rng: np.random.Generator
    ) -> None:
        declared = [
            {"type": "expect_column_median_to_be_between", "kwargs": {"column": "amount", "max_value": 1}},
            {"type": "expect_column_values_to_be_unique", "kwargs": {"column": "amount"}},
            {"type": "expect_column_unique_value_count_to_be_between", "kwargs": {"column": "row_id", "min_value": 1}},
        ]
        job = make_job(checks={"min_rows": 0, "expectations": declared})

        def grown(batches: int) -> int:
            schema = pa.schema([("row_id", pa.int64()), ("amount", pa.float64())])
            evidence = Evidence(job, schema, lambda: Roll(tmp_path))
            for number in range(batches):
                ids = np.arange(131_072) + number * 131_072
                evidence.add(pa.record_batch([ids, rng.random(131_072)], schema=schema))
            results, _ = validate(job, DAY, evidence, rows_in=evidence.rows, rows_quarantined=0, reasons={})
            assert [one.success for one in results[-3:]] == [True] * 3
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

        before = grown(24)
        # The rows alone take 84 MB more.
        assert (grown(64) - before) / 1024 < 64
