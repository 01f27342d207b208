"""The files of a model version: equal bytes for equal trainings, and nothing loaded that is not proven."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import zipfile
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pytest
import yaml
from sklearn.ensemble import RandomForestClassifier

from pipeline import engine, modelfiles, trainers
from pipeline.errors import ModelTampered, TerminalError, TrainerFailed
from pipeline.reports import Baseline, ModelRef, Profile, RegisteredModel

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipeline.job import JobSpec

AS_OF = datetime(2026, 3, 1, tzinfo=UTC)


def files_of(
    job: JobSpec, estimator: Any = None, accelerated: bytes | None = None, **attributes: Any
) -> dict[str, bytes]:
    """The files of a fresh training of ``job`` on always the same rows."""
    rng = np.random.default_rng(7)
    table = pa.table({"amount": rng.normal(size=300), "country": rng.choice(["de", "fr", "it"], 300)})
    frame = engine.to_frame(table, job.features.columns)
    target = (table["amount"].to_numpy() > 0.5).astype(np.int64)
    estimator = trainers.fit(job, frame, target) if estimator is None else estimator.fit(frame[["amount"]], target)
    for name, value in attributes.items():
        setattr(estimator, name, value)
    profile = Profile(
        train_start=datetime(2026, 1, 1, tzinfo=UTC),
        train_end=datetime(2026, 2, 15, tzinfo=UTC),
        holdout_end=AS_OF,
        rows=300,
        baseline=Baseline(metric="roc_auc", value=0.9, spread=0.01, n=100),
        effects={"country": 0.1, "amount": 0.2},
    )
    return modelfiles.write(
        estimator,
        signature_frame=frame,
        signature_output=target,
        profile=profile,
        reference=pa.concat_tables([table.slice(0, 20), table.slice(20, 5)]),
        learnt=np.array([3, 2**64 - 1], dtype=np.uint64),
        as_of=AS_OF,
        accelerated=accelerated,
    )


def record(files: dict[str, bytes]) -> RegisteredModel:
    """The record that registering ``files`` would have made."""
    digests = modelfiles.digests(files)
    return RegisteredModel(
        model=ModelRef(name="orders", version=3, digest=modelfiles.model_digest(digests)),
        files=digests,
        as_of=AS_OF,
        train_start=AS_OF,
        train_end=AS_OF,
        holdout_end=AS_OF,
    )


@pytest.fixture
def job(make_job: Callable[..., JobSpec]) -> JobSpec:
    return make_job(model={"parameters": {"max_iter": 3}})


@pytest.fixture
def files(job: JobSpec) -> dict[str, bytes]:
    return files_of(job)


def digest_of_training(document: str) -> str:
    """The digest of the files of one training; what another process runs."""
    from pipeline.job import JobSpec

    return record(files_of(JobSpec.model_validate_json(document))).model.digest


def test_equal_trainings_in_different_processes_have_the_same_digest(job: JobSpec) -> None:
    script = (
        "import importlib.util, sys\n"
        "spec = importlib.util.spec_from_file_location('tests_of_modelfiles', sys.argv[1])\n"
        "module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(module)\n"
        "print(module.digest_of_training(sys.argv[2]))\n"
    )
    environ = {**os.environ, "PYTHONHASHSEED": "4711", "OMP_NUM_THREADS": "7"}
    command = [sys.executable, "-c", script, __file__, job.model_dump_json()]
    other = subprocess.run(command, env=environ, capture_output=True, text=True, check=True, cwd=Path.cwd())
    assert other.stdout.strip() == digest_of_training(job.model_dump_json())


def test_a_model_file_holds_nothing_of_the_process_that_wrote_it(files: dict[str, bytes]) -> None:
    with zipfile.ZipFile(io.BytesIO(files["model.skops"])) as archive:
        members, state = archive.infolist(), archive.read("schema.json").decode()
    assert {member.date_time for member in members} == {(1980, 1, 1, 0, 0, 0)}
    assert [member.filename for member in members] == ["schema.json", *(f"{i}.npy" for i in range(1, len(members)))]
    assert max(map(int, state_numbers(state))) < 10_000


def state_numbers(state: str) -> list[str]:
    return [part.split("}")[0].split(",")[0] for part in state.split('"__id__":')[1:]]


def test_mlmodel_describes_columns_and_time_of_the_training(files: dict[str, bytes]) -> None:
    mlmodel = yaml.safe_load(files["MLmodel"])
    inputs = json.loads(mlmodel["signature"]["inputs"])
    assert [(column["name"], column["type"]) for column in inputs] == [("amount", "double"), ("country", "string")]
    assert json.loads(mlmodel["signature"]["outputs"])[0]["type"] == "long"
    assert mlmodel["utc_time_created"] == "2026-03-01 00:00:00.000000"
    assert not {"run_id", "model_id"} & set(mlmodel)


def test_verified_files_are_read_back_as_they_were_written(files: dict[str, bytes]) -> None:
    registered = record(files)
    modelfiles.verify({**files, "registered_model_meta": b"written by MLflow"}, registered)
    estimator, profile, reference, learnt, _ = modelfiles.read(files, registered.model, ())
    assert list(estimator.classes_) == [0, 1]
    assert profile.effects == {"country": 0.1, "amount": 0.2}
    assert reference.num_rows == 25
    assert learnt.tolist() == [3, 2**64 - 1]
    older = {name: content for name, content in files.items() if name != "learnt.parquet"}
    assert modelfiles.read(older, registered.model, ())[3].tolist() == []


def test_an_accelerated_form_is_one_of_the_digested_files_and_comes_back_as_it_was(job: JobSpec) -> None:
    plain, files = files_of(job), files_of(job, accelerated=b"arrays")
    assert sorted({*files} - {*plain}) == ["accelerated.zip"]
    assert modelfiles.read(files, record(files).model, ())[4] == b"arrays"
    assert modelfiles.read(plain, record(plain).model, ())[4] is None
    with pytest.raises(ModelTampered, match=r"file 'accelerated\.zip' differs"):
        modelfiles.verify({**files, "accelerated.zip": b"others"}, record(files))


@pytest.mark.parametrize("name", ["extra.py", "code/evil.py", "nested/registered_model_meta"])
def test_an_extra_file_is_refused(files: dict[str, bytes], name: str) -> None:
    with pytest.raises(ModelTampered, match=f"file '{name}' was not registered"):
        modelfiles.verify({**files, name: b"import os"}, record(files))


def test_a_record_without_the_recorded_digest_is_refused(files: dict[str, bytes]) -> None:
    registered = record(files)
    widened = registered.model_copy(update={"files": {**registered.files, "extra.py": "0" * 64}})
    with pytest.raises(ModelTampered, match="the ledger's list of its files"):
        modelfiles.verify(files, widened)


@pytest.mark.parametrize(
    ("flavor", "key", "value"),
    [
        ("python_function", "loader_module", "evil_loader"),
        ("python_function", "code", "code"),
        ("sklearn", "code", "code"),
        ("sklearn", "pickled_model", "../../model.pkl"),
        ("python_function", "model_path", "../model.skops"),
        ("sklearn", "serialization_format", "cloudpickle"),
        ("sklearn", "serialization_format", None),
    ],
)
def test_an_mlmodel_that_asks_for_another_loader_is_refused_even_when_it_was_registered_so(
    files: dict[str, bytes], flavor: str, key: str, value: str | None
) -> None:
    mlmodel = yaml.safe_load(files["MLmodel"])
    mlmodel["flavors"][flavor][key] = value
    changed = {**files, "MLmodel": yaml.safe_dump(mlmodel).encode()}
    with pytest.raises(ModelTampered, match="'MLmodel' is not of the allowed kind"):
        modelfiles.verify(changed, record(changed))


@pytest.mark.parametrize(
    "text",
    ["flavors: [", "[]", "flavors: 3", "flavors: {statsmodels: {}}", "flavors: {sklearn: x}", "!!python/name:os x"],
)
def test_an_mlmodel_that_is_nonsense_is_refused(files: dict[str, bytes], text: str) -> None:
    changed = {**files, "MLmodel": text.encode()}
    with pytest.raises(ModelTampered, match="file 'MLmodel'"):
        modelfiles.verify(changed, record(changed))


def test_a_bomb_of_aliases_in_mlmodel_is_refused_in_few_words(files: dict[str, bytes]) -> None:
    levels = "".join(f"  - &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12))
    bomb = (
        f"bomb:\n  - &a0 lol\n{levels}flavors: {{python_function: {{loader_module: *a11}}, sklearn: {{code: *a11}}}}\n"
    )
    changed = {**files, "MLmodel": bomb.encode()}
    with pytest.raises(ModelTampered, match=r"got something else under python_function, sklearn"):
        modelfiles.verify(changed, record(changed))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"sha256": None}, "'sha256'"),
        ({"sha256": "0" * 64}, "'sha256'"),
        ({"sha256.model.skops": "0" * 64}, "'sha256.model.skops'"),
        ({"sha256.evil.py": "0" * 64}, "'sha256.evil.py'"),
    ],
)
def test_tags_that_give_other_digests_than_the_ledger_are_refused(
    files: dict[str, bytes], changes: dict[str, str | None], named: str
) -> None:
    registered = record(files)
    intact = {**modelfiles.tags(registered.files), "outcome": "kept"}
    modelfiles.verify_tags(intact, registered)
    modelfiles.verify_tags({"sha256": registered.model.digest}, registered)
    changed = {name: digest for name, digest in {**intact, **changes}.items() if digest is not None}
    with pytest.raises(ModelTampered, match=f"tag {named} differs from the ledger"):
        modelfiles.verify_tags(changed, registered)


def test_folders_links_and_unknown_names_are_refused_before_anything_is_fetched(files: dict[str, bytes]) -> None:
    registered = record(files)
    intact = dict.fromkeys([*files, "registered_model_meta"], True)
    modelfiles.verify_names(intact, registered)
    for changes, said in (
        ({"code": False}, "folder or link 'code' was not registered"),
        ({"evil.py": True}, "file 'evil.py' was not registered"),
        ({"model.skops": False}, "'model.skops' is no plain file"),
        ({"registered_model_meta": False}, "'registered_model_meta' is no plain file"),
    ):
        with pytest.raises(ModelTampered, match=said):
            modelfiles.verify_names({**intact, **changes}, registered)


class Opinion:
    """A type that nobody declared as trusted."""


def test_only_types_that_the_job_names_are_trusted_whatever_the_version_claims(job: JobSpec) -> None:
    files = files_of(job, opinion_=Opinion())
    name = f"{Opinion.__module__}.Opinion"
    assert name in yaml.safe_load(files["MLmodel"])["flavors"]["sklearn"]["skops_trusted_types"]
    with pytest.raises(ModelTampered, match=r"types that are not trusted.*Opinion"):
        modelfiles.read(files, record(files).model, ())
    estimator, *_ = modelfiles.read(files, record(files).model, [name])
    assert isinstance(estimator.opinion_, Opinion)


def test_a_users_random_forest_is_read_when_the_job_trusts_its_trees(job: JobSpec) -> None:
    files = files_of(job, RandomForestClassifier(n_estimators=3, random_state=0))
    assert files == files_of(job, RandomForestClassifier(n_estimators=3, random_state=0))
    estimator, *_ = modelfiles.read(files, record(files).model, ["sklearn.tree._tree.Tree"])
    assert len(estimator.estimators_) == 3


def test_an_intact_model_that_this_environment_cannot_load_says_what_it_needs(files: dict[str, bytes]) -> None:
    with pytest.raises(TerminalError, match=r"unchanged, but cannot be loaded here.*scikit-learn=="):
        modelfiles.read({**files, "model.skops": b"a later format"}, record(files).model, ())


def test_an_estimator_that_skops_cannot_save_is_refused(job: JobSpec) -> None:
    with pytest.raises(TrainerFailed, match="type Pipeline cannot be saved with skops"):
        files_of(job, stream_=(number for number in range(3)))
