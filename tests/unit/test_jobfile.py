"""Job files: what is read, and how every mistake is reported."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from pipeline import jobfile
from pipeline.document import Document
from pipeline.errors import InvalidJob, UnknownJob

GOOD = """\
name: shop_orders
task: binary
schedule:
  interval: 1d
  start: 2026-01-01
features:
  uri: data/features
  key: [row_id]
  time: event_ts
  columns:
    amount: {type: number}
    country: {type: category}
labels:
  uri: data/labels
  column: label
  delay: P1D
"""

# One mistake per marked line.
TEN_MISTAKES = """\
# Orders of the shop
name: Shop Orders  # 1
task: binar  # 2
schedule:
  interval: 7h  # 3
  start: 2026-02-30  # 4
  catchup: "yes"  # 5
feature:  # 6
  uri: data/features
labels:
  uri: data/labels
  column: label
  delay: 14  # 7
drift:
  p_value: 2  # 8
  window: 1.5  # 9
checks:
  rules:
    - {column: amount, rule: not_null}
    - column: amount
      rule: between
      minimum: 0  # 10
"""


@pytest.fixture
def write(tmp_path: Path):
    def write(text: str | bytes, name: str = "orders.yaml") -> Path:
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


def problems(path: Path) -> tuple[jobfile.Problem, ...]:
    """The problems of a file that is broken, with the promise that each is complete."""
    _, broken = jobfile.load_all(path.parent)
    (found,) = (job.problems for job in broken if job.file == path)
    for problem in found:
        assert problem.file == str(path)
        assert problem.got
        assert problem.expected
        assert problem.way_out
    return found


def only(path: Path) -> jobfile.Problem:
    (problem,) = problems(path)
    return problem


def test_a_good_file_is_read_with_its_relative_uris_beside_the_file(write, tmp_path):
    job = jobfile.load(write(GOOD))
    assert job.name == "shop_orders"
    assert job.features.uri == str(tmp_path / "data/features")
    assert job.labels.uri == str(tmp_path / "data/labels")
    assert job.output.uri is None
    assert job.features.key == ("row_id",)
    assert job.labels.delay == timedelta(days=1)


@pytest.mark.parametrize("uri", ["s3://lake/features", "file:///lake/features", "/lake/features", "memory://features"])
def test_absolute_places_are_left_as_they_are(write, uri):
    job = jobfile.load(write(GOOD.replace("data/features", uri) + f"output: {{uri: '{uri}'}}\n"))
    assert job.features.uri == uri
    assert job.output.uri == uri


def test_a_relative_output_lies_beside_the_file(write, tmp_path):
    assert jobfile.load(write(GOOD + "output: {uri: ../out}\n")).output.uri == str(tmp_path.parent / "out")


@pytest.mark.parametrize(
    "start",
    [
        "2026-01-01",
        '"2026-01-01"',
        "2026-01-01T00:00:00",
        "2026-01-01 00:00:00",
        "2026-01-01T00:00:00Z",
        "2026-01-01T01:00:00+01:00",
    ],
)
def test_dates_and_instants_without_an_offset_are_utc(write, start):
    job = jobfile.load(write(GOOD.replace("2026-01-01", start)))
    assert job.schedule.start == datetime(2026, 1, 1, tzinfo=UTC)
    assert job.schedule.start.utcoffset() == timedelta(0)


def test_a_date_where_text_is_allowed_stays_text(write):
    rules = "checks: {rules: [{column: country, rule: in_set, values: [2026-01-01, 2026-01-01T06:00:00Z, x]}]}\n"
    job = jobfile.load(write(GOOD + rules))
    assert job.checks.rules[0].values == ("2026-01-01", "2026-01-01T06:00:00+00:00", "x")


def test_anchors_and_merge_keys_work(write):
    text = GOOD.replace(
        "amount: {type: number}", "amount: &n {type: number}\n    age: *n\n    size: {<<: *n, type: number}"
    )
    assert set(jobfile.load(write(text)).features.columns) == {"amount", "age", "size", "country"}


def test_ten_mistakes_are_ten_problems_on_their_lines(write):
    path = write(TEN_MISTAKES)
    marked = [
        number
        for number, line in enumerate(TEN_MISTAKES.splitlines(), 1)
        if line.rstrip()[-1].isdigit() and "  # " in line
    ]
    found = problems(path)
    assert [problem.line for problem in found] == marked
    assert [problem.field for problem in found] == [
        "name",
        "task",
        "schedule.interval",
        "schedule.start",
        "schedule.catchup",
        "feature",
        "labels.delay",
        "drift.p_value",
        "drift.window",
        "checks.rules[1].minimum",
    ]
    assert [problem.got for problem in found] == [
        '"Shop Orders"',
        '"binar"',
        '"7h"',
        '"2026-02-30"',
        '"yes"',
        "the unknown key 'feature'",
        "14",
        "2",
        "1.5",
        "the unknown key 'minimum'",
    ]
    with pytest.raises(InvalidJob, match="has 10 problems") as caught:
        jobfile.load(path)
    for problem in found:
        assert str(problem) in str(caught.value)
    assert f"pipeline check {path}" in caught.value.next_step


@pytest.mark.parametrize(
    ("replace", "by", "field", "line", "way_out"),
    [
        ("features:\n", "feature:\n", "feature", 6, "did you mean 'features'?"),
        ("task: binary", "task: multi-class", "task", 2, "did you mean 'multiclass'?"),
        ("task: binary\n", "", "task", 1, "add 'task: ...'"),
        ("  time: event_ts\n", "", "features.time", 6, "add 'time: ...' to features"),
        ("type: number", "type: numeric", "features.columns.amount.type", 11, "did you mean 'number'?"),
        ("type: number", "type: number, kind: x", "features.columns.amount.kind", 11, "remove it"),
        ("{type: category}", "category", "features.columns.country", 12, "indent its keys below it"),
        ("key: [row_id]", "key: row_id", "features.key", 8, r"write \[a, b\]"),
        ("key: [row_id]", "key: []", "features.key", 8, "add one"),
        ("column: label", "column: 7", "labels.column", 15, "in quotes"),
        ("uri: data/labels", 'uri: ""', "labels.uri", 14, "fill it in"),
        ("delay: P1D", "delay: a day", "labels.delay", 16, "P14D"),
        ("delay: P1D", "delay: -P1D", "labels.delay", 16, "raise it"),
        ("  delay: P1D\n", "", "labels.available_at", 13, "give exactly one"),
        ("2026-01-01", "2026-01-01T06:00:00Z", "schedule.start", 5, "nearest starts are"),
        ("2026-01-01", "9999-12-31", "schedule.start", 5, "out of range"),
        ("2026-01-01", "0001-01-01T00:00:00+14:00", "schedule.start", 5, "out of range"),
        ("2026-01-01", "20260101", "schedule.start", 5, "ISO 8601"),
        ("[row_id]", "[row_id, row_id]", "features.key", 8, "name each once"),
        ("[row_id]", "[row_id, amount]", "features.columns", 10, "must not learn from identifiers"),
        ("column: label", "column: amount", "labels.column", 15, "learn the answer"),
    ],
)
def test_a_mistake_names_its_field_its_line_and_a_way_out(write, replace, by, field, line, way_out):
    text = GOOD.replace(replace, by, 1)
    assert text != GOOD
    problem = only(write(text))
    assert (problem.field, problem.line) == (field, line)
    with pytest.raises(InvalidJob, match=way_out):
        jobfile.load(Path(problem.file))


def test_rules_between_fields_are_reported_together(write):
    extra = """\
