"""What Great Expectations really answers, and what the batch contract makes of it."""

from __future__ import annotations

import logging
import re
import resource
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pytest

import pipeline.expectations
from pipeline.errors import InvalidJob
from pipeline.expectations import QUARANTINED_SHARE, Evidence, known_type, validate
from pipeline.intervals import Interval
from pipeline.storage.spill import Roll

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipeline.job import JobSpec
    from pipeline.reports import ExpectationResult

    MakeJob = Callable[..., JobSpec]

DAY = Interval(datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 2, tzinfo=UTC))
BETWEEN = "expect_column_values_to_be_between"


def table(rows: int = 20, **columns: Any) -> pa.Table:
    content = {
        "row_id": pa.array(range(rows), pa.int64()),
        "event_ts": pa.array([DAY.start] * rows, pa.timestamp("us", "UTC")),
        "amount": pa.array([float(i % 10) for i in range(rows)], pa.float64()),
        "country": pa.array(["NL"] * rows, pa.string()),
    }
    return pa.table({**content, **columns})


def seen(job: JobSpec, rows: pa.Table, at_once: int = 131_072) -> Evidence:
    """What the rows say, shown in batches of at most so many."""
    with TemporaryDirectory() as scratch:
        evidence = Evidence(job, rows.schema, lambda: Roll(Path(scratch)))
        for batch in rows.to_batches(max_chunksize=at_once):
            evidence.add(batch)
        return evidence


def run(
    job: JobSpec, sample: pa.Table, rows_in: int | None = None, rows_quarantined: int = 0
) -> list[ExpectationResult]:
    results, _ = validate(
        job,
        DAY,
        seen(job, sample),
        rows_in=sample.num_rows + rows_quarantined if rows_in is None else rows_in,
        rows_quarantined=rows_quarantined,
        reasons={"null_time": rows_quarantined} if rows_quarantined else {},
    )
    return list(results)


def ask(make_job: MakeJob, sample: pa.Table, kind: str, rows_in: int | None = None, **kwargs: Any) -> ExpectationResult:
    """The outcome of one blocking expectation of the job's own."""
    return run(make_job(checks={"min_rows": 0, "expectations": [{"type": kind, "kwargs": kwargs}]}), sample, rows_in)[
        -1
    ]


def failures(results: list[ExpectationResult]) -> list[tuple[str, str | None, bool]]:
    return [(result.type, result.column, result.blocking) for result in results if not result.success]


class TestContractOfEveryJob:
    def test_a_normal_partition_meets_it(self, make_job: MakeJob) -> None:
        results = run(make_job(), table())
        assert failures(results) == []
        assert [(result.type, result.column, result.blocking) for result in results] == [
            ("expect_table_row_count_to_be_between", None, True),
            ("expect_column_max_to_be_between", QUARANTINED_SHARE, True),
            ("expect_table_columns_to_match_set", None, True),
            ("expect_column_values_to_not_be_null", "row_id", True),
            ("expect_column_values_to_not_be_null", "event_ts", True),
            ("expect_column_proportion_of_non_null_values_to_be_between", "amount", False),
            ("expect_column_proportion_of_non_null_values_to_be_between", "country", False),
        ]

    @pytest.mark.parametrize(("least", "met"), [(1000, True), (1001, False)])
    def test_the_row_count_is_the_partitions_and_not_the_samples(
        self, make_job: MakeJob, least: int, met: bool
    ) -> None:
        result = run(make_job(checks={"min_rows": least}), table(), rows_in=1000)[0]
        assert (result.success, result.observed) == (met, "1000")

    @pytest.mark.parametrize(("quarantined", "met"), [(5, True), (6, False)])
    def test_the_quarantined_share_has_a_limit(self, make_job: MakeJob, quarantined: int, met: bool) -> None:
        result = run(make_job(), table(), rows_in=100, rows_quarantined=quarantined)[1]
        assert (result.success, result.observed) == (met, f"{quarantined / 100:.6g}")

    def test_a_missing_column_blocks(self, make_job: MakeJob) -> None:
        assert failures(run(make_job(), table().drop_columns(["amount", "event_ts"]))) == [
            ("expect_table_columns_to_match_set", None, True)
        ]

    def test_a_null_in_the_key_or_the_time_blocks(self, make_job: MakeJob) -> None:
        sample = table(2, row_id=pa.array([1, None]), event_ts=pa.array([None, DAY.start]))
        assert failures(run(make_job(), sample)) == [
            ("expect_column_values_to_not_be_null", "row_id", True),
            ("expect_column_values_to_not_be_null", "event_ts", True),
        ]

    @pytest.mark.parametrize("column", [pa.nulls(3, pa.float64()), pa.nulls(3), pa.array([np.nan, None, np.nan])])
    def test_a_feature_without_any_value_is_a_warning(self, make_job: MakeJob, column: pa.Array) -> None:
        results = run(make_job(), table(3, amount=column))
        assert failures(results) == [("expect_column_proportion_of_non_null_values_to_be_between", "amount", False)]

    def test_a_feature_with_one_value_is_fine(self, make_job: MakeJob) -> None:
        assert failures(run(make_job(), table(3, amount=pa.array([None, 1.0, np.nan])))) == []

    def test_an_empty_partition_is_refused_unless_the_job_allows_it(self, make_job: MakeJob) -> None:
        assert failures(run(make_job(), table(0))) == [("expect_table_row_count_to_be_between", None, True)]
        assert failures(run(make_job(checks={"min_rows": 0}), table(0))) == []

    def test_a_partition_of_quarantined_rows_only_is_refused(self, make_job: MakeJob) -> None:
        results = run(make_job(), table(0), rows_quarantined=7)
        assert failures(results) == [("expect_column_max_to_be_between", QUARANTINED_SHARE, True)]


