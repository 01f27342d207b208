"""Every named point of a scoring run, made to fail in every way: an error says the truth about what it left behind."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq
import pytest

from pipeline import failpoints
from pipeline.errors import StorageUnavailable
from tests.faults.deployments import deployed, orders_of, publishing_to
from tests.worlds import day

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pipeline.job import JobSpec
    from pipeline.reports import Manifest
    from pipeline.runtime import Runtime

DAY = 11
OLD, NEW = 1, 2  # versions of the model
# Beside the scoring run's writes, not in them: what strikes here is not told apart from a defect of the run itself.
BETWEEN_WRITES = {"score.quarantined", "score.published", "manifest.written", "ledger.recorded"}
UNCHANGED = "the published file is unchanged and the staged one is removed"
WHOLE = "the published file is the previous one or the new one, never a part, and the staged one is removed"

Files = dict[str, str]
Fault = tuple[str, str, int]


@dataclass
class Attempts:
    """Scoring runs of one day into a place of their own, with a fault or without one."""

    runtime: Runtime
    job: JobSpec
    log: Path
    environment: pytest.MonkeyPatch

    def score(self, version: int, fault: str = "") -> Manifest:
        """What a run with the version returns or raises; the log starts anew."""
        failpoints._passed.clear()
        self.log.unlink(missing_ok=True)
        self.environment.setenv("PIPELINE_FAILPOINT_LOG", str(self.log))
        self.environment.setenv("PIPELINE_FAILPOINT", fault)
        return next(self.runtime.score(self.job, day(DAY), model=version))

    @property
    def passed(self) -> list[str]:
        """The points that the last run has passed, each fault behind its point."""
        return self.log.read_text("utf-8").splitlines()

    def into(self, place: Path) -> Attempts:
        """The same runs, publishing elsewhere."""
        return Attempts(self.runtime, publishing_to(self.job, place), self.log, self.environment)

    @property
    def output(self) -> Path:
        return Path(self.runtime.context(self.job).output)

    def published(self) -> Files:
        """The digest of every file that readers can see, by its place in the data sets."""
        roots = (self.output / "predictions", self.output / "quarantine")
        files = [path for root in roots for path in root.rglob("*") if path.is_file()]
        return {str(path.relative_to(self.output)): sha256_of(path) for path in files}

    def staged(self) -> list[Path]:
        """Work in progress that is lying about."""
        return [path for path in self.output.glob("*.staging/**/*") if path.is_file()]


def sha256_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def standing(
    tmp_path_factory: pytest.TempPathFactory, _mlflow_template: Path, worlds: Callable[..., Any]
) -> Iterator[tuple[Runtime, JobSpec]]:
    """A deployment with two versions of the model, and a job some of whose rows are quarantined."""
    rule = {"column": "amount", "rule": "between", "min": 20}
    job = orders_of(worlds(first=-9, days=20, rows=120), checks={"max_quarantined": 0.5, "rules": [rule]})
    with deployed(tmp_path_factory.mktemp("matrix"), _mlflow_template) as runtime:
        runtime.retrain(job, day(9), bootstrap=True)
        runtime.retrain(job, day(10))
        yield runtime, job


@pytest.fixture
def attempts(standing: tuple[Runtime, JobSpec], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Attempts]:
    monkeypatch.setattr(failpoints, "_passed", {})
    runtime, job = standing
    return Attempts(runtime, job, tmp_path / "passed", monkeypatch).into(tmp_path / "outputs")


def test_a_scoring_run_passes_every_named_point_and_no_other_in_the_order_of_their_names(attempts: Attempts) -> None:
    for version in (OLD, NEW):
        attempts.score(version)
        assert tuple(dict.fromkeys(attempts.passed)) == failpoints.NAMES
    # Both files go through all steps, the one with the bad rows first.
    passed = Counter(attempts.passed)
    assert {name for name in failpoints.NAMES if passed[name] == 1} == BETWEEN_WRITES
    assert set(passed.values()) == {1, 2}


# A fault right after a file was opened leaves pyarrow's writer to the garbage collector, which can no longer close it.
@pytest.mark.filterwarnings("ignore:Exception ignored in. <function ParquetWriter.__del__")
@pytest.mark.parametrize("overwriting", [False, True], ids=["first publication", "overwriting"])
def test_what_an_error_says_was_left_behind_is_what_is_there_and_a_rerun_converges(
    attempts: Attempts,
    tmp_path: Path,
    scale: Callable[[list[Fault], list[Fault]], list[Fault]],
    figures: Callable[..., None],
    overwriting: bool,
) -> None:
    expected = {}
    for version in (OLD, NEW):
        attempts.score(version)
        expected[version] = attempts.published()
    assert len(expected[NEW]) == 2
    assert not set(expected[OLD].items()) & set(expected[NEW].items())

    struck, storage_errors = Counter[str](), 0
    for name, action, passage in scale(faults(every=False, first=overwriting), faults(every=True, first=overwriting)):
        run = attempts.into(tmp_path / f"{name} {action} {passage}")
        if overwriting:
            run.score(OLD)
        before = expected[OLD] if overwriting else {}
        with pytest.raises((StorageUnavailable, RuntimeError, OSError), match=f"injected at {name}") as caught:
            run.score(NEW, f"{name}:{action}:{passage}")
        assert run.passed.count(f"{name}:{action}") == 1
        struck[action] += 1
        storage_errors += isinstance(caught.value, StorageUnavailable)

        require_loud(caught.value, name, action)
        require_true(caught.value, run, before, expected[NEW])
        assert run.score(NEW).model_version == NEW
        require_converged(run, expected[NEW])
    figures(
        "failing points, " + ("overwriting" if overwriting else "first publication"),
        **struck,
        storage_errors=storage_errors,
        violations=0,
    )
    assert struck.total() >= len(failpoints.NAMES)
    assert min(struck["raise"], struck["enospc"]) >= len(failpoints.NAMES) // 2


def faults(*, every: bool, first: bool) -> list[Fault]:
    """Each named point failing in both ways and at both files, or in one way at one of them, in turn."""
    found: list[Fault] = []
    for number, name in enumerate(failpoints.NAMES):
        passages = (1,) if name in BETWEEN_WRITES else (1, 2)
        ways = list(product(("enospc", "raise"), passages))
        found += [(name, *way) for way in (ways if every else [ways[(number + first) % len(ways)]])]
    return found


def require_loud(error: BaseException, name: str, action: str) -> None:
    """A full disk is told as such where it strikes a write of ours; a defect is never taken for the storage's fault."""
    if action == "raise":
        assert type(error) is RuntimeError
    elif name in BETWEEN_WRITES:
        assert isinstance(error, OSError)
    else:
        assert isinstance(error, StorageUnavailable)
        assert "No space left on device" in error.got
        assert "run the same command again" in error.next_step
        assert error.left_behind == (WHOLE if name.startswith("publish.") else UNCHANGED)


