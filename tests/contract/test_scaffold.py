"""Inferring a job file: every rule on small generated Parquet, the whole on real data sets."""

from __future__ import annotations

import os
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from pipeline import jobfile
from pipeline.errors import InvalidRequest
from pipeline.intervals import Cadence
from pipeline.scaffold import scaffold
from pipeline.scaffold.layout import infer_template
from pipeline.scaffold.pace import iso
from pipeline.scaffold.sample import spread
from pipeline.scaffold.text import number, quoted

REPOSITORY = Path(__file__).resolve().parents[2]
REAL = Path(os.environ.get("PIPELINE_REAL_DATA", REPOSITORY / "../shared/data"))
START = datetime(2026, 1, 1)
real_data = pytest.mark.skipif(not REAL.is_dir(), reason="real data sets are absent (PIPELINE_REAL_DATA)")


class Lake:
    """Small hive-partitioned data sets below one folder, and job files inferred from them."""

    def __init__(self, root: Path, rng: np.random.Generator) -> None:
        self.root = root
        self.rng = rng

    def write(self, name: str, table: pa.Table, template: str = "ds=%Y-%m-%d", days: pa.Array | None = None) -> str:
        """Write rows into one folder per instant of ``days`` (default: their own event times)."""
        times = (table["event_ts"] if days is None else days).to_pylist()
        folders = np.array([moment.strftime(template) for moment in times])
        for folder in np.unique(folders):
            path = self.root / name / str(folder)
            path.mkdir(parents=True, exist_ok=True)
            pq.write_table(table.filter(pa.array(folders == folder)), path / "part-0.parquet")
        return str(self.root / name)

    def table(self, days: int = 40, per_day: int = 30, start: datetime = START, **columns) -> pa.Table:
        """Rows evenly over days with a key, a time, a useful number and a label that depends on nothing."""
        n = days * per_day
        times = [
            start + timedelta(days=day, minutes=1440 * row // per_day) for day in range(days) for row in range(per_day)
        ]
        table = {
            "row_id": np.arange(n),
            "event_ts": pa.array(times, pa.timestamp("us")),
            "amount": self.rng.normal(50, 10, n).round(2),
            "label": self.rng.integers(0, 2, n),
        }
        given = {name: value(times) if callable(value) else value for name, value in columns.items()}
        return pa.table(table | given)

    def text(self, table: pa.Table, **changes) -> str:
        """The job file for features and labels in one table; keyword arguments replace those of `scaffold`."""
        template = changes.pop("template", "ds=%Y-%m-%d")
        uri = self.write("features", table, template)
        chosen = {"features": uri, "key": ["row_id"], "time": "event_ts", "label": "label", "task": "binary"}
        return scaffold("orders", **(chosen | {"interval": "1d", "delay": timedelta(days=1)} | changes))

    def job(self, table: pa.Table, **changes):
        return self.load(self.text(table, **changes))

    def load(self, text: str):
        path = self.root / "orders.yaml"
        path.write_text(text, encoding="utf-8")
        return jobfile.load(path)

    def reason(self, table: pa.Table, column: str, **changes) -> str:
        """Why a column was left out, from its comment; empty when it is a feature."""
        text = self.text(table, **changes)
        features = self.load(text).features.columns
        found = [line.split(" - ")[1] for line in text.splitlines() if line.startswith(f"    # {quoted(column)} - ")]
        assert bool(found) != (column in features)
        return found[0] if found else ""


@pytest.fixture
def lake(tmp_path, rng):
    return Lake(tmp_path, rng)


# Folders


@pytest.mark.parametrize(
    ("paths", "template"),
    [
        (["ds=2013-01-31/a.parquet", "ds=2013-02-01/b.parquet"], "ds=%Y-%m-%d"),
        (["ds=2013-01-31/hr=07/a.parquet"], "ds=%Y-%m-%d/hr=%H"),
        (["ds=2013-01-31/hm=0715/a.parquet"], "ds=%Y-%m-%d/hm=%H%M"),
        (["year=2013/month=01/day=31/hour=07/a.parquet"], "year=%Y/month=%m/day=%d/hour=%H"),
        (["month=2013-01/a.parquet"], "month=%Y-%m"),
        (["dt=20130131/a.parquet"], "dt=%Y%m%d"),
        (["2013/01/31/a.parquet"], "%Y/%m/%d"),
        (["ds=2013-01-31/region=eu/a.parquet", "ds=2013-01-31/region=us/a.parquet"], "ds=%Y-%m-%d"),
        (["100%=2013/a.parquet"], "100%%=%Y"),
        (["a.parquet"], ""),
        (["region=eu/ds=2013-01-31/a.parquet"], ""),
        (["store=1234/a.parquet"], ""),
        (["ds=2013-13-31/a.parquet"], ""),
        (["ds=20\uff11\uff13-01-31/a.parquet"], ""),
        (["ds=2013-01-31/a.parquet", "ds=__HIVE_DEFAULT_PARTITION__/a.parquet"], ""),
        (["ds=2013-01-31/a.parquet", "a.parquet"], ""),
    ],
)
def test_the_template_of_folders_is_what_all_of_them_follow(paths, template):
    assert infer_template(paths) == template


@pytest.mark.parametrize(
    ("interval", "template"),
    [
        ("1d", "ds=%Y-%m-%d"),
        ("1h", "ds=%Y-%m-%d/hr=%H"),
        ("1d", "month=%Y-%m"),
        ("1mo", "year=%Y/month=%m"),
        ("1d", ""),
    ],
)
def test_partition_and_start_come_from_the_folders(lake, interval, template):
    job = lake.job(lake.table(start=datetime(2026, 1, 10, 7, 30)), interval=interval, template=template)
    assert job.feature_partition == job.label_partition == template
    assert job.schedule.start == Cadence.parse(interval).floor(datetime(2026, 1, 10, 7, 30, tzinfo=UTC))


def test_features_and_labels_may_lie_in_differently_named_folders(lake):
    table = lake.table()
    labels = lake.write("labels", table.select(["row_id", "label"]), "month=%Y-%m", days=table["event_ts"])
    job = lake.job(table.drop_columns("label"), labels=labels, template="ds=%Y-%m-%d/hr=%H")
    assert (job.feature_partition, job.label_partition) == ("ds=%Y-%m-%d/hr=%H", "month=%Y-%m")
    assert list(job.features.columns) == ["amount"]


def test_an_event_outside_its_folder_does_not_move_the_start(lake):
    table = lake.table()
    stray = table.slice(0, 1).set_column(1, "event_ts", pa.array([datetime(2009, 1, 1)], pa.timestamp("us")))
    lake.write("features", pa.concat_tables([stray, table]), days=pa.array([START, *table["event_ts"].to_pylist()]))
    job = lake.job(table.slice(60))
    assert job.schedule.start == START.replace(tzinfo=UTC)


def test_the_spread_covers_first_and_last_and_every_weekday_and_hour():
    days, hours = spread(7 * 240, 240), spread(24 * 3 * 240, 240)
    assert (days[0], days[-1], len(days)) == (0, 7 * 240 - 1, 240)
    assert {day % 7 for day in days} == set(range(7))
    assert {hour % 24 for hour in hours} == set(range(24))
    assert spread(5, 240) == [0, 1, 2, 3, 4]


# Types of columns


def test_types_follow_what_the_columns_hold(lake):
    n = 40 * 30
    table = lake.table(
        country=lake.rng.choice(["SE", "NO", "DE"], n),
        coded=pa.array(lake.rng.choice(["a", "b"], n)).dictionary_encode(),
        vip=lake.rng.integers(0, 2, n).astype(bool),
        price=pa.array([Decimal(int(v)) / 100 for v in lake.rng.integers(0, 9999, n)], pa.decimal128(9, 2)),
        items=lake.rng.integers(0, 50, n),
        promo=lake.rng.integers(0, 2, n),
        store_id=lake.rng.integers(0, 20, n),
        PULocationID=lake.rng.integers(0, 20, n),
        zip=lake.rng.integers(10000, 10020, n),
        type_id=np.where(np.arange(n) % 9 == 0, np.nan, lake.rng.integers(0, 5, n)),
    )
    types = {name: column.type for name, column in lake.job(table).features.columns.items()}
    assert types == {
        "amount": "number",
        "country": "category",
        "coded": "category",
        "vip": "boolean",
        "price": "number",
        "items": "number",
        "promo": "number",
        "store_id": "category",
        "PULocationID": "category",
        "zip": "category",
        "type_id": "category",
    }


def test_a_column_that_is_whole_in_one_file_and_broken_in_another_is_a_number(lake):
    lake.write("features", lake.table(days=5, hour=np.arange(150) % 24), days=None)
    job = lake.job(lake.table(days=5, start=START + timedelta(days=5), hour=np.arange(150) % 24 + 0.5))
    assert job.features.columns["hour"].type == "number"


# What is left out


@pytest.mark.parametrize(
    ("column", "values", "reason"),
    [
        ("row_id", None, "the key"),
        ("event_ts", None, "the event time"),
        ("label", None, "the label"),
        ("constant", lambda t: ["x"] * len(t), "a single value in the sample"),
        ("empty", lambda t: pa.nulls(len(t), pa.float64()), "no values in the sample"),
        ("typeless", lambda t: pa.nulls(len(t)), "no values in the sample"),
        (
            "session",
            lambda t: [f"s{i}" for i in range(len(t))],
            "nearly every row has another value: it identifies rows",
        ),
        ("user_id", lambda t: np.arange(len(t))[::-1], "nearly every row has another value: it identifies rows"),
        ("ordered_at", lambda t: pa.array(t), "an instant"),
        ("birthday", lambda t: [date(1980, 1, 1 + i % 28) for i in range(len(t))], "an instant"),
        ("tags", lambda t: [["a"]] * len(t), "list<element: string> is no kind of feature"),
        ("counter", lambda t: np.arange(len(t)), "restates the calendar (it only grows with time)"),
        ("epoch", lambda t: [x.timestamp() for x in t], "restates the calendar (it only grows with time)"),
    ],
)
def test_a_column_that_tells_nothing_is_left_out_with_its_reason(lake, column, values, reason):
    table = lake.table(**({column: values} if values else {}))
    assert lake.reason(table, column) == reason


def test_a_column_that_also_lies_in_the_labels_is_no_feature(lake):
    table = lake.table(days=5, leak=lake.rng.normal(size=150), score_after=lake.rng.normal(size=150))
    labels = lake.write("labels", table.select(["row_id", "label", "leak", "score_after"]), days=table["event_ts"])
    text = lake.text(table.drop_columns(["label", "score_after"]), labels=labels)
    assert list(lake.load(text).features.columns) == ["amount"]
    assert "# leak - lies in the labels: it may tell the outcome" in text
    assert "# score_after - lies in the labels: it may tell the outcome" in text


def test_excluded_columns_are_left_out_on_request(lake):
    assert (
        lake.reason(lake.table(days=5, extra=lake.rng.normal(size=150)), "extra", exclude=["extra"])
        == "excluded on request"
    )


@pytest.mark.parametrize(
    ("column", "values", "part"),
    [
        ("year", lambda t: [x.year for x in t], "year"),
        ("yr", lambda t: [x.year - 2026 for x in t], "the same all day, changing monthly at most"),
        ("month", lambda t: [x.month for x in t], "month"),
        ("mnth", lambda t: [float(x.month - 1) for x in t], "month"),
        ("month_text", lambda t: [f"{x.month:02}" for x in t], "month"),
        ("day", lambda t: [x.day for x in t], "day of the month"),
        ("yday", lambda t: [x.timetuple().tm_yday for x in t], "day of the year"),
        ("week", lambda t: [x.isocalendar().week for x in t], "ISO week"),
        ("season", lambda t: [x.month % 12 // 3 for x in t], "the same all day, changing monthly at most"),
        ("half", lambda t: ["h1" if x.month < 7 else "h2" for x in t], "the same all day, changing monthly at most"),
        ("summer", lambda t: [x.month in (6, 7, 8) for x in t], "the same all day, changing monthly at most"),
    ],
)
def test_a_column_that_only_restates_the_calendar_is_left_out(lake, column, values, part):
    table = lake.table(days=420, per_day=4, **{column: values})
    assert lake.reason(table, column, template="month=%Y-%m") == f"restates the calendar ({part})"


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("hour", lambda t: [x.hour for x in t]),
        ("weekday", lambda t: [x.weekday() for x in t]),
        ("weekday_name", lambda t: [x.strftime("%a") for x in t]),
        ("weekend", lambda t: [x.weekday() >= 5 for x in t]),
        ("holiday", lambda t: [int(x.timetuple().tm_yday % 90 == 5) for x in t]),
        ("weather", lambda t: [(x.toordinal() * 7919) % 5 for x in t]),
        ("stock", lambda t: [(x.month + i) % 12 for i, x in enumerate(t)]),
        ("edition", lambda t: [f"no {x.toordinal()}" for x in t]),
    ],
)
def test_what_comes_back_within_a_training_window_stays_a_feature(lake, column, values):
    assert lake.reason(lake.table(days=420, per_day=4, **{column: values}), column, template="month=%Y-%m") == ""


@pytest.mark.parametrize("days", [1, 4])
def test_hours_and_weekdays_stay_features_when_there_are_few_days(lake, days):
    table = lake.table(days=days, hour=lambda t: [x.hour for x in t], weekday=lambda t: [x.weekday() for x in t])
    assert lake.reason(table, "hour") == ""
    assert lake.reason(table, "weekday") == ("a single value in the sample" if days == 1 else "")


def test_an_hour_that_grows_all_day_long_is_no_row_counter(lake):
    assert lake.reason(lake.table(per_day=24, hour=lambda t: [x.hour for x in t]), "hour") == ""


def test_ten_days_are_too_few_to_call_a_change_a_season(lake):
    assert lake.reason(lake.table(days=10, tariff=lambda t: [x.day > 4 for x in t]), "tariff") == ""


def test_months_stay_a_feature_when_trainings_look_back_for_years(lake):
    table = lake.table(days=1000, per_day=2, month=lambda t: [x.month for x in t], year=lambda t: [x.year for x in t])
    assert lake.reason(table, "month", interval="1mo", template="") == ""
    assert lake.reason(table, "year", interval="1mo", template="") == "restates the calendar (year)"


# Checks


def test_rules_describe_the_sample_and_only_warn(lake):
    n = 40 * 30
    table = lake.table(
        country=lake.rng.choice(["SE", "NO", "9E"], n),
        debt=np.where(np.arange(n) % 7 == 0, np.nan, lake.rng.uniform(-1, 1, n)),
        wild=np.where(np.arange(n) == 3, np.inf, lake.rng.uniform(0, 99, n)),
        many=[f"v{i % 60}" for i in range(n)],
    )
    rules = {rule.code: rule for rule in lake.job(table).checks.rules}
    assert {rule.action for rule in rules.values()} == {"warn"}
    assert rules["in_set:country"].values == ("9E", "NO", "SE")
    assert "in_set:many" not in rules
    assert "not_null:amount" in rules
    assert "not_null:debt" not in rules
    assert rules["between:debt"].min == pytest.approx(-3, abs=0.1)
    assert rules["between:debt"].max == pytest.approx(3, abs=0.1)
    assert rules["between:wild"].min == 0
    assert rules["between:wild"].max == pytest.approx(198, abs=3)


# Labels


@pytest.mark.parametrize(
    ("late", "mature"), [(0, 0), (-20, 0), (0.5, 1), (1, 1), (12, 12), (13, 24), (60, 72), (24 * 20, 24 * 30)]
)
def test_labels_mature_when_nearly_all_have_arrived(lake, late, mature):
    table = lake.table()
    ends = [datetime(x.year, x.month, x.day) + timedelta(days=1, hours=late) for x in table["event_ts"].to_pylist()]
    ends[5] += timedelta(days=300)  # one straggler among 1,200 does not count
    table = table.append_column("known_at", pa.array(ends, pa.timestamp("us")))
    job = lake.job(table, available_at="known_at", delay=None)
    assert job.labels.mature_after == timedelta(hours=mature)
    assert job.labels.available_at == "known_at"
    assert "known_at" not in job.features.columns


@pytest.mark.parametrize(("delay", "mature"), [(timedelta(hours=36), timedelta(days=2)), (timedelta(0), timedelta(0))])
def test_a_fixed_delay_decides_maturity(lake, delay, mature):
    job = lake.job(lake.table(), delay=delay)
    assert (job.labels.delay, job.labels.mature_after) == (delay, mature)


def test_keys_that_return_in_every_partition_are_joined_within_theirs(lake):
    table = lake.table(row_id=np.tile(np.arange(30), 40))
    known = [x.replace(hour=0, minute=0) + timedelta(days=1, hours=12) for x in table["event_ts"].to_pylist()]
    labels = table.select(["row_id", "label"]).append_column("known_at", pa.array(known, pa.timestamp("us")))
    uri = lake.write("labels", labels, days=table["event_ts"])
    job = lake.job(table.drop_columns("label"), labels=uri, available_at="known_at", delay=None)
    assert job.labels.mature_after == timedelta(hours=12)


@pytest.mark.parametrize(
    ("task", "labels", "message"),
    [
        ("binary", lambda n: np.arange(n) % 5, "got 5 different values.*--task multiclass"),
        ("binary", lambda n: np.arange(n) / 7, "--task regression"),
        ("binary", lambda n: np.ones(n), "a single class"),
        ("multiclass", lambda n: np.arange(n) / 7, "some of them fractions.*--task regression"),
        ("regression", lambda n: [f"c{i % 3}" for i in range(n)], "got text values.*--task multiclass"),
    ],
)
def test_labels_of_another_kind_than_the_task_are_refused(lake, task, labels, message):
    with pytest.raises(InvalidRequest, match=message):
        lake.text(lake.table(days=5).drop_columns("label").append_column("label", pa.array(labels(150))), task=task)


@pytest.mark.parametrize(
    ("task", "labels", "metric"),
    [
        ("binary", ["yes", "no", None], "roc_auc"),
        ("multiclass", ["a", "b", "c"], "log_loss"),
        ("regression", [1.5, 2.0, 3.0], "mae"),
    ],
)
def test_each_task_accepts_its_labels_and_names_its_metric(lake, task, labels, metric):
    table = lake.table(days=5).drop_columns("label").append_column("label", pa.array(labels * 50))
    assert lake.job(table, task=task).performance.metric == metric


# Thresholds


@pytest.mark.parametrize(
    ("interval", "window"), [("1d", 7), ("1h", 24), ("6h", 4), ("15m", 96), ("1m", 366), ("1w", 4), ("1mo", 1)]
)
def test_a_drift_window_covers_a_whole_cycle(lake, interval, window):
    job = lake.job(lake.table(days=70, per_day=4), interval=interval, template="")
    assert job.drift.window == window
    assert job.retrain.holdout < job.retrain.window


def test_minimum_rows_can_be_reached_by_small_intervals(lake):
    table = lake.table(days=30, per_day=8)
    half = pa.array([value if index % 2 else None for index, value in enumerate(table["label"].to_pylist())])
    job = lake.job(table.set_column(table.column_names.index("label"), "label", half))
    assert (job.drift.min_rows, job.performance.min_labels) == (42, 3)
    assert (job.retrain.min_rows, job.promote.min_labels) == (180, 30)


def test_rows_of_all_files_of_a_folder_count(lake, tmp_path):
    table = lake.table(days=30, per_day=8)
    lake.write("features", table)
    for folder in (tmp_path / "features").iterdir():
        pq.write_table(pq.ParquetFile(folder / "part-0.parquet").read(), folder / "part-1.parquet")
    assert lake.job(table).drift.min_rows == int(2 * 8 * 7 * 0.75)


# The text


def test_the_same_data_gives_the_same_text(lake):
    table = lake.table(country=lake.rng.choice(["SE", "NO"], 1200))
    assert lake.text(table) == lake.text(table)


def test_every_block_is_explained_and_loading_adds_nothing(lake, tmp_path):
    text = lake.text(lake.table())
    job = lake.load(text)
    assert set(yaml.safe_load(text)) == {*type(job).model_fields} - {"description", "owner"}
    assert sum("#" in line for line in text.splitlines()) > 30
    assert job.promote.mode == "enabled"


@pytest.mark.parametrize(
    "name", ["no", "a: b", "#x", "été", 'quote"', "2026-01-01", "back\\slash", "new\nline", "{x}", "😀"]
)
def test_awkward_column_names_and_values_survive(lake, name):
    table = lake.table(days=5).append_column(name, pa.array([f"{name}{i % 3 or ''}" for i in range(150)]))
    table = table.append_column(f"{name}_gone", pa.array([1] * 150))
    job = lake.job(table)
    assert set(job.features.columns) == {"amount", name}
    assert next(rule for rule in job.checks.rules if rule.values).values == tuple(
        sorted([name, f"{name}1", f"{name}2"])
    )


@pytest.mark.parametrize("value", [0.0, 5.0, -0.25, 1e-7, 1e16, 4300.0, 1 / 3, -1.5e300])
def test_numbers_read_back_as_numbers(value):
    assert yaml.safe_load(number(value)) == pytest.approx(value, rel=1e-9)


@pytest.mark.parametrize(
    ("duration", "text"),
    [
        (timedelta(0), "PT0S"),
        (timedelta(days=14), "P14D"),
        (timedelta(hours=36), "PT36H"),
        (timedelta(minutes=90), "PT90M"),
        (timedelta(seconds=1.5), "PT1.5S"),
    ],
)
def test_durations_are_written_in_their_largest_whole_unit(duration, text):
    assert iso(duration) == text


def test_places_are_written_relative_to_the_job_file_or_absolute(lake, tmp_path, monkeypatch):
    table = lake.table(days=5)
    monkeypatch.chdir(tmp_path)
    lake.write("features", table)
    folder = tmp_path / "dags" / "jobs"
    folder.mkdir(parents=True)
    for relative_to, written in ((folder, "../../features"), (None, str(tmp_path / "features"))):
        text = lake.text(table, features="features", relative_to=relative_to)
        assert yaml.safe_load(text)["features"]["uri"] == yaml.safe_load(text)["labels"]["uri"] == written
        (folder / "orders.yaml").write_text(text)
        assert jobfile.load(folder / "orders.yaml").features.uri == str(tmp_path / "features")


def test_any_fsspec_place_is_read_and_kept_as_it_is(lake):
    memory = fsspec.filesystem("memory")
    for day in range(3):
        with memory.open(f"/lake/features/ds=2026-01-0{day + 1}/part-0.parquet", "wb") as stream:
            pq.write_table(lake.table(days=1, start=START + timedelta(days=day)), stream)
    job = lake.job(lake.table(days=1), features="memory://lake/features")
    assert job.features.uri == "memory://lake/features"
    assert job.feature_partition == "ds=%Y-%m-%d"


# Refusals


def test_missing_columns_are_named_with_those_that_exist(lake):
    table = lake.table(days=2)
    for changes in (
        {"key": ["id"]},
        {"time": "id"},
        {"label": "id"},
        {"exclude": ["id"]},
        {"available_at": "id", "delay": None},
    ):
        with pytest.raises(InvalidRequest, match=r"has no column 'id'.*row_id, event_ts, amount, label"):
            lake.text(table, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"delay": None}, "got neither"),
        ({"available_at": "event_ts"}, "got both"),
        ({"name": "Not Valid"}, "cannot be the name of a job"),
        ({"task": "ranking"}, "one of binary, multiclass, regression"),
        ({"interval": "7h"}, "is not a cadence"),
        ({"key": []}, "--key COLUMN"),
        ({"time": "amount"}, "column 'amount' holds double values"),
        ({"key": ["amount"]}, "key column 'amount' holds double values"),
        ({"exclude": ["amount"]}, "no column is left to learn from"),
    ],
)
def test_a_request_that_makes_no_job_is_refused(lake, changes, message):
    name = changes.pop("name", "orders")
    uri = lake.write("features", lake.table(days=2))
    chosen = {"features": uri, "key": ["row_id"], "time": "event_ts", "label": "label", "task": "binary"}
    with pytest.raises(InvalidRequest, match=message):
        scaffold(name, **(chosen | {"interval": "1d", "delay": timedelta(days=1)} | changes))