class TestOwnExpectations:
    @pytest.mark.parametrize("blocking", [True, False])
    def test_they_follow_in_order_and_say_whether_they_block(self, make_job: MakeJob, blocking: bool) -> None:
        declared = [
            {"type": BETWEEN, "kwargs": {"column": "nope", "min_value": 0}, "blocking": blocking},
            {"type": "expect_column_mean_to_be_between", "kwargs": {"column": "amount", "max_value": 1}},
            {"type": BETWEEN, "kwargs": {"column": "amount", "max_value": 8}, "blocking": blocking},
            {"type": BETWEEN, "kwargs": {"column": "amount", "max_value": 8}, "blocking": blocking},
            {"type": "expect_column_to_exist", "kwargs": {"column": "country"}},
        ]
        results = run(make_job(checks={"expectations": declared}), table())[-5:]
        assert [(r.column, r.success, r.blocking, r.observed) for r in results] == [
            ("nope", False, blocking, 'could not be evaluated: Error: The column "nope" in BatchData does not exist.'),
            ("amount", False, True, "4.5"),
            ("amount", False, blocking, "2 of 20 rows unexpected: 9.0, 9.0"),
            ("amount", False, blocking, "2 of 20 rows unexpected: 9.0, 9.0"),
            ("country", True, True, ""),
        ]

    @pytest.mark.parametrize(
        ("column", "success", "observed"),
        [
            (pa.array([0.5, 1.0]), True, "0 of 2 rows unexpected"),
            (pa.array([0.5, np.nan]), True, "0 of 2 rows unexpected"),
            (pa.array([0.5, np.inf]), False, "1 of 2 rows unexpected: inf"),
            (pa.array([np.nan, np.nan]), False, "nothing to check: all values are null"),
            (pa.nulls(2, pa.float64()), False, "nothing to check: all values are null"),
            (pa.nulls(2), False, "nothing to check: all values are null"),
            (pa.array([], pa.float64()), False, "nothing to check: no rows"),
            (pa.array(["a", "b"]), False, "could not be evaluated: Column values, min_value, and max_value must"),
            (pa.array([1, 2]).cast(pa.decimal128(21, 2)), False, "1 of 2 rows unexpected: 2.0"),
            (pa.array([1, 2]).dictionary_encode(), False, "1 of 2 rows unexpected: 2"),
        ],
    )
    def test_between_zero_and_one(self, make_job: MakeJob, column: pa.Array, success: bool, observed: str) -> None:
        sample = table(len(column), amount=column)
        result = ask(make_job, sample, BETWEEN, column="amount", min_value=0, max_value=1)
        assert result.success is success
        assert result.observed.startswith(observed)

    @pytest.mark.parametrize(
        ("kind", "kwargs"),
        [
            ("expect_column_mean_to_be_between", {"column": "amount", "max_value": 9}),
            ("expect_column_values_to_be_in_set", {"column": "country", "value_set": ["NL"]}),
            ("expect_column_values_to_be_unique", {"column": "amount"}),
            ("expect_column_distinct_values_to_be_in_set", {"column": "country", "value_set": ["NL"]}),
            ("expect_column_unique_value_count_to_be_between", {"column": "country", "min_value": 0}),
            ("expect_column_pair_values_to_be_equal", {"column_A": "amount", "column_B": "country"}),
            ("expect_compound_columns_to_be_unique", {"column_list": ["amount", "country"]}),
        ],
    )
    def test_nothing_to_check_is_never_a_success(self, make_job: MakeJob, kind: str, kwargs: dict[str, Any]) -> None:
        empty = table(3, amount=pa.nulls(3, pa.float64()), country=pa.nulls(3, pa.string()))
        results = [ask(make_job, sample, kind, **kwargs) for sample in (table(0), empty)]
        assert [(result.success, result.observed) for result in results] == [
            (False, "nothing to check: no rows"),
            (False, "nothing to check: all values are null"),
        ]

    def test_expectations_about_nulls_are_judged_on_nulls(self, make_job: MakeJob) -> None:
        empty = table(3, amount=pa.nulls(3, pa.float64()))
        found = {
            kind: ask(make_job, empty, kind, column="amount").success
            for kind in ("expect_column_values_to_be_null", "expect_column_values_to_not_be_null")
        }
        assert found == {"expect_column_values_to_be_null": True, "expect_column_values_to_not_be_null": False}

    def test_a_condition_that_leaves_no_rows_leaves_nothing_to_check(self, make_job: MakeJob) -> None:
        condition = {"row_condition": 'country=="BE"', "condition_parser": "pandas"}
        result = ask(make_job, table(), BETWEEN, column="amount", max_value=0, **condition)
        assert (result.success, result.observed) == (False, "nothing to check: no values under its condition")

    def test_quantiles_are_judged(self, make_job: MakeJob) -> None:
        def median_up_to(limit: float) -> ExpectationResult:
            ranges = {"quantiles": [0.5], "value_ranges": [[0, limit]]}
            kind = "expect_column_quantile_values_to_be_between"
            return ask(make_job, table(), kind, column="amount", quantile_ranges=ranges)

        assert (median_up_to(9).success, median_up_to(1).success) == (True, False)

    def test_row_counts_judge_the_partition_without_holding_it(self, make_job: MakeJob) -> None:
        before = time.process_time()
        kind = "expect_table_row_count_to_equal"
        found = [ask(make_job, table(), kind, rows_in=10**12, value=value) for value in (10**12, 20)]
        assert [(result.success, result.observed) for result in found] == [(True, f"{10**12}"), (False, f"{10**12}")]
        assert time.process_time() - before < 5

    def test_text_that_is_not_utf8_does_not_stop_the_others(self, make_job: MakeJob) -> None:
        broken = pa.Array.from_buffers(
            pa.string(), 1, [None, pa.py_buffer(np.array([0, 2], np.int32)), pa.py_buffer(b"\xff\xfe")]
        )
        assert failures(run(make_job(), table(1, note=broken))) == []


