"""Broken data is named with its column; genuine drift, ordinary days and odd columns are not called broken."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from benchmarks.decisions import breakage as benchmark
from pipeline import breakage

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.effects import Kind
    from pipeline.verdicts import Fault

ROWS = 2_000
KINDS: dict[str, Kind] = {
    "temp": "number",
    "price": "number",
    "visits": "number",
    "city": "category",
    "tier": "category",
}
CITIES = np.array([f"city {n}" for n in range(12)], dtype=object)
TIERS = np.array(["Gold", "Silver", "Bronze"], dtype=object)
FULL = 2**64 - 1


def sample(seed: int, rows: int = ROWS) -> dict[str, NDArray[Any]]:
    rng = np.random.default_rng(seed)
    return {
        "temp": rng.normal(15, 8, rows),
        "price": rng.lognormal(3, 0.6, rows),
        "visits": rng.poisson(6, rows).astype(np.float64),
        "city": CITIES[rng.integers(0, len(CITIES), rows)],
        "tier": TIERS[rng.choice(3, rows, p=[0.2, 0.3, 0.5])],
    }


def changed(**columns: Any) -> dict[str, NDArray[Any]]:
    """Current rows in which columns were replaced by what functions make of them."""
    current = sample(1)
    return {**current, **{name: change(current[name]) for name, change in columns.items()}}


def some(what: Any, share: float) -> Any:
    """Puts ``what`` in place of this share of the values."""
    return lambda values: np.where(np.random.default_rng(5).random(len(values)) < share, what, values)


def found(current: dict[str, NDArray[Any]], **known: Any) -> tuple[Fault, ...]:
    known = {"rows": len(next(iter(current.values()))), "usual_rows": [], **known}
    return breakage.find(sample(0), current, KINDS, **known)


def told(faults: tuple[Fault, ...]) -> list[tuple[str, str | None]]:
    return [(fault.kind, fault.column) for fault in faults]


def test_an_ordinary_day_is_not_broken() -> None:
    assert found(sample(1)) == ()


@pytest.mark.parametrize("kind", [*benchmark.FAULTS, *benchmark.SHIFTS])
def test_faults_and_shifts_of_random_tables_are_told_for_what_they_are(kind: str) -> None:
    change = {**benchmark.FAULTS, **benchmark.SHIFTS}[kind]
    assert benchmark._count(3, kind, 4, change)["wrong"] == []


@pytest.mark.parametrize(
    ("kind", "column", "change"),
    [
        ("missing", "temp", some(np.nan, 0.4)),
        ("missing", "temp", some(np.inf, 0.4)),
        ("missing", "city", some(None, 0.97)),
        ("schema", "temp", lambda values: np.full(len(values), np.nan)),
        ("schema", "city", lambda values: np.full(len(values), None)),
        ("constant", "temp", lambda values: np.full(len(values), 7.0)),
        ("constant", "city", lambda values: np.full(len(values), "city 3", dtype=object)),
        ("stuck", "temp", some(-999.0, 0.3)),
        ("stuck", "visits", some(0.0, 0.4)),
        ("stuck", "city", some("unknown", 0.4)),
        ("unit", "price", lambda values: values * 1000),
        ("unit", "price", lambda values: -values),
        ("unit", "visits", lambda values: values / 60),
        ("unit", "temp", lambda values: values * 1.8 + 32),
        ("unit", "temp", lambda values: values + 273.15),
        ("recoded", "tier", lambda values: np.array([value.lower() for value in values], dtype=object)),
        ("recoded", "city", lambda values: np.array([f"{value} " for value in values], dtype=object)),
        ("recoded", "city", lambda values: np.array([f"C{len(value)}{value[-1]}" for value in values], dtype=object)),
    ],
)
def test_a_fault_is_named_with_its_column_and_nothing_else_is(kind: str, column: str, change: Any) -> None:
    assert told(found(changed(**{column: change}))) == [(kind, column)]


@pytest.mark.parametrize(
    ("column", "change"),
    [
        ("temp", lambda values: values + 16),
        ("temp", lambda values: values - 2),
        ("price", lambda values: values * 1.5),
        ("price", lambda values: values * 0.7),
        ("visits", lambda values: values + 5),
        ("temp", some(np.nan, 0.25)),
        ("city", some("city 3", 0.3)),
        ("city", some("newcomer", 0.2)),
        ("tier", some("Bronze", 0.3)),
        ("price", lambda values: np.where(np.arange(len(values)) % 10 < 3, values * 4, values)),
    ],
)
def test_genuine_drift_is_not_called_broken(column: str, change: Any) -> None:
    assert found(changed(**{column: change})) == ()


def test_an_absent_column_is_named() -> None:
    current = sample(1)
    del current["price"]
    assert told(found(current)) == [("schema", "price")]


def test_two_and_three_columns_that_changed_places_are_named() -> None:
    now = sample(1)
    assert told(found({**now, "temp": now["price"], "price": now["temp"]})) == [
        ("swapped", "temp"),
        ("swapped", "price"),
    ]
    turned = {**now, "temp": now["price"], "price": now["visits"], "visits": now["temp"]}
    assert told(found(turned)) == [("swapped", name) for name in ("temp", "price", "visits")]
    assert told(found({**now, "city": now["tier"], "tier": now["city"]})) == [("swapped", "city"), ("swapped", "tier")]


def test_the_detail_of_a_conversion_says_which_and_how_far() -> None:
    (fault,) = found(changed(temp=lambda values: values * 1.8 + 32))
    assert "converted from Celsius to Fahrenheit" in fault.detail
    assert "standard deviations" in fault.detail


def test_a_change_of_spelling_is_told_as_such() -> None:
    (fault,) = found(changed(tier=lambda values: np.array([value.upper() for value in values], dtype=object)))
    assert "but for case and spaces" in fault.detail


def test_ever_new_identifiers_are_not_recoded() -> None:
    rng = np.random.default_rng(0)
    sides = [{"id": np.array([f"{n:x}" for n in rng.integers(0, 2**40, ROWS)], dtype=object)} for _ in range(2)]
    assert breakage.find(*sides, {"id": "category"}, rows=ROWS, usual_rows=[]) == ()


@pytest.mark.parametrize(
    ("rows", "kinds"),
    [(1000, []), (620, []), (450, ["truncated"]), (0, ["truncated"]), (1700, []), (2000, ["surplus"])],
)
def test_far_too_few_or_too_many_rows_are_a_fault(rows: int, kinds: list[str]) -> None:
    usual = [900, 1000, 1100, 950, 1050]
    faults = breakage.find({}, {}, {}, rows=rows, usual_rows=usual)
    assert told(faults) == [(kind, None) for kind in kinds]


@pytest.mark.parametrize(
    ("rows", "usual"), [(0, [3, 2, 5, 1, 4]), (100, [1000] * 3), (300, [300, 3000, 900, 5000, 1500])]
)
def test_the_number_of_rows_is_no_fault_when_what_is_usual_does_not_say_so(rows: int, usual: list[int]) -> None:
    assert breakage.find({}, {}, {}, rows=rows, usual_rows=usual) == ()


def test_a_partition_that_repeats_an_earlier_one_is_a_fault() -> None:
    hashes = np.random.default_rng(0).integers(0, FULL, 5_000, dtype=np.uint64)
    other = breakage.sketch(np.random.default_rng(1).integers(0, FULL, 5_000, dtype=np.uint64))
    earlier = {"2024-01-01T00:00Z": other, "2024-01-02T00:00Z": breakage.sketch(hashes[:4_900])}
    (fault,) = found(sample(1), rows=5_000, sketch=breakage.sketch(hashes), earlier=earlier)
    assert (fault.kind, fault.column) == ("duplicated", None)
    assert "2024-01-02T00:00Z" in fault.detail
    assert found(sample(1), rows=5_000, sketch=breakage.sketch(hashes), earlier={"2024-01-01T00:00Z": other}) == ()


def test_partitions_of_few_distinct_rows_are_alike_by_nature() -> None:
    same = breakage.sketch(np.arange(100, dtype=np.uint64))
    assert found(sample(1), rows=5_000, sketch=same, earlier={"2024-01-01T00:00Z": same}) == ()


@pytest.mark.parametrize(("share", "usual", "kinds"), [(0.3, 0.0, ["duplicated"]), (0.1, 0.0, []), (0.75, 0.7, [])])
def test_rows_repeated_within_a_partition_are_a_fault(share: float, usual: float, kinds: list[str]) -> None:
    faults = found(sample(1), duplicated_share=share, usual_duplicated_share=usual)
    assert told(faults) == [(kind, None) for kind in kinds]


def test_more_rows_of_few_combinations_repeat_more_often_by_nature() -> None:
    shares = {"duplicated_share": 0.8, "usual_duplicated_share": 0.2}
    assert breakage.find(sample(0, 200), sample(1), KINDS, rows=ROWS, usual_rows=[], **shares) == ()
    assert told(breakage.find(sample(0), sample(1), KINDS, rows=ROWS, usual_rows=[], **shares)) == [
        ("duplicated", None)
    ]


def test_sketches_merge_in_any_order() -> None:
    hashes = np.random.default_rng(0).integers(0, FULL, 3_000, dtype=np.uint64)
    whole = breakage.sketch(np.concatenate([hashes, hashes]))
    assert breakage.sketch(hashes[2_000:], breakage.sketch(hashes[:2_000])) == whole
    assert breakage.sketch(hashes[:2_000], breakage.sketch(hashes[2_000:])) == whole
    assert whole == tuple(sorted({int(value) for value in hashes})[:256])


@pytest.mark.parametrize(("shared", "jaccard"), [(0, 0.0), (5_000, 1 / 3), (10_000, 1.0)])
def test_similarity_estimates_the_share_of_common_rows(shared: int, jaccard: float) -> None:
    hashes = np.random.default_rng(0).integers(0, FULL, 20_000, dtype=np.uint64)
    a, b = breakage.sketch(hashes[:10_000]), breakage.sketch(hashes[10_000 - shared : 20_000 - shared])
    assert breakage.similarity(a, b) == pytest.approx(jaccard, abs=0.08)


def test_similarity_of_small_sets_is_exact() -> None:
    assert breakage.similarity((1, 2), (2, 3)) == pytest.approx(1 / 3)
    assert breakage.similarity((), (1,)) == 0.0


def test_what_columns_show_by_themselves_in_single_intervals_is_no_fault() -> None:
    rng = np.random.default_rng(0)
    day = np.repeat(np.arange(40), 50)
    is_dry, is_calm = rng.random(40)[day] < 0.5, rng.random(40)[day] < 0.3
    reference = {
        "month": (day // 10 + 1.0),
        "rain": np.where(is_dry, 0.0, rng.gamma(2, size=len(day))),
        "gusts": np.where(is_calm, np.nan, rng.normal(30, 5, len(day))),
        "level": rng.normal(20, 1, len(day)) * np.array([1.0, 2.54])[day % 2],
    }
    current = {
        "month": np.full(ROWS, 4.0),
        "rain": np.zeros(ROWS),
        "gusts": np.full(ROWS, np.nan),
        "level": rng.normal(20, 1, ROWS) * 2.54,
    }
    kinds: dict[str, Kind] = dict.fromkeys(reference, "number")
    known = {"rows": ROWS, "usual_rows": []}
    blind = breakage.find(reference, current, kinds, **known)
    assert {("constant", "month"), ("constant", "rain"), ("schema", "gusts")} <= set(told(blind))
    assert breakage.find(reference, current, kinds, **known, stretch=day) == ()
    broken = {**current, "gusts": rng.normal(30, 5, ROWS) * 1000}
    assert told(breakage.find(reference, broken, kinds, **known, stretch=day)) == [("unit", "gusts")]


@pytest.mark.parametrize("rows", [0, 1, 5, 49])
def test_few_rows_say_nothing_of_distributions(rows: int) -> None:
    current = {name: values[:rows] for name, values in changed(temp=lambda values: values * 1000).items()}
    assert found(current) == ()


ODD: dict[str, tuple[Kind, NDArray[Any]]] = {
    "nan": ("number", np.full(ROWS, np.nan)),
    "infinite": ("number", np.full(ROWS, np.inf)),
    "huge": ("number", np.linspace(-1, 1, ROWS) * 1.7e308),
    "tiny": ("number", np.linspace(0, 1, ROWS) * 5e-324),
    "zero": ("number", np.zeros(ROWS)),
    "two": ("number", np.arange(ROWS) % 2.0),
    "mixed": ("number", np.where(np.arange(ROWS) % 3 == 0, np.nan, np.arange(ROWS) * 1.0)),
    "one": ("number", np.ones(1)),
    "none": ("number", np.empty(0)),
    "null": ("category", np.full(ROWS, None)),
    "same": ("category", np.full(ROWS, "a", dtype=object)),
    "many": ("category", np.array([f"value {n}" for n in range(10_000)], dtype=object)),
    "not text": ("category", np.array([1, None, float("nan"), "a", True] * 400, dtype=object)),
    "no rows": ("category", np.empty(0, dtype=object)),
}


@pytest.mark.parametrize("usual", ODD)
def test_columns_of_any_content_are_judged_without_an_error(usual: str) -> None:
    kind, values = ODD[usual]
    for other_kind, other in ODD.values():
        if other_kind == kind:
            stretch = np.arange(len(values)) // 50
            sides = {"odd": values, "plain": values}, {"odd": other, "plain": other[::-1]}
            kinds: dict[str, Kind] = {"odd": kind, "plain": kind}
            for intervals in (None, stretch):
                breakage.find(*sides, kinds, rows=len(other), usual_rows=[5] * 5, stretch=intervals)
    assert breakage.find({"odd": values}, {"odd": values}, {"odd": kind}, rows=len(values), usual_rows=[]) == ()


def test_the_order_of_rows_does_not_matter() -> None:
    current = changed(temp=some(-999.0, 0.3), price=lambda values: values * 1000)
    turned = {name: values[::-1] for name, values in current.items()}
    assert found(turned) == found(current)


@pytest.mark.parametrize(("word", "kinds"), [("kestrel", []), ("Unknown ", ["stuck"]), ("n/a", ["stuck"])])
def test_a_new_category_may_win_a_third_of_the_rows_but_a_word_for_nothing_may_not(
    rng: np.random.Generator, word: str, kinds: list[str]
) -> None:
    carriers = np.array(["heron", "plover", "swift"], dtype=object)
    reference, current = rng.choice(carriers, 5_000), rng.choice(carriers, 2_000)
    current[rng.random(2_000) < 0.36] = word
    found = breakage.find(
        {"carrier": reference}, {"carrier": current}, {"carrier": "category"}, rows=2_000, usual_rows=[2_000] * 8
    )
    assert [fault.kind for fault in found] == kinds
