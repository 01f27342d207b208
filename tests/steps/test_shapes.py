"""Odd but legitimate data through the whole loop: cadences, folders, files, keys, times, labels and column types."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import ContractViolation, NoData, NotEnoughLabels
from pipeline.intervals import Cadence, Interval
from pipeline.job import Column
from pipeline.reports import TriggerDecision
from pipeline.steps import retrain
from pipeline.steps.context import INTERVAL, LABEL

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from pipeline.job import JobSpec
    from pipeline.runtime import Runtime

    Change = Callable[[pa.Table, int], pa.Table]

START = datetime(2026, 1, 5, tzinfo=UTC)  # a Monday
HISTORY, SCORED, ROWS = 8, 2, 60
BY_HAND = TriggerDecision(fire=True, cause="manual", reason="test")


@dataclass
class Shape:
    """One way in which data may lie on disk, and the job fields that declare it."""

    interval: str = "1d"
    job: dict[str, Any] = field(default_factory=dict)
    features: Change = lambda table, number: table
    labels: Change = lambda table, number: table
    feature_folder: str | None = None
    label_folder: str | None = None
    files: int = 1
    truth: Callable[[np.ndarray, np.ndarray], Any] = lambda happened, amount: happened.astype("int64")
    together: bool = False


def rows_of(number: int, span: Interval, shape: Shape) -> tuple[pa.Table, pa.Table]:
    """Features and labels of one interval: the outcome mostly follows the amount."""
    rng = np.random.default_rng(500 + number)
    amount = rng.gamma(2.0, 50.0, ROWS).round(2)
    happened = (amount + rng.normal(0, 20, ROWS)) > 85
    seconds = np.sort(rng.integers(0, int((span.end - span.start).total_seconds()), ROWS))
    event = pa.array([span.start + timedelta(seconds=int(s)) for s in seconds], pa.timestamp("us", "UTC"))
    ids = pa.array(np.arange(ROWS) + number * 1000, pa.int64())
    arrival = pa.array([span.end + timedelta(minutes=1)] * ROWS, pa.timestamp("us", "UTC"))
    country = pa.array(rng.choice(["de", "fr", "nl"], ROWS))
    features = pa.table({"row_id": ids, "event_ts": event, "amount": amount, "country": country})
    label = pa.array(shape.truth(happened, amount))
    labels = pa.table({"row_id": ids, "label": label, "label_available_at": arrival})
    return shape.features(features, number), shape.labels(labels, number)


def write(root: Path, shape: Shape) -> None:
    """All intervals of a shape; folders that hold several of them get all their rows."""
    cadence = Cadence.parse(shape.interval)
    folders: dict[Path, list[pa.Table]] = defaultdict(list)
    line = START if cadence.unit != "mo" else START.replace(day=1)
    for number in range(HISTORY + SCORED):
        span = cadence.interval(line)
        features, labels = rows_of(number, span, shape)
        if shape.together:
            features = features.append_column("label", labels["label"])
            features = features.append_column("label_available_at", labels["label_available_at"])
        template = cadence.partition if shape.feature_folder is None else shape.feature_folder
        folders[root / "features" / line.strftime(template)].append(features)
        if not shape.together:
            template = template if shape.label_folder is None else shape.label_folder
            folders[root / "labels" / line.strftime(template)].append(labels)
        line = span.end
    for folder, tables in folders.items():
        folder.mkdir(parents=True, exist_ok=True)
        table = pa.concat_tables(tables)
        for part in range(shape.files):
            step = -(-table.num_rows // shape.files)
            pq.write_table(table.slice(part * step, step), folder / f"part-{part}.parquet")


def declared(make_job: Callable[..., JobSpec], root: Path, shape: Shape) -> JobSpec:
    """The job on a shape, with policies that need few rows."""
    cadence = Cadence.parse(shape.interval)
    longest = cadence.shift(START.replace(day=1), 1) - START.replace(day=1)
    length = int(longest.total_seconds())
    features: dict[str, Any] = {"uri": str(root / "features")}
    labels: dict[str, Any] = {"uri": str(root / ("features" if shape.together else "labels"))}
    if shape.feature_folder is not None:
        features["partition"] = shape.feature_folder
    if shape.label_folder is not None:
        labels["partition"] = shape.label_folder
    sections: dict[str, Any] = {
        "features": features,
        "labels": {**labels, "mature_after": "PT1H" if cadence.unit in "mh" else "P1D"},
        "schedule": {"interval": shape.interval, "start": cadence.floor(START).isoformat()},
        "retrain": {
            "window": f"PT{2 * HISTORY * length}S",
            "holdout": f"PT{2 * length}S",
            "cooldown": "PT0S",
            "min_rows": 50,
        },
        "model": {"parameters": {"max_iter": 5}},
        "promote": {"mode": "enabled", "min_labels": 10},
        "drift": {"detector": "scipy", "min_rows": 20},
        "performance": {"min_labels": 10},
    }
    for name, value in shape.job.items():
        sections[name] = {**sections.get(name, {}), **value} if isinstance(value, dict) else value
    return make_job(**sections)


@dataclass
class Lived:
    """What the loop said."""

    job: JobSpec
    manifests: list[Any]
    drift: list[Any]
    performance: list[Any]
    retrained: Any


@pytest.fixture
def world(tmp_path: Path, make_job: Callable[..., JobSpec]) -> Callable[[Shape], JobSpec]:
    """Writes a shape and returns the job on it."""

    def make(shape: Shape) -> JobSpec:
        write(tmp_path / "data", shape)
        return declared(make_job, tmp_path / "data", shape)

    return make


def line(job: JobSpec, number: int) -> datetime:
    """The start of interval ``number``, counted from 0."""
    first = START if job.cadence.unit != "mo" else START.replace(day=1)
    return job.cadence.shift(first, number)


def live(runtime: Runtime, job: JobSpec) -> Lived:
    """Bootstrap, then score, monitor and evaluate the later intervals, then train again."""
    begin, end = line(job, HISTORY), line(job, HISTORY + SCORED)
    known = end + job.labels.mature_after
    runtime.retrain(job, begin, bootstrap=True)
    manifests = list(runtime.score(job, begin, end))
    drift = list(runtime.monitor(job, begin, end))
    performance = runtime.evaluate(job, known)
    return Lived(job, manifests, drift, performance, runtime.retrain(job, known, trigger=BY_HAND))


def set_column(name: str, make: Callable[[pa.ChunkedArray, int], Any]) -> Change:
    """A change of one column; ``make`` gets the column and the interval's number."""
    return lambda table, number: table.set_column(table.column_names.index(name), name, make(table[name], number))


