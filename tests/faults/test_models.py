"""A champion whose files, tags or alias somebody changed: refused before any code of it runs, or one version per partition."""

from __future__ import annotations

import gzip
import pickle
import random
import shutil
import threading
import time
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import cloudpickle
import numpy as np
import pyarrow.parquet as pq
import pytest
import skops.io
import sqlalchemy as sa
from mlflow import MlflowClient

from pipeline import engine, modelfiles, registry
from pipeline.errors import AliasConflict, ModelTampered
from pipeline.runtime import Runtime
from tests.faults.deployments import deployed, orders_of, publishing_to
from tests.faults.tampering import CORPUS, Attack, Payload, tree
from tests.worlds import day

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pipeline.job import JobSpec
    from pipeline.reports import Manifest

FIRST, LAST = 11, 20  # days to score; everything is trained by day 10
MOST_RUNS = 25  # scoring runs per move of the alias, before an attack gives up


@dataclass
class Deployment:
    """A registry on disk with version 1 as champion and version 2 beside it; day 11 is published."""

    runtime: Runtime
    job: JobSpec
    client: MlflowClient

    def files(self, version: int) -> Path:
        uri = self.client.get_model_version_download_uri("orders", str(version))
        return Path(unquote(urlsplit(uri).path))

    def score(self, number: int, job: JobSpec | None = None, **options: Any) -> Manifest:
        (manifest,) = self.runtime.score(job or self.job, day(number), **options)
        return manifest


@pytest.fixture(scope="module")
def standing(
    tmp_path_factory: pytest.TempPathFactory, _mlflow_template: Path, worlds: Callable[..., Any]
) -> Iterator[Deployment]:
    job = orders_of(worlds(first=-9, days=LAST, rows=120))
    with deployed(tmp_path_factory.mktemp("models"), _mlflow_template) as runtime:
        runtime.retrain(job, day(9), bootstrap=True)
        runtime.retrain(job, day(10))
        uri = runtime.settings.tracking_uri
        deployment = Deployment(runtime, job, MlflowClient(uri, uri))
        deployment.score(FIRST)
        yield deployment