class TestInvalidJobs:
    def test_types_are_known_by_name(self) -> None:
        assert known_type(BETWEEN)
        assert not known_type("expect_column_values_to_be_nice")
        assert not known_type("expect_table_row_count_to_equal_other_table")

    @pytest.mark.parametrize(
        ("kind", "kwargs", "message"),
        [
            (
                "expect_nothing",
                {},
                "'expect_nothing' cannot be used: Great Expectations has no such type.*check orders",
            ),
            ("expect_table_row_count_to_equal_other_table", {}, "cannot be used: it needs a SQL database"),
            (BETWEEN, {"column": "amount", "max": 1}, "unknown arguments; expected .*max_value, min_value.*; got max;"),
            (BETWEEN, {"column": "amount", "severity": "info", "max_value": 1}, "unknown arguments.*got severity"),
            (BETWEEN, {"column": "amount"}, "wrong arguments.*min_value and max_value cannot both be None"),
            (BETWEEN, {"max_value": 1}, "wrong arguments; expected arguments among column,.*field required"),
            (BETWEEN, {"column": "amount", "max_value": {"$PARAMETER": "limit"}}, "unbound parameters.*limit"),
            ("expect_table_row_count_to_equal", {"value": 1, "row_condition": "a==1"}, "unknown arguments"),
        ],
    )
    def test_an_expectation_that_cannot_be_asked_is_refused(
        self, make_job: MakeJob, kind: str, kwargs: dict[str, Any], message: str
    ) -> None:
        with pytest.raises(InvalidJob, match=f"job 'orders'.*{message}"):
            ask(make_job, table(), kind, **kwargs)


