"""The job file: one YAML document that declares a whole batch-inference job.

These models are the reference manual of the file (`pipeline schema` prints it). Reading files is the task of
`pipeline.jobfile`; this module must not touch a file, a network or a clock.
"""

from __future__ import annotations

import hashlib
import json
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import AwareDatetime, Field, field_validator, model_validator

from pipeline.intervals import Cadence, Interval, mixes_intervals
from pipeline.policies import (
    DECIDING,
    METRICS,
    MISSING,
    REPORTED_ONLY,
    Checks,
    Drift,
    Engine,
    MetricName,
    Model,
    Name,
    Performance,
    Retrain,
    Share,
    Task,
)
from pipeline.release import Promote

if TYPE_CHECKING:
    from collections.abc import Iterator

# Names that the published schema uses itself.
OUTPUT_COLUMNS = ("prediction", "score", "model_version")


class Schedule(Model):
    """When the job runs, and on which grid its data intervals lie."""

    interval: str = Field(description="Length of a data interval: 15m, 1h, 6h, 1d, 1w or 1mo. Interval ends are UTC.")
    start: AwareDatetime = Field(description="Start of the first data interval; must lie on the interval grid.")
    end: AwareDatetime | None = Field(default=None, description="No interval ends after this instant; null = forever.")
    catchup: bool = Field(default=False, description="Whether Airflow scores the past intervals since start by itself.")
    max_active_runs: int = Field(default=1, ge=1, le=64, description="Scoring runs that may be active at once.")
    timeout: timedelta = Field(default=timedelta(hours=2), description="A task that runs longer is ended and retried.")

    @field_validator("interval")
    @classmethod
    def _is_cadence(cls, text: str) -> str:
        Cadence.parse(text)
        return text

    @model_validator(mode="after")
    def _on_grid(self) -> Self:
        try:
            Cadence.parse(self.interval).interval(self.start)
        except (ValueError, OverflowError) as err:
            raise ValueError(f"schedule.start {err}") from err
        if self.end is not None and self.end <= self.start:
            raise ValueError("schedule.end must be after schedule.start; remove it for a job that runs forever")
        return self


class Column(Model):
    """One input column of the model, and how its values are read."""

    type: Literal["number", "category", "boolean"] = Field(
        description="number: integer or float; category: text or integer codes; boolean: true/false."
    )


class Source(Model):
    """Partitioned Parquet: where it is and how its folders are named."""

    uri: str = Field(
        min_length=1, description="Root of the Parquet data: a path relative to this file, or any fsspec URI."
    )
    partition: str | None = Field(
        default=None,
        description="Folder of one partition as a strftime template in UTC, e.g. ds=%Y-%m-%d/hr=%H. Default: by interval "
        "(ds=%Y-%m-%d for days). An empty text means that the files lie in the root itself.",
    )


class Features(Source):
    """The rows to score."""

    key: tuple[str, ...] = Field(min_length=1, description="Columns that identify a row; unique within a partition.")
    time: str = Field(description="Event time column (timestamp; without a zone it is read as UTC).")
    columns: dict[str, Column] = Field(min_length=1, description="The model's input columns, by name.")
    lookback: timedelta = Field(
        default=timedelta(days=3),
        ge=timedelta(0),
        description="How far back a run looks for published intervals whose input grew or changed since they were scored, "
        "to score them again; the interval just before is always looked at, unless this is zero.",
    )


class Labels(Source):
    """The ground truth, joined to predictions by the features' key."""

    column: str = Field(description="Column that holds the observed outcome.")
    available_at: str | None = Field(
        default=None, description="Column with the instant at which a label became known. Give this or delay."
    )
    delay: timedelta | None = Field(
        default=None, ge=timedelta(0), description="A label is known this long after the event time (ISO 8601: P1D)."
    )
    mature_after: timedelta = Field(
        default=timedelta(0),
        ge=timedelta(0),
        description="An interval is evaluated this long after its end, when nearly all of its labels have arrived.",
    )
    overdue_after: timedelta = Field(
        default=timedelta(days=30),
        gt=timedelta(0),
        description="An interval without any label this long after it matured is an error.",
    )
    restate_within: timedelta = Field(
        default=timedelta(days=7),
        ge=timedelta(0),
        description="An interval that was measured before all of its labels had come is measured again when more have, this "
        "long after it matured at most.",
    )
    min_completeness: Share = Field(
        default=0.5,
        description="An interval with less than this share of the labels that earlier ones had at its age is not judged: "
        "insufficient_data.",
    )

    @model_validator(mode="after")
    def _one_arrival_rule(self) -> Self:
        if (self.available_at is None) == (self.delay is None):
            raise ValueError(
                "labels.available_at and labels.delay: give exactly one; available_at names a column with arrival "
                "times, delay is a fixed duration such as P1D"
            )
        return self


