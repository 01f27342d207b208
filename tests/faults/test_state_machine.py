"""Whatever is done in whatever order, and wherever it crashes: each partition is whole, and it is the right one."""

from __future__ import annotations

import os
from collections import Counter
from contextlib import contextmanager
from datetime import timedelta
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import pandas as pd
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from pipeline import failpoints
from pipeline.errors import InvalidRequest, NoData
from pipeline.intervals import format_instant
from pipeline.runtime import Runtime, utc_now
from tests.faults.contest import sha256_of
from tests.faults.deployments import deployed, orders_of
from tests.faults.oracle import BELOW, DAYS, GENERATIONS, Content, Oracle, Outcome, Reign, identity
from tests.worlds import day, write_world

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pipeline.job import JobSpec
    from pipeline.reports import Manifest
    from tests.faults.oracle import Identity

TRAINED = {1: day(9), 2: day(10), 3: day(11)}
MOMENTS = tuple(day(number) + timedelta(hours=hours) for number in (10, 11, 12, 13, 14) for hours in (0, 12))
VERSIONS, NUMBERS, YES = st.sampled_from(tuple(TRAINED)), st.sampled_from(DAYS), st.booleans()


class Consumers(RuleBasedStateMachine):
    """One job of its own per example, in a deployment with three versions of a model."""

    runtime: ClassVar[Runtime]
    template: ClassVar[JobSpec]
    place: ClassVar[Path]
    struck: ClassVar[Counter[str]]
    _names: ClassVar[Iterator[int]] = count(1)

    def __init__(self) -> None:
        super().__init__()
        name = f"orders{next(self._names)}"
        self.features = self.place / name
        features = self.template.features.model_copy(update={"uri": str(self.features)})
        self.job = self.template.model_copy(update={"name": name, "features": features})
        self.runtime.promote(self.job, 1, "first", at=TRAINED[1])
        self.oracle = Oracle(Reign.of(1, TRAINED[1]))
        self.turn = 0
        self.known: dict[str, tuple[int, Outcome]] = {}
        self.snapshots: dict[str, str] = {}
        self.published: dict[int, str] = {}
        for number in DAYS:
            Content(number, 0).write(self.features)

    @property
    def output(self) -> Path:
        return Path(self.runtime.context(self.job).output)

    def path(self, dataset: str, number: int) -> Path:
        return self.output / dataset / f"ds={day(number):%Y-%m-%d}" / "part-0.parquet"

    # What is done.

    @initialize(published=YES, replaced=YES, first=st.integers(0, len(failpoints.NAMES) - 1))
    def begin(self, published: bool, replaced: bool, first: int) -> None:
        """Without history, or with some of it: partitions of two champions. ``first`` is the fault that comes first."""
        self.turn = first
        if replaced:
            self.promote(2, day(DAYS[1] + 1))
        if published:
            self.backfill(fails=False, renewed=False)

    @rule(number=NUMBERS, policy=st.sampled_from(("as_of", "current")) | VERSIONS, renewed=YES, fails=YES)
    def score(self, number: int, policy: Any, renewed: bool, fails: bool) -> None:
        if renewed:
            self.renew(number)
        reign = self.oracle.reign
        named = {"as_of": reign.at(day(number + 1)), "current": reign.current}
        self.carry_out(
            lambda: list(self.runtime.score(self.job, day(number), model=policy)),
            {number: named.get(policy, policy)},
            fails,
        )

    @rule(renewed=YES, fails=YES)
    def backfill(self, renewed: bool, fails: bool) -> None:
        for number in DAYS if renewed else ():
            self.renew(number)
        start, end = day(DAYS[0]), day(DAYS[-1] + 1)
        self.carry_out(
            lambda: list(self.runtime.score(self.job, start, end, quiet=True)),
            {number: self.oracle.reign.at(day(number + 1)) for number in DAYS},
            fails,
        )

    @rule(number=NUMBERS, fails=YES)
    def rerun(self, number: int, fails: bool) -> None:
        """What is published already, of the present input; first of all where a run has crashed."""
        number = min(set(DAYS) - self.oracle.settled, default=number)
        if recorded := self.recorded(number):
            version = recorded.version
            self.carry_out(lambda: [self.runtime.restate(self.job, day(number))], {number: version}, fails)

    @rule(number=NUMBERS, version=VERSIONS, renewed=YES)
    def crash_and_return(self, number: int, version: int, renewed: bool) -> None:
        """A run of something else crashes, and then what was there before is wanted again."""
        before = self.oracle.inputs[number]
        self.score(number, version, renewed, fails=True)
        self.every_partition_is_whole_and_allowed()
        self.deliver(number, before)
        self.rerun(number, fails=False)

    @rule(number=NUMBERS, generation=st.sampled_from(GENERATIONS))
    def deliver(self, number: int, generation: int) -> None:
        Content(number, generation).write(self.features)
        self.oracle.inputs[number] = generation

    def renew(self, number: int) -> None:
        """Another generation of the day's input than the present one."""
        self.deliver(number, (self.oracle.inputs[number] + 1) % len(GENERATIONS))

    @rule(fails=YES)
    def restate_changed(self, fails: bool) -> None:
        starts = self.runtime.changed(self.job, day(DAYS[-1] + 1))
        outdated = {
            number: recorded.version
            for number in DAYS
            if (recorded := self.recorded(number)) and recorded.generation != self.oracle.inputs[number]
        }
        assert starts == [day(number) for number in outdated]
        self.carry_out(lambda: [self.runtime.restate(self.job, start) for start in starts], outdated, fails)

    @rule(version=VERSIONS, at=st.sampled_from(MOMENTS))
    def promote(self, version: int, at: Any) -> None:
        if version == self.oracle.reign.current or at < TRAINED[version]:
            with pytest.raises(InvalidRequest, match=r"is already the champion|cannot be champion at"):
                self.runtime.promote(self.job, version, "better", at=at)
        else:
            self.runtime.promote(self.job, version, "better", at=at)
            self.oracle.reign.promote(version, at)
            self.struck["promotions"] += 1

    @rule(at=st.none() | st.sampled_from(MOMENTS))
    def rollback(self, at: Any) -> None:
        if len(self.oracle.reign.standing) < 2:
            with pytest.raises(InvalidRequest, match="no earlier champion"):
                self.runtime.rollback(self.job, "worse", at=at)
        else:
            self.runtime.rollback(self.job, "worse", at=at)
            self.oracle.reign.back(at or self.runtime.clock())
            self.struck["rollbacks"] += 1

    @rule(fails=YES)
    def rollback_and_restate(self, fails: bool) -> None:
        reign = self.oracle.reign
        undone = reign.undone
        if undone and (affected := self.scored_by(*undone)):
            reign.again(undone[1])
        elif len(reign.standing) < 2:
            with pytest.raises(InvalidRequest, match="no earlier champion"):
                self.runtime.rollback(self.job, "worse", restated=True)
            return
        else:
            affected = self.scored_by(*reign.standing[-1])
            reign.back(reign.standing[-1][1])
        back = dict.fromkeys(affected, reign.current)
        self.carry_out(lambda: self.runtime.rollback(self.job, "worse", restated=True)[1], back, fails)
        self.struck["restated"] += len(back)

    def scored_by(self, version: int, since: Any) -> list[int]:
        return [
            number
            for number in DAYS
            if (recorded := self.recorded(number)) and recorded.version == version and day(number + 1) >= since
        ]

    @rule(far=st.booleans())
    def sweep(self, far: bool) -> None:
        before, inodes = self.identities(), {path: Path(path).stat().st_ino for path in self.snapshots}
        with at_time(self.runtime, timedelta(days=1000 if far else 0)):
            removed = self.runtime.sweep(self.job)
        assert self.identities() == before
        if far:
            published = {predictions[0] for predictions, _ in before.values() if predictions}
            self.snapshots = {path: sha for path, sha in self.snapshots.items() if inodes[path] in published}
            assert not [path for path in self.output.glob("*.staging/**/*") if path.is_file()]
        else:
            assert removed == []

    @rule(number=NUMBERS)
    def read(self, number: int) -> None:
        path = self.path("predictions", number)
        if not path.exists():
            with pytest.raises(NoData, match="does not exist"):
                self.runtime.snapshot(self.job, day(number))
            return
        snapshot = self.runtime.snapshot(self.job, day(number))
        self.snapshots[snapshot] = sha256_of(path)
        rows = len(pd.read_parquet(self.output / "predictions"))
        paths = [self.path("predictions", n) for n in DAYS]
        assert rows == sum(pq.read_metadata(path).num_rows for path in paths if path.exists())
        self.struck["reads"] += 1

    def carry_out(self, action: Callable[[], list[Manifest]], versions: dict[int, int], fails: bool) -> None:
        """Score the days with the given versions; a fault leaves each of them old or new, and nothing else is touched."""
        # Taken in turn: what Hypothesis draws is mostly the same one. Quarantined rows pass first, then the predictions.
        self.turn += 1
        fault = failpoints.NAMES[self.turn % len(failpoints.NAMES)]
        passage = 1 + self.turn % 2 * fault.startswith(("stage.", "publish."))
        before, oracle = self.identities(), self.oracle
        untouched = {number for number in DAYS if number not in versions}
        try:
            with injected(f"{fault}:raise:{passage}" if fails else None):
                manifests = action()
        except RuntimeError as error:
            if not str(error).startswith("injected at"):
                raise
            self.struck[fault] += 1
            untouched |= {number for number, version in versions.items() if oracle.is_there(number, version)}
            for number, version in versions.items():
                oracle.crashed(number, version)
        else:
            assert [(m.start, m.model_version) for m in manifests] == [(day(n), v) for n, v in versions.items()]
            for manifest, (number, version) in zip(manifests, versions.items(), strict=True):
                unchanged, settled = manifest.status == "unchanged", number in oracle.settled
                assert unchanged or not oracle.is_there(number, version)
                assert not settled or unchanged == oracle.is_there(number, version)
                if unchanged and settled:
                    untouched.add(number)
                elif unchanged:  # the crash may have left quarantined rows of another run, which are put right
                    assert self.identities()[number][0] == before[number][0]
                self.struck[manifest.status] += 1
                oracle.completed(number, version)
        after = self.identities()
        assert {number: after[number] for number in untouched} == {number: before[number] for number in untouched}

    # What must be true after each step.

    @invariant()
    def every_partition_is_whole_and_allowed(self) -> None:
        for number in DAYS:
            found = self.found(number)
            assert found in self.oracle.allowed[number]
            self.oracle.allowed[number] = {found}
            self.require_quarantine(number, found)
            if number in self.oracle.settled:
                self.require_records(number, found)

    @invariant()
    def the_champion_is_who_was_promoted(self) -> None:
        reign = self.oracle.reign
        assert self.runtime.registry.champion("orders") == reign.current
        for moment in MOMENTS:
            champion = self.runtime.ledger.champion(self.job.name, moment)
            assert champion is not None
            assert champion.model.version == reign.at(moment)

    @invariant()
    def snapshots_and_superseded_files_never_change(self) -> None:
        assert {path: sha256_of(Path(path)) for path in self.snapshots} == self.snapshots

    def found(self, number: int) -> Outcome | None:
        """What is published of a day: of one version and one generation, every row once, and the footer says so."""
        path = self.path("predictions", number)
        if not path.exists():
            return None
        assert list(path.parent.iterdir()) == [path]
        file = pq.ParquetFile(path)
        table, footer = file.read(["row_id", "model_version"]), footer_of(path)
        ids = table["row_id"].to_pylist()
        content = Content(number, ids[0] // 1000 % 1000)
        (version,) = set(table["model_version"].to_pylist())
        assert sorted(ids) == sorted(content.good)
        assert (footer["job"], footer["interval_start"]) == (self.job.name, format_instant(day(number)))
        assert footer["model_version"] == str(version)
        counts = [int(footer[f"rows_{kind}"]) for kind in ("in", "scored", "quarantined", "rejected")]
        assert counts[0] == sum(counts[1:]) == content.rows + content.rejected
        assert counts[1:] == [len(content.good), len(content.bad), content.rejected]
        found = Outcome(version, content.generation)
        sha256 = sha256_of(path)
        superseded = self.published.get(number, sha256)
        if superseded != sha256:
            kept = self.output / "predictions.versions" / path.parent.name / f"{superseded}.parquet"
            self.snapshots[str(kept)] = superseded
        self.published[number] = sha256
        # Equal rows and an equal model give equal bytes, whatever happened in between.
        assert self.known.setdefault(sha256, (number, found)) == (number, found)
        assert len(set(self.known.values())) == len(self.known)
        return found

    def require_quarantine(self, number: int, found: Outcome | None) -> None:
        path = self.path("quarantine", number)
        rows = pq.ParquetFile(path).read(["row_id"])["row_id"].to_pylist() if path.exists() else []
        if number in self.oracle.settled:
            assert sorted(rows) == sorted(Content(number, found.generation).bad if found else [])
            if rows:
                assert footer_of(path)["fingerprint"] == footer_of(self.path("predictions", number))["fingerprint"]
        else:
            assert set(rows) in [Content(number, generation).bad for generation in GENERATIONS]
            assert len(set(rows)) == len(rows)

    def require_records(self, number: int, found: Outcome | None) -> None:
        assert self.recorded(number) == found
        manifest = self.runtime.ledger.manifest(self.job.name, self.job.interval(day(number)))
        beside = self.output / "predictions.manifest" / f"ds={day(number):%Y-%m-%d}.json"
        if manifest is None:
            assert not beside.exists()
            return
        assert manifest.sha256 == sha256_of(self.path("predictions", number))
        stable = manifest.model_copy(update={"status": "published", "quiet": False})
        assert beside.read_text("utf-8") == stable.model_dump_json(indent=2) + "\n"

    def recorded(self, number: int) -> Outcome | None:
        """What the ledger believes to be published of a day."""
        manifest = self.runtime.ledger.manifest(self.job.name, self.job.interval(day(number)))
        if manifest is None:
            return None
        known, outcome = self.known[manifest.sha256]
        assert (known, manifest.model_version) == (number, outcome.version)
        return outcome

    def identities(self) -> dict[int, tuple[Identity | None, Identity | None]]:
        """What tells of every day whether its files were touched."""
        return {
            number: (identity(self.path("predictions", number)), identity(self.path("quarantine", number)))
            for number in DAYS
        }


def footer_of(path: Path) -> dict[str, str]:
    return {key.decode(): value.decode() for key, value in (pq.read_metadata(path).metadata or {}).items()}


@contextmanager
def injected(fault: str | None) -> Iterator[None]:
    failpoints._passed.clear()
    if fault:
        os.environ["PIPELINE_FAILPOINT"] = fault
    try:
        yield
    finally:
        os.environ.pop("PIPELINE_FAILPOINT", None)


@contextmanager
def at_time(runtime: Runtime, later: timedelta) -> Iterator[None]:
    """Files carry the time of the real clock, so the sweeper's has to start from there."""
    clock, runtime.clock = runtime.clock, lambda: utc_now() + later
    try:
        yield
    finally:
        runtime.clock = clock


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory, _mlflow_template: Path) -> Iterator[type[Consumers]]:
    place = tmp_path_factory.mktemp("machine")
    rules = [{"column": "amount", "rule": "between", "min": BELOW}]
    job = orders_of(
        write_world(place / "training", first=-9, days=10, rows=40),
        model={"name": "orders", "parameters": {"max_iter": 4}},
        checks={"max_quarantined": 0.6, "rules": rules},
    )
    with deployed(place, _mlflow_template) as runtime:
        for version, at in TRAINED.items():
            runtime.retrain(job, at, bootstrap=version == 1)
        facts = {"runtime": runtime, "template": job, "place": place / "inputs", "struck": Counter()}
        yield type("Machine", (Consumers,), facts)


# A fault right after a file was opened leaves pyarrow's writer to the garbage collector, which can no longer close it.
@pytest.mark.filterwarnings("ignore:Exception ignored in. <function ParquetWriter.__del__")
def test_any_history_leaves_what_an_oracle_says(
    machine: type[Consumers],
    monkeypatch: pytest.MonkeyPatch,
    scale: Callable[[int, int], int],
    figures: Callable[..., None],
) -> None:
    monkeypatch.setattr(failpoints, "_passed", {})
    examples, steps = scale(6, 60), scale(12, 25)
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            derandomize=True,
            database=None,
            deadline=None,
            phases=[Phase.generate],  # shrinking a failure takes minutes; the steps that led to it are few
            suppress_health_check=list(HealthCheck),
        ),
    )
    struck = machine.struck
    crashes = {name: struck.pop(name) for name in failpoints.NAMES if struck[name]}
    figures("state machine", examples=examples, steps=steps, crashes=sum(crashes.values()), **struck)
    figures("state machine: crashes", **crashes)
    assert len(crashes) >= scale(3, 10), crashes
