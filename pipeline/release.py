"""The section ``promote`` of the job file: what a challenger must show, and how it comes to score everything.

Values only, like `pipeline.policies`.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from pipeline.policies import Model, Share


class Watch(Model):
    """How a promoted model is watched, and when the one before comes back by itself."""

    enabled: bool = Field(default=True, description="Whether a promotion by the gate is undone when it proves wrong.")
    intervals: int = Field(default=14, ge=1, description="Intervals over which it is watched, as they mature.")
    violations: int = Field(
        default=2, ge=1, description="Latest intervals in a row in which the former champion must be better."
    )
    confidence: float = Field(
        default=0.95, ge=0.5, lt=1, description="Confidence that it is better, over all looks of the watch together."
    )
    restate: bool = Field(default=True, description="Whether what the withdrawn version published is scored again.")


class Approval(Model):
    """Whether a person has the last word on a challenger that won the gate, and until when."""

    required: bool = Field(default=False, description="A challenger that wins waits for a person's approval.")
    expires: timedelta = Field(
        default=timedelta(days=3),
        gt=timedelta(0),
        description="Unanswered for so long after the training's time, the champion stays.",
    )


class Rollout(Model):
    """How a challenger that the gate let through comes to score everything: at once, or step by step under watch."""

    kind: Literal["direct", "shadow", "canary", "ab"] = Field(
        default="direct",
        description="direct: champion at once; shadow: scores everything beside the champion, for nobody to read; canary: scores "
        "a growing share of the entities; ab: scores a fixed share until one of the two is proven better.",
    )
    key: tuple[str, ...] | None = Field(
        default=None,
        min_length=1,
        description="canary, ab: columns of features.key that make an entity, all of whose rows one model scores, in this "
        "interval and the next. Default: the whole key.",
    )
    steps: tuple[Annotated[float, Field(gt=0, le=1)], ...] = Field(
        default=(0.05, 0.25, 0.5, 1.0),
        min_length=2,
        description="canary: shares of the entities, growing; at the last, 1, the challenger becomes champion.",
    )
    share: float = Field(default=0.5, gt=0, lt=1, description="ab: share of the entities that the challenger scores.")
    intervals_per_step: int = Field(
        default=3,
        ge=1,
        description="canary: matured intervals (days, if intervals are shorter) that could be compared before the share "
        "grows, at least.",
    )
    min_labels: int = Field(
        default=100, ge=1, description="canary: labelled rows of the challenger before the share grows, at least."
    )
    max_intervals: int = Field(
        default=60,
        ge=1,
        description="A rollout that has matured for so many intervals (days, if they are shorter) without an end is given "
        "up.",
    )
    confidence: float = Field(
        default=0.95,
        ge=0.5,
        lt=1,
        description="Probability that equal models are never told apart, however often they are compared in a rollout.",
    )
    restate: bool = Field(
        default=True,
        description="canary, ab: whether the champion scores again what the challenger of a rollout that was rolled back "
        "had published.",
    )

    @property
    def splits(self) -> bool:
        """Whether published partitions may hold rows of two versions, and so tell the variant of each row."""
        return self.kind in ("canary", "ab")

    @property
    def first_share(self) -> float:
        """The share of the entities that a challenger begins with; a shadow has none."""
        return {"canary": self.steps[0], "ab": self.share}.get(self.kind, 0.0)

    @model_validator(mode="after")
    def _is_ramp(self) -> Self:
        if list(self.steps) != sorted(set(self.steps)) or self.steps[-1] != 1:
            raise ValueError(
                f"promote.rollout.steps must grow and end with 1, got {', '.join(f'{s:g}' for s in self.steps)}"
            )
        return self


class Promote(Model):
    """When a challenger replaces the champion: the evidence that the gate asks for."""

    mode: Literal["disabled", "dry_run", "enabled"] = Field(
        default="dry_run",
        description="disabled: never compare; dry_run: compare and record, move nothing; enabled: move the champion alias.",
    )
    confidence: float = Field(
        default=0.95, ge=0.5, lt=1, description="One-sided confidence that the challenger is better."
    )
    looks: int = Field(
        default=3,
        ge=1,
        le=10,
        description="How often a challenger that is better, but not proven so, is compared: again whenever the labelled time "
        "since its training has doubled. All looks together keep to the confidence; half of the error is for the first.",
    )
    criterion: Literal["superior", "not_inferior"] = Field(
        default="superior",
        description="superior: the challenger must be proven better; not_inferior: proven not worse by more than margin.",
    )
    margin: float | None = Field(
        default=None, gt=0, description="not_inferior: the loss in the metric's own unit that is still acceptable."
    )
    min_gain: float = Field(
        default=0.0,
        ge=0,
        description="superior: the gain that is worth a promotion; more must be proven. In the metric's own unit where that lies "
        "between 0 and 1 (roc_auc, accuracy, macro_f1, brier); else (log_loss, mae, rmse) as a share of the champion's value.",
    )
    min_labels: int = Field(default=100, ge=10, description="Labelled holdout rows needed for a decision.")
    max_slice_loss: float = Field(
        default=0.02,
        ge=0,
        description="A slice of performance.slices whose loss is proven and larger than this keeps the champion. In the metric's "
        "own unit where that lies between 0 and 1 (roc_auc, accuracy, macro_f1, brier); else (log_loss, mae, rmse) as a share "
        "of the champion's value.",
    )
    max_calibration_loss: float | None = Field(
        default=0.02,
        ge=0,
        description="Expected calibration error by which the challenger may exceed the champion; null: no limit.",
    )
    max_churn: Share | None = Field(
        default=None,
        description="Share of rows that may get another class, or a number that moves by more than a standard deviation of the "
        "champion's residuals; null: only reported.",
    )
    max_slowdown: float | None = Field(
        default=3.0, ge=1, description="Times that scoring may take as long as with the champion; null: no limit."
    )
    max_size_ratio: float | None = Field(
        default=5.0, ge=1, description="Times that the model's file may be as large as the champion's; null: no limit."
    )
    better_than_constant: bool = Field(
        default=True,
        description="Whether a challenger must be proven better than a constant, too: the mean of what it was trained on, or "
        "its shares of classes and the most frequent one.",
    )
    approval: Approval = Field(default_factory=Approval, description="The last word of a person.")
    rollout: Rollout = Field(default_factory=Rollout, description="How a proven challenger comes to score everything.")
    watch: Watch = Field(default_factory=Watch, description="What happens after a promotion.")
    first: Literal["any", "holdout_better_than_constant"] = Field(
        default="holdout_better_than_constant",
        description="What the first champion must show, as there is none to compare it with. holdout_better_than_constant: "
        "on its holdout it is proven better than the training's mean, class shares or most frequent class; any: nothing.",
    )

    def at_look(self, look: int) -> Promote:
        """The same with the confidence of one look, the first being 1: the errors of all looks add up to the one allowed."""
        if self.looks == 1:
            return self
        share = 0.5 if look == 1 else 0.5 / (self.looks - 1)
        return self.model_copy(update={"confidence": 1 - share * (1 - self.confidence)})

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.criterion == "superior" and self.margin is not None:
            raise ValueError(
                f"promote.margin ({self.margin:g}) belongs to promote.criterion not_inferior; with superior use "
                "promote.min_gain, or set the criterion"
            )
        if self.criterion == "not_inferior" and self.margin is None:
            raise ValueError(
                "promote.criterion not_inferior needs promote.margin, the loss in the metric's own unit that is acceptable"
            )
        if self.criterion == "not_inferior" and self.min_gain > 0:
            raise ValueError(
                f"promote.min_gain ({self.min_gain:g}) contradicts promote.criterion not_inferior, which accepts a loss; "
                "remove one of them"
            )
        return self
