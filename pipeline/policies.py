"""The policy sections of the job file: checks, drift, performance, retraining and promotion, and the words they use.

Values only: what a policy means is computed by the modules of the same name on the floor above.
"""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,62}$")]
Share = Annotated[float, Field(ge=0, le=1)]
Task = Literal["binary", "multiclass", "regression"]
Backend = Literal["threads", "processes", "ray"]
MetricName = Literal["roc_auc", "log_loss", "brier", "calibration_error", "accuracy", "macro_f1", "mae", "rmse", "bias"]

# The first of each task is the job's metric unless it names another.
METRICS: dict[Task, tuple[MetricName, ...]] = {
    "binary": ("roc_auc", "log_loss", "brier", "calibration_error", "accuracy"),
    "multiclass": ("log_loss", "accuracy", "macro_f1"),
    "regression": ("mae", "rmse", "bias"),
}
# Reported, never decided on: predicting the mean of the training for every row is best by either of them.
REPORTED_ONLY: frozenset[MetricName] = frozenset(("calibration_error", "bias"))
DECIDING: dict[Task, tuple[MetricName, ...]] = {
    task: tuple(name for name in names if name not in REPORTED_ONLY) for task, names in METRICS.items()
}
# bias is judged by its absolute value.
HIGHER_IS_BETTER: dict[MetricName, bool] = {
    "roc_auc": True,
    "log_loss": False,
    "brier": False,
    "calibration_error": False,
    "accuracy": True,
    "macro_f1": True,
    "mae": False,
    "rmse": False,
    "bias": False,
}
# Between 0 and 1: a difference of 0.02 means the same whatever the value is.
BOUNDED: frozenset[MetricName] = frozenset(("roc_auc", "accuracy", "macro_f1", "brier"))

MISSING = "missing:"  # before a column's name: its share of missing values, a signal with a threshold of its own


