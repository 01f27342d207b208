"""Trainers on real scikit-learn: awkward categories, determinism, and refusals that name their cause."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
from sklearn.pipeline import Pipeline
from threadpoolctl import threadpool_limits

from pipeline import trainers
from pipeline.errors import ContractViolation, NotEnoughLabels, TrainerFailed

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from pipeline.job import JobSpec

FEW = {"parameters": {"max_iter": 5}}


def orders(rng: np.random.Generator, rows: int = 500, countries: int = 3) -> tuple[pd.DataFrame, np.ndarray]:
    """Rows as `engine.to_frame` makes them, with missing values, and a binary target that depends on both columns."""
    amount, country = rng.normal(size=rows), rng.integers(0, countries, rows)
    texts = np.array([f"c{i}" for i in range(countries)] + [None], dtype=object)
    frame = pd.DataFrame(
        {
            "amount": np.where(rng.random(rows) < 0.1, np.nan, amount),
            "country": texts[np.where(rng.random(rows) < 0.1, countries, country)],
        }
    )
    return frame, (amount + (country % 2) > 0.5).astype(np.int64)


def test_unseen_and_missing_values_are_scored(make_job: Callable[..., JobSpec], rng: np.random.Generator) -> None:
    frame, target = orders(rng)
    model = trainers.fit(make_job(model=FEW), frame, target)
    strange = pd.DataFrame({"amount": [np.nan, 1.0, np.inf], "country": ["never seen", None, "c1"]})
    assert np.isfinite(model.predict_proba(strange)).all()


def test_a_column_without_any_value_is_no_obstacle(make_job: Callable[..., JobSpec], rng: np.random.Generator) -> None:
    frame, target = orders(rng)
    empty = frame.assign(amount=np.nan, country=pd.Series([None] * len(frame), dtype=object))
    model = trainers.fit(make_job(model=FEW), empty, target)
    assert np.isfinite(model.predict_proba(frame)).all()


def test_infinite_values_are_no_obstacle(make_job: Callable[..., JobSpec], rng: np.random.Generator) -> None:
    frame, target = orders(rng)
    frame.loc[:50, "amount"] = np.inf
    frame.loc[51:60, "amount"] = -np.inf
    assert np.isfinite(trainers.fit(make_job(model=FEW), frame, target).predict_proba(frame)).all()


def test_thousands_of_categories_are_pooled_and_frequent_ones_kept(
    make_job: Callable[..., JobSpec], rng: np.random.Generator
) -> None:
    rows = 6000
    country = np.array([f"rare{i}" for i in range(rows)], dtype=object)
    country[: rows // 2] = rng.choice(["often", "also"], rows // 2)
    frame = pd.DataFrame({"amount": rng.normal(size=rows), "country": country})
    target = (country == "often").astype(np.int64)
    model = trainers.fit(make_job(model={"parameters": {"max_iter": 30}}), frame, target)
    probes = pd.DataFrame(
        {"amount": np.zeros(4), "country": np.array(["often", "also", "rare5999", "new"], dtype=object)}
    )
    often, also, rare, _ = model.predict_proba(probes)[:, 1]
    assert often > 0.9
    assert max(also, rare) < 0.1


@pytest.mark.parametrize("bins", [2, 16])
def test_categories_fit_into_fewer_bins_when_the_job_asks_for_them(
    make_job: Callable[..., JobSpec], rng: np.random.Generator, bins: int
) -> None:
    frame, target = orders(rng, countries=40)
    model = trainers.fit(make_job(model={"parameters": {"max_iter": 3, "max_bins": bins}}), frame, target)
    assert np.isfinite(model.predict_proba(frame)).all()


@pytest.mark.parametrize("kind", ["number", "category"])
def test_jobs_with_one_kind_of_column_are_trained(
    make_job: Callable[..., JobSpec], rng: np.random.Generator, kind: str
) -> None:
    name = {"number": "amount", "category": "country"}[kind]
    columns = {"columns": {name: {"type": kind}}, "uri": "f", "key": ["row_id"], "time": "event_ts"}
    frame, target = orders(rng)
    model = trainers.fit(make_job(model=FEW, features=columns), frame[[name]], target)
    assert model.predict_proba(frame[[name]]).shape == (500, 2)


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
def test_equal_data_gives_equal_predictions_bit_for_bit_whatever_the_threads(
    make_job: Callable[..., JobSpec], rng: np.random.Generator, task: str
) -> None:
    frame, target = orders(rng, rows=30_000)
    labels = {"binary": target, "multiclass": target + (frame["amount"] > 1), "regression": target * np.pi}[task]
    job = make_job(task=task, model={"parameters": {"max_iter": 3}})
    answers = []
    for threads in (1, 2):
        with threadpool_limits(limits=threads):
            model = trainers.fit(job, frame.copy(), np.asarray(labels))
        answers.append(model.predict(frame) if task == "regression" else model.predict_proba(frame))
    assert answers[0].tobytes() == answers[1].tobytes()


@pytest.mark.parametrize(
    ("metric", "parameters", "loss"),
    [
        (None, {}, "absolute_error"),
        ("mae", {}, "absolute_error"),
        ("rmse", {}, "squared_error"),
        ("mae", {"loss": "poisson"}, "poisson"),
    ],
)
def test_the_loss_follows_the_metric_unless_the_job_names_one(
    make_job: Callable[..., JobSpec], metric: str | None, parameters: dict[str, Any], loss: str
) -> None:
    job = make_job(task="regression", performance={"metric": metric}, model={"parameters": parameters, "seed": 5})
    model = trainers.build(job)
    assert isinstance(model, Pipeline)
    assert model["model"].loss == loss
    assert model["model"].random_state == 5


def test_the_defaults_learn_from_a_thousand_rows(make_job: Callable[..., JobSpec], rng: np.random.Generator) -> None:
    frame, target = orders(rng, rows=2000)
    model = trainers.fit(make_job(), frame[:1000], target[:1000])
    accuracy = (model.predict(frame[1000:]) == target[1000:]).mean()
    # About one row in ten misses each of the two columns that decide.
    assert accuracy > 0.85


@pytest.mark.parametrize("name", ["n_estimators", "random_state", "categorical_features"])
def test_build_refuses_a_parameter_it_does_not_take_and_lists_those_it_does(
    make_job: Callable[..., JobSpec], name: str
) -> None:
    with pytest.raises(TrainerFailed, match=rf"has {name}, which .* expected any of .*learning_rate, .*max_iter"):
        trainers.build(make_job(model={"parameters": {name: 5}}))


def test_fit_says_which_parameter_has_an_impossible_value(
    make_job: Callable[..., JobSpec], rng: np.random.Generator
) -> None:
    with pytest.raises(TrainerFailed, match=r"failed while fitting 500 rows.*'learning_rate'"):
        trainers.fit(make_job(model={"parameters": {"learning_rate": -1.0}}), *orders(rng))


@pytest.mark.parametrize("task", ["binary", "regression"])
def test_fit_refuses_no_rows(make_job: Callable[..., JobSpec], rng: np.random.Generator, task: str) -> None:
    frame, target = orders(rng)
    with pytest.raises(NotEnoughLabels, match=r"expected labelled rows.*got 0 rows and 0 labels"):
        trainers.fit(make_job(task=task), frame[:0], target[:0])


def test_fit_refuses_a_single_class(make_job: Callable[..., JobSpec], rng: np.random.Generator) -> None:
    frame, target = orders(rng)
    with pytest.raises(NotEnoughLabels, match="at least two classes; got only 1 in 500 rows"):
        trainers.fit(make_job(), frame, np.ones_like(target))


def test_fit_refuses_more_classes_than_the_task_has(make_job: Callable[..., JobSpec], rng: np.random.Generator) -> None:
    frame, target = orders(rng)
    with pytest.raises(ContractViolation, match="has 3 classes; expected two classes"):
        trainers.fit(make_job(), frame, np.arange(len(target)) % 3)


@pytest.mark.parametrize(
    ("values", "count"),
    [
        (np.array([0.0, np.nan, 1.0, np.inf]), 2),
        (np.array(["no", None, "yes", np.nan], dtype=object), 2),
    ],
    ids=["number", "text"],
)
def test_fit_refuses_labels_that_are_missing(make_job: Callable[..., JobSpec], values: np.ndarray, count: int) -> None:
    frame = pd.DataFrame({"amount": [1.0] * 4, "country": ["a"] * 4})
    with pytest.raises(ContractViolation, match=f"{count} of 4 labels in column 'label' are missing or infinite"):
        trainers.fit(make_job(), frame, values)


@pytest.fixture
def user_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module of a user's own trainers on the import path."""
    (tmp_path / "users_trainers.py").write_text(
        "import sys\n"
        "from sklearn.dummy import DummyClassifier, DummyRegressor\n"
        "from sklearn.linear_model import RidgeClassifier\n"
        "def good(job): return DummyClassifier(strategy='prior', random_state=job.model.seed)\n"
        "def regressor(job): return DummyRegressor()\n"
        "def no_scores(job): return RidgeClassifier()\n"
        "def crash(job): raise KeyError('depth')\n"
        "def leave(job): sys.exit(3)\n"
        "def text(job): return 'a model'\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    return "users_trainers"


def test_a_users_function_is_called_with_the_job(
    make_job: Callable[..., JobSpec], user_module: str, rng: np.random.Generator
) -> None:
    job = make_job(model={"trainer": f"{user_module}:good", "seed": 11})
    model = trainers.fit(job, *orders(rng))
    assert model.random_state == 11
    assert list(model.classes_) == [0, 1]


@pytest.mark.parametrize(
    ("trainer", "cause"),
    [
        ("users_trainers:crash", "KeyError: 'depth'"),
        ("users_trainers:leave", "SystemExit: 3"),
        ("users_trainers:text", "an object of type str"),
        ("users_trainers:absent", "AttributeError: .*absent"),
        ("users_trainers:regressor", "DummyRegressor without predict_proba"),
        ("users_trainers:no_scores", "RidgeClassifier without predict_proba"),
        ("no_such_module:anything", "ModuleNotFoundError: No module named 'no_such_module'"),
    ],
)
@pytest.mark.usefixtures("user_module")
def test_a_users_function_that_gives_no_trainer_is_named_with_its_cause(
    make_job: Callable[..., JobSpec], trainer: str, cause: str
) -> None:
    module, function = trainer.split(":")
    with pytest.raises(TrainerFailed, match=f"function '{function}' of module '{module}' gave no trainer.*got {cause}"):
        trainers.build(make_job(model={"trainer": trainer}))
