"""The command line: output, exit codes and messages, run as a program."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow.compute as pc
import pytest

from pipeline import arguments, cli


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
    assert [id.split("-")[0] for id in told["made_with"]] == ["trigger", "training", "training"]
    assert run(capsys, "promote", "orders", "--version", "2", "--reason", "drill", "--at", "2026-01-18")[0] == 0
    status = run(capsys, "status")[1]["jobs"][0]
    assert (status["champion"], status["intervals"], status["rows_scored"]) == (2, 3, 300)
    kinds = [d["id"].split("-")[0] for d in status["decisions"]]
    assert kinds == ["promotion", "training", "gate", "training", "trigger"]
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


def test_explain_tells_every_kind_of_decision_in_sentences(home, capsys):
    made = run(capsys, "retrain", "orders", "--as-of", "2026-01-10", "--bootstrap")[1]
    gated = run(capsys, "retrain", "orders", "--as-of", "2026-01-18")[1]
    moved = run(capsys, "promote", "orders", "--version", "2", "--reason", "it is Friday", "--at", "2026-01-19")[1]
    back = run(capsys, "rollback", "orders", "--reason", "it is Monday")[1]

    def story(id):
        assert cli.main(["explain", id]) == 0
        return capsys.readouterr().out

    first = story(made["decision_ids"][0])
    assert "Version 1 was trained to be the first champion: no gate was asked." in first
    assert (
        f"Version 1 was champion until version 2 took over, from 2026-01-19T00:00:00Z on ({moved['decision_id']});"
        in first
    )
    assert "From 2026-01-10T00:00:00Z on version 1 is the champion of job orders, the first one." in first
    assert "At the same time: At 2026-01-10T00:00:00Z the policy of job orders started a training (bootstrap)." in first
    gate = story(gated["decision_ids"][0])
    assert "the gate of job orders compared version 2 with the champion, version 1, and " in gate
    assert "  roc_auc of the champion: 0." in gate
    assert "version 1 was replaced." in story(moved["decision_id"])
    assert "it is Friday" in story(moved["decision_id"])
    assert "No gate was asked at that time: somebody promoted version 2; the reason above is theirs." in story(
        moved["decision_id"]
    )
    withdrawn = story(back["decision_id"])
    assert "version 1 is again the champion of job orders; version 2 was withdrawn." in withdrawn
    assert "Version 1 was champion and still is; 0 of the partitions published since carry it now." in withdrawn
    code, error = run(capsys, "explain", "gate-000000000000")
    assert (code, error["error"]) == (65, "InvalidRequest")


def test_status_without_jobs_says_where_it_looked_and_names_broken_files(home, capsys):
    (home / "jobs" / "orders.yaml").unlink()
    (home / "jobs" / "bad.yaml").write_text("name: bad\n", encoding="utf-8")
    assert cli.main(["status"]) == 0
    said = capsys.readouterr()
    assert said.out == f"no valid job in {home / 'jobs'}\n"
    assert "not a valid job: " in said.err
    assert "bad.yaml" in said.err
    answer = run(capsys, "status")[1]
    assert answer["jobs"] == []
    assert len(answer["invalid"]) == 1


def test_status_before_anything_happened_is_empty_and_no_error(home, capsys):
    (row,) = run(capsys, "status", "orders")[1]["jobs"]
    assert (row["champion"], row["intervals"], row["latest"], row["decisions"]) == (None, 0, None, [])
    assert cli.main(["status", "orders"]) == 0
    assert capsys.readouterr().out.startswith("orders: champion -, 0 intervals published to -, drift -, roc_auc - (-)")


def test_wrong_usage_with_json_prints_one_object_as_well(capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["score", "orders", "--json", "--start", "yesterday"])
    said = capsys.readouterr()
    assert stopped.value.code == 2
    assert json.loads(said.out)["error"] == "WrongUsage"
    assert "yesterday" in json.loads(said.out)["message"]
    assert "usage: pipeline score" in said.err


def test_a_defect_exits_70_with_one_clear_line_after_its_traceback(home, capsys, monkeypatch):
    monkeypatch.setenv("PIPELINE_HOME", "/dev/null/nowhere")
    code = cli.main(["status", "--json"])
    said = capsys.readouterr()
    assert code == 70
    assert json.loads(said.out)["error"] == "NotADirectoryError"
    assert "Traceback" in said.err
    assert said.err.splitlines()[-1].startswith("NotADirectoryError: ")
    assert "report it" in said.err.splitlines()[-1]


def test_an_interruption_exits_130_without_a_traceback(home, monkeypatch, capsys):
    code = (
        "import os, signal, sys\n"
        "from pipeline import cli, jobfile\n"
        "find = jobfile.find\n"
        "jobfile.find = lambda *given: os.kill(os.getpid(), signal.SIGINT) or find(*given)\n"
        "sys.exit(cli.main(['check', 'orders', '--json']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=dict(os.environ))
    assert (done.returncode, done.stderr) == (130, "interrupted\n")
    assert json.loads(done.stdout)["error"] == "Interrupted"


def test_what_libraries_print_stays_out_of_the_answer(home, capsys, monkeypatch):
    (home / "talkative.py").write_text(
        "from sklearn.linear_model import LinearRegression\n"
        "def build(job):\n    print('hello from the trainer')\n    return LinearRegression()\n",
        encoding="utf-8",
    )
    monkeypatch.syspath_prepend(str(home))
    document = json.loads((home / "jobs" / "orders.yaml").read_text(encoding="utf-8"))
    document["model"] |= {"trainer": "talkative:build", "parameters": {}}
    (home / "jobs" / "orders.yaml").write_text(json.dumps(document), encoding="utf-8")
    code = cli.main(["retrain", "orders", "--as-of", "2026-01-10", "--bootstrap", "--json"])
    said = capsys.readouterr()
    assert (code, json.loads(said.out)["error"]) == (65, "TrainerFailed")
    assert "hello from the trainer" in said.err


def test_an_error_in_the_middle_of_a_span_says_what_was_done_before_it(home, capsys, world):
    run(capsys, "retrain", "orders", "--as-of", "2026-01-10", "--bootstrap")
    world.features(12).unlink()
    code, error = run(capsys, "score", "orders", "--start", "2026-01-10", "--end", "2026-01-14")
    assert (code, error["error"]) == (65, "NoData")
    assert "2 interval(s) before this one are published" in error["left_behind"]
    code, error = run(capsys, "monitor", "orders", "--start", "2026-01-10", "--end", "2026-01-14")
    assert (code, error["error"]) == (65, "InvalidRequest")
    assert "2 interval(s) before this one are monitored" in error["left_behind"]


def test_a_relative_home_apart_from_the_registry_works_from_one_folder(home, capsys, monkeypatch):
    monkeypatch.chdir(home)
    monkeypatch.setenv("PIPELINE_HOME", "state/here")
    run(capsys, "retrain", "orders", "--as-of", "2026-01-10", "--bootstrap")
    manifest = run(capsys, "score", "orders", "--start", "2026-01-10")[1]
    assert Path(manifest["path"]).is_relative_to(home / "state" / "here" / "outputs" / "orders")
    monkeypatch.chdir(home / "jobs")
    monkeypatch.setenv("PIPELINE_HOME", "../state/here")
    assert run(capsys, "score", "orders", "--start", "2026-01-10")[1]["status"] == "unchanged"
    assert run(capsys, "score", "orders", "--start", "2026-01-11")[1]["model_version"] == 1


def test_help_describes_every_argument_and_the_exit_codes(capsys):
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    said = capsys.readouterr().out
    assert "75" in said
    assert "PIPELINE_HOME" in said
    commands = next(a for a in arguments.parser()._actions if a.dest == "command" or a.choices).choices
    undescribed = [
        f"{name} {action.dest}"
        for name, sub in commands.items()
        for action in sub._actions
        if not action.help and not action.choices
    ]
    assert undescribed == []


def test_a_run_restates_earlier_partitions_whose_input_changed_and_names_those_it_could_not(home, capsys, world):
    run(capsys, "retrain", "orders", "--as-of", "2026-01-10", "--bootstrap")
    run(capsys, "score", "orders", "--start", "2026-01-10", "--end", "2026-01-13")
    world.rewrite(11, lambda table: table.slice(0, 299))
    world.rewrite(12, lambda table: table.drop_columns(["amount"]))
    code, answer = run(capsys, "score", "orders", "--start", "2026-01-13")
    assert (code, answer["status"], answer["rows_scored"]) == (0, "published", 300)
    assert [(m["start"], m["rows_scored"]) for m in answer["restated"]] == [("2026-01-11T00:00:00Z", 299)]
    assert [(f["start"], f["error"]) for f in answer["not_restated"]] == [("2026-01-12T00:00:00Z", "FileRejected")]


def test_restate_lists_changes_and_then_publishes_them(home, capsys, world):
    run(capsys, "retrain", "orders", "--as-of", "2026-01-10", "--bootstrap")
    run(capsys, "score", "orders", "--start", "2026-01-10", "--end", "2026-01-13")
    world.rewrite(11, lambda table: table.slice(0, 299))
    before = ["restate", "orders", "--before", "2026-01-13"]
    assert run(capsys, *before, "--dry-run")[1] == {"would_restate": ["2026-01-11T00:00:00Z"]}
    assert [m["rows_scored"] for m in run(capsys, *before)[1]["manifests"]] == [299]
    assert run(capsys, *before)[1] == {"manifests": []}
    assert [m["status"] for m in run(capsys, "restate", "orders", "--start", "2026-01-10")[1]["manifests"]] == [
        "unchanged"
    ]


def test_a_snapshot_stays_what_it_was_when_the_partition_is_superseded(home, capsys, world):
    run(capsys, "retrain", "orders", "--as-of", "2026-01-10", "--bootstrap")
    published = run(capsys, "score", "orders", "--start", "2026-01-10")[1]
    path = Path(run(capsys, "snapshot", "orders", "--start", "2026-01-10")[1]["path"])
    whole = path.read_bytes()
    assert whole == Path(published["path"]).read_bytes()
    world.rewrite(10, lambda table: table.slice(0, 299))
    assert run(capsys, "score", "orders", "--start", "2026-01-10")[1]["rows_scored"] == 299
    assert path.read_bytes() == whole
    assert run(capsys, "snapshot", "orders", "--start", "2026-01-11")[1]["error"] == "NoData"


def test_quarantine_is_told_by_reason_and_replayed(home, capsys, world):
    run(capsys, "retrain", "orders", "--as-of", "2026-01-10", "--bootstrap")
    whole = world.features(10).read_bytes()
    world.rewrite(10, lambda t: t.set_column(0, "row_id", pc.if_else(pc.greater(t["amount"], 400), None, t["row_id"])))
    bad = run(capsys, "score", "orders", "--start", "2026-01-10")[1]["rows_quarantined"]
    assert bad > 0
    told = run(capsys, "quarantine", "orders")[1]
    assert [(r["reason"], r["rows"], r["examples"]) for r in told["reasons"]] == [("null_key:row_id", bad, ["null"])]
    assert cli.main(["quarantine", "orders"]) == 0
    assert f"null_key:row_id: {bad} rows in 1 intervals" in capsys.readouterr().out
    world.features(10).write_bytes(whole)
    replayed = run(capsys, "replay-quarantine", "orders", "--start", "2026-01-10")[1]
    assert (replayed["rows_quarantined"], replayed["before"]["rows_quarantined"]) == (0, bad)


def test_rollback_shows_its_blast_radius_before_it_changes_anything(home, capsys):
    run(capsys, "retrain", "orders", "--as-of", "2026-01-10", "--bootstrap")
    run(capsys, "retrain", "orders", "--as-of", "2026-01-12")
    run(capsys, "promote", "orders", "--version", "2", "--reason", "drill", "--at", "2026-01-13")
    run(capsys, "score", "orders", "--start", "2026-01-11", "--end", "2026-01-15")
    asked = ["rollback", "orders", "--reason", "drill", "--restate"]
    code, radius = run(capsys, *asked, "--dry-run")
    days = [f"2026-01-{day}T00:00:00Z" for day in (12, 13, 14)]
    assert (code, radius) == (0, {"withdrawn": 2, "version": 1, "affected": days, "rows": 900})
    assert run(capsys, "status", "orders")[1]["jobs"][0]["champion"] == 2
    assert run(capsys, *asked, "--at", "2026-01-14")[0] == 65
    done = run(capsys, *asked)[1]
    assert [m["start"] for m in done["restated"]] == days
    assert {m["model_version"] for m in done["restated"]} == {1}
