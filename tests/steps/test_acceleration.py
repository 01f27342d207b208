"""Accelerated models from registration to published partitions: proven, digested, and done without where they fail."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipeline import acceleration, registry
from pipeline.acceleration.programs import Program
from pipeline.errors import ModelTampered
from pipeline.steps import retrain
from tests.worlds import write_world


@pytest.fixture
def trained(runtime, orders, day):
    """The job of ``world`` with a champion of day 10."""
    runtime.retrain(orders, day(10), bootstrap=True)
    return runtime


def published(runtime, job, at):
    (manifest,) = runtime.score(job, at)
    return pq.read_table(manifest.path, partitioning=None).drop_columns(["model_version"])


def test_registration_records_the_proof_and_digests_the_accelerated_form(trained, orders):
    (registered,) = trained.ledger.models(orders.name)
    found = registered.acceleration
    assert (found.kind, found.max_difference, found.flips) == ("lookup", 0.0, {"overall": 0})
    assert found.rows == 3 * 300  # the three days of the holdout
    assert found.adversarial_rows > 1000
    assert "accelerated.zip" in registered.files
    assert trained.registry.tags(orders.model_name)[1]["acceleration"] == "lookup"


def test_partitions_are_scored_with_the_accelerated_form_and_are_the_same_without_it(trained, orders, day):
    context = trained.context(orders)
    assert isinstance(context.scorer(context.load(1)), acceleration.AcceleratedScorer)
    fast = published(trained, orders, day(11))
    (Path(context.output) / "predictions/ds=2026-01-11/part-0.parquet").unlink()
    off = orders.model_copy(update={"model": orders.model.model_copy(update={"acceleration": "off"})})
    assert not isinstance(trained.context(off).scorer(context.load(1)), acceleration.AcceleratedScorer)
    assert published(trained, off, day(11)).equals(fast)


def test_equal_trainings_register_the_same_bytes_of_an_accelerated_model(trained, orders, day):
    context = trained.context(orders)
    (first,) = trained.ledger.models(orders.name)
    again, found = acceleration.optimise(
        context.scorer(context.load(1)).plain,
        context.load(1).reference,
        remembered=context.load(1).reference,
        budget=timedelta(minutes=1),
    )
    assert again == context.load(1).accelerated
    assert found.kind == first.acceleration.kind


def test_a_changed_accelerated_form_is_refused_like_a_changed_model(trained, orders, day, tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "_loaded", {})  # as in another process than the one that trained it
    (file,) = (tmp_path / "home" / "models").rglob("accelerated.zip")
    program = Program.from_bytes(file.read_bytes())
    program.arrays["leaves"][:] = np.roll(program.arrays["leaves"], 1)
    file.write_bytes(program.to_bytes())
    with pytest.raises(ModelTampered, match=r"accelerated\.zip"):
        list(trained.score(orders, day(11)))
    assert not list(Path(trained.context(orders).output).glob("predictions/*"))


def test_an_accelerated_form_that_fails_its_check_here_leaves_the_estimator(trained, orders, day, monkeypatch, caplog):
    context = trained.context(orders)
    expected = published(trained, orders, day(11))
    model = context.load(1)
    program = Program.from_bytes(model.accelerated)
    program.arrays["leaves"][:] *= 1.001  # as if a library computed otherwise than where it was registered
    monkeypatch.setattr(acceleration, "_usable", {})
    object.__setattr__(model, "accelerated", program.to_bytes())
    (Path(context.output) / "predictions/ds=2026-01-11/part-0.parquet").unlink()
    try:
        assert published(trained, orders, day(11)).equals(expected)
    finally:
        registry._loaded.clear()
    assert "does not answer as it did when the version was registered" in caplog.text


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        ({"acceleration": "off"}, "model.acceleration is off"),
        ({"acceleration": "walk"}, "a HistGradientBoostingClassifier has no accelerated form 'walk'"),
        ({"acceleration_budget": "PT0.1S"}, "compiling took longer than 0.1 s"),
    ],
)
def test_without_an_accelerated_form_a_version_is_registered_and_says_why(
    runtime, orders_on, tmp_path, day, monkeypatch, model, reason
):
    monkeypatch.setattr(acceleration, "_compiled", set())
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "cache"))
    job = orders_on(write_world(tmp_path / "data", days=12, rows=200), model=model)
    registered = retrain.train(runtime.context(job), day(10))
    assert registered.acceleration.kind is None
    assert reason in registered.acceleration.reason
    assert "accelerated.zip" not in registered.files
    assert runtime.context(job).load(1).accelerated is None
