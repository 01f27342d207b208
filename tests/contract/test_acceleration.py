"""Accelerated forms say what real scikit-learn says, bit for bit where trees decide; and wrong ones are never used."""

from __future__ import annotations

import logging
import shutil
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
import pyarrow as pa
import pytest
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import (
    ExtraTreesClassifier,
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LinearRegression, LogisticRegression, Ridge
from sklearn.naive_bayes import GaussianNB
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import (
    FunctionTransformer,
    MinMaxScaler,
    OneHotEncoder,
    OrdinalEncoder,
    PolynomialFeatures,
    RobustScaler,
    StandardScaler,
)
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor

from pipeline import acceleration, engine, trainers
from pipeline.acceleration.features import UNKNOWN
from pipeline.acceleration.programs import Program
from pipeline.job import Column

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipeline.engine import FrameScorer
    from pipeline.job import JobSpec

MINUTE = timedelta(minutes=1)
COLUMNS = {
    "amount": Column(type="number"),
    "age": Column(type="number"),
    "member": Column(type="boolean"),
    "country": Column(type="category"),
    "shop": Column(type="category"),
}
NUMBERS, CATEGORIES = ["amount", "age", "member"], ["country", "shop"]


def rows(n: int = 1500, seed: int = 1) -> pa.Table:
    """Orders with missing values everywhere, countries as a dictionary, and shops of which there are 300."""
    rng = np.random.default_rng(seed)
    codes = pa.array(rng.integers(0, 7, n).astype(np.int32), mask=rng.random(n) < 0.1)
    return pa.table(
        {
            "amount": pa.array(rng.normal(size=n), mask=rng.random(n) < 0.1),
            "age": pa.array(rng.integers(18, 90, n), mask=rng.random(n) < 0.1),
            "member": pa.array(rng.random(n) < 0.5, mask=rng.random(n) < 0.1),
            "country": pa.DictionaryArray.from_arrays(codes, pa.array(["de", "fr", "it", "es", "pl", "nl", "", None])),
            "shop": pa.array([f"shop {int(300 * x**3)}" for x in rng.random(n)], mask=rng.random(n) < 0.1),
        }
    )


def target(table: pa.Table, task: str) -> np.ndarray:
    frame = engine.to_frame(table, COLUMNS)
    value = frame["amount"].fillna(1) + frame["age"].fillna(0) / 50 + frame["shop"].str.len().fillna(3) / 5
    value = (value + (frame["country"] == "de") - frame["member"].fillna(0.3)).to_numpy()
    if task == "regression":
        return np.asarray(10 * value)
    return np.digitize(value, [1.5, 2.5] if task == "multiclass" else [2.0])


def prepared(model: Any, number: Any = None, category: Any = None) -> Pipeline:
    number = SimpleImputer(strategy="median") if number is None else number
    category = OneHotEncoder(handle_unknown="ignore", sparse_output=False) if category is None else category
    columns = ColumnTransformer([("number", number, NUMBERS), ("category", category, CATEGORIES)])
    return Pipeline([("columns", columns), ("model", model)])


ORDINAL = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1, encoded_missing_value=-2)
FILLED = Pipeline(
    [("filled", SimpleImputer(strategy="most_frequent")), ("coded", OneHotEncoder(handle_unknown="ignore"))]
)
POOLED = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=np.nan, max_categories=20)


def scaled(scaler: Any) -> Pipeline:
    return Pipeline([("filled", SimpleImputer()), ("scaled", scaler)])