def cast(name: str, kind: pa.DataType) -> Change:
    return set_column(name, lambda column, number: column.cast(kind, safe=False))


def both(*changes: Change) -> Change:
    def change(table: pa.Table, number: int) -> pa.Table:
        for one in changes:
            table = one(table, number)
        return table

    return change


def as_text(column: pa.ChunkedArray, number: int) -> pa.Array:
    return pa.array([f"order-{value:06d}" for value in column.to_pylist()])


def naive(column: pa.ChunkedArray, number: int) -> pa.ChunkedArray:
    return column.cast(pa.timestamp("us"))


def add_boolean(table: pa.Table, number: int) -> pa.Table:
    values = [None if i % 5 == 0 else i % 2 == 0 for i in range(table.num_rows)]
    return table.append_column("returning", pa.array(values, pa.bool_()))


def repeat_keys(column: pa.ChunkedArray, number: int) -> pa.Array:
    """The same customers every day."""
    return pa.array(np.arange(len(column)), pa.int64())


BOTH_KEYS = {"features": {"key": ["shop", "number"]}}
split_key = both(
    lambda t, n: t.append_column("shop", pa.array([f"s{v % 3}" for v in t["row_id"].to_pylist()])),
    lambda t, n: t.append_column("number", t["row_id"].cast(pa.int32())),
    lambda t, n: t.drop_columns(["row_id"]),
)
INT_OR_FLOAT = set_column("amount", lambda c, n: pa.array(c.to_numpy().astype("int64")) if n % 2 else c)
DICTIONARY = set_column("country", lambda c, n: c.dictionary_encode() if n % 2 else c)
FLOAT_LABELS = set_column(
    "label", lambda c, n: pa.array([None, *c.to_pylist()[1:]], pa.int64()).cast(pa.float64()) if n % 2 else c
)
UNTIL_KNOWN = {"labels": {"available_at": None, "delay": "PT0S"}}
BOOLEAN = {"amount": {"type": "number"}, "country": {"type": "category"}, "returning": {"type": "boolean"}}