def on_disk(root: Path) -> dict[str, tuple[int, int, bytes]]:
    """Every file below a folder with inode, time of change and content."""
    return {
        str(path.relative_to(root)): (path.stat().st_ino, path.stat().st_mtime_ns, path.read_bytes())
        for path in root.rglob("*")
        if path.is_file()
    }


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a process that has not loaded any version yet."""
    monkeypatch.setattr(registry, "_loaded", {})


@pytest.fixture
def attack(standing: Deployment, fresh: None, tmp_path: Path) -> Iterator[Attack]:
    into = standing.files(1)
    shutil.copytree(into, tmp_path / "intact")
    (tmp_path / "outside").mkdir()
    yield Attack(into, standing.files(2), tmp_path / "outside", Payload(tmp_path / "marker"))
    shutil.rmtree(into, ignore_errors=True)
    shutil.copytree(tmp_path / "intact", into)


def refused(standing: Deployment, said: str = "version 1 of model 'orders' was not loaded") -> None:
    """Scoring another day fails on the model, and nothing that was published changes."""
    output = Path(standing.runtime.context(standing.job).output)
    before = on_disk(output / "predictions")
    assert list(before) == [f"ds={day(FIRST):%Y-%m-%d}/part-0.parquet"]
    with pytest.raises(ModelTampered, match=said) as caught:
        standing.score(FIRST + 1)
    assert "no code of the model was run" in str(caught.value)
    assert len(str(caught.value)) < 2000
    assert on_disk(output / "predictions") == before
    assert standing.score(FIRST).status == "unchanged"


REFUSED: set[str] = set()


class TestTampering:
    def test_every_payload_leaves_its_trace_when_somebody_does_load_it(self, tmp_path: Path) -> None:
        payload = Payload(tmp_path / "marker")
        for run in (
            lambda: exec(payload.source),
            lambda: pickle.loads(payload.pickle),
            lambda: cloudpickle.loads(payload.cloudpickle),
            lambda: pickle.loads(gzip.decompress(payload.gzip)),
            lambda: skops.io.loads(payload.skops, trusted=payload.trusted),
        ):
            run()
            assert payload.marker.exists()
            payload.marker.rmdir()

    @pytest.mark.parametrize("way", CORPUS)
    def test_a_tampered_model_is_refused_and_nothing_of_it_runs(
        self, standing: Deployment, attack: Attack, figures: Callable[..., None], way: str
    ) -> None:
        intact = tree(attack.into)
        getattr(attack, way)()
        assert tree(attack.into) != intact, "nothing was tampered with"
        began = time.perf_counter()
        refused(standing)
        assert time.perf_counter() - began < 10
        assert not attack.payload.marker.exists()
        REFUSED.add(way)
        figures("tampered models", tampered=len(CORPUS), refused=len(REFUSED))

    def test_the_intact_model_is_loaded_by_a_fresh_process(self, standing: Deployment, attack: Attack) -> None:
        assert len(CORPUS) >= 12
        assert standing.runtime.context(standing.job).load(1).ref.version == 1

    @pytest.mark.parametrize("way", ["swap_the_reference", "lower_the_baseline"])
    def test_monitoring_does_not_believe_a_tampered_reference(
        self, standing: Deployment, attack: Attack, way: str
    ) -> None:
        getattr(attack, way)()
        with pytest.raises(ModelTampered, match="differs"):
            list(standing.runtime.monitor(standing.job, day(FIRST)))


class TestRecords:
    """The registry's own word about a version counts for nothing against the ledger's."""

    @pytest.fixture
    def retagged(self, standing: Deployment) -> Iterator[Callable[..., None]]:
        before = standing.client.get_model_version("orders", "1").tags

        def set_tags(tags: dict[str, str]) -> None:
            assert any(before[name] != value for name, value in tags.items()), "nothing was tampered with"
            standing.runtime.registry.tag("orders", 1, tags)

        yield set_tags
        standing.runtime.registry.tag("orders", 1, before)

    @pytest.mark.parametrize("tag", ["sha256", "sha256.model.skops"])
    def test_a_changed_tag_is_refused_although_the_files_are_intact(
        self, standing: Deployment, fresh: None, retagged: Callable[..., None], tag: str
    ) -> None:
        retagged({tag: "0" * 64})
        refused(standing, f"tag '{tag}' differs from the ledger")

    def test_files_and_tags_that_agree_with_each_other_are_refused_because_of_the_ledger(
        self, standing: Deployment, attack: Attack, retagged: Callable[..., None]
    ) -> None:
        attack.swap_all_files_of_another_version()
        retagged(modelfiles.tags(standing.runtime.context(standing.job).registered(2).files))
        refused(standing, "tag 'sha256' differs from the ledger")
        standing.runtime.registry.tag(
            "orders", 1, modelfiles.tags(standing.runtime.context(standing.job).registered(1).files)
        )
        refused(standing, "file 'MLmodel' differs")

    def test_a_version_that_the_registry_sends_elsewhere_is_refused(self, standing: Deployment, attack: Attack) -> None:
        place = self.source(standing)
        try:
            self.source(standing, standing.files(2).as_uri())
            assert standing.files(1) == standing.files(2)
            refused(standing, "file 'MLmodel' differs")
        finally:
            self.source(standing, place)

    def source(self, standing: Deployment, place: str | None = None) -> str:
        """Where the registry says that version 1 lies; ``place`` makes it say so, behind MLflow's back."""
        database = sa.create_engine(standing.runtime.settings.tracking_uri)
        where = "where name = 'orders' and version = 1"
        with database.begin() as connection:
            if place is not None:
                for column in ("source", "storage_location"):
                    change = sa.text(f"update model_versions set {column} = :place {where}")
                    assert connection.execute(change, {"place": place}).rowcount == 1
            found = connection.execute(sa.text(f"select source from model_versions {where}")).scalar_one()
        database.dispose()
        return str(found)


@dataclass
class Flips:
    """Somebody moves the alias, again and again, while partitions are scored; ``struck`` counts moves in mid-scoring."""

    move: Callable[[int], None]
    struck: int = 0
    moves: int = 0
    error: BaseException | None = None
    _scoring: threading.Event = field(default_factory=threading.Event)
    _ended: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Flips:
        self._thread = threading.Thread(target=self._flip)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        if self.error is not None:
            raise self.error

    def _flip(self) -> None:
        chance = random.Random(7)
        try:
            while not self._ended.is_set():
                if not self._scoring.wait(0.1):
                    continue
                time.sleep(chance.uniform(0, 0.15))
                before = self._scoring.is_set()
                self.move(2 - self.moves % 2)
                self.moves += 1
                self.struck += before and self._scoring.is_set()
        except BaseException as error:
            self.error = error

    def during(self, score: Callable[[], Manifest]) -> Manifest | AliasConflict:
        """What scoring said, with moves going on: a manifest, or the conflict."""
        self._scoring.set()
        try:
            return score()
        except AliasConflict as conflict:
            return conflict
        finally:
            self._scoring.clear()


def put_right(standing: Deployment) -> None:
    if standing.runtime.registry.champion("orders") != 1:
        standing.runtime.promote(standing.job, 1, "put right", day(11))