performance: {metric: mae, slices: [city]}
checks:
  rules:
    - {column: amount, rule: not_null}
    - {column: color, rule: not_null}
"""
    found = problems(write(GOOD + extra))
    assert [(problem.field, problem.line) for problem in found] == [
        ("performance.slices", 17),
        ("performance.metric", 17),
        ("checks.rules[1]", 21),
    ]


def test_a_value_of_no_allowed_kind_is_one_problem(write):
    problem = only(write(GOOD + "model:\n  parameters:\n    depth: [1, 2]\n"))
    assert (problem.field, problem.line, problem.got) == ("model.parameters.depth", 19, "a list of 2")


def test_a_pattern_that_is_no_regular_expression_is_a_problem(write):
    problem = only(write(GOOD + "checks:\n  rules:\n    - {column: country, rule: matches, pattern: '('}\n"))
    assert (problem.field, problem.line) == ("checks.rules[0]", 19)
    assert "not a regular expression" in problem.way_out


def test_infinite_limits_are_refused(write):
    found = problems(write(GOOD + "checks:\n  rules:\n    - {column: amount, rule: between, min: .nan, max: .inf}\n"))
    assert [problem.field for problem in found] == ["checks.rules[0].min", "checks.rules[0].max"]


@pytest.mark.parametrize("text", ["  amount: 1\n  amount: 2\n", "  {amount: 1, amount: 2}\n"])
def test_a_key_given_twice_is_refused_with_both_lines(write, text):
    problem = only(write(GOOD + "model:\n  parameters:\n" + text.replace("  ", "    ", 1).replace("\n  ", "\n    ")))
    assert problem.field == "amount"
    assert problem.line == 18 + text.count("\n")
    assert "the first is on line 19" in problem.got


def test_a_wrong_value_under_a_repeated_key_is_reported_where_it_stands(write):
    found = problems(write(GOOD + "drift:\n  window: 7\n  window: week\n"))
    assert [(problem.field, problem.line) for problem in found] == [("window", 19), ("drift.window", 19)]


def test_a_country_code_that_yaml_reads_as_false_is_refused(write):
    problem = only(write(GOOD + "checks: {rules: [{column: country, rule: in_set, values: [SE, NO]}]}\n"))
    assert problem.line == 17
    assert problem.way_out == 'write "NO" or false'


@pytest.mark.parametrize(
    ("content", "line", "got"),
    [
        (b"", None, "an empty file"),
        (b"# only a comment\n", None, "an empty file"),
        (b"- a\n- b\n", 1, "a list of 2"),
        (b"just text\n", 1, '"just text"'),
        (b"name: a\ntask: [1, 2\n", 3, "did not find expected"),
        (b"name: a\n\ttask: b\n", 2, "tab character"),
        (b"name: a\n---\nname: b\n", 2, "another document"),
        (b"name: *missing\n", 1, "undefined alias"),
        (b"name: !!python/object:os.system x\n", 1, "could not determine a constructor"),
        (b"name: caf\xe9\n", None, "byte 0xe9 at 9"),
        (b"name: a\x00b\n", None, "control characters"),
        (b"name: !!binary aGk=\n", None, "bytes is not JSON serializable"),
        (b"name: &a [*a]\n", 1, "more after its aliases are expanded"),
        (b"name: " + b"9" * 5000 + b"\n", None, "integer string conversion"),
        (b"name: " + b"[" * 3000 + b"]" * 3000, None, "nested too deeply"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_file_that_is_no_yaml_mapping_is_one_problem(write, content, line, got):
    problem = only(write(content))
    assert problem.line == line
    assert got in problem.got


def test_aliases_that_multiply_into_billions_are_refused_at_once(write):
    text = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 30))
    began = time.perf_counter()
    assert "aliases" in only(write(text)).got
    assert time.perf_counter() - began < 1


def test_an_unreadable_file_is_a_problem_not_a_crash(tmp_path):
    with pytest.raises(InvalidJob, match="No such file"):
        jobfile.load(tmp_path / "absent.yaml")
    (tmp_path / "dangling.yaml").symlink_to(tmp_path / "nowhere")
    assert only(tmp_path / "dangling.yaml").expected == "a readable file"


def test_a_broken_file_never_hides_the_good_ones(write, tmp_path):
    write(GOOD, "b.yaml")
    write(GOOD.replace("shop_orders", "returns"), "a.yml")
    write("name: [", "c.yaml")
    write(GOOD.replace("task: binary", "task: ?"), "d.yaml")
    write("not a job file", "notes.txt")
    write("name: [", ".hidden.yaml")
    (tmp_path / "folder.yaml").mkdir()
    jobs, broken = jobfile.load_all(tmp_path)
    assert list(jobs) == ["returns", "shop_orders"]
    assert [(job.file.name, job.name) for job in broken] == [("c.yaml", "c"), ("d.yaml", "d")]


def test_a_broken_job_keeps_its_declared_name_when_that_is_valid(write, tmp_path):
    write(GOOD.replace("interval: 1d", "interval: 7h"), "file.yaml")
    ((job,), jobs) = jobfile.load_all(tmp_path)[::-1]
    assert (job.name, jobs) == ("shop_orders", {})


def test_two_files_that_declare_one_name_are_both_broken(write, tmp_path):
    write(GOOD, "a.yaml")
    write("# a copy\n" + GOOD, "b.yaml")
    write(GOOD.replace("shop_orders", "returns"), "c.yaml")
    jobs, broken = jobfile.load_all(tmp_path)
    assert list(jobs) == ["returns"]
    assert [(job.file.name, job.name, job.problems[0].line) for job in broken] == [
        ("a.yaml", "shop_orders", 1),
        ("b.yaml", "shop_orders", 2),
    ]
    assert "b.yaml" in str(broken[0].error())


def test_a_folder_that_does_not_exist_has_no_jobs(tmp_path):
    assert jobfile.load_all(tmp_path / "absent") == ({}, ())


def test_a_job_is_found_by_name_and_by_path(write, tmp_path):
    path = write(GOOD, "a.yaml")
    assert (
        jobfile.find("shop_orders", tmp_path) == jobfile.find(str(path), tmp_path / "elsewhere") == jobfile.load(path)
    )


def test_an_unknown_name_lists_the_known_ones_and_the_closest(write, tmp_path):
    write(GOOD, "a.yaml")
    write(GOOD.replace("shop_orders", "returns"), "b.yaml")
    with pytest.raises(
        UnknownJob, match=r"one of shop_orders, returns; got 'shop_order'.*did you mean 'shop_orders'\?"
    ):
        jobfile.find("shop_order", tmp_path)
    with pytest.raises(UnknownJob, match="there is no job file"):
        jobfile.find("./shop_orders.yaml", tmp_path)


@pytest.mark.parametrize("name", ["shop_orders", "a"])
def test_looking_for_a_broken_job_says_what_is_wrong_with_it(write, tmp_path, name):
    write(GOOD.replace("interval: 1d", "interval: 7h"), "a.yaml")
    with pytest.raises(InvalidJob, match="'7h' is not a cadence"):
        jobfile.find(name, tmp_path)


def test_a_hundred_files_are_read_within_a_second(write, tmp_path):
    rules = "checks:\n  rules:\n" + "".join(
        f"    - {{column: c{i}, rule: not_null, action: warn}}\n" for i in range(30)
    )
    columns = "".join(f"    c{i}: {{type: number}}\n" for i in range(30))
    for index in range(100):
        text = GOOD.replace("shop_orders", f"job_{index}").replace("  columns:\n", "  columns:\n" + columns) + rules
        write(text, f"job_{index}.yaml")
    began = time.process_time()
    jobs, broken = jobfile.load_all(tmp_path)
    assert (len(jobs), broken) == (100, ())
    assert time.process_time() - began < 2  # measured: 0.5 s; the rest is room for a loaded machine


@pytest.fixture
def parsed(monkeypatch):
    """The files that are parsed, as they are."""
    seen = []
    read = Document.read.__func__

    def noted(cls, path):
        seen.append(path.name)
        return read(cls, path)

    monkeypatch.setattr(Document, "read", classmethod(noted))
    return seen


def test_a_job_is_found_without_parsing_those_of_others(tmp_path, parsed):
    for name in ("shop", "shop_orders", "shop_orders_eu", "orders"):
        (tmp_path / f"{name}.yaml").write_text(GOOD.replace("shop_orders", name))
    assert jobfile.find("shop_orders", tmp_path).name == "shop_orders"
    assert parsed == ["shop_orders.yaml"]


def test_a_job_is_found_in_a_file_of_any_name(tmp_path, parsed):
    (tmp_path / "a.yml").write_text(GOOD)
    (tmp_path / "b.yaml").write_text(GOOD.replace("shop_orders", "other"))
    assert jobfile.find("shop_orders", tmp_path).name == "shop_orders"
    assert jobfile.path_of("shop_orders", tmp_path) == tmp_path / "a.yml"
    assert set(parsed) == {"a.yml"}


@pytest.mark.parametrize(
    "name", ["shop_orders", "'shop_orders'", '"shop\\x5forders"', "&n shop_orders", "!!str shop_orders"]
)
def test_a_name_that_two_files_declare_is_never_found_however_it_is_written(tmp_path, name):
    (tmp_path / "shop_orders.yaml").write_text(GOOD)
    (tmp_path / "twin.yaml").write_text(GOOD.replace("name: shop_orders", f"name: {name}"))
    with pytest.raises(InvalidJob, match="a name that no other file declares"):
        jobfile.find("shop_orders", tmp_path)