def test_a_key_that_published_files_use_themselves_is_refused(lake):
    with pytest.raises(InvalidRequest, match="rename it in the input"):
        lake.text(lake.table(days=2).rename_columns(["score", "event_ts", "amount", "label"]), key=["score"])


def test_a_place_without_parquet_is_refused(lake, tmp_path):
    (tmp_path / "empty").mkdir()
    for place in ("empty", "absent"):
        with pytest.raises(InvalidRequest, match="no Parquet file lies below"):
            lake.text(lake.table(days=2), features=str(tmp_path / place))
    single = lake.write("features", lake.table(days=1)) + "/ds=2026-01-01/part-0.parquet"
    with pytest.raises(InvalidRequest, match="got a single file"):
        lake.text(lake.table(days=1), features=single)
    with pytest.raises(InvalidRequest, match="cannot read nosuch://place"):
        lake.text(lake.table(days=1), features="nosuch://place")


def test_files_that_cannot_be_read_together_are_refused(lake, tmp_path):
    table = lake.table(days=2)
    lake.write("features", table.set_column(2, "amount", pa.array(["x"] * 60)), "ds=2025-%m-%d")
    with pytest.raises(InvalidRequest, match="do not agree about their columns"):
        lake.text(table)
    (tmp_path / "features/ds=2026-01-01/part-1.parquet").write_bytes(b"PAR1 not really PAR1")
    with pytest.raises(InvalidRequest, match=r"cannot read .*part-1\.parquet"):
        lake.text(table)