# An estimator, its task, and the kind of its accelerated form.
MODELS: dict[str, tuple[Callable[[], Any], str, str]] = {
    "boosting, wide trees": (
        lambda: prepared(HistGradientBoostingClassifier(max_leaf_nodes=100, max_iter=10), "passthrough", POOLED),
        "binary",
        "lookup",
    ),
    "boosting, last columns as categories": (
        lambda: prepared(
            HistGradientBoostingClassifier(categorical_features=[3, 4], max_iter=15), "passthrough", POOLED
        ),
        "multiclass",
        "lookup",
    ),
    "boosting, scaled": (
        lambda: prepared(HistGradientBoostingRegressor(max_iter=15), StandardScaler()),
        "regression",
        "lookup",
    ),
    "boosting that learnt nothing": (
        lambda: prepared(HistGradientBoostingClassifier(max_iter=2, min_samples_leaf=10_000), "passthrough"),
        "binary",
        "lookup",
    ),
    "forest": (lambda: prepared(RandomForestClassifier(15, random_state=0)), "multiclass", "walk"),
    "forest, missing values": (
        lambda: prepared(RandomForestClassifier(15, max_depth=6, random_state=0), "passthrough", ORDINAL),
        "binary",
        "walk",
    ),
    "forest of numbers": (
        lambda: prepared(RandomForestRegressor(10, random_state=0), scaled(RobustScaler())),
        "regression",
        "walk",
    ),
    "extra trees": (lambda: prepared(ExtraTreesClassifier(10, random_state=0), category=FILLED), "binary", "walk"),
    "tree": (lambda: prepared(DecisionTreeClassifier(max_depth=4), "passthrough", ORDINAL), "binary", "walk"),
    "tree of numbers": (lambda: prepared(DecisionTreeRegressor(), category=ORDINAL), "regression", "walk"),
    "logistic": (lambda: prepared(LogisticRegression(), scaled(StandardScaler())), "binary", "linear"),
    "logistic, three classes": (
        lambda: prepared(LogisticRegression(), scaled(MinMaxScaler()), FILLED),
        "multiclass",
        "linear",
    ),
    "ridge": (lambda: prepared(Ridge(), scaled(RobustScaler())), "regression", "linear"),
    "least squares": (lambda: prepared(LinearRegression(), category=ORDINAL), "regression", "linear"),
}


def fitted(name: str) -> FrameScorer:
    make, task, _ = MODELS[name]
    table = rows()
    model = make().fit(engine.to_frame(table, COLUMNS), target(table, task))
    return engine.FrameScorer(model, COLUMNS, task)


def optimised(plain: FrameScorer, wanted: str = "auto") -> tuple[bytes, acceleration.AcceleratedScorer]:
    """The accelerated form of a model that has one, and its scorer."""
    content, found = acceleration.optimise(plain, rows(seed=2), remembered=rows(50), wanted=wanted, budget=MINUTE)
    assert content is not None, found.reason
    program = Program.from_bytes(content)
    return content, acceleration.AcceleratedScorer(program, plain)


@pytest.fixture(scope="module")
def boosted() -> FrameScorer:
    return fitted("boosting, last columns as categories")


def answers(scorer: engine.Scorer, data: Any) -> np.ndarray:
    made = scorer.predict(data)
    return np.asarray(made.labels if made.scores is None else made.scores)


@pytest.mark.parametrize("name", MODELS)
def test_an_accelerated_model_says_what_its_estimator_says(name: str) -> None:
    plain = fitted(name)
    content, fast = optimised(plain)
    fresh = rows(3000, seed=3)
    expected, found = plain.predict(fresh), fast.predict(fresh)
    assert fast.program.kind == MODELS[name][2]
    if fast.program.kind == "linear":
        assert np.abs(answers(fast, fresh) - answers(plain, fresh)).max() < 1e-11
    else:
        # Softmax sums in an order of its own.
        largest = 1e-15 if fast.program.link == "softmax" else 0.0
        assert np.abs(answers(fast, fresh) - answers(plain, fresh)).max() <= largest
    if plain.task != "regression":
        assert np.array_equal(found.labels, expected.labels)
        assert found.labels.dtype == expected.labels.dtype
    assert acceleration.optimise(plain, rows(seed=2), remembered=rows(50), budget=MINUTE)[0] == content