class TestAlias:
    @pytest.fixture
    def predicted(self, standing: Deployment) -> Callable[[int, int], np.ndarray[Any, Any]]:
        """The scores that a version gives the rows of a day."""
        context, made = standing.runtime.context(standing.job), dict[tuple[int, int], np.ndarray[Any, Any]]()

        def scores(version: int, number: int) -> np.ndarray[Any, Any]:
            if (version, number) not in made:
                model = context.load(version)
                file = Path(standing.job.features.uri) / f"ds={day(number):%Y-%m-%d}" / "part-0.parquet"
                frame = engine.to_frame(pq.read_table(file, partitioning=None), context.model_columns(model))
                made[version, number] = engine.predict(model.estimator, frame, "binary").scores[:, -1]
            return made[version, number]

        return scores

    def consistent(
        self, standing: Deployment, manifest: Manifest, number: int, predicted: Callable[[int, int], Any]
    ) -> int:
        """The one version of a published partition: in its rows, its footer, its manifest, and by its scores."""
        table = pq.read_table(manifest.path, partitioning=None)
        footer = {key.decode(): value.decode() for key, value in pq.read_metadata(manifest.path).metadata.items()}
        (version,) = set(table["model_version"].to_pylist())
        assert str(version) == footer["model_version"] == str(manifest.model_version)
        assert footer["model_digest"] == standing.runtime.context(standing.job).registered(int(version)).model.digest
        np.testing.assert_array_equal(table["score"].to_numpy(), predicted(int(version), number))
        return int(version)

    def test_versions_differ_on_every_day(self, predicted: Callable[[int, int], Any]) -> None:
        assert all((predicted(1, number) != predicted(2, number)).any() for number in range(FIRST, LAST + 1))

    def test_promotions_while_scoring_leave_one_version_in_every_partition(
        self,
        standing: Deployment,
        predicted: Callable[[int, int], Any],
        scale: Any,
        figures: Callable[..., None],
        tmp_path: Path,
    ) -> None:
        wanted, runtime, seen = scale(8, 100), standing.runtime, set[int]()
        conflicts = 0
        job = publishing_to(standing.job, tmp_path / "out")
        with Runtime(runtime.settings, runtime.clock) as other:
            minutes = count(1)

            def move(version: int) -> None:
                other.promote(job, version, "flip", day(10) + timedelta(minutes=next(minutes)))

            with Flips(move) as flips:
                for runs in range(MOST_RUNS * wanted):
                    if flips.error is not None or flips.struck >= wanted:
                        break
                    number = FIRST + runs % (LAST - FIRST + 1)
                    before = on_disk(tmp_path / "out" / "predictions")
                    result = flips.during(partial(standing.score, number, job, model=("as_of", "current")[runs % 2]))
                    if isinstance(result, AliasConflict):
                        conflicts += 1
                        assert on_disk(tmp_path / "out" / "predictions") == before
                    else:
                        seen.add(self.consistent(standing, result, number, predicted))
        champions = {promotion.model.version for promotion in runtime.ledger.promotions("orders")}
        assert seen == champions == {1, 2}
        put_right(standing)
        for number in range(FIRST, LAST + 1):
            assert self.consistent(standing, standing.score(number, job, model="current"), number, predicted) == 1
        assert flips.struck >= wanted
        figures("promotions while scoring", flips=flips.moves, struck=flips.struck, runs=runs, conflicts=conflicts)

    def test_an_alias_that_strangers_move_while_scoring_never_decides_who_scores(
        self,
        standing: Deployment,
        predicted: Callable[[int, int], Any],
        scale: Any,
        figures: Callable[..., None],
        tmp_path: Path,
    ) -> None:
        wanted, published, conflicts = scale(8, 100), 0, 0
        put_right(standing)

        def move(version: int) -> None:
            standing.client.set_registered_model_alias("orders", "champion", str(version))

        with Flips(move) as flips:
            for runs in range(MOST_RUNS * wanted):
                if flips.error is not None or (flips.struck >= wanted and published and conflicts):
                    break
                lap, number = divmod(runs, LAST - FIRST + 1)
                number += FIRST
                # Every lap publishes for the first time: there is always something to do.
                job = publishing_to(standing.job, tmp_path / str(lap))
                result = flips.during(partial(standing.score, number, job, model=("as_of", "current")[runs % 2]))
                if isinstance(result, AliasConflict):
                    conflicts += 1
                    assert "expected version 1" in str(result)
                    assert not (tmp_path / str(lap) / "predictions" / f"ds={day(number):%Y-%m-%d}").exists()
                else:
                    published += 1
                    assert self.consistent(standing, result, number, predicted) == 1
        move(1)
        for number in range(FIRST, LAST + 1):
            manifest = standing.score(number, publishing_to(standing.job, tmp_path / "right"))
            assert self.consistent(standing, manifest, number, predicted) == 1
        assert flips.struck >= wanted
        assert published
        assert conflicts
        figures(
            "alias moved by strangers", flips=flips.moves, struck=flips.struck, published=published, conflicts=conflicts
        )