SHAPES = {
    "quarters of an hour": Shape("15m"),
    "weeks": Shape("1w"),
    "months": Shape("1mo"),
    "weeks in monthly folders": Shape("1w", feature_folder="month=%Y-%m"),
    "days without folders": Shape(feature_folder="", job={"features": {"partition": ""}}),
    "days in monthly folders": Shape(feature_folder="month=%Y-%m"),
    "hours in daily folders": Shape("1h", feature_folder="ds=%Y-%m-%d"),
    "several files per folder": Shape(files=3),
    "labels without folders": Shape(label_folder=""),
    "labels in the features' table": Shape(together=True),
    "labels in the features' unpartitioned table": Shape(together=True, feature_folder=""),
    "labels known after a delay": Shape(job=UNTIL_KNOWN, labels=lambda t, n: t.drop_columns(["label_available_at"])),
    "text labels": Shape(truth=lambda happened, amount: np.where(happened, "yes", "no")),
    "boolean labels": Shape(truth=lambda happened, amount: happened),
    "labels with gaps": Shape(labels=FLOAT_LABELS),
    "float classes": Shape(
        truth=lambda happened, amount: np.digitize(amount, [60, 120]).astype("float64"), job={"task": "multiclass"}
    ),
    "text classes": Shape(
        truth=lambda happened, amount: np.array(["low", "mid", "high"])[np.digitize(amount, [60, 120])],
        job={"task": "multiclass"},
    ),
    "decimal targets": Shape(
        truth=lambda happened, amount: pa.array([Decimal(str(a)) for a in amount], pa.decimal128(10, 2)),
        job={"task": "regression"},
    ),
    "text keys": Shape(features=set_column("row_id", as_text), labels=set_column("row_id", as_text)),
    "composite keys": Shape(features=split_key, labels=split_key, job=BOTH_KEYS),
    "narrow keys": Shape(features=cast("row_id", pa.int32())),
    "long text keys": Shape(
        features=set_column("row_id", lambda c, n: as_text(c, n).cast(pa.large_string())),
        labels=set_column("row_id", lambda c, n: as_text(c, n).dictionary_encode()),
    ),
    "keys with the time": Shape(
        features=lambda t, n: t,
        labels=lambda t, n: t.append_column("event_ts", rows_of(n, _daily(n), Shape())[0]["event_ts"]),
        job={"features": {"key": ["row_id", "event_ts"]}},
    ),
    "naive times": Shape(features=set_column("event_ts", naive), labels=set_column("label_available_at", naive)),
    "nanoseconds": Shape(
        features=cast("event_ts", pa.timestamp("ns", "UTC")),
        labels=cast("label_available_at", pa.timestamp("ns")),
        job={"drift": {"window": 2}},
    ),
    "dates as times": Shape(features=cast("event_ts", pa.date32())),
    "dates as times, known after a delay": Shape(
        features=cast("event_ts", pa.date32()),
        labels=lambda t, n: t.drop_columns(["label_available_at"]),
        job=UNTIL_KNOWN,
    ),
    "dates of arrival": Shape(labels=cast("label_available_at", pa.date32())),
    "dictionaries in some files": Shape(features=DICTIONARY, job={"drift": {"window": 3}}),
    "integers in some files": Shape(features=INT_OR_FLOAT, job={"drift": {"window": 3}}),
    "decimal features": Shape(features=cast("amount", pa.decimal128(12, 2))),
    "boolean features with gaps": Shape(features=add_boolean, job={"features": {"columns": BOOLEAN}}),
    "slices": Shape(
        features=both(add_boolean, DICTIONARY),
        job={"features": {"columns": BOOLEAN}, "performance": {"slices": ["country", "returning"]}},
    ),
}


def _daily(number: int) -> Interval:
    return Cadence.parse("1d").interval(START + timedelta(days=number))


@pytest.mark.parametrize("name", SHAPES)
def test_the_whole_loop_runs_on(name, runtime, world):
    job = world(SHAPES[name])
    lived = live(runtime, job)
    assert [m.rows_in for m in lived.manifests] == [ROWS] * SCORED
    assert all(m.rows_in == m.rows_scored + m.rows_quarantined for m in lived.manifests)
    assert [m.rows_quarantined for m in lived.manifests] == [0] * SCORED
    assert [r.rows for r in lived.drift] == [ROWS * job.drift.window] * SCORED
    assert all(r.verdict in ("stable", "drift") for r in lived.drift)
    missing = sum(n % 2 for n in range(HISTORY, HISTORY + SCORED)) if name == "labels with gaps" else 0
    assert sum(r.n for r in lived.performance) == ROWS * SCORED - missing
    assert all(r.value is not None and r.verdict != "insufficient_data" for r in lived.performance)
    assert lived.retrained.gate.n > 0
    assert runtime.ledger.model("orders", 2).left_out == {}