def test_data_without_rows_or_without_labels_is_refused(lake, tmp_path):
    table = lake.table(days=1)
    (tmp_path / "hollow").mkdir()
    pq.write_table(table.slice(0, 0), tmp_path / "hollow/part-0.parquet")
    with pytest.raises(InvalidRequest, match="have no rows"):
        lake.text(table, features=str(tmp_path / "hollow"))
    other = pa.table({"row_id": np.arange(30) + 1000, "label": np.arange(30) % 2})
    with pytest.raises(InvalidRequest, match="no sampled row"):
        lake.text(table, labels=lake.write("labels", other, days=table["event_ts"]))
    text = other.set_column(0, "row_id", pa.array([f"r{i}" for i in range(30)]))
    with pytest.raises(InvalidRequest, match="key column 'row_id' is int64 in the features and string in the labels"):
        lake.text(table, labels=lake.write("text_labels", text, days=table["event_ts"]))


# Real data


def real_job(tmp_path: Path, name: str, task: str, interval: str = "1d", features: str = "features"):
    text = scaffold(
        f"real_{name}",
        features=str(REAL / name / features),
        labels=str(REAL / name / "labels"),
        key=["row_id"],
        time="event_ts",
        label="label",
        task=task,  # type: ignore[arg-type]
        interval=interval,
        available_at="label_available_at",
        relative_to=tmp_path,
    )
    (tmp_path / "job.yaml").write_text(text, encoding="utf-8")
    return jobfile.load(tmp_path / "job.yaml"), text