@pytest.mark.parametrize("name", MODELS)
def test_a_row_gets_the_same_bits_in_any_batch_and_thread(name: str, rng: np.random.Generator) -> None:
    _, fast = optimised(fitted(name))
    fresh = rows(2000, seed=4)
    whole = answers(fast, fresh)
    cuts = [0, *sorted(rng.integers(0, 2000, 60).tolist()), 2000]
    parts = [fresh.slice(a, b - a) for a, b in pairwise(cuts)]
    with ThreadPoolExecutor(4) as pool:
        apart = np.concatenate(list(pool.map(lambda part: answers(fast, part), parts)))
    assert whole.tobytes() == apart.tobytes()


def test_the_built_in_trainer_is_accelerated_exactly_with_more_categories_than_codes(
    make_job: Callable[..., JobSpec], rng: np.random.Generator
) -> None:
    columns = {"amount": Column(type="number"), "shop": Column(type="category")}
    job = make_job(features={"columns": {name: column.model_dump() for name, column in columns.items()}})
    shops = (600 * rng.random(6000) ** 2).astype(int)
    table = pa.table({"amount": rng.normal(size=6000), "shop": pa.array([f"s{shop}" for shop in shops])})
    outcome = (table["amount"].to_numpy() + shops % 7 > 3).astype(int)
    model = trainers.fit(job, engine.to_frame(table, job.features.columns), outcome)
    plain = engine.FrameScorer(model, job.features.columns, "binary")
    content, found = acceleration.optimise(plain, table, remembered=table.slice(0, 9), budget=MINUTE, slices=("shop",))
    assert (found.kind, found.max_difference, found.flips) == ("lookup", 0.0, {"overall": 0})
    fast = acceleration.AcceleratedScorer(Program.from_bytes(content or b""), plain)
    strange = pa.table({"amount": [np.inf, -np.inf, None, 1e308], "shop": ["s1", None, "never seen", ""]})
    assert np.array_equal(answers(fast, strange), answers(plain, strange))


def test_columns_of_any_physical_type_are_read_as_the_frame_reads_them() -> None:
    plain = fitted("forest, missing values")
    _, fast = optimised(plain)
    table = rows(200, seed=5)
    odd = table.set_column(1, "age", table["age"].cast(pa.float32()))
    odd = odd.set_column(2, "member", table["member"].cast(pa.uint8()))
    odd = odd.set_column(4, "shop", table["shop"].cast(pa.large_string()))
    assert np.array_equal(answers(fast, odd), answers(fast, table))
    assert np.array_equal(answers(fast, odd), answers(plain, odd))
    nothing = odd.set_column(4, "shop", pa.nulls(200)).set_column(0, "amount", pa.nulls(200))
    assert np.array_equal(answers(fast, nothing), answers(plain, nothing))
    assert fast.predict(table.slice(0, 0)).labels.tolist() == []


@pytest.mark.parametrize(
    ("column", "value"),
    [("amount", None), ("amount", np.inf), ("amount", 1e39), ("shop", "never seen"), ("shop", None)],
)
def test_rows_that_a_model_refuses_are_refused_in_its_own_words(column: str, value: Any) -> None:
    table = rows().drop_null()
    coded = Pipeline([("coded", OrdinalEncoder()), ("scaled", StandardScaler())])
    strict = prepared(LogisticRegression(), StandardScaler(), coded)
    if value == 1e39:
        strict = prepared(RandomForestClassifier(5, random_state=0), "passthrough", OrdinalEncoder())
    model = strict.fit(engine.to_frame(table, COLUMNS), target(table, "binary"))
    plain = engine.FrameScorer(model, COLUMNS, "binary")
    content, found = acceleration.optimise(plain, table, remembered=table.slice(0, 9), budget=MINUTE)
    fast = acceleration.AcceleratedScorer(Program.from_bytes(content or pytest.fail(found.reason)), plain)
    index = table.column_names.index(column)
    bad = table.set_column(index, column, pa.array([value, *table[column].to_pylist()[1:]], table[column].type))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ValueError, match=r".+") as expected:
            plain.predict(bad)
        with pytest.raises(ValueError, match=r".+") as got:
            fast.predict(bad)
    assert str(got.value) == str(expected.value)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (prepared(GaussianNB()), "a GaussianNB has no accelerated form"),
        (
            prepared(Ridge(), Pipeline([("f", SimpleImputer()), ("p", PolynomialFeatures())])),
            "a PolynomialFeatures before the model",
        ),
        (
            prepared(Ridge(), Pipeline([("f", SimpleImputer()), ("l", FunctionTransformer(np.abs))])),
            "a FunctionTransformer before the model",
        ),
        (prepared(Ridge(), SimpleImputer(add_indicator=True)), "a SimpleImputer adds or drops columns"),
        (prepared(Ridge(), scaled(MinMaxScaler(clip=True))), "a MinMaxScaler clips"),
    ],
)
def test_a_model_of_another_kind_keeps_its_estimator_and_says_why(model: Any, reason: str) -> None:
    table = rows()
    task = "binary" if hasattr(model, "predict_proba") else "regression"
    fit = model.fit(engine.to_frame(table, COLUMNS), target(table, task))
    content, found = acceleration.optimise(
        engine.FrameScorer(fit, COLUMNS, task), table, remembered=table, budget=MINUTE
    )
    assert content is None
    assert found.kind is None
    assert reason in found.reason