class ModelSpec(Model):
    """What is trained and under which name it is registered."""

    name: Name | None = Field(default=None, description="Registered model name in MLflow; default: the job's name.")
    trainer: str = Field(
        default="gradient_boosting",
        pattern=r"^(gradient_boosting|[A-Za-z_][\w.]*:[A-Za-z_]\w*)$",
        description="gradient_boosting (built in), or module:function that takes the job and returns an unfitted "
        "scikit-learn estimator.",
    )
    parameters: dict[str, bool | int | float | str] = Field(
        default_factory=dict, description="Parameters of the built-in trainer's scikit-learn estimator."
    )
    candidates: dict[Name, dict[str, bool | int | float | str]] = Field(
        default_factory=dict,
        description="Other settings that compete with parameters in every training: a name and the parameters that differ. "
        "The best on the latest part of the training data becomes the challenger.",
    )
    trusted_types: tuple[str, ...] = Field(
        default=(), description="Further Python types that a saved model of the user's own trainer may contain (skops)."
    )
    acceleration: Literal["auto", "off", "lookup", "walk", "linear"] = Field(
        default="auto",
        description="A faster form of the model to score with, if it is proven to say the same: auto tries what fits the "
        "estimator; lookup (histogram gradient boosting), walk (forests and trees) or linear insists on that one; off.",
    )
    acceleration_budget: timedelta = Field(
        default=timedelta(seconds=60),
        gt=timedelta(0),
        description="How long compiling may take at registration; beyond that the estimator itself is used.",
    )
    seed: int = Field(default=0, ge=0, description="Random seed of training and of every sample.")


class Output(Model):
    """Where results go, and how long superseded ones are kept."""

    uri: str | None = Field(
        default=None, description="Root of the job's data sets; default: outputs/<job> under PIPELINE_HOME."
    )
    keep_versions: timedelta = Field(
        default=timedelta(days=7), ge=timedelta(0), description="How long superseded files are kept."
    )


