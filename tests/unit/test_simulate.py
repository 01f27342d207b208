"""The simulator plants what its docstring says: the same bytes every time, dirty rows, late labels, one change."""

from __future__ import annotations

import subprocess
import sys
from datetime import date, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from examples.simulate import DIRTY, simulate
from pipeline import jobfile

REPOSITORY = Path(__file__).resolve().parents[2]
START, CHANGE, DAYS = date(2026, 1, 1), date(2026, 1, 5), 8
INPUTS = ["distance_km", "weight_kg", "items", "depot_load", "carrier", "region", "express"]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight simulated days; the world changes on the fifth."""
    out = tmp_path_factory.mktemp("world")
    simulate(out, START, DAYS, CHANGE)
    return out


def read(out: Path, name: str, day: date) -> pd.DataFrame:
    return pd.read_parquet(out / name / f"ds={day}" / "part-0.parquet")


def labelled(out: Path, first: date, days: int) -> pd.DataFrame:
    parts = []
    for day in (first + timedelta(days=n) for n in range(days)):
        features = read(out, "features", day)
        clean = features[features["weight_kg"].gt(0) & features["distance_km"].lt(20_000) & features["row_id"].notna()]
        parts.append(clean.merge(read(out, "labels", day), on="row_id"))
    return pd.concat(parts)


def encoded(rows: pd.DataFrame) -> pd.DataFrame:
    known = ["east", "heron", "kestrel", "north", "plover", "south", "swift", "west"]
    frame = rows[INPUTS].assign(distance_km=np.log(rows["distance_km"]), express=rows["express"].astype(int))
    for column in ("carrier", "region"):
        frame[column] = pd.Categorical(frame[column], known)
    return pd.get_dummies(frame).astype(float)


def skill(train: pd.DataFrame, test: pd.DataFrame) -> float:
    """ROC AUC on ``test`` of a model trained on ``train``."""
    model = make_pipeline(StandardScaler(), LogisticRegression()).fit(encoded(train), train["label"])
    return float(roc_auc_score(test["label"], model.predict_proba(encoded(test))[:, 1]))


def test_the_same_seed_writes_the_same_bytes_and_a_longer_period_extends_a_shorter_one(world: Path, tmp_path: Path):
    simulate(tmp_path, START, 5, CHANGE)
    for name in ("features", "labels"):
        for n in range(5):
            part = f"{name}/ds={START + timedelta(days=n)}/part-0.parquet"
            assert (tmp_path / part).read_bytes() == (world / part).read_bytes()


def test_another_seed_writes_another_world_of_the_same_size(world: Path, tmp_path: Path):
    rows = simulate(tmp_path, START, 1, CHANGE, seed=8)
    assert rows == {START: len(read(world, "features", START))}
    assert not read(tmp_path, "features", START).equals(read(world, "features", START))


def test_every_day_holds_exactly_the_announced_dirty_rows(world: Path):
    for n in range(DAYS):
        features = read(world, "features", START + timedelta(days=n))
        found = {
            "row_id": int(features["row_id"].isna().sum()),
            "weight_kg": int(features["weight_kg"].lt(0).sum()),
            "distance_km": int(features["distance_km"].gt(1e6).sum()),
        }
        assert found == DIRTY
        assert features["row_id"].dropna().is_unique


def test_events_lie_on_their_day_and_mondays_are_busier_than_sundays(world: Path):
    sizes = {}
    for day in (START + timedelta(days=n) for n in range(DAYS)):
        features = read(world, "features", day)
        assert set(features["event_ts"].dt.date) == {day}
        sizes[day.weekday()] = len(features)
    assert sizes[0] > 1.1 * sizes[6]


def test_most_labels_come_within_a_day_a_few_late_and_some_never(world: Path):
    features, labels = read(world, "features", START), read(world, "labels", START)
    joined = features.merge(labels, on="row_id")
    delay = joined["label_available_at"] - joined["event_ts"]
    assert delay.min() >= timedelta(hours=2)
    assert delay.max() <= timedelta(days=4)
    assert 0.03 < (delay > timedelta(days=1)).mean() < 0.09
    assert 0.01 < 1 - len(labels) / len(features) < 0.04


def test_the_change_shifts_the_inputs_on_its_day_and_not_before(world: Path):
    before, eve, after = (read(world, "features", day) for day in (START, CHANGE - timedelta(days=1), CHANGE))
    for column, least in (("distance_km", 15), ("weight_kg", 1), ("depot_load", 0.1)):
        assert abs(eve[column].median() - before[column].median()) < least / 4
        assert after[column].median() - eve[column].median() > least
    assert "kestrel" not in set(eve["carrier"])
    assert after["carrier"].eq("kestrel").mean() > 0.3


def test_the_change_turns_the_relation_so_that_only_a_model_of_the_new_world_is_good_at_it(world: Path):
    old, new, test = (
        labelled(world, START, 3),
        labelled(world, CHANGE, 2),
        labelled(world, CHANGE + timedelta(days=2), 2),
    )
    assert skill(old, labelled(world, CHANGE - timedelta(days=1), 1)) > 0.74
    assert skill(old, test) < 0.6
    assert skill(new, test) > 0.74


def test_the_relation_moves_among_parcels_whose_inputs_look_alike(world: Path):
    """Concept drift proper: the same carrier, the same express flag, the opposite outcome."""
    old, new = labelled(world, START, 4), labelled(world, CHANGE, 4)

    def advantage(rows: pd.DataFrame) -> float:
        near = rows[rows["distance_km"].between(60, 120) & ~rows["express"]]
        late = near.groupby("carrier")["label"].mean()
        return float(late["plover"] - late["swift"])

    assert advantage(old) > 0.15
    assert advantage(new) < -0.15


def test_without_a_change_day_the_world_stays_as_it_is(tmp_path: Path):
    simulate(tmp_path, START, 6, None)
    assert skill(labelled(tmp_path, START, 3), labelled(tmp_path, START + timedelta(days=4), 2)) > 0.74


def test_the_command_writes_what_the_function_writes(world: Path, tmp_path: Path):
    command = [sys.executable, "-m", "examples.simulate", "--out", str(tmp_path), "--from", str(START), "--days", "1"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    part = f"features/ds={START}/part-0.parquet"
    assert (tmp_path / part).read_bytes() == (world / part).read_bytes()
    assert str(len(read(tmp_path, "features", START))) in done.stdout


def test_the_demo_job_declares_the_simulated_columns_and_its_rules_catch_the_dirty_rows(world: Path):
    job = jobfile.load(REPOSITORY / "examples" / "jobs" / "demo.yaml")
    features = read(world, "features", START)
    assert [*job.features.key, job.features.time, *job.features.columns] == list(features.columns)
    assert [*job.features.key, job.labels.column, job.labels.available_at] == list(read(world, "labels", START).columns)
    caught = features["row_id"].isna()
    for rule in job.checks.rules:
        values = features[rule.column]
        broken = values.isna() if rule.rule == "not_null" else ~values.between(rule.min or 0, rule.max or np.inf)
        caught |= broken
    assert int(caught.sum()) == sum(DIRTY.values())