def test_a_subclass_is_not_taken_for_what_it_inherits_from() -> None:
    class Hasty(RandomForestClassifier):
        def predict_proba(self, X: Any) -> Any:
            return super().predict_proba(X)[:, ::-1]

    table = rows()
    model = prepared(Hasty(3, random_state=0)).fit(engine.to_frame(table, COLUMNS), target(table, "binary"))
    plain = engine.FrameScorer(model, COLUMNS, "binary")
    _, found = acceleration.optimise(plain, table, remembered=table, budget=MINUTE)
    assert found.reason == "not used: a Hasty has no accelerated form"


def test_off_and_a_kind_that_does_not_fit_leave_the_estimator(boosted: FrameScorer) -> None:
    def asked(wanted: str) -> tuple[bytes | None, str]:
        content, found = acceleration.optimise(boosted, rows(), remembered=rows(9), wanted=wanted, budget=MINUTE)
        return content, found.reason

    assert asked("off") == (None, "model.acceleration is off")
    assert asked("linear") == (
        None,
        "not used: a HistGradientBoostingClassifier has no accelerated form 'linear'",
    )
    assert optimised(boosted, "lookup")[1].program.kind == "lookup"


def changed(content: bytes, name: str, change: Callable[[np.ndarray], None]) -> bytes:
    """The accelerated form with one of its arrays changed."""
    program = Program.from_bytes(content)
    array = program.arrays[name].copy()
    change(array)
    return replace(program, arrays={**program.arrays, name: array}).to_bytes()


def shift_limits(limits: np.ndarray) -> None:
    """All limits by the least that is possible: only the very next number falls on another side."""
    limits[:] = np.nextafter(limits, np.inf)


def swap_leaves(leaves: np.ndarray) -> None:
    used = np.argwhere(leaves)
    (a, b), (c, d) = used[0], used[1]
    leaves[a, b], leaves[c, d] = leaves[c, d], leaves[a, b]


def shift_keys(nodes: np.ndarray) -> None:
    """All limits by the least that float32 can tell."""
    nodes[nodes[:, 2] != np.arange(len(nodes)), 1] += 1


@pytest.mark.parametrize(
    ("name", "array", "change"),
    [
        ("boosting, wide trees", "limits", shift_limits),
        ("boosting, wide trees", "leaves", swap_leaves),
        ("forest, missing values", "nodes", shift_keys),
        ("logistic", "scales", lambda scales: scales.__imul__(1 + 1e-6)),
    ],
)
def test_a_wrong_accelerated_model_fails_parity(name: str, array: str, change: Callable[[np.ndarray], None]) -> None:
    plain = fitted(name)
    content, fast = optimised(plain)
    edges = acceleration.edges(fast.program)
    assert acceleration.prove(content, plain, rows(seed=2), edges).kind == fast.program.kind
    found = acceleration.prove(changed(content, array, change), plain, rows(seed=2), edges)
    assert found.kind is None
    assert found.reason.startswith("not used: scores differ by up to")


