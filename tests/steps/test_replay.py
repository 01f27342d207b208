"""Replays: the whole loop over history, in simulated time, in a workspace of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.errors import InvalidRequest
from pipeline.replay import backtest, replay


@pytest.fixture
def run(orders_on, worlds, day, tmp_path):
    """A function that replays days 10 to 26 of a world that turns on day 15."""

    def start(policy="closed_loop", workspace=tmp_path / "replay", **changes):
        job = orders_on(worlds(first=-9, days=26, rows=200, change_on=15), **changes)
        lines: list[str] = []
        report = replay(
            job, day(10), day(27), policy=policy, workspace=workspace, jobs=tmp_path / "jobs", progress=lines.append
        )
        return report, lines

    return start


def published(workspace):
    root = workspace / "outputs" / "orders"
    return {
        str(path.relative_to(root)): path.read_bytes()
        for folder in ("predictions", "monitoring")
        for path in sorted((root / folder).rglob("*.parquet"))
    }


def test_a_closed_loop_finds_the_change_and_beats_a_frozen_champion(run, tmp_path):
    closed, lines = run()
    frozen, _ = run("frozen", tmp_path / "frozen")
    assert (closed["intervals"], closed["rows_in"]) == (17, 17 * 200)
    assert closed["rows_in"] == closed["rows_scored"] + closed["rows_quarantined"]
    assert closed["promotions"] >= 1
    assert (frozen["retrains"], frozen["promotions"]) == (0, 0)
    assert closed["metric"]["mean"] > frozen["metric"]["mean"] + 0.05
    assert len(lines) == 17
    kinds = [(d["kind"], d["outcome"]) for d in closed["decisions"]]
    assert kinds.index(("trigger", "fire")) < kinds.index(("gate", "promote"))


def test_no_label_is_used_before_it_arrived_and_every_interval_is_measured_in_the_end(run):
    report, lines = run("frozen")
    assert "roc_auc" not in lines[0] + lines[1]
    assert all(row["n"] == 200 for row in report["metric"]["by_interval"])


def test_always_retrains_and_promotes_at_every_label_complete_month(orders_on, worlds, day, tmp_path):
    job = orders_on(worlds(first=-9, days=40, rows=100))
    report = replay(
        job, day(25), day(38), policy="always", workspace=tmp_path / "w", jobs=tmp_path, progress=lambda _: None
    )
    assert (report["retrains"], report["promotions"]) == (1, 1)
    versions = {row["start"][:10]: row["model_version"] for row in report["metric"]["by_interval"]}
    assert (versions["2026-02-01"], versions["2026-02-02"], versions["2026-02-03"]) == (1, 1, 2)


def test_two_replays_publish_identical_bytes_and_decisions(run, tmp_path):
    first, _ = run(workspace=tmp_path / "one")
    second, _ = run(workspace=tmp_path / "two")
    assert published(tmp_path / "one") == published(tmp_path / "two")
    assert first["decisions"] == second["decisions"]


def test_a_replay_empties_only_a_workspace_that_a_replay_made(run, tmp_path):
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.txt").write_text("irreplaceable")
    with pytest.raises(InvalidRequest, match="not made by a replay"):
        run(workspace=precious)
    assert (precious / "thesis.txt").exists()


def test_a_day_without_data_or_with_broken_data_is_skipped_and_named(run, orders_on, world, day, tmp_path):
    Path(world.features(12)).unlink()
    world.features(13).write_bytes(b"half a delivery")
    world.labels(10).write_bytes(b"half a delivery")
    lines: list[str] = []
    report = replay(
        orders_on(world),
        day(10),
        day(15),
        policy="frozen",
        workspace=tmp_path / "w",
        jobs=tmp_path,
        progress=lines.append,
    )
    assert report["skipped"] == ["2026-01-12T00:00:00Z", "2026-01-13T00:00:00Z"]
    assert [row["n"] for row in report["metric"]["by_interval"]] == [0, 300, 300]
    assert "no input for" in lines[2]
    assert "not readable as Parquet" in lines[3]
    assert sum("1 interval(s) cannot be measured: 2026-01-10" in line for line in lines) == 1


def test_a_changed_policy_is_lived_through_beside_the_present_one(orders_on, worlds, day, tmp_path):
    world = worlds(first=-9, days=26, rows=200, change_on=15)
    job, careful = orders_on(world), orders_on(world, retrain={"enabled": False})
    where = {"jobs": tmp_path / "jobs", "progress": lambda _: None}
    found = backtest(job, careful, day(10), day(27), workspace=tmp_path / "both", **where)
    alone = replay(job, day(10), day(27), policy="closed_loop", workspace=tmp_path / "alone", **where)
    assert found["present"]["decisions"] == alone["decisions"]
    assert found["present"]["metric"] == alone["metric"]
    assert (found["changed"]["retrains"], found["changed"]["promotions"]) == (0, 0)
    assert found["difference"]["retrains"] == -alone["retrains"] < 0
    assert found["difference"]["promotions"] == -alone["promotions"] < 0
    assert found["difference"]["training_seconds"] < 0
    assert found["difference"]["metric"] < -0.05


def test_a_job_about_something_else_is_no_changed_policy(orders_on, worlds, day, tmp_path):
    job = orders_on(worlds(first=-9, days=26, rows=200, change_on=15))
    other = orders_on(worlds(days=5, rows=10))
    with pytest.raises(InvalidRequest, match=r"about something else than job 'orders'.*got other features, labels"):
        backtest(
            job, other, day(10), day(27), workspace=tmp_path / "w", jobs=tmp_path / "jobs", progress=lambda _: None
        )
    assert not (tmp_path / "w").exists()
