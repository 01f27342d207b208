"""The command line: output, exit codes and messages, run as a program."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import cli


@pytest.fixture
def home(tmp_path, monkeypatch, orders, tracking_uri):
    """A deployment in the environment, with one job file."""
    jobs = tmp_path / "jobs"
    jobs.mkdir()
    careful = orders.model_copy(update={"promote": orders.promote.model_copy(update={"mode": "dry_run"})})
    (jobs / "orders.yaml").write_text(careful.model_dump_json(), encoding="utf-8")
    monkeypatch.setenv("PIPELINE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PIPELINE_JOBS", str(jobs))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking_uri)
    monkeypatch.delenv("PIPELINE_LEDGER_URL", raising=False)
    return tmp_path


def run(capsys, *arguments):
    code = cli.main([*arguments, "--json"])
    out = capsys.readouterr().out.strip()
    assert len(out.splitlines()) == 1
    return code, json.loads(out)


def test_the_whole_loop_by_hand(home, capsys):
    assert run(capsys, "retrain", "orders", "--as-of", "2026-01-10", "--bootstrap")[1]["outcome"] == "promoted"
    code, manifest = run(capsys, "score", "orders", "--start", "2026-01-10")
    assert code == 0
    counted = {"rows_in", "rows_scored", "rows_quarantined", "reasons"}
    named = {"job", "start", "end", "path", "model_name", "model_version", "model_digest", "fingerprint", "status"}
    assert counted | named <= set(manifest)
    assert run(capsys, "score", "orders", "--start", "2026-01-10")[1]["status"] == "unchanged"
    assert len(run(capsys, "score", "orders", "--start", "2026-01-10", "--end", "2026-01-13")[1]["manifests"]) == 3
    assert run(capsys, "monitor", "orders", "--start", "2026-01-11")[1]["verdict"] in ("stable", "drift")
    assert len(run(capsys, "evaluate", "orders", "--as-of", "2026-01-15")[1]["reports"]) == 3
    retrained = run(capsys, "retrain", "orders", "--as-of", "2026-01-18", "--reason", "curious")[1]
    assert retrained["outcome"] in ("kept", "dry_run")
    told = run(capsys, "explain", retrained["decision_ids"][0])[1]
    assert told["kind"] == "gate"
    assert run(capsys, "promote", "orders", "--version", "2", "--reason", "drill", "--at", "2026-01-18")[0] == 0
    status = run(capsys, "status")[1]["jobs"][0]
    assert (status["champion"], status["intervals"]) == (2, 3)
    assert run(capsys, "rollback", "orders", "--reason", "drill over")[1]["model"]["version"] == 1


def test_terminal_errors_exit_65_and_say_what_to_do(home, capsys):
    code, error = run(capsys, "score", "orders", "--start", "2026-01-10")
    assert (code, error["error"]) == (65, "NoChampion")
    assert "pipeline retrain orders --as-of T --bootstrap" in error["next_step"]


def test_an_unknown_job_lists_the_known_ones(home, capsys):
    code, error = run(capsys, "score", "order", "--start", "2026-01-10")
    assert (code, error["error"]) == (65, "UnknownJob")
    assert "orders" in error["message"]


def test_a_registry_that_is_down_exits_75_and_leaves_nothing(home, capsys, monkeypatch):
    run(capsys, "retrain", "orders", "--as-of", "2026-01-10", "--bootstrap")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    code, error = run(capsys, "score", "orders", "--start", "2026-01-10")
    assert (code, error["error"]) == (75, "RegistryUnavailable")
    assert not (home / "home" / "outputs" / "orders" / "predictions").exists()


def test_a_ledger_that_is_down_exits_75_without_the_password(home, capsys, monkeypatch):
    monkeypatch.setenv("PIPELINE_LEDGER_URL", "postgresql+psycopg2://ledger:s3cret@127.0.0.1:9/ledger")
    code, error = run(capsys, "status")
    assert (code, error["error"]) == (75, "LedgerUnavailable")
    assert "s3cret" not in json.dumps(error)


@pytest.mark.parametrize(
    "arguments",
    [
        ["score", "orders"],
        ["score", "orders", "--start", "yesterday"],
        ["score", "orders", "--start", "2026-01-10", "--model", "best"],
        ["nonsense"],
    ],
)
def test_wrong_usage_exits_2(home, arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(arguments)
    assert stopped.value.code == 2
    assert "usage: pipeline" in capsys.readouterr().err


def test_check_reports_the_problems_of_all_files(home, capsys):
    (home / "jobs" / "bad.yaml").write_text("name: bad\ntask: binry\n", encoding="utf-8")
    code, error = run(capsys, "check")
    assert code == 65
    assert "bad.yaml" in error["message"]
    assert "task" in error["message"]
    (home / "jobs" / "bad.yaml").unlink()
    assert run(capsys, "check")[1]["valid"][0]["name"] == "orders"


def test_schema_is_a_json_schema_in_which_every_field_is_described(capsys):
    assert cli.main(["schema", "--json"]) == 0
    schema = json.loads(capsys.readouterr().out)
    models = [schema, *schema["$defs"].values()]
    undescribed = [
        f"{m['title']}.{name}"
        for m in models
        for name, f in m["properties"].items()
        if "description" not in f and "$ref" not in f
    ]
    assert undescribed == []


def test_help_and_check_load_no_machine_learning_library(home):
    code = (
        "import sys; from pipeline import cli\n"
        "cli.main(['check'])\n"
        "print([m for m in ('pandas', 'sklearn', 'mlflow', 'great_expectations', 'alibi_detect') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=dict(os.environ)
    )
    assert done.stdout.splitlines()[-1] == "[]"


def test_init_writes_a_job_that_check_accepts_and_never_overwrites(home, capsys, world):
    arguments = [
        "init", "returns", "--features", str(world.root / "features"), "--labels", str(world.root / "labels"), "--key", "row_id",
        "--time", "event_ts", "--label", "label", "--task", "binary", "--interval", "1d", "--available-at", "label_available_at",
    ]  # fmt: skip
    code, made = run(capsys, *arguments)
    assert (code, made["features"]) == (0, ["amount", "country"])
    assert Path(made["path"]) == home / "jobs" / "returns.yaml"
    assert run(capsys, "check", "returns")[0] == 0
    assert run(capsys, *arguments)[0] == 65