@real_data
def test_flights_make_a_complete_job(tmp_path):
    job, text = real_job(tmp_path, "nycflights13", "binary")
    assert job.schedule.start == datetime(2013, 1, 1, tzinfo=UTC)
    assert job.feature_partition == job.label_partition == "ds=%Y-%m-%d"
    assert not {"row_id", "event_ts", "year", "month", "day", "label", "arr_delay", "dep_delay"} & set(
        job.features.columns
    )
    assert {name for name, column in job.features.columns.items() if column.type == "category"} == {
        "carrier",
        "tailnum",
        "origin",
        "dest",
    }
    assert job.labels.mature_after == timedelta(hours=12)
    assert "# arr_delay - lies in the labels" in text
    assert (REAL / "nycflights13/features").samefile(job.features.uri)


@real_data
def test_bike_rentals_lose_their_calendar_and_keep_hours_and_holidays(tmp_path):
    job, _ = real_job(tmp_path, "bike_sharing", "regression")
    assert set(job.features.columns) == {
        *("hr", "holiday", "weekday", "workingday", "weathersit", "temp", "atemp", "hum", "windspeed")
    }
    assert job.labels.mature_after == timedelta(0)
    assert job.performance.min_labels <= 24
    assert job.drift.min_rows <= 7 * 24


@real_data
@pytest.mark.parametrize(("interval", "features"), [("1d", "features"), ("1h", "features_hourly")])
def test_taxi_trips_make_a_daily_and_an_hourly_job(tmp_path, interval, features):
    job, _ = real_job(tmp_path, "tlc_green_2022_01", "regression", interval, features)
    assert {name: column.type for name, column in job.features.columns.items()} == {
        "trip_distance": "number",
        "pu_location_id": "category",
        "do_location_id": "category",
        "pickup_hour": "number",
        "pickup_weekday": "number",
    }
    assert job.schedule.start == datetime(2022, 1, 1, tzinfo=UTC)
    assert job.feature_partition == Cadence.parse(interval).partition
    assert job.label_partition == "ds=%Y-%m-%d"
    assert job.drift.window == (1 if interval == "1d" else 24)