def require_true(error: BaseException, run: Attempts, before: Files, after: Files) -> None:
    """Each file is as before or as after, and as the error says; nothing is staged any more."""
    there = run.published()
    assert run.staged() == []
    for name in {*there, *before}:
        assert there.get(name) in {before.get(name), after[name]}, (
            f"{name} is neither the previous file nor the new one"
        )
    # The predictions are the commit record: they are never ahead of the quarantined rows.
    (quarantine,) = (name for name in after if name.startswith("quarantine"))
    (predictions,) = (name for name in after if name.startswith("predictions"))
    if there.get(predictions) == after[predictions]:
        assert there[quarantine] == after[quarantine]
    if isinstance(error, StorageUnavailable) and error.left_behind == UNCHANGED:
        (named,) = (name for name in after if name in error.what)
        assert there.get(named) == before.get(named)


def require_converged(run: Attempts, expected: Files) -> None:
    """Files, manifest and ledger say what those of an undisturbed run say."""
    assert run.published() == expected
    interval = run.job.interval(day(DAY))
    context = run.runtime.context(run.job)
    path = Path(context.target("predictions", interval).uri)
    table = pq.ParquetFile(path, page_checksum_verification=True).read(["row_id", "model_version"])
    footer = pq.read_metadata(path).metadata
    known = context.ledger.manifest(run.job.name, interval)
    beside = json.loads((run.output / "predictions.manifest" / f"ds={day(DAY):%Y-%m-%d}.json").read_text("utf-8"))
    assert known is not None
    assert known.path == beside["path"] == str(path)
    assert known.sha256 == beside["sha256"] == sha256_of(path)
    assert known.fingerprint == beside["fingerprint"] == footer[b"fingerprint"].decode()
    assert known.model_version == beside["model_version"] == int(footer[b"model_version"])
    assert set(table["model_version"].to_pylist()) == {known.model_version}
    assert len(set(table["row_id"].to_pylist())) == table.num_rows == known.rows_scored
    assert known.rows_in == known.rows_scored + known.rows_quarantined