class JobSpec(Model):
    """One declared job: everything the product knows about a model in production."""

    name: Name = Field(description="Name of the job; DAG ids and asset names are built from it.")
    description: str = Field(default="", description="One sentence for the Airflow UI.")
    owner: str = Field(default="airflow", description="Who is asked about this job.")
    task: Task = Field(description="Kind of prediction.")
    schedule: Schedule
    features: Features
    labels: Labels
    model: ModelSpec = Field(default_factory=ModelSpec)
    checks: Checks = Field(default_factory=Checks)
    drift: Drift = Field(default_factory=Drift)
    performance: Performance = Field(default_factory=Performance)
    retrain: Retrain = Field(default_factory=Retrain)
    promote: Promote = Field(default_factory=Promote)
    output: Output = Field(default_factory=Output)
    engine: Engine = Field(default_factory=Engine)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        # One line per problem: a reader of the file wants all of them.
        if conflicts := [*self._column_conflicts(), *self._name_conflicts(), *self._policy_conflicts()]:
            raise ValueError("\n".join(conflicts))
        return self

    def _column_conflicts(self) -> Iterator[str]:
        f = self.features
        identity = (*f.key, f.time)
        for column in identity:
            if column in f.columns:
                yield (
                    f"features.columns contains {column!r}, which is also a key or the time column; a model must not learn "
                    "from identifiers: remove it from features.columns"
                )
        if len(set(f.key)) < len(f.key):
            yield f"features.key names a column twice ({', '.join(f.key)}); name each once"
        for name in ("column", "available_at"):
            if (answer := getattr(self.labels, name)) in f.columns:
                yield f"labels.{name} {answer!r} is also a feature; the model would learn the answer"
        if self.labels.column in identity:
            yield f"labels.column {self.labels.column!r} is also a key or the time column; name the observed outcome"

    def _name_conflicts(self) -> Iterator[str]:
        f = self.features
        # The output's fixed names, and what the key already occupies in the published file.
        variant = ("variant",) if self.promote.rollout.splits else ()
        taken = {*OUTPUT_COLUMNS, *variant, *(part.split("=")[0] for part in self.cadence.partition.split("/"))}
        for column in (*f.key, f.time):
            if column in taken or column.startswith("score_"):
                yield f"features column {column!r} is a name that published files use themselves; rename it in the input"
        for index, rule in enumerate(self.checks.rules):
            if rule.column not in {*f.columns, *f.key, f.time}:
                yield f"checks.rules[{index}] names column {rule.column!r}, which features does not declare"

    def _policy_conflicts(self) -> Iterator[str]:
        for column in self.performance.slices:
            if column not in self.features.columns:
                yield f"performance.slices names {column!r}, which is not in features.columns"
        for column in self.drift.thresholds:
            if column not in self.drift_columns:
                yield f"drift.thresholds names {column!r}, which is neither in features.columns nor 'prediction'"
        for column in self.promote.rollout.key or ():
            if column not in self.features.key:
                yield f"promote.rollout.key names {column!r}, which is not in features.key; name columns of the key only"
        metric, usable = self.performance.metric, DECIDING[self.task]
        if metric and metric not in METRICS[self.task]:
            yield f"performance.metric {metric!r} does not fit task {self.task!r}; use one of {', '.join(usable)}"
        elif metric in REPORTED_ONLY:
            yield (
                f"performance.metric {metric!r} cannot decide, because a model that gives every row the same prediction is "
                f"best by it; it is reported anyway: use one of {', '.join(usable)}"
            )

    @property
    def cadence(self) -> Cadence:
        """The grid on which the job's data intervals lie."""
        return Cadence.parse(self.schedule.interval)

    @property
    def model_name(self) -> str:
        """The registered model's name: ``model.name``, or else the job's."""
        return self.model.name or self.name

    @property
    def metric(self) -> MetricName:
        """The metric that decides: ``performance.metric``, or else the first one of the task."""
        return self.performance.metric or METRICS[self.task][0]

    @property
    def drift_columns(self) -> tuple[str, ...]:
        """The names by which ``drift.thresholds`` may set a threshold: every feature, ``prediction``, and missing values."""
        numbers = [name for name, column in self.features.columns.items() if column.type == "number"]
        return (*self.features.columns, "prediction", *(MISSING + name for name in (*numbers, "prediction")))

    @property
    def entity(self) -> tuple[str, ...]:
        """The key columns that make an entity of a rollout: ``promote.rollout.key``, or else the whole key."""
        return self.promote.rollout.key or self.features.key

    @property
    def feature_partition(self) -> str:
        """The strftime template of feature folders: as declared, or else by interval."""
        return self.cadence.partition if self.features.partition is None else self.features.partition

    @property
    def label_partition(self) -> str:
        """The strftime template of label folders: as declared, or else that of the features."""
        return self.feature_partition if self.labels.partition is None else self.labels.partition

    @property
    def filters_by_time(self) -> bool:
        """Whether one input folder may hold rows of more than one interval, so that rows are selected by event time."""
        return mixes_intervals(self.feature_partition, self.cadence)

    def interval(self, start: datetime) -> Interval:
        """The data interval that starts at ``start``; raises ``ValueError`` when it is off the schedule's grid."""
        return self.cadence.interval(start)

    def output_partition(self, interval: Interval) -> str:
        """The Hive partition string of one interval's outputs, e.g. ``ds=2013-01-31``."""
        return interval.start.strftime(self.cadence.partition)

    def scoring_digest(self) -> str:
        """SHA-256 (hex) of the fields that decide what a published file contains; places and policies are left out."""
        parts: dict[str, Any] = {
            "name": self.name,
            "task": self.task,
            "interval": self.schedule.interval,
            "key": self.features.key,
            "time": self.features.time,
            "columns": {name: column.type for name, column in self.features.columns.items()},
            "checks": self.checks.model_dump(mode="json"),
        }
        if self.promote.rollout.splits:
            parts["variants"] = True
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