def test_customers_who_come_every_day_get_the_label_of_their_day(runtime, world):
    """Keys repeat from day to day, and label files hold whole months: the event time tells the days apart."""
    job = world(
        Shape(
            features=set_column("row_id", repeat_keys),
            together=True,
            feature_folder="month=%Y-%m",
            truth=lambda happened, amount: amount,
            job={"task": "regression"},
        )
    )
    runtime.retrain(job, line(job, HISTORY), bootstrap=True)
    rows, _, _ = retrain.collect(
        runtime.context(job), Interval(line(job, 0), line(job, HISTORY)), line(job, HISTORY + 1)
    )
    assert rows.num_rows == HISTORY * ROWS
    assert np.array_equal(rows["amount"].to_numpy(), rows[LABEL].to_numpy())


def test_a_sample_of_rows_is_joined_with_their_own_labels(runtime, world):
    job = world(Shape(truth=lambda happened, amount: amount, job={"task": "regression", "retrain": {"max_rows": 100}}))
    rows, _, _ = retrain.collect(
        runtime.context(job), Interval(line(job, 0), line(job, HISTORY)), line(job, HISTORY + 1)
    )
    assert rows.num_rows == 100
    assert np.array_equal(rows["amount"].to_numpy(), rows[LABEL].to_numpy())
    assert len(set(rows[INTERVAL].to_pylist())) > HISTORY / 2


def test_evaluation_of_a_huge_interval_uses_a_sample_of_it(runtime, world):
    shape = Shape(job={"performance": {"max_rows": 1000, "min_labels": 10}})
    shape.features = shape.labels = lambda t, n: pa.concat_tables(
        [t.set_column(0, "row_id", pa.array(np.arange(ROWS) + n * 1_000_000 + i * 1000)) for i in range(20)]
    )
    job = world(shape)
    runtime.retrain(job, line(job, HISTORY), bootstrap=True)
    list(runtime.score(job, line(job, HISTORY)))
    (report,) = runtime.evaluate(job, line(job, HISTORY + 2))
    assert (report.n, report.rows_scored) == (1000, 1200)


def test_slices_show_text_booleans_and_missing_values_and_add_up(runtime, world):
    job = world(
        Shape(
            features=both(add_boolean, DICTIONARY),
            job={"features": {"columns": BOOLEAN}, "performance": {"slices": ["country", "returning"]}},
        )
    )
    runtime.retrain(job, line(job, HISTORY), bootstrap=True)
    list(runtime.score(job, line(job, HISTORY)))
    (report,) = runtime.evaluate(job, line(job, HISTORY + 2))
    slices = {m.slice: m.n for m in report.slices if m.slice != "all"}
    assert set(slices) == {
        *(f"country={level}" for level in ("de", "fr", "nl")),
        *(f"returning={level}" for level in ("(null)", "false", "true")),
    }
    assert slices["returning=(null)"] == ROWS / 5
    assert sum(slices.values()) == 2 * ROWS


def test_a_slice_column_with_very_many_levels_is_cut_to_the_frequent_ones(runtime, world):
    job = world(
        Shape(
            features=lambda t, n: pa.concat_tables(
                [t.set_column(0, "row_id", pa.array(np.arange(ROWS) + n * 1000 + i * 100)) for i in range(3)]
            ).set_column(3, "country", pa.array([f"c{min(i, 120)}" for i in range(3 * ROWS)])),
            labels=lambda t, n: pa.concat_tables(
                [t.set_column(0, "row_id", pa.array(np.arange(ROWS) + n * 1000 + i * 100)) for i in range(3)]
            ),
            job={"performance": {"slices": ["country"]}},
        )
    )
    runtime.retrain(job, line(job, HISTORY), bootstrap=True)
    list(runtime.score(job, line(job, HISTORY)))
    (report,) = runtime.evaluate(job, line(job, HISTORY + 2))
    slices = {m.slice: m.n for m in report.slices if m.slice != "all"}
    assert (len(slices), slices["country=c120"], slices["country=(other)"]) == (101, 60, 21)


def test_keys_of_another_kind_in_the_labels_are_refused_by_name_and_once(runtime, world):
    job = world(Shape(labels=lambda t, n: set_column("row_id", as_text)(t, n) if n >= HISTORY else t))
    runtime.retrain(job, line(job, HISTORY), bootstrap=True)
    list(runtime.score(job, line(job, HISTORY), line(job, HISTORY + 2)))
    known = line(job, HISTORY + 4)
    with pytest.raises(
        ContractViolation,
        match=r"2 interval\(s\) cannot be measured: 2026-01-13.*'row_id' is string, but int64 in the feat",
    ):
        runtime.evaluate(job, known)
    assert runtime.evaluate(job, known) == []
    assert {r.verdict for r in runtime.ledger.performance("orders")} == {"insufficient_data"}


