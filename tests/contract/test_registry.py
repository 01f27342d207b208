"""The registry adapter against a real MLflow: versions, alias, integrity, and what happens when it does not answer."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import socket
import time
import warnings
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import numpy as np
import pyarrow as pa
import pytest
import sqlalchemy as sa
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from pipeline import engine, trainers
from pipeline.errors import (
    AliasConflict,
    InvalidRequest,
    ModelTampered,
    RegistryUnavailable,
)
from pipeline.registry import LoadedModel, Registry, prepare
from pipeline.reports import Baseline, Profile, RegisteredModel

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import pandas as pd

    from pipeline.job import JobSpec

AS_OF = datetime(2026, 3, 1, tzinfo=UTC)
FILES = [
    "MLmodel",
    "learnt.parquet",
    "model.skops",
    "profile.json",
    "python_env.yaml",
    "reference.parquet",
    "requirements.txt",
]


@dataclass(frozen=True)
class Training:
    """What a training hands to the registry."""

    estimator: Any
    frame: pd.DataFrame
    labels: np.ndarray
    profile: Profile
    reference: pa.Table


def train(job: JobSpec, rows: int = 400) -> Training:
    rng = np.random.default_rng(7)
    table = pa.table(
        {
            "amount": pa.array(rng.normal(size=rows), mask=rng.random(rows) < 0.1),
            "country": pa.array(rng.choice(["de", "fr", "it"], rows), mask=rng.random(rows) < 0.1),
        }
    )
    frame = engine.to_frame(table, job.features.columns)
    target = (frame["amount"].fillna(1).to_numpy() + (frame["country"] == "de").to_numpy() > 0.5).astype(np.int64)
    profile = Profile(
        train_start=datetime(2026, 1, 1, tzinfo=UTC),
        train_end=datetime(2026, 2, 15, tzinfo=UTC),
        holdout_end=AS_OF,
        rows=rows,
        baseline=Baseline(metric="roc_auc", value=0.9, spread=0.01, n=100),
        effects={"country": 0.1, "amount": 0.2},
        classes=("0", "1"),
    )
    return Training(trainers.fit(job, frame, target), frame, target, profile, table.slice(0, 50))


@pytest.fixture
def job(make_job: Callable[..., JobSpec]) -> JobSpec:
    return make_job(model={"parameters": {"max_iter": 4}})


@pytest.fixture
def training(job: JobSpec) -> Training:
    return train(job)


@pytest.fixture
def registry(tracking_uri: str, tmp_path: Path) -> Registry:
    return Registry(tracking_uri, tmp_path / "artifacts")


def register(registry: Registry, training: Training) -> RegisteredModel:
    return registry.register(
        "orders",
        training.estimator,
        signature_frame=training.frame,
        signature_output=training.labels,
        profile=training.profile,
        reference=training.reference,
        learnt=np.arange(10, dtype=np.uint64),
        as_of=AS_OF,
        parameters={"max_iter": "4"},
        metrics={"roc_auc": 0.9},
        tags={"job": "orders"},
    )


def stored(tracking_uri: str, registered: RegisteredModel) -> Path:
    """The folder in which the registry keeps the files of a version."""
    client = MlflowClient(tracking_uri, tracking_uri)
    uri = client.get_model_version_download_uri(registered.model.name, str(registered.model.version))
    return Path(unquote(urlsplit(uri).path))


def test_equal_trainings_in_two_registries_have_identical_bytes(
    job: JobSpec, registry: Registry, tracking_uri: str, tmp_path: Path
) -> None:
    other_uri = f"sqlite:///{tmp_path / 'other.db'}"
    shutil.copy(tmp_path / "mlflow.db", tmp_path / "other.db")
    first = register(registry, train(job))
    second = register(Registry(other_uri, tmp_path / "elsewhere"), train(job))
    one, two = stored(tracking_uri, first), stored(other_uri, second)
    assert sorted(path.name for path in one.iterdir()) == sorted(first.files) == FILES
    for name in FILES:
        assert (one / name).read_bytes() == (two / name).read_bytes(), name
    assert first.model.digest == second.model.digest


def test_another_training_has_another_digest(job: JobSpec, registry: Registry, training: Training) -> None:
    assert register(registry, training).model.digest != register(registry, train(job, rows=401)).model.digest


def test_unseen_and_missing_values_are_scored_by_the_loaded_model_as_by_the_trained_one(
    job: JobSpec, registry: Registry, training: Training
) -> None:
    model = registry.load(register(registry, training))
    rows = pa.table({"amount": pa.array([0.3, None, None]), "country": pa.array(["never seen", None, "de"])})
    frame = engine.to_frame(rows, job.features.columns)
    loaded = engine.predict(model.estimator, frame, "binary")
    trained = engine.predict(training.estimator, frame, "binary")
    np.testing.assert_array_equal(loaded.scores, trained.scores)
    np.testing.assert_array_equal(loaded.labels, trained.labels)


def test_profile_and_reference_come_back_with_the_model(registry: Registry, training: Training) -> None:
    registered = register(registry, training)
    model = registry.load(registered)
    assert isinstance(model, LoadedModel)
    assert model.ref == registered.model
    assert model.profile == training.profile
    assert model.reference.equals(training.reference)


def test_a_version_is_loaded_once_per_process(registry: Registry, training: Training, tracking_uri: str) -> None:
    registered = register(registry, training)
    first = registry.load(registered)
    shutil.rmtree(stored(tracking_uri, registered))
    assert registry.load(registered) is first


def test_a_version_carries_its_digest_tags_parameters_and_metrics(
    registry: Registry, training: Training, tracking_uri: str
) -> None:
    registered = register(registry, training)
    client = MlflowClient(tracking_uri, tracking_uri)
    version = client.get_model_version("orders", "1")
    digests = {f"sha256.{name}": digest for name, digest in registered.files.items()}
    assert version.tags == {"job": "orders", "sha256": registered.model.digest, **digests}
    run = client.get_run(version.run_id)
    assert (run.data.params, run.data.metrics, run.info.status) == ({"max_iter": "4"}, {"roc_auc": 0.9}, "FINISHED")
    assert client.get_experiment(run.info.experiment_id).name == "orders"
    registry.tag("orders", 1, {"outcome": "kept"})
    assert client.get_model_version("orders", "1").tags["outcome"] == "kept"
    assert registry.url("orders", 1) == "#/models/orders/versions/1"


@pytest.fixture
def mlflow(tracking_uri: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """MLflow as a user sees it: the global tracking URI, and the loaders of flavours."""
    with warnings.catch_warnings():
        # Importing its pyfunc flavour warns about MLflow's own type hints.
        warnings.simplefilter("ignore")
        import mlflow
        import mlflow.pyfunc
        import mlflow.sklearn
    before = mlflow.get_tracking_uri()
    # It sets the variable too, and would leave it to every later test and process.
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking_uri)
    mlflow.set_tracking_uri(tracking_uri)
    yield mlflow
    mlflow.set_tracking_uri(before)


def test_mlflows_own_loaders_accept_what_was_registered(mlflow: Any, registry: Registry, training: Training) -> None:
    registered = register(registry, training)
    registry.move_alias("orders", 1, expected=None)
    expected = training.estimator.predict(training.frame)
    np.testing.assert_array_equal(mlflow.sklearn.load_model("models:/orders/1").predict(training.frame), expected)
    pyfunc = mlflow.pyfunc.load_model("models:/orders@champion")
    np.testing.assert_array_equal(pyfunc.predict(training.frame), expected)
    with pytest.raises(MlflowException, match="missing inputs"):
        pyfunc.predict(training.frame[["amount"]])
    # MLflow has by now put a file of its own beside ours.
    assert registry.load(registered).ref.version == 1


def test_load_refuses_a_version_when_any_of_its_files_changed_in_the_store(
    registry: Registry, training: Training, tracking_uri: str, tmp_path: Path
) -> None:
    registered = register(registry, training)
    folder = stored(tracking_uri, registered)
    for name in FILES:
        original = (folder / name).read_bytes()
        flipped = bytearray(original)
        flipped[len(flipped) // 2] ^= 1
        (folder / name).write_bytes(flipped)
        with pytest.raises(ModelTampered, match=f"file '{name}' differs"):
            registry.load(registered)
        (folder / name).unlink()
        with pytest.raises(ModelTampered, match=f"file '{name}' is missing"):
            registry.load(registered)
        (folder / name).write_bytes(original)
    (folder / "code").mkdir()
    (folder / "code" / "sitecustomize.py").write_text(f"open({str(tmp_path / 'marker')!r}, 'w')")
    with pytest.raises(ModelTampered, match=r"'code' was not registered"):
        registry.load(registered)
    assert not (tmp_path / "marker").exists()
    shutil.rmtree(folder)
    with pytest.raises(ModelTampered, match=r"file 'MLmodel' is missing"):
        registry.load(registered)


def test_load_refuses_a_version_whose_mlmodel_names_another_loader(
    registry: Registry, training: Training, tracking_uri: str
) -> None:
    registered = register(registry, training)
    mlmodel = stored(tracking_uri, registered) / "MLmodel"
    mlmodel.write_text(mlmodel.read_text().replace("loader_module: mlflow.sklearn", "loader_module: evil_loader"))
    with pytest.raises(ModelTampered, match=r"file 'MLmodel' differs.*no code of the model was run"):
        registry.load(registered)


def test_load_refuses_the_files_of_another_version(registry: Registry, job: JobSpec, tracking_uri: str) -> None:
    first, second = register(registry, train(job)), register(registry, train(job, rows=401))
    for file in stored(tracking_uri, first).iterdir():
        shutil.copy(file, stored(tracking_uri, second))
    with pytest.raises(ModelTampered, match="version 2 of model 'orders' was not loaded: file 'MLmodel' differs"):
        registry.load(second)


def test_the_alias_moves_only_from_where_it_is_expected(registry: Registry, training: Training) -> None:
    assert registry.champion("orders") is None
    for _ in range(3):
        register(registry, training)
    assert registry.versions("orders") == [1, 2, 3]
    assert registry.champion("orders") is None
    registry.move_alias("orders", 1, expected=None)
    assert registry.champion("orders") == 1
    with pytest.raises(AliasConflict, match="expected no alias; got version 1; nothing was written"):
        registry.move_alias("orders", 2, expected=None)
    with pytest.raises(AliasConflict, match="expected version 3; got version 1"):
        registry.move_alias("orders", 2, expected=3)
    assert registry.champion("orders") == 1
    registry.move_alias("orders", 3, expected=1)
    assert registry.champion("orders") == 3


def test_a_version_that_does_not_exist_is_an_invalid_request(registry: Registry, training: Training) -> None:
    registered = register(registry, training)
    with pytest.raises(InvalidRequest, match=r"has no version 9; expected a version that exists \(1\)"):
        registry.move_alias("orders", 9, expected=None)
    with pytest.raises(InvalidRequest, match="has no version 9"):
        registry.tag("orders", 9, {})
    ghost = registered.model_copy(update={"model": registered.model.model_copy(update={"version": 9})})
    with pytest.raises(InvalidRequest, match="has no version 9"):
        registry.load(ghost)
    with pytest.raises(
        InvalidRequest, match=r"model 'nobody' has no version 1; expected a version that exists \(none\)"
    ):
        registry.move_alias("nobody", 1, expected=None)


def test_a_refused_connection_is_reported_in_time_and_without_credentials(training: Training) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    began = time.monotonic()
    with pytest.raises(RegistryUnavailable, match=r"cannot read the champion .*//\*\*\*@127\.0\.0\.1") as caught:
        Registry(f"http://scorer:s3cret@127.0.0.1:{port}", None).champion("orders")
    assert time.monotonic() - began < 10
    assert "s3cret" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_a_server_that_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    # What the adapter sets by itself keeps two attempts under twenty seconds; the test is less patient.
    assert (
        int(os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"]) * (1 + int(os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"])) < 18
    )
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        began = time.monotonic()
        with pytest.raises(RegistryUnavailable, match="cannot list the versions of model 'orders'"):
            Registry(f"http://127.0.0.1:{silent.getsockname()[1]}", None).versions("orders")
    assert time.monotonic() - began < 8


def test_a_database_that_is_no_database_is_reported_in_time(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_bytes(b"no database at all, but long enough to look" * 100)
    with pytest.raises(RegistryUnavailable, match="file is not a database"):
        Registry(f"sqlite:///{tmp_path / 'mlflow.db'}", tmp_path).champion("orders")


def first_contact(tracking_uri: str, artifacts: Path) -> int | None:
    return Registry(tracking_uri, artifacts).champion("orders")


def test_processes_that_start_together_share_one_fresh_database(tmp_path: Path, tracking_uri: str) -> None:
    uri = f"sqlite:///{tmp_path / 'home' / 'mlflow.db'}"
    # A server without threads forks them: this process has threads, whose locks a forked child would wait for.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    with context.Pool(4) as pool:
        answers = pool.starmap(first_contact, [(uri, tmp_path / "artifacts")] * 4, chunksize=1)
    assert answers == [None] * 4
    assert sorted(path.name for path in (tmp_path / "home").iterdir()) == [".mlflow.db.lock", "mlflow.db"]
    tables = [sorted(sa.inspect(sa.create_engine(place)).get_table_names()) for place in (uri, tracking_uri)]
    assert tables[0] == tables[1]


@pytest.mark.parametrize("kept", ["http://127.0.0.1:1", "sqlite://", "sqlite:///{path}"])
def test_prepare_leaves_servers_memory_and_existing_files_alone(tmp_path: Path, kept: str) -> None:
    path = tmp_path / "mlflow.db"
    path.write_text("existing")
    prepare(kept.format(path=path))
    assert path.read_text() == "existing"
    assert list(tmp_path.iterdir()) == [path]


def test_an_adapter_that_is_only_made_contacts_nobody(tmp_path: Path) -> None:
    Registry(f"sqlite:///{tmp_path / 'mlflow.db'}", tmp_path / "artifacts")
    assert list(tmp_path.iterdir()) == []
