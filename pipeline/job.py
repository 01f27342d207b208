"""The job file: one YAML document that declares a whole batch-inference job.

These models are the reference manual of the file (`pipeline schema` prints it). Reading files is the task of
`pipeline.jobfile`; this module must not touch a file, a network or a clock.
"""

from __future__ import annotations

import hashlib
import json
import re
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, field_validator, model_validator

from pipeline.intervals import Cadence, Interval, granule

if TYPE_CHECKING:
    from collections.abc import Iterator

Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,62}$")]
Share = Annotated[float, Field(ge=0, le=1)]
Task = Literal["binary", "multiclass", "regression"]
MetricName = Literal["roc_auc", "log_loss", "brier", "accuracy", "macro_f1", "mae", "rmse"]

METRICS: dict[Task, tuple[MetricName, ...]] = {
    "binary": ("roc_auc", "log_loss", "brier", "accuracy"),
    "multiclass": ("log_loss", "accuracy", "macro_f1"),
    "regression": ("mae", "rmse"),
}
HIGHER_IS_BETTER: dict[MetricName, bool] = {
    "roc_auc": True,
    "log_loss": False,
    "brier": False,
    "accuracy": True,
    "macro_f1": True,
    "mae": False,
    "rmse": False,
}
# Names that the published schema uses itself.
OUTPUT_COLUMNS = ("prediction", "score", "model_version")


class Model(BaseModel):
    """Strict, frozen, no unknown fields: a misspelt key is an error, never a silent default."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Schedule(Model):
    """When the job runs."""

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
    """One feature column."""

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
    trusted_types: tuple[str, ...] = Field(
        default=(), description="Further Python types that a saved model of the user's own trainer may contain (skops)."
    )
    seed: int = Field(default=0, ge=0, description="Random seed of training and of every sample.")


class Rule(Model):
    """One check of every row. Rows that break it are quarantined, or only counted."""

    column: str = Field(description="Column that is checked.")
    rule: Literal["not_null", "between", "in_set", "matches"] = Field(description="Kind of check.")
    min: float | None = Field(default=None, description="between: smallest allowed value.")
    max: float | None = Field(default=None, description="between: largest allowed value.")
    values: tuple[str | int | float | bool, ...] | None = Field(default=None, description="in_set: the allowed values.")
    pattern: str | None = Field(default=None, description="matches: regular expression the whole text must match.")
    action: Literal["quarantine", "warn"] = Field(default="quarantine", description="What happens to a row that fails.")

    @property
    def code(self) -> str:
        """The reason code of rows that fail, e.g. ``between:trip_distance``."""
        return f"{self.rule}:{self.column}"

    @model_validator(mode="after")
    def _has_operands(self) -> Self:
        if self.rule == "between" and self.min is None and self.max is None:
            raise ValueError(f"rule {self.code} needs min or max, or both")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"rule {self.code}: min {self.min} must not be above max {self.max}")
        if self.rule == "in_set" and not self.values:
            raise ValueError(f"rule {self.code} needs values, a list with at least one entry")
        if self.rule == "matches":
            if self.pattern is None:
                raise ValueError(f"rule {self.code} needs pattern, a regular expression")
            try:
                re.compile(self.pattern)
            except re.error as err:
                raise ValueError(
                    f"rule {self.code}: pattern {self.pattern!r} is not a regular expression: {err}"
                ) from err
        return self


class Expectation(Model):
    """One Great Expectations expectation on the whole partition."""

    type: str = Field(
        pattern=r"^expect_[a-z0-9_]+$", description="Expectation type, e.g. expect_column_mean_to_be_between."
    )
    kwargs: dict[str, Any] = Field(default_factory=dict, description="Its arguments, as Great Expectations names them.")
    blocking: bool = Field(default=True, description="Whether a failure stops the partition; otherwise it is reported.")


class Checks(Model):
    """What a partition must be like before it is scored."""

    min_rows: int = Field(default=1, ge=0, description="A partition with fewer rows is refused.")
    max_quarantined: Share = Field(
        default=0.05, description="Share of rows that may be quarantined; above it nothing is published."
    )
    rules: tuple[Rule, ...] = Field(default=(), description="Checks of every row.")
    expectations: tuple[Expectation, ...] = Field(default=(), description="Checks of the partition as a whole.")


class Drift(Model):
    """When inputs or predictions count as drifted away from the champion's training data."""

    detector: Literal["alibi", "scipy"] = Field(
        default="alibi",
        description="alibi: alibi-detect (Business Source License: production use needs a licence from Seldon); scipy: the "
        "same tests on a permissive licence.",
    )
    window: int = Field(
        default=1, ge=1, le=366, description="Intervals, ending with the current one, that are compared."
    )
    min_rows: int = Field(
        default=200, ge=2, description="With fewer rows in the window the verdict is insufficient_data."
    )
    p_value: float = Field(default=0.01, gt=0, lt=1, description="Significance level over all columns together.")
    correction: Literal["bonferroni", "fdr"] = Field(default="bonferroni", description="Correction for many columns.")
    effect: float = Field(
        default=0.1,
        ge=0,
        description="Smallest effect size that counts: normalised Wasserstein distance for numbers, total variation distance "
        "for categories. It is raised per column to what stretches of the training data already showed.",
    )
    share: Share = Field(
        default=0.3,
        description="Share of feature columns that must drift for the partition to drift; predictions alone suffice.",
    )
    sample_rows: int = Field(default=20_000, ge=100, description="Rows per side that are compared at most.")


