"""Of those who overwrite one partition at the same time exactly one wins, and the others find out."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq
import pytest

from pipeline.errors import PublishConflict
from pipeline.failpoints import NAMES
from pipeline.runtime import Runtime
from tests.faults.contest import Contest, competing, overwriting_blindly, sha256_of
from tests.faults.deployments import deployed, orders_of, publishing_to
from tests.faults.generations import prepare
from tests.faults.workers import Worker
from tests.worlds import day

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from datetime import datetime

    from pipeline.job import JobSpec
    from pipeline.reports import Manifest

    Scale = Callable[[int, int], int]


@pytest.fixture(scope="module")
def workers() -> Iterator[list[Worker]]:
    with ExitStack() as stack:
        started = [stack.enter_context(Worker()) for _ in range(8)]
        for worker in started:
            worker.order(prepare, "pyarrow")
        for worker in started:
            worker.result(120)
        yield started


@pytest.mark.parametrize("writers", [2, 8])
def test_exactly_one_of_several_writers_publishes_and_the_others_are_told(
    workers: list[Worker], writers: int, tmp_path: Path, scale: Scale, figures: Callable[..., None]
) -> None:
    contest = Contest(workers[:writers], tmp_path)
    rounds = scale(5, 100)
    winners = [contest.require_one_winner(contest.hold(number, competing)) for number in range(rounds)]
    first = [winner.generation % writers for winner in winners]
    figures(
        f"{writers} concurrent writers",
        rounds=rounds,
        winners=len(winners),
        conflicts=rounds * (writers - 1),
        contended_rounds=contest.contended,
        different_winners=len(set(first)),
    )
    assert contest.contended >= scale(1, 51)
    # Of those that lost nothing is left, and of those that won everything is kept.
    assert list(Path(contest.target.staging).iterdir()) == []
    kept = {path.stem for path in Path(contest.target.versions).iterdir()}
    assert {winner.sha256 for winner in winners[:-1]} <= kept <= {winner.sha256 for winner in winners}


def test_writers_of_the_same_rows_do_not_conflict(workers: list[Worker], tmp_path: Path, scale: Scale) -> None:
    contest = Contest(workers[:2], tmp_path)
    for number in range(scale(2, 20)):
        outcomes = contest.hold(number, competing, equal=True)
        assert [outcome.conflict for outcome in outcomes] == ["", ""]
        contest.require_whole(outcomes[0])


def test_the_contest_catches_writers_that_do_not_look(workers: list[Worker], tmp_path: Path) -> None:
    contest = Contest(workers[:2], tmp_path)
    with pytest.raises(AssertionError, match="2 of 2 writers believe that they have published"):
        contest.require_one_winner(contest.hold(0, overwriting_blindly))


@pytest.fixture(scope="module")
def standing(
    tmp_path_factory: pytest.TempPathFactory, _mlflow_template: Path, worlds: Callable[..., Any]
) -> Iterator[tuple[Runtime, JobSpec]]:
    """A deployment with two versions of the model, and a job some of whose rows are quarantined."""
    rule = {"column": "amount", "rule": "between", "min": 20}
    job = orders_of(worlds(first=-9, days=20, rows=120), checks={"max_quarantined": 0.5, "rules": [rule]})
    with deployed(tmp_path_factory.mktemp("contest"), _mlflow_template) as runtime:
        runtime.retrain(job, day(9), bootstrap=True)
        runtime.retrain(job, day(10))
        yield runtime, job


def test_of_two_runs_one_wins_and_a_rerun_brings_all_records_together(
    standing: tuple[Runtime, JobSpec],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    scale: Scale,
    figures: Callable[..., None],
) -> None:
    runtime, job = standing[0], publishing_to(standing[1], tmp_path / "outputs")
    pauses = ["publish.locked", "stage.verified", "score.quarantined", "score.published", *scale(0, 1) * NAMES]
    counts = {"runs": 0, "published": 0, "conflicts": 0, "repaired": 0}
    for number, pause in enumerate(pauses):
        # Where both wait, they are in each other's way at different places.
        monkeypatch.setenv("PIPELINE_FAILPOINT", f"{pause}:sleep")
        start = day(11 + number % 9)
        outcomes = both(runtime, job, start)
        monkeypatch.delenv("PIPELINE_FAILPOINT")
        manifests = [outcome for outcome in outcomes if not isinstance(outcome, PublishConflict)]
        assert manifests
        counts["runs"] += 2
        counts["published"] += len(manifests)
        counts["conflicts"] += 2 - len(manifests)
        assert published_version(runtime, job, start) in {manifest.model_version for manifest in manifests}

        counts["repaired"] += not agree(runtime, job, start)
        rerun(runtime, job, start)
        assert agree(runtime, job, start)
    figures("concurrent scoring runs", **counts)
    assert counts["conflicts"] > 0


def both(runtime: Runtime, job: JobSpec, start: datetime) -> list[Manifest | PublishConflict]:
    """What came of scoring one interval with version 1 and version 2 at the same time."""

    def score(version: int) -> Manifest | PublishConflict:
        with Runtime(runtime.settings, clock=runtime.clock) as own:
            try:
                return next(own.score(job, start, model=version))
            except PublishConflict as conflict:
                return conflict

    with ThreadPoolExecutor(2) as threads:
        return list(threads.map(score, (1, 2)))


def rerun(runtime: Runtime, job: JobSpec, start: datetime) -> Manifest:
    """The manifest of the interval, scored again by nobody else at the same time."""
    return next(runtime.score(job, start))


def published_version(runtime: Runtime, job: JobSpec, start: datetime) -> int:
    """The one version of which the published rows and their footer are."""
    path = runtime.context(job).target("predictions", job.interval(start)).uri
    file = pq.ParquetFile(path)
    (version,) = set(file.read(["model_version"])["model_version"].to_pylist())
    assert file.metadata.metadata[b"model_version"].decode() == str(version)
    return int(version)


def agree(runtime: Runtime, job: JobSpec, start: datetime) -> bool:
    """Whether predictions, quarantine, manifest file and ledger tell of the same run."""
    ctx, interval = runtime.context(job), job.interval(start)
    files = [Path(ctx.target(kind, interval).uri) for kind in ("predictions", "quarantine")]
    footers = [pq.read_metadata(path).metadata[b"fingerprint"].decode() for path in files]
    manifest = ctx.ledger.manifest(job.name, interval)
    beside = Path(ctx.output, "predictions.manifest", f"{job.output_partition(interval)}.json").read_text("utf-8")
    return (
        manifest is not None
        and {manifest.fingerprint} == set(footers)
        and manifest.sha256 == sha256_of(files[0])
        and manifest.model_dump_json(indent=2) + "\n" == beside
    )
