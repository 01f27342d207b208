"""Backfills use the champion of each day, and nobody hears of them."""

from __future__ import annotations

import json
import time
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq
import pytest

from pipeline import cli
from pipeline.errors import NoChampion
from pipeline.intervals import format_instant
from tests.faults.deployments import deployed, orders_of, publishing_to
from tests.worlds import DAY_ONE, day

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from datetime import datetime

    from pipeline.job import JobSpec
    from pipeline.reports import Manifest
    from pipeline.runtime import Runtime


def number(month: int, of_month: int) -> int:
    """The number of a day of 2026."""
    return (DAY_ONE.replace(month=month, day=of_month) - DAY_ONE).days + 1


MARCH, APRIL, BACK = number(3, 1), number(4, 1), number(4, 10)
ASKED = {number(3, 5): 1, number(3, 20): 1, number(4, 5): 2, number(4, 15): 1}
# An interval belongs to who is champion at its end: one that ends exactly at a promotion is the new champion's.
EDGES = {MARCH - 1: 1, APRIL - 2: 1, APRIL - 1: 2, BACK - 2: 2, BACK - 1: 1}


@pytest.fixture(scope="module")
def history(
    tmp_path_factory: pytest.TempPathFactory, _mlflow_template: Path, worlds: Callable[..., Any]
) -> Iterator[tuple[Runtime, JobSpec]]:
    """Version 1 from 1 March, version 2 from 1 April, rolled back on 10 April; nothing is scored yet."""
    job = orders_of(worlds(first=MARCH - 16, days=number(4, 16), rows=60))
    with deployed(tmp_path_factory.mktemp("history"), _mlflow_template) as runtime:
        runtime.retrain(job, day(MARCH), bootstrap=True)
        runtime.retrain(job, day(APRIL))
        runtime.promote(job, 2, "better", at=day(APRIL))
        runtime.rollback(job, "worse after all", at=day(BACK))
        assert [promotion.model.version for promotion in runtime.ledger.promotions("orders")] == [1, 2, 1]
        yield runtime, job


class TestPointInTime:
    @pytest.fixture
    def runtime(self, history: tuple[Runtime, JobSpec]) -> Runtime:
        return history[0]

    @pytest.fixture
    def job(self, history: tuple[Runtime, JobSpec], tmp_path: Path) -> JobSpec:
        """The job, with outputs of its own for every test."""
        return publishing_to(history[1], tmp_path / "outputs")

    def scored(self, runtime: Runtime, job: JobSpec, numbers: dict[int, int], **options: Any) -> dict[int, int]:
        return {n: said(next(runtime.score(job, day(n), quiet=True, **options))) for n in numbers}

    def test_a_backfill_uses_the_champion_of_each_date(self, runtime: Runtime, job: JobSpec) -> None:
        assert self.scored(runtime, job, ASKED) == ASKED

    def test_an_interval_that_ends_at_a_promotion_is_the_new_champions(self, runtime: Runtime, job: JobSpec) -> None:
        assert self.scored(runtime, job, EDGES) == EDGES

    def test_before_the_first_champion_nothing_is_published(self, runtime: Runtime, job: JobSpec) -> None:
        with pytest.raises(NoChampion, match="had no champion as of 2026-02-28"):
            list(runtime.score(job, day(MARCH - 2), quiet=True))
        assert not files(runtime, job)

    def test_the_present_champion_or_a_version_is_used_when_asked_for(self, runtime: Runtime, job: JobSpec) -> None:
        assert self.scored(runtime, job, ASKED, model="current") == dict.fromkeys(ASKED, 1)
        assert self.scored(runtime, job, ASKED, model=2) == dict.fromkeys(ASKED, 2)
        assert self.scored(runtime, job, ASKED) == ASKED

    def test_a_later_promotion_does_not_change_the_past(self, runtime: Runtime, job: JobSpec) -> None:
        later = day(BACK + 7)
        runtime.promote(job, 2, "after all", at=later)
        try:
            assert self.scored(runtime, job, ASKED) == ASKED
            assert self.scored(runtime, job, ASKED, model="current") == dict.fromkeys(ASKED, 2)
        finally:
            runtime.rollback(job, "not after all", at=later + timedelta(minutes=1))

    @pytest.mark.parametrize(
        ("option", "expected"),
        [((), ASKED), (("--model", "current"), dict.fromkeys(ASKED, 1)), (("--model", "2"), dict.fromkeys(ASKED, 2))],
        ids=["as_of", "current", "2"],
    )
    def test_the_command_line_uses_the_same_versions(
        self,
        runtime: Runtime,
        job: JobSpec,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
        option: tuple[str, ...],
        expected: dict[int, int],
    ) -> None:
        with commands(runtime, job, capsys, monkeypatch) as run:
            for n, version in expected.items():
                manifest = run("score", "orders", "--start", format_instant(day(n)), *option)
                assert (manifest["model_version"], manifest["status"]) == (version, "published")

    def test_a_span_on_the_command_line_changes_champion_on_the_way(
        self,
        runtime: Runtime,
        job: JobSpec,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
        scale: Any,
    ) -> None:
        first, end = scale((APRIL - 4, APRIL + 3), (MARCH - 1, number(4, 16)))
        with commands(runtime, job, capsys, monkeypatch) as run:
            done = run("score", "orders", "--start", format_instant(day(first)), "--end", format_instant(day(end)))
        versions = [manifest["model_version"] for manifest in done["manifests"]]
        assert versions == [2 if APRIL - 1 <= n < BACK - 1 else 1 for n in range(first, end)]
        assert set(versions) == {1, 2}