@pytest.mark.parametrize(
    ("kind", "values", "problem"),
    [
        ("binary", ["maybe"] * ROWS, "got string values maybe"),
        ("binary", [0, 1, 2] * (ROWS // 3), "got int64 values 2"),
        ("binary", [0.5] * ROWS, "a class is no whole number"),
        ("regression", ["many"] * ROWS, "cannot be the label of a regression job"),
        ("regression", [float("inf")] * ROWS, "a label is infinite"),
        ("regression", [[1.0]] * ROWS, "cannot be the label of a regression job"),
    ],
)
def test_labels_that_turn_into_something_else_are_named_and_do_not_stop_the_others(
    runtime, world, kind, values, problem
):
    odd = set_column("label", lambda c, n: pa.array(values) if n == HISTORY else c)
    truth = Shape().truth if kind == "binary" else lambda happened, amount: amount
    job = world(Shape(labels=odd, truth=truth, job={"task": kind}))
    runtime.retrain(job, line(job, HISTORY), bootstrap=True)
    list(runtime.score(job, line(job, HISTORY), line(job, HISTORY + 2)))
    with pytest.raises(ContractViolation, match=rf"1 interval\(s\) cannot be measured: 2026-01-13.*{problem}"):
        runtime.evaluate(job, line(job, HISTORY + 3))
    assert {r.start: r.n for r in runtime.ledger.performance("orders")} == {
        line(job, HISTORY): 0,
        line(job, HISTORY + 1): ROWS,
    }


def test_an_interval_without_one_class_is_insufficient_data_and_no_error(runtime, world):
    job = world(Shape(labels=set_column("label", lambda c, n: pa.array([0] * len(c)) if n == HISTORY else c)))
    lived = live(runtime, job)
    first = lived.performance[0]
    assert (first.verdict, first.value, first.n) == ("insufficient_data", None, ROWS)
    assert first.reason == "roc_auc is undefined."
    assert next(m.value for m in first.slices if m.metric == "accuracy") > 0


def test_a_holdout_without_one_class_says_so(runtime, world):
    job = world(Shape(labels=set_column("label", lambda c, n: pa.array([0] * len(c)) if n >= HISTORY - 3 else c)))
    with pytest.raises(NotEnoughLabels, match=r"roc_auc is undefined on the .* holdout rows.*retrain\.holdout"):
        runtime.retrain(job, line(job, HISTORY), bootstrap=True)


def test_an_interval_whose_rows_are_all_quarantined_within_the_limit_lives_on(runtime, world):
    nulls = set_column("row_id", lambda c, n: pa.nulls(len(c), pa.int64()) if n == HISTORY else c)
    job = world(Shape(features=nulls, job={"checks": {"max_quarantined": 1.0}}))
    lived = live(runtime, job)
    first = lived.manifests[0]
    assert (first.rows_in, first.rows_scored, first.reasons) == (ROWS, 0, {"null_key:row_id": ROWS})
    assert [r.verdict for r in lived.drift] == ["insufficient_data", lived.drift[1].verdict]
    assert [(r.n, r.rows_scored) for r in lived.performance] == [(0, 0), (ROWS, ROWS)]
    assert runtime.evaluate(job, line(job, HISTORY + 9)) == []


def test_columns_that_the_job_does_not_use_may_differ_from_file_to_file(runtime, world, tmp_path):
    job = world(Shape(files=2))
    runtime.retrain(job, line(job, HISTORY), bootstrap=True)
    for part in (0, 1):
        path = tmp_path / f"data/features/ds={line(job, HISTORY):%Y-%m-%d}/part-{part}.parquet"
        table = pq.read_table(path, partitioning=None)
        extra = pa.array([part] * table.num_rows) if part else pa.array(["a"] * table.num_rows)
        table = table.append_column("extra", extra).append_column(f"only_{part}", extra)
        ids = pa.array([None, *table["row_id"].to_pylist()[1:]], pa.int64())
        table = table.set_column(0, pa.field("row_id", pa.int64()), ids)
        if part:
            table = table.select(list(reversed(table.column_names)))
            table = table.set_column(
                table.column_names.index("country"), "country", table["country"].dictionary_encode()
            )
        pq.write_table(table, path)
    (manifest,) = runtime.score(job, line(job, HISTORY))
    assert (manifest.rows_scored, manifest.reasons) == (ROWS - 2, {"null_key:row_id": 2})
    quarantined = pq.read_table(manifest.quarantine_path, partitioning=None)
    assert {"row_id", "event_ts", "amount", "country"} < set(quarantined.column_names)
    assert quarantined.select(["extra", "only_0", "only_1"]).to_pydict() == {
        "extra": ["a", "1"],
        "only_0": ["a", None],
        "only_1": [None, 1],
    }


def test_broken_partitions_of_the_past_are_left_out_of_training_and_drift_and_named(runtime, world, tmp_path):
    job = world(Shape(job={"drift": {"window": 4}}))
    runtime.retrain(job, line(job, HISTORY), bootstrap=True)
    folder = tmp_path / "data"
    path = folder / f"features/ds={line(job, HISTORY - 2):%Y-%m-%d}/part-0.parquet"
    pq.write_table(pq.read_table(path, partitioning=None).drop_columns(["country"]), path)
    (folder / f"features/ds={line(job, HISTORY - 1):%Y-%m-%d}/part-0.parquet").write_bytes(b"half a delivery")
    path = folder / f"labels/ds={line(job, HISTORY - 4):%Y-%m-%d}/part-0.parquet"
    pq.write_table(pq.read_table(path, partitioning=None).drop_columns(["label"]), path)
    list(runtime.score(job, line(job, HISTORY), line(job, HISTORY + SCORED)))
    (report,) = runtime.monitor(job, line(job, HISTORY))
    assert report.rows == 2 * ROWS
    assert "left out of the window" in report.reason
    assert "2026-01-11T00:00:00Z, 2026-01-12T00:00:00Z" in report.reason
    made = runtime.retrain(job, line(job, HISTORY + SCORED + 1), trigger=BY_HAND)
    assert "3 interval(s) of the history could not be used; the first is 2026-01-09T00:00:00Z" in made.reason
    left_out = runtime.ledger.model("orders", 2).left_out
    assert [problem.split(":")[0] for problem in left_out.values()][1] == "job 'orders'"
    assert "column 'country'" in left_out["2026-01-11T00:00:00Z"]
    assert "not readable as Parquet" in left_out["2026-01-12T00:00:00Z"]


def test_a_monitored_interval_that_no_longer_fits_is_an_error(runtime, world, tmp_path):
    job = world(Shape())
    runtime.retrain(job, line(job, HISTORY), bootstrap=True)
    list(runtime.score(job, line(job, HISTORY)))
    path = tmp_path / f"data/features/ds={line(job, HISTORY):%Y-%m-%d}/part-0.parquet"
    pq.write_table(pq.read_table(path, partitioning=None).drop_columns(["country"]), path)
    with pytest.raises(ContractViolation, match=r"column 'country'.*missing"):
        list(runtime.monitor(job, line(job, HISTORY)))
    path.unlink()
    with pytest.raises(NoData, match=r"the input of \[2026-01-13.* is gone"):
        list(runtime.monitor(job, line(job, HISTORY)))


def test_a_job_that_changed_its_columns_says_so_and_a_person_can_bring_the_new_model_in(runtime, world):
    job = world(Shape(features=add_boolean))
    runtime.retrain(job, line(job, HISTORY), bootstrap=True)
    list(runtime.score(job, line(job, HISTORY)))
    columns = {**job.features.columns, "returning": Column(type="boolean")}
    changed = job.model_copy(update={"features": job.features.model_copy(update={"columns": columns})})
    with pytest.raises(
        ContractViolation,
        match=r"version 1 .*trained on other columns.*differences in returning.*pipeline promote orders",
    ):
        list(runtime.score(changed, line(job, HISTORY + 1)))
    made = runtime.retrain(changed, line(job, HISTORY + 1), trigger=BY_HAND)
    assert made.outcome == "insufficient_data"
    assert "cannot be compared: version 1" in made.reason
    runtime.promote(changed, 2, "it knows the new column", line(job, HISTORY + 1))
    assert [m.model_version for m in runtime.score(changed, line(job, HISTORY + 1))] == [2]
    reordered = changed.model_copy(
        update={"features": changed.features.model_copy(update={"columns": dict(reversed(columns.items()))})}
    )
    assert [m.model_version for m in runtime.score(reordered, line(job, HISTORY + 1))] == [2]
