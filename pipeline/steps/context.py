"""What every step works with: one job and the opened adapters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import pyarrow as pa

from pipeline import acceleration, engine
from pipeline.errors import ContractViolation, InvalidRequest
from pipeline.intervals import format_instant
from pipeline.storage import Inputs, Storage, Target

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pipeline.intervals import Interval
    from pipeline.job import Column, JobSpec
    from pipeline.ledger import Ledger
    from pipeline.registry import LoadedModel, Registry
    from pipeline.reports import Manifest, RegisteredModel

DataSet = Literal["predictions", "quarantine", "monitoring/drift", "monitoring/performance", "shadow"]
# Columns that steps add to tables in memory; the names cannot clash with a job's own columns in a file.
LABEL, INTERVAL, PREDICTION = "__label__", "__interval__", "__prediction__"
_ADDED = {LABEL, INTERVAL, PREDICTION}


@dataclass(frozen=True, slots=True)
class JobContext:
    """One job, the root of its data sets, the adapters that steps may use, and how many batches may be scored at once."""

    job: JobSpec
    output: str
    inputs: Inputs
    storage: Storage
    ledger: Ledger
    registry: Registry
    most_workers: int = 1

    @property
    def workers(self) -> int | None:
        """How many batches are scored at once: what the job asks for, and no more than this machine allows.

        A cluster is another machine: there it is what the job asks for, and ``None`` leaves it to the cluster.
        """
        if self.job.engine.backend == "ray":
            return self.job.engine.workers
        return min(self.job.engine.workers or self.most_workers, self.most_workers)

    def target(self, dataset: DataSet, interval: Interval) -> Target:
        """Where one interval of one of the job's data sets is published."""
        return Target(f"{self.output}/{dataset}", self.job.output_partition(interval))

    def report_uri(self, name: str, interval: Interval) -> str:
        """Where one interval's HTML report of that name lies."""
        return f"{self.output}/reports/{self.job.output_partition(interval)}/{name}.html"

    def published(self, interval: Interval) -> Manifest:
        """The latest manifest of an interval; raises `InvalidRequest` when it was never published."""
        manifest = self.ledger.manifest(self.job.name, interval)
        if manifest is None:
            raise InvalidRequest(
                f"job {self.job.name!r} has not published {interval}",
                expected="a published interval",
                got="no manifest in the ledger",
                next_step=f"pipeline score {self.job.name} --start {format_instant(interval.start)}",
            )
        return manifest

    def registered(self, version: int) -> RegisteredModel:
        """The recorded facts of a version; raises `InvalidRequest` for one that the ledger does not know."""
        registered = self.ledger.model(self.job.model_name, version)
        if registered is None:
            known = [m.model.version for m in self.ledger.models(self.job.name)]
            raise InvalidRequest(
                f"model {self.job.model_name!r} version {version} was not registered by this deployment",
                expected=f"one of {known}" if known else "a registered version",
                got=str(version),
                next_step=f"pipeline retrain {self.job.name} --as-of T registers a new one",
            )
        return registered

    def load(self, version: int) -> LoadedModel:
        """The model of a version, loaded once its files have the digests of its registration; else `ModelTampered`."""
        return self.registry.load(self.registered(version), self.job.model.trusted_types)

    def model_columns(self, model: LoadedModel) -> dict[str, Column]:
        """The feature columns in the order in which the model takes them.

        Raises `ContractViolation` when the job has come to declare others than the model was trained on, or another task.
        """
        trained = {f.name: pa.types.is_string(f.type) for f in model.reference.schema if f.name not in _ADDED}
        declared = {name: column.type == "category" for name, column in self.job.features.columns.items()}
        if trained == declared and bool(model.profile.classes) == (self.job.task != "regression"):
            return {name: self.job.features.columns[name] for name in trained}
        changed = sorted(name for name in {*trained, *declared} if trained.get(name) != declared.get(name))
        name, version = self.job.name, model.ref.version
        raise ContractViolation(
            f"version {version} of model {self.job.model_name!r} was trained on other columns than job {name!r} declares now",
            expected=f"the columns {', '.join(trained)} and the same task",
            got=f"differences in {', '.join(changed)}" if changed else f"task {self.job.task}",
            next_step=f"undo the change of the job file, or pipeline retrain {name} --as-of T --reason TEXT and then "
            f"pipeline promote {name} --version N --reason TEXT",
        )

    def scorer(self, model: LoadedModel) -> engine.Scorer:
        """What scores partitions with the model: its accelerated form, if it has one that still answers as it did.

        Raises what `model_columns` raises.
        """
        plain = engine.FrameScorer(model.estimator, self.model_columns(model), self.job.task)
        wanted, key = self.job.model.acceleration, model.ref.digest
        return acceleration.scorer(plain, model.accelerated, key=key, remembered=model.reference, wanted=wanted)

    @property
    def kinds(self) -> Mapping[str, Literal["number", "category"]]:
        """How each feature column is compared: booleans as numbers 0 and 1."""
        return {
            name: "category" if column.type == "category" else "number"
            for name, column in self.job.features.columns.items()
        }
