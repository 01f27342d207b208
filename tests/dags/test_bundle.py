"""The bundle in which every job file has a DAG file of its own."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

KINDS = ("score", "evaluate", "retrain", "operations")
OLD = 1_600_000_000


@pytest.fixture
def jobs(tmp_path, parcels):
    """A folder with two job files; the second asks a person before it promotes."""
    folder = tmp_path / "jobs"
    folder.mkdir()
    (folder / "plain.yaml").write_text(json.dumps(parcels(name="plain")))
    asking = parcels(name="asking", promote={"approval": {"required": True}})
    (folder / "asking.yml").write_text(json.dumps(asking, indent=1))
    return folder


@pytest.fixture
def bundle(deploy, jobs, tmp_path, monkeypatch):
    """A function that gives the bundle of ``jobs`` as a machine of that name sees it."""
    deploy()

    def of(machine="scheduler"):
        from pipeline_bundle import JobsDagBundle

        monkeypatch.setenv("AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_STORAGE_PATH", str(tmp_path / machine))
        return JobsDagBundle(name="jobs", jobs=str(jobs))

    return of


def parsed(bundle, file=None):
    """The DAG ids and import errors of one DAG file, or of all."""
    from airflow.dag_processing.dagbag import BundleDagBag

    bag = BundleDagBag(dag_folder=bundle.path / (file or ""), bundle_path=bundle.path, bundle_name=bundle.name)
    return set(bag.dags), dict(bag.import_errors)


def refreshed(bundle):
    bundle.initialize()
    bundle.refresh()
    return bundle


def age(bundle):
    for path in bundle.path.iterdir():
        os.utime(path, (OLD, OLD))


def made_anew(bundle):
    return {path.name for path in bundle.path.iterdir() if path.stat().st_mtime != OLD}


def test_every_job_file_has_a_dag_file_with_all_its_dags(bundle):
    found = refreshed(bundle())
    assert {path.name for path in found.path.iterdir()} == {"plain_yaml.py", "asking_yml.py"}
    assert parsed(found, "plain_yaml.py") == ({f"plain__{kind}" for kind in KINDS}, {})
    assert parsed(found, "asking_yml.py") == ({f"asking__{kind}" for kind in (*KINDS, "approve")}, {})


def test_the_code_of_a_dag_shows_its_job_file(bundle, jobs):
    code = (refreshed(bundle()).path / "asking_yml.py").read_text()
    assert str(jobs / "asking.yml") in code
    assert [line[6:] for line in code.splitlines() if line.startswith("#     ")] == (
        (jobs / "asking.yml").read_text().splitlines()
    )


def test_a_refresh_touches_only_the_dag_files_whose_job_file_has_changed(bundle, jobs, parcels):
    found = refreshed(bundle())
    age(found)
    found.refresh()
    assert made_anew(found) == set()
    (jobs / "plain.yaml").write_text(json.dumps(parcels(name="renamed")))
    (jobs / "new.yaml").write_text(json.dumps(parcels(name="new")))
    found.refresh()
    assert made_anew(found) == {"plain_yaml.py", "new_yaml.py"}
    assert parsed(found, "plain_yaml.py")[0] == {f"renamed__{kind}" for kind in KINDS}


def test_a_job_file_that_is_removed_takes_its_dag_file_along(bundle, jobs):
    found = refreshed(bundle())
    (jobs / "plain.yaml").unlink()
    (jobs / ".hidden.yaml").write_text("{}")
    found.refresh()
    assert [path.name for path in found.path.iterdir()] == ["asking_yml.py"]


def test_broken_job_files_are_import_errors_of_their_own_and_hide_no_other(bundle, jobs, parcels):
    (jobs / "broken.yaml").write_text(json.dumps(parcels(name="broken", schedule={"interval": "7x"})))
    (jobs / "mangled.yaml").write_bytes(b"name: \xff\x00\n")
    for twin in ("twin", "other_twin"):
        (jobs / f"{twin}.yaml").write_text(json.dumps(parcels(name="twin")))
    dags, errors = parsed(refreshed(bundle()))
    assert dags == {f"plain__{kind}" for kind in KINDS} | {f"asking__{kind}" for kind in (*KINDS, "approve")}
    assert {Path(file).name for file in errors} == {
        "broken_yaml.py",
        "mangled_yaml.py",
        "twin_yaml.py",
        "other_twin_yaml.py",
    }
    told = {Path(file).name: text for file, text in errors.items()}
    assert f"job file {jobs / 'broken.yaml'} has 1 problem" in told["broken_yaml.py"]
    assert "schedule.interval" in told["broken_yaml.py"]
    assert str(jobs / "mangled.yaml") in told["mangled_yaml.py"]
    assert str(jobs / "other_twin.yaml") in told["twin_yaml.py"]


def test_a_tasks_process_on_another_machine_declares_only_its_own_dag(bundle, monkeypatch):
    worker = bundle("worker")
    worker.initialize()
    monkeypatch.setenv("_AIRFLOW_PARSING_CONTEXT_DAG_ID", "asking__retrain")
    assert parsed(worker, "asking_yml.py") == ({"asking__retrain"}, {})


def test_job_files_of_any_name_have_dag_files_that_python_can_import(bundle, jobs, parcels):
    names = ("a.b.yaml", "a_b.yaml", "a-b.yaml", "größe.yaml", "it's.yaml")
    for number, name in enumerate(names):
        (jobs / name).write_text(json.dumps(parcels(name=f"job_{number}")))
    found = refreshed(bundle())
    assert len(list(found.path.iterdir())) == len(names) + 2
    dags, errors = parsed(found)
    assert errors == {}
    assert {f"job_{number}__score" for number in range(len(names))} <= dags


def test_without_a_folder_of_jobs_there_are_no_dags(bundle, jobs):
    found = bundle()
    jobs.rename(jobs.with_name("elsewhere"))
    assert parsed(refreshed(found)) == (set(), {})