@contextmanager
def commands(
    runtime: Runtime, job: JobSpec, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., dict[str, Any]]]:
    """The command line on the deployment, in this process; every command has to succeed."""
    settings = runtime.settings
    settings.jobs.mkdir(exist_ok=True)
    (settings.jobs / "orders.yaml").write_text(job.model_dump_json(), encoding="utf-8")
    monkeypatch.setenv("PIPELINE_HOME", str(settings.home))
    monkeypatch.setenv("PIPELINE_JOBS", str(settings.jobs))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", settings.tracking_uri)
    monkeypatch.delenv("PIPELINE_LEDGER_URL", raising=False)

    def run(*arguments: str) -> dict[str, Any]:
        assert cli.main([*arguments, "--json"]) == 0
        answer: dict[str, Any] = json.loads(capsys.readouterr().out)
        return answer

    yield run


def said(manifest: Manifest) -> int:
    """The version of a published partition: what its rows, its footer and its manifest all say."""
    (version,) = set(pq.read_table(manifest.path, columns=["model_version"])["model_version"].to_pylist())
    footer = pq.read_metadata(manifest.path).metadata[b"model_version"].decode()
    assert footer == str(version) == str(manifest.model_version)
    return int(version)


def files(runtime: Runtime, job: JobSpec) -> dict[str, tuple[int, int]]:
    """Inode and time of change of every file among the outputs."""
    root = Path(runtime.context(job).output)
    return {
        str(path.relative_to(root)): (path.stat().st_ino, path.stat().st_mtime_ns)
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


class TestQuiet:
    FIRST = 11

    @pytest.fixture
    def days(self, scale: Any) -> int:
        return int(scale(12, 90))

    @pytest.fixture
    def job(self, orders_on: Callable[..., JobSpec], worlds: Callable[..., Any], days: int) -> JobSpec:
        """A job that reacts within days, in a world that turns in the middle."""
        last = self.FIRST + days - 1
        world = worlds(first=-9, days=last, rows=120, change_on=self.FIRST + days // 2)
        return orders_on(world, model={"parameters": {"max_iter": 8}})

    def span(self, days: int) -> tuple[datetime, datetime]:
        return day(self.FIRST), day(self.FIRST + days)

    def test_a_backfill_alerts_trains_and_promotes_nothing_and_rewrites_nothing_when_repeated(
        self, runtime: Runtime, job: JobSpec, days: int, figures: Callable[..., None]
    ) -> None:
        runtime.retrain(job, day(10), bootstrap=True)
        ledger, (start, end) = runtime.ledger, self.span(days)
        as_of = end + timedelta(days=3)
        decided, promoted = ledger.decisions("orders"), ledger.promotions("orders")

        began = time.perf_counter()
        manifests = list(runtime.score(job, start, end, quiet=True))
        seconds = time.perf_counter() - began
        drifts = list(runtime.monitor(job, start, end, quiet=True))
        reports = runtime.evaluate(job, as_of, quiet=True)

        assert [manifest.status for manifest in manifests] == ["published"] * days
        assert all(said(manifest) == 1 for manifest in manifests)
        assert len(drifts) == len(reports) == days
        # The world did turn, and it was seen: there was something to be quiet about.
        assert sum(report.verdict == "drift" for report in drifts) >= 3
        assert sum(report.verdict == "drift" for report in reports) >= 3
        assert all(report.quiet for report in (*manifests, *drifts, *reports))
        assert (ledger.drift("orders", loud_on=1), ledger.performance("orders", loud_on=1)) == ([], [])
        self.unmoved(runtime, decided, promoted)

        before = files(runtime, job)
        assert len(before) >= 4 * days
        began = time.perf_counter()
        again = list(runtime.score(job, start, end, quiet=True))
        repeated = time.perf_counter() - began
        assert [manifest.status for manifest in again] == ["unchanged"] * days
        assert files(runtime, job) == before
        assert list(runtime.monitor(job, start, end, quiet=True)) == drifts
        assert runtime.evaluate(job, as_of, quiet=True) == []
        assert files(runtime, job) == before
        self.unmoved(runtime, decided, promoted)

        trigger = runtime.decide(job, as_of)
        assert not trigger.fire
        figures(
            "backfill",
            intervals=days,
            drifts=sum(report.verdict == "drift" for report in drifts),
            seconds_per_interval=round(seconds / days, 3),
            seconds_per_repeated_interval=round(repeated / days, 4),
        )

    def test_the_same_days_are_heard_when_they_are_no_backfill(self, runtime: Runtime, job: JobSpec, days: int) -> None:
        runtime.retrain(job, day(10), bootstrap=True)
        end = self.FIRST + min(days, 60)
        start = max(self.FIRST, end - 8)
        list(runtime.score(job, day(start), day(end)))
        list(runtime.monitor(job, day(start), day(end)))
        assert len(runtime.ledger.drift("orders", loud_on=1)) == end - start
        runtime.evaluate(job, day(end))
        # A change is proven on one day, so that the few that have labels are enough.
        eager = job.model_copy(update={"retrain": job.retrain.model_copy(update={"holdout": timedelta(days=1)})})
        assert runtime.decide(eager, day(end)).fire

    def unmoved(self, runtime: Runtime, decided: list[Any], promoted: list[Any]) -> None:
        """No decision was taken, and nobody else is champion."""
        assert runtime.ledger.decisions("orders") == decided
        assert runtime.ledger.promotions("orders") == promoted
        assert runtime.registry.champion("orders") == 1
        assert runtime.registry.versions("orders") == [1]
