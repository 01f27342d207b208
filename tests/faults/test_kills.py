"""A scoring run that dies at any instant leaves whole partitions, and the next one makes everything right."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pytest

from pipeline import failpoints
from tests.faults.crashes import Deployment, Zygote
from tests.faults.deployments import deployed, orders_of
from tests.worlds import day, write_world

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

_BEGINS, _ENDS = failpoints.NAMES[0], failpoints.NAMES[-1]
_DAY = 12
_PATIENCE = 60.0


def spoilt(table: pa.Table, rows: int) -> pa.Table:
    """``rows`` rows made of the day's own, each with a key of its own; a few amounts break the job's rule."""
    many = pa.concat_tables([table] * (rows // table.num_rows + 1)).slice(0, rows)
    amounts = many["amount"].to_numpy().copy()
    amounts[:: rows // 50] = -1.0
    many = many.set_column(many.schema.get_field_index("amount"), "amount", pa.array(amounts))
    return many.set_column(many.schema.get_field_index("row_id"), "row_id", pa.array(np.arange(rows)))


@pytest.fixture(scope="module")
def deployment(
    tmp_path_factory: pytest.TempPathFactory, _mlflow_template: Path
) -> Iterator[Callable[[int], Deployment]]:
    """Two versions, registered; a day of as many rows as asked for."""
    place, home = tmp_path_factory.mktemp("data"), tmp_path_factory.mktemp("home")
    world = write_world(place, first=-9, days=_DAY, rows=120)
    rules = [{"column": "amount", "rule": "between", "min": 0}]
    job = orders_of(world, checks={"rules": rules})
    with deployed(home, _mlflow_template) as runtime:
        settings = runtime.settings
        settings.jobs.mkdir()
        (settings.jobs / "orders.yaml").write_text(job.model_dump_json(), encoding="utf-8")
        environment = {"PIPELINE_HOME": str(home), "PIPELINE_JOBS": str(settings.jobs)}
        with Zygote({**environment, "MLFLOW_TRACKING_URI": settings.tracking_uri}) as zygote:
            runtime.retrain(job, day(9), bootstrap=True)
            runtime.retrain(job, day(10))

            def of(rows: int) -> Deployment:
                world.rewrite(_DAY, lambda table: spoilt(table, rows))
                made = Deployment(home, job, day(_DAY), zygote, runtime, home / "passed.log")
                made.learn()
                return made

            yield of


def require_struck(kills: int, wanted: int, in_window: int) -> None:
    """An attack in which nothing, or nothing that matters, was struck proves nothing."""
    assert kills == wanted, f"{kills} of {wanted} kills struck"
    assert in_window >= 0.6 * kills, f"only {in_window} of {kills} kills fell between {_BEGINS} and {_ENDS}"


def test_killed_scoring_leaves_whole_partitions_and_the_rerun_converges(
    deployment: Callable[[int], Deployment], scale: Callable[[int, int], int], figures: Callable[..., None]
) -> None:
    wanted, rows = scale(8, 200), scale(40_000, 150_000)
    it = deployment(rows)
    draw = random.Random(2013)
    window, whole = spans(it)
    last, attempts, kills = Counter[str](), 0, 0
    while kills < wanted and attempts < 2 * wanted:
        attempts += 1
        model = 1 + attempts % 2
        if attempts % 5 == 0:  # a first publication
            for dataset in ("predictions", "quarantine"):
                shutil.rmtree(it.file(dataset).parents[1], ignore_errors=True)
        allowed = [it.digest(dataset) for dataset in ("predictions", "quarantine")]
        began = time.monotonic()
        process = it.begin(model)
        if attempts % 8:
            while not it.passed() and time.monotonic() - began < whole + 10:
                time.sleep(0.002)
            time.sleep(draw.uniform(0, 0.9 * window))
        else:
            time.sleep(draw.uniform(0, whole))
        with suppress(ProcessLookupError):  # it may have come to its end before
            os.kill(process, signal.SIGKILL)
        outcome = it.end(began)
        if outcome.status == -signal.SIGKILL:
            kills += 1
            last[outcome.passed[-1] if outcome.passed else "before"] += 1
        it.require_whole(*allowed)
        it.rerun(model)
        it.require_converged(model)
    in_window = sum(count for name, count in last.items() if name not in ("before", _ENDS))
    require_struck(kills, wanted, in_window)
    assert it.leftovers() == []
    figures("kills", kills=kills, in_window=in_window, violations=0, rows=rows, last_passed=dict(last))


def spans(it: Deployment) -> tuple[float, float]:
    """Seconds from the first failpoint to the end, and of a whole run, uninterrupted."""
    began = time.monotonic()
    it.begin(1)
    while not it.passed() and time.monotonic() - began < _PATIENCE:
        time.sleep(0.002)
    opened = time.monotonic()
    outcome = it.end(began)
    assert outcome.passed, f"nothing was passed: {outcome}"
    return time.monotonic() - opened, time.monotonic() - began


def test_an_attack_without_a_strike_fails() -> None:
    with pytest.raises(AssertionError, match="0 of 10 kills struck"):
        require_struck(0, 10, 0)
    with pytest.raises(AssertionError, match="only 5 of 10 kills fell between"):
        require_struck(10, 10, 5)


def test_a_kill_at_any_named_point_leaves_whole_partitions_and_the_rerun_converges(
    deployment: Callable[[int], Deployment], scale: Callable[[bool, bool], bool], figures: Callable[..., None]
) -> None:
    it, every = deployment(2_000), scale(False, True)
    model = 2  # what `learn` published last
    for name, passage in points(every=every):
        model = 3 - model
        outcome = it.run(model, f"{name}:kill:{passage}")
        assert outcome.passed.count(f"{name}:kill") == 1, f"{name} never struck: {outcome}"
        assert outcome.status == -signal.SIGKILL
        it.require_whole()
        it.rerun(model)
        it.require_converged(model)
    assert it.leftovers() == []
    figures("failpoints killed", kills=len(points(every=every)), violations=0)


def points(*, every: bool) -> list[tuple[str, int]]:
    """Each named point with the passage that is struck: two files are staged, so the second is that of the other one.

    Without ``every`` the files take turns.
    """
    found = []
    for number, name in enumerate(failpoints.NAMES):
        passages = (1, 2) if name.startswith(("stage.", "publish.")) else (1,)
        taken = passages if every else (passages[number % len(passages)],)
        found += [(name, passage) for passage in taken]
    return found