class TestDataDocs:
    def page(self, make_job: MakeJob, **columns: Any) -> str:
        declared = [
            {"type": BETWEEN, "kwargs": {"column": "amount", "max_value": 8}},
            {"type": BETWEEN, "kwargs": {"column": "nope", "max_value": 8}},
            {"type": "expect_column_values_to_be_in_set", "kwargs": {"column": "country", "value_set": ["BE"]}},
            {
                "type": "expect_column_kl_divergence_to_be_less_than",
                "kwargs": {"column": "country", "partition_object": {"values": ["NL"], "weights": [1]}, "threshold": 1},
            },
        ]
        job = make_job(checks={"expectations": declared})
        sample = table(**columns)
        return validate(job, DAY, seen(job, sample), rows_in=21, rows_quarantined=1, reasons={"between:amount": 1})[1]

    def test_it_says_what_was_expected_and_found(self, make_job: MakeJob) -> None:
        page = self.page(make_job)
        text = " ".join(re.sub(r"<[^>]+>", " ", page).split())
        for expected in (
            "Validation of orders [2026-01-01T00:00:00Z, 2026-01-02T00:00:00Z)",
            "11 expectations, 3 not met, 3 of them blocking; 21 rows in.",
            "between:amount 1",
            "values must be less than or equal to 8",
            "2 unexpected values found. 10% of 20 total rows.",
            "values must belong to this set: BE",
            "The column &quot;nope&quot; in BatchData does not exist.",
        ):
            assert expected in text

    def test_equal_inputs_give_an_equal_page(self, make_job: MakeJob) -> None:
        first = self.page(make_job)
        time.sleep(1.1)
        assert self.page(make_job) == first

    def test_it_needs_no_network_and_runs_nothing(self, make_job: MakeJob) -> None:
        page = self.page(make_job)
        assert not re.search(r"https?:|//|<script|<link|<img|<a |src=|@import|vega", page.partition("</style>")[2])
        assert "prefers-color-scheme: dark" in page

    def test_values_and_names_of_the_data_cannot_become_markup(self, make_job: MakeJob) -> None:
        evil = "<img src=x onerror=alert(1)>"
        page = self.page(make_job, country=pa.array([evil] * 20), **{evil: pa.array([1] * 20)})
        assert "<img" not in page
        assert "&lt;img src=x onerror=alert(1)&gt;" in page


class TestBehaviourInAHost:
    def test_nothing_is_imported_before_the_first_call(self) -> None:
        program = (
            "import sys, pipeline.expectations as e; assert 'great_expectations' not in sys.modules; "
            "import os, logging; logging.basicConfig(level=logging.INFO); assert e.known_type('expect_column_to_exist'); "
            "assert os.environ['GX_ANALYTICS_ENABLED'] == 'false'"
        )
        root = str(Path(pipeline.expectations.__file__).parents[2])
        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=True, env={"PYTHONPATH": root}
        )
        assert done.stdout == ""
        assert "great_expectations" not in done.stderr

    def test_it_is_silent(
        self, make_job: MakeJob, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
    ) -> None:
        with caplog.at_level(logging.INFO):
            run(make_job(), table())
        assert caplog.records == []
        assert capfd.readouterr() == ("", "")

    def test_memory_does_not_grow(self, make_job: MakeJob, rng: np.random.Generator) -> None:
        job, sample = make_job(), table(1000, note=pa.array(rng.bytes(100) for _ in range(1000)))
        for _ in range(10):
            run(job, sample)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for _ in range(50):
            run(job, sample)
        grown_mb = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        assert grown_mb < 20