class Model(BaseModel):
    """Strict, frozen, no unknown fields: a misspelt key is an error, never a silent default."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


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


class Engine(Model):
    """Where a partition is scored. What is published does not depend on it."""

    backend: Backend = Field(
        default="threads",
        description="threads: for models that may be called from several threads at once and whose arithmetic leaves the "
        "interpreter free, as those of scikit-learn and all accelerated ones; processes: for all others, each process "
        "gets the model once; ray: the nodes of a Ray cluster (docs/scaling.md).",
    )
    address: str | None = Field(
        default=None,
        pattern=r"^(auto|(ray://)?([A-Za-z0-9_.-]+|\[[0-9A-Fa-f:.]+\]):[0-9]{1,5})$",
        description="ray: where the cluster is. ray://host:10001 from anywhere; host:6379 or auto on a node of the cluster.",
    )
    workers: int | None = Field(
        default=None,
        ge=1,
        le=256,
        description="Batches scored at once. On this machine at most what PIPELINE_WORKERS allows; default: that, which is "
        "by default the number of processors. ray: default is the number of the cluster's processors, at most 64.",
    )

    @model_validator(mode="after")
    def _has_address(self) -> Self:
        if self.backend == "ray" and self.address is None:
            raise ValueError(
                "engine.backend ray needs engine.address: ray://host:10001 from anywhere, host:6379 or auto on a node of "
                "the cluster"
            )
        if self.backend != "ray" and self.address is not None:
            raise ValueError(
                f"engine.address {self.address!r} is where a Ray cluster is, and engine.backend is {self.backend}; set "
                "backend: ray, or remove the address"
            )
        return self


class Reference(Model):
    """Which rows the current window is compared with."""

    kind: Literal["training", "previous"] = Field(
        default="training", description="training: what the model was trained on; previous: the windows before."
    )
    windows: int = Field(default=8, ge=2, le=100, description="previous: how many earlier windows.")
    season: Literal["auto", "none", "hour", "weekday", "month"] = Field(
        default="auto",
        description="Compare like with like: the same hour, weekday or month. auto: hours for windows shorter than a day, "
        "weekdays for those shorter than a week. Too little history of a season falls back to more of it.",
    )
    min_intervals: int = Field(default=4, ge=2, description="Intervals of a season that are enough to compare with.")


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
    reference: Reference = Field(default_factory=Reference, description="What the window is compared with.")
    min_rows: int = Field(
        default=200, ge=2, description="With fewer rows in the window the verdict is insufficient_data."
    )
    p_value: float = Field(default=0.05, gt=0, lt=1, description="Significance level over all columns of one interval.")
    correction: Literal["bonferroni", "fdr"] = Field(default="bonferroni", description="Correction for many columns.")
    effect: float = Field(
        default=0.1,
        ge=0,
        description="Smallest effect that counts for numbers: normalised Wasserstein distance (0.1 = as if all values had moved "
        "by a tenth of their standard deviation). It is raised per column to what the training data already showed.",
    )
    mass: float = Field(
        default=0.05,
        ge=0,
        description="The same for categories and for missing values: share of rows that moved to another category.",
    )
    violations: int = Field(default=2, ge=1, description="Intervals in which a column must have moved to be drift ...")
    of_last: int = Field(default=3, ge=1, description="... among this many latest intervals; the latest must be one.")
    share: Share = Field(
        default=0.3,
        description="Share of the features' importance that must drift to be worth a page; predictions alone suffice.",
    )
    thresholds: dict[str, float] = Field(
        default_factory=dict,
        description="Effect size per column, instead of effect or mass; 'missing:' and its name: difference of the share of "
        "missing values. pipeline calibrate measures them.",
    )
    separation: float = Field(
        default=0.6,
        ge=0.5,
        le=1,
        description="AUC from which a classifier that tells the window from the reference has found something; raised to what "
        "the training data already showed.",
    )
    multivariate: bool = Field(
        default=True, description="Also let a classifier tell the window from the reference: sees changed correlations."
    )
    sample_rows: int = Field(default=50_000, ge=100, description="Rows per side that are compared at most.")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.violations > self.of_last:
            raise ValueError(
                f"drift.violations ({self.violations}) must not be above drift.of_last ({self.of_last}); lower the first or "
                "raise the second"
            )
        return self


class Performance(Model):
    """How realised performance is measured and from which loss on it counts as degraded."""

    metric: MetricName | None = Field(
        default=None,
        description="The job's metric. Default: roc_auc (binary), log_loss (multiclass), mae (regression).",
    )
    min_labels: int = Field(default=50, ge=2, description="With fewer labelled rows the verdict is insufficient_data.")
    tolerance: float = Field(
        default=0.05,
        ge=0,
        description="An interval is degraded when its metric is worse than the champion's at training by more than this share "
        "of it and by more than sigmas, and its 95 % confidence interval does not reach the champion's.",
    )
    sigmas: float = Field(
        default=2.0, ge=0, description="The same limit in robust standard deviations between intervals."
    )
    slices: tuple[str, ...] = Field(default=(), description="Feature columns by which performance is broken down.")
    min_slice: int = Field(default=30, ge=2, description="A slice with fewer labelled rows has no value.")
    extra: tuple[Annotated[str, Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")], ...] = Field(
        default=(),
        description="Further metrics, reported and never decided on: module:function that takes truth, prediction and scores "
        "(null for a regression) as arrays and returns a number.",
    )
    max_rows: int = Field(
        default=2_000_000, ge=1000, description="Rows of one interval that are evaluated at most (sample)."
    )


class Budget(Model):
    """How many trainings may start by themselves; those that somebody asks for are not counted."""

    week: int = Field(default=2, ge=1, description="Trainings in any seven days.")
    month: int = Field(default=5, ge=1, description="Trainings in any thirty days.")


class Breaker(Model):
    """When changes no longer start trainings, because those lead to nothing; by the calendar there are still some."""

    after: int = Field(
        default=3, ge=1, description="Trainings for a change in a row whose challenger was not promoted."
    )
    rest: timedelta = Field(
        default=timedelta(days=60),
        gt=timedelta(0),
        description="So long no change starts a training then; afterwards one may try. A promotion ends it at once.",
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
    growth: float | None = Field(
        default=None,
        gt=1,
        description="Also train when there is so many times as much history to learn from as the last training had. What more "
        "rows teach depends on their share: half as many again are worth about as much early as late.",
    )
    cooldown: timedelta = Field(
        default=timedelta(days=14), ge=timedelta(0), description="Shortest time between the starts of two trainings."
    )
    estimates: bool = Field(
        default=True,
        description="Whether degradation that is only estimated, before labels, counts as a violation too.",
    )
    min_new_rows: int | None = Field(
        default=None,
        ge=1,
        description="Labelled rows that must have come since the last training, and since the change that asks for one. Doubled "
        "by each training of the same change that led to nothing. Default: min_rows and as many again, or promote.min_labels.",
    )
    budget: Budget = Field(default_factory=Budget, description="How many trainings may start by themselves.")
    breaker: Breaker = Field(default_factory=Breaker, description="When trainings stop because they lead to nothing.")
    window: timedelta = Field(default=timedelta(days=60), gt=timedelta(0), description="Labelled history that is used.")
    window_policy: Literal["sliding", "expanding", "since_change", "backtest"] = Field(
        default="backtest",
        description="sliding: the latest window; expanding: all history up to max_history; since_change: from the first interval "
        "that showed the change, if that is enough; backtest: whichever of these predicts the end of the history best.",
    )
    max_history: timedelta = Field(
        default=timedelta(days=730),
        gt=timedelta(0),
        description="expanding: history that is used at most, and never less than window.",
    )
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