def test_the_accelerated_form_of_another_model_fails_parity_and_flips_are_told_by_slice(boosted: FrameScorer) -> None:
    _, own = optimised(boosted)
    table = rows()
    shuffled = np.random.default_rng(0).permutation(target(table, "multiclass"))
    other = MODELS["boosting, last columns as categories"][0]().fit(engine.to_frame(table, COLUMNS), shuffled)
    foreign, _ = optimised(engine.FrameScorer(other, COLUMNS, "multiclass"))
    found = acceleration.prove(foreign, boosted, rows(seed=2), acceleration.edges(own.program), ("country",))
    assert found.kind is None
    assert found.flips["overall"] > 100
    assert sum(n for name, n in found.flips.items() if name.startswith("country=")) > 100


@pytest.mark.parametrize(
    ("name", "array", "index"),
    [
        ("boosting, wide trees", "codes", 0),
        ("boosting, wide trees", "starts", -1),
        ("boosting, wide trees", "rows", -1),
        ("forest", "nodes", (0, 2)),
        ("forest", "nodes", (0, 3)),
        ("forest", "roots", 0),
        ("logistic", "shifts", -1),
    ],
)
def test_an_accelerated_form_whose_indices_lead_outside_is_never_run(
    name: str, array: str, index: Any, caplog: pytest.LogCaptureFixture
) -> None:
    plain = fitted(name)
    content, fast = optimised(plain)
    bad = changed(content, array, lambda values: values.__setitem__(index, 2**31 - 1))
    found = acceleration.prove(bad, plain, rows(seed=2), acceleration.edges(fast.program))
    assert "do not fit together" in found.reason
    with caplog.at_level(logging.WARNING):
        assert acceleration.scorer(plain, bad, key=f"{name} {array} {index}", remembered=rows(50)) is plain
    assert "do not fit together" in caplog.text


def test_a_form_that_answers_otherwise_than_at_registration_is_not_used_here(
    boosted: FrameScorer, caplog: pytest.LogCaptureFixture
) -> None:
    content, _ = optimised(boosted)
    used = acceleration.scorer(boosted, content, key="as it was", remembered=rows(50))
    assert isinstance(used, acceleration.AcceleratedScorer)
    assert acceleration.scorer(boosted, content, key="as it was", remembered=rows(50), wanted="off") is boosted
    assert acceleration.scorer(boosted, None, key="without", remembered=rows(50)) is boosted
    drifted = changed(content, "leaves", swap_leaves)
    with caplog.at_level(logging.WARNING):
        assert acceleration.scorer(boosted, drifted, key="changed", remembered=rows(50)) is boosted
        assert acceleration.scorer(boosted, b"no archive", key="broken", remembered=rows(50)) is boosted
    assert "does not answer as it did when the version was registered" in caplog.text
    assert "BadZipFile" in caplog.text


def test_compiling_is_ended_when_its_budget_is_spent(
    boosted: FrameScorer, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    # An empty cache: compiling takes seconds.
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(acceleration, "_compiled", set())
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    content, found = acceleration.optimise(boosted, rows(), remembered=rows(9), budget=timedelta(milliseconds=300))
    assert content is None
    assert found.reason == "not used: compiling took longer than 0.3 s (model.acceleration_budget)"
    assert {child.pid for child in psutil.Process().children(recursive=True)} <= before


def test_a_compiler_that_fails_leaves_the_estimator(boosted: FrameScorer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(acceleration, "_compiled", set())
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    content, found = acceleration.optimise(boosted, rows(), remembered=rows(9), budget=MINUTE)
    assert content is None
    assert found.reason.startswith("not used: compiling failed: ")


def test_the_unknown_category_of_the_proof_can_be_stored_as_text() -> None:
    assert pa.array([UNKNOWN], pa.string()).to_pylist() == [UNKNOWN]