class Performance(Model):
    """How realised performance is judged."""

    metric: MetricName | None = Field(
        default=None,
        description="The job's metric. Default: roc_auc (binary), log_loss (multiclass), mae (regression).",
    )
    min_labels: int = Field(default=50, ge=2, description="With fewer labelled rows the verdict is insufficient_data.")
    tolerance: float = Field(
        default=0.05,
        ge=0,
        description="An interval is degraded when its metric is worse than the champion's at promotion by more than this share "
        "of it and by more than sigmas.",
    )
    sigmas: float = Field(
        default=2.0, ge=0, description="The same limit in robust standard deviations between intervals."
    )
    slices: tuple[str, ...] = Field(default=(), description="Feature columns by which performance is broken down.")
    max_rows: int = Field(
        default=2_000_000, ge=1000, description="Rows of one interval that are evaluated at most (sample)."
    )


class Retrain(Model):
    """When and on what a challenger is trained."""

    enabled: bool = Field(
        default=True, description="Whether trainings start by themselves: on drift, degradation or schedule."
    )
    violations: int = Field(default=3, ge=1, description="Intervals with a violation that start a training ...")
    of_last: int = Field(default=5, ge=1, description="... among this many latest intervals; the latest must be one.")
    every: timedelta | None = Field(
        default=None, gt=timedelta(0), description="Also train when the last training is older."
    )
    cooldown: timedelta = Field(
        default=timedelta(days=14), ge=timedelta(0), description="Shortest time between the starts of two trainings."
    )
    window: timedelta = Field(default=timedelta(days=60), gt=timedelta(0), description="Labelled history that is used.")
    holdout: timedelta = Field(
        default=timedelta(days=14),
        gt=timedelta(0),
        description="Latest part of the window, never trained on, where champion and challenger are compared.",
    )
    min_rows: int = Field(default=200, ge=10, description="Labelled rows needed to train.")
    max_rows: int = Field(default=500_000, ge=100, description="Labelled rows used at most (sample).")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.violations > self.of_last:
            raise ValueError(
                f"retrain.violations ({self.violations}) must not be above retrain.of_last ({self.of_last}); lower the first "
                "or raise the second"
            )
        if self.holdout >= self.window:
            raise ValueError("retrain.holdout must be shorter than retrain.window; shorten it or lengthen the window")
        return self


class Promote(Model):
    """When a challenger replaces the champion."""

    mode: Literal["disabled", "dry_run", "enabled"] = Field(
        default="dry_run",
        description="disabled: never compare; dry_run: compare and record, move nothing; enabled: move the champion alias.",
    )
    confidence: float = Field(
        default=0.95, ge=0.5, lt=1, description="One-sided confidence that the challenger is better."
    )
    min_gain: float = Field(
        default=0.0, ge=0, description="Smallest gain in the job's metric that is worth a promotion."
    )
    min_labels: int = Field(default=100, ge=10, description="Labelled holdout rows needed for a decision.")


class Output(Model):
    """Where results go."""

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

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        # One line per problem: a reader of the file wants all of them.
        if conflicts := [*self._column_conflicts(), *self._name_conflicts()]:
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
        taken = {*OUTPUT_COLUMNS, *(part.split("=")[0] for part in self.cadence.partition.split("/"))}
        for column in (*f.key, f.time):
            if column in taken or column.startswith("score_"):
                yield f"features column {column!r} is a name that published files use themselves; rename it in the input"
        for index, rule in enumerate(self.checks.rules):
            if rule.column not in {*f.columns, *f.key, f.time}:
                yield f"checks.rules[{index}] names column {rule.column!r}, which features does not declare"
        for column in self.performance.slices:
            if column not in f.columns:
                yield f"performance.slices names {column!r}, which is not in features.columns"
        if self.performance.metric and self.performance.metric not in METRICS[self.task]:
            yield (
                f"performance.metric {self.performance.metric!r} does not fit task {self.task!r}; use one of "
                f"{', '.join(METRICS[self.task])}"
            )

    @property
    def cadence(self) -> Cadence:
        """The grid on which the job's data intervals lie."""
        return Cadence.parse(self.schedule.interval)

    @property
    def model_name(self) -> str:
        """The registered model's name."""
        return self.model.name or self.name

    @property
    def metric(self) -> MetricName:
        """The metric that decides."""
        return self.performance.metric or METRICS[self.task][0]

    @property
    def feature_partition(self) -> str:
        """The strftime template of feature folders."""
        return self.cadence.partition if self.features.partition is None else self.features.partition

    @property
    def label_partition(self) -> str:
        """The strftime template of label folders."""
        return self.feature_partition if self.labels.partition is None else self.labels.partition

    @property
    def filters_by_time(self) -> bool:
        """Whether one input folder holds more than one interval, so that rows are selected by event time."""
        step = granule(self.feature_partition)
        if step is None:
            return True
        start = self.schedule.start
        return step.next(step.floor(start)) > self.cadence.next(start)

    def interval(self, start: datetime) -> Interval:
        """The data interval that starts at ``start``; raises ``ValueError`` when it is off the schedule's grid."""
        return self.cadence.interval(start)

    def output_partition(self, interval: Interval) -> str:
        """The Hive partition string of one interval's outputs, e.g. ``ds=2013-01-31``."""
        return interval.start.strftime(self.cadence.partition)

    def scoring_digest(self) -> str:
        """SHA-256 (hex) of the fields that decide what a published file contains; places and policies are left out."""
        parts = {
            "name": self.name,
            "task": self.task,
            "interval": self.schedule.interval,
            "key": self.features.key,
            "time": self.features.time,
            "columns": {name: column.type for name, column in self.features.columns.items()},
            "checks": self.checks.model_dump(mode="json"),
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
