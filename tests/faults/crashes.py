"""A deployment whose scoring runs are killed or fail at will, and what must be true of it afterwards."""

from __future__ import annotations

import hashlib
import json
import os
import select
import subprocess
import sys
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.runtime import Runtime
from pipeline.settings import Settings

if TYPE_CHECKING:
    from pipeline.job import JobSpec

ROOT = Path(__file__).parents[2]
_PATIENCE = 60.0


@dataclass(frozen=True)
class Outcome:
    """How a run ended: exit code (negative: the signal), its error, the failpoints that it passed, the seconds it took."""

    status: int
    error: str
    passed: list[str]
    seconds: float


class Zygote:
    """The process that forks scoring runs. Use as a context manager, which ends it and its child in any case."""

    def __init__(self, environment: dict[str, str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("zygote.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,  # a line in a buffer of this process would be no answer for `select`
            env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
            start_new_session=True,
        )
        assert self._line() == "ready"

    def __enter__(self) -> Zygote:
        return self

    def __exit__(self, *_: object) -> None:
        os.killpg(self._process.pid, 9)
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream:
                stream.close()

    def start(self, order: dict[str, Any]) -> int:
        """Begin a run; the number of its process."""
        assert self._process.stdin
        self._process.stdin.write(json.dumps(order).encode() + b"\n")
        return int(self._line())

    def ended(self) -> dict[str, Any]:
        """How the run that was begun last ended; waits for it."""
        found: dict[str, Any] = json.loads(self._line())
        return found

    def _line(self) -> str:
        assert self._process.stdout
        ready, _, _ = select.select([self._process.stdout], [], [], _PATIENCE)
        assert ready, "the forking process does not answer"
        return self._process.stdout.readline().decode().strip()


@dataclass
class Deployment:
    """One job with two registered versions, its zygote, and the bytes that uninterrupted runs publish."""

    home: Path
    job: JobSpec
    start: datetime
    zygote: Zygote
    runtime: Runtime
    log: Path
    expected: dict[int, dict[str, str]] = field(default_factory=dict)

    def begin(self, model: int, fault: str = "") -> int:
        """Start a run with that version; the number of its process."""
        self.log.write_text("")
        environment = {"PIPELINE_FAILPOINT": fault, "PIPELINE_FAILPOINT_LOG": str(self.log)}
        order = {"job": self.job.name, "start": self.start.isoformat(), "model": model, "environment": environment}
        return self.zygote.start(order)

    def end(self, began: float) -> Outcome:
        """Wait for the run."""
        ended = self.zygote.ended()
        return Outcome(ended["status"], ended["error"], self.passed(), time.monotonic() - began)

    def run(self, model: int, fault: str = "") -> Outcome:
        """A whole run."""
        began = time.monotonic()
        self.begin(model, fault)
        return self.end(began)

    def rerun(self, model: int) -> None:
        """A whole run that nothing disturbs, in this process, which need not start anything."""
        list(self.runtime.score(self.job, self.start, model=model))

    def passed(self) -> list[str]:
        """The failpoints that the present run has passed so far."""
        return self.log.read_text().split()

    def learn(self) -> None:
        """Publish once with each version, uninterrupted: what is right from now on."""
        for model in (1, 2):
            outcome = self.run(model)
            assert (outcome.status, outcome.error) == (0, "")
            self.expected[model] = {name: self.digest(name) for name in ("predictions", "quarantine")}
        assert self.expected[1]["predictions"] != self.expected[2]["predictions"]

    def file(self, dataset: str) -> Path:
        return Path(self.runtime.context(self.job).output) / dataset / f"ds={self.start:%Y-%m-%d}" / "part-0.parquet"

    def digest(self, dataset: str) -> str:
        """SHA-256 of the published file; empty when there is none."""
        path = self.file(dataset)
        return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else ""

    def require_whole(self, *allowed: str) -> None:
        """Each published file is, byte for byte, one that an uninterrupted run makes, and reads without a complaint.

        Another state is right only if its digest is among the ``allowed``: nothing at all is ``""``.
        """
        for dataset in ("predictions", "quarantine"):
            found = self.digest(dataset)
            assert found in {*allowed, *(expected[dataset] for expected in self.expected.values())}, dataset
            if found:
                # Readers take every file in the folder for a part of the partition.
                assert list(self.file(dataset).parent.iterdir()) == [self.file(dataset)]
                file = pq.ParquetFile(self.file(dataset), page_checksum_verification=True)
                table, footer = file.read(), file.metadata.metadata
                if dataset == "predictions":
                    ids = table["row_id"]
                    assert pa.compute.count_distinct(ids).as_py() == len(ids) == int(footer[b"rows_scored"])
                    assert set(table["model_version"].to_pylist()) == {int(footer[b"model_version"])}
                else:
                    assert len(table) == int(footer[b"rows_quarantined"])

    def require_converged(self, model: int) -> None:
        """Both files, the manifest beside them and the ledger say what an uninterrupted run of that version says."""
        for dataset, sha256 in self.expected[model].items():
            assert self.digest(dataset) == sha256
        output = Path(self.runtime.context(self.job).output)
        beside = json.loads((output / "predictions.manifest" / f"ds={self.start:%Y-%m-%d}.json").read_text())
        known = self.runtime.ledger.manifest(self.job.name, self.job.interval(self.start))
        assert known is not None
        assert beside["sha256"] == known.sha256 == self.expected[model]["predictions"]
        assert known.model_version == model

    def leftovers(self) -> list[str]:
        """What a sweep of the far future finds no reason to keep, but is still there."""
        settings = Settings.in_home(
            self.home, jobs=self.runtime.settings.jobs, tracking_uri=self.runtime.settings.tracking_uri
        )
        with Runtime(settings, clock=lambda: datetime(2100, 1, 1, tzinfo=UTC)) as later:
            later.sweep(self.job)
        output = Path(self.runtime.context(self.job).output)
        kept = {self.file("predictions"), self.file("quarantine")}
        kept |= {*output.glob("reports/**/*"), *output.glob("predictions.manifest/*.json")}
        found = [path for path in (*output.rglob("*"), *(self.home / "scratch").rglob("*")) if path.is_file()]
        return [str(path) for path in found if path not in kept]
