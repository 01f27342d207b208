"""The values that flow between steps: frozen, JSON-serialisable, free of behaviour.

Everything that crosses a process (XCom, ledger, manifest, CLI output) is one of these.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from pipeline.intervals import Interval

if TYPE_CHECKING:
    from datetime import datetime

DecisionKind = Literal["trigger", "training", "gate", "approval", "rollout", "watch", "promotion", "rollback"]


class Report(BaseModel):
    """Base of all reports: frozen, and a misspelt field is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ModelRef(Report):
    """One immutable version of a registered model, with the digest that proves it."""

    name: str
    version: int
    digest: str = Field(description="SHA-256 over the digests of all files of the version.")


class Challenger(Report):
    """The version in rollout beside the champion, and which entities it scores."""

    model: ModelRef
    kind: Literal["shadow", "canary", "ab"]
    share: float = Field(description="Share of the entities; 0 = none, a shadow scores everything beside the champion.")
    salt: str = Field(description="Id of the decision that started the rollout; entities are placed by it.")
    key: tuple[str, ...] = Field(description="Columns that make an entity.")


class InputFile(Report):
    """One input file as it was when the plan was made."""

    uri: str
    path: str = Field(description="Path relative to the source's root; what the fingerprint uses.")
    size: int
    sha256: str
    mark: str = Field(
        default="", description="What the file system tells that changes with the content: cheap to look at again."
    )


class RejectedFile(Report):
    """An input file that could not be used: none of its rows was scored; the file itself stays where it is."""

    path: str
    sha256: str
    size: int
    reason: str = Field(description="Reason code, e.g. corrupt, timeout, schema.")
    rows: int | None = Field(description="Rows that its footer declares; null when not even that can be read.")
    detail: str


class ScoringPlan(Report):
    """Everything that was decided before scoring starts: the model is resolved here and nowhere else."""

    job: str
    start: AwareDatetime
    end: AwareDatetime
    model: ModelRef
    challenger: Challenger | None = Field(default=None, description="The version in rollout at the interval's end.")
    files: tuple[InputFile, ...]
    fingerprint: str = Field(
        description="SHA-256 of inputs, models, code version, scoring fields and output schema; a shadow leaves it alone."
    )
    quiet: bool = Field(default=False, description="A backfill: publishes, but never alerts, retrains or promotes.")

    @property
    def interval(self) -> Interval:
        """The data interval of the plan."""
        return Interval(self.start, self.end)


class ExpectationResult(Report):
    """What one batch expectation found, and whether a failure stops the partition."""

    type: str
    column: str | None
    success: bool
    blocking: bool
    observed: str


class ValidationReport(Report):
    """What was found in one partition before it was scored."""

    job: str
    start: AwareDatetime
    end: AwareDatetime
    rows_in: int
    rows_quarantined: int
    reasons: dict[str, int] = Field(description="Quarantined rows by reason code; each row counts once.")
    warnings: dict[str, int] = Field(description="Rows that broke a warn-only rule, by reason code.")
    expectations: tuple[ExpectationResult, ...]
    report_uri: str | None

    @property
    def failures(self) -> tuple[ExpectationResult, ...]:
        """The blocking expectations that failed."""
        return tuple(e for e in self.expectations if e.blocking and not e.success)


class Manifest(Report):
    """The committed record of one published partition."""

    job: str
    start: AwareDatetime
    end: AwareDatetime
    path: str = Field(description="URI of the published Parquet file.")
    rows_in: int
    rows_scored: int
    rows_quarantined: int
    rows_rejected: int = Field(default=0, description="Rows that the footers of rejected files declare.")
    reasons: dict[str, int]
    model_name: str
    model_version: int
    model_digest: str
    challenger_version: int | None = Field(
        default=None, description="The other version that scored rows of this partition, in a rollout."
    )
    rows_challenger: int = Field(default=0, description="Rows that it scored; the champion scored all others.")
    challenger_fault: str = Field(
        default="", description="Why the challenger in rollout could not score; the champion scored all rows then."
    )
    fingerprint: str
    sha256: str = Field(description="Digest of the published file's bytes.")
    code_version: str
    quarantine_path: str | None
    rejected_files: tuple[RejectedFile, ...] = ()
    report_uri: str | None
    status: Literal["published", "unchanged"]
    quiet: bool = False

    @property
    def interval(self) -> Interval:
        """The data interval of the partition."""
        return Interval(self.start, self.end)


class QuarantinedReason(Report):
    """Why rows of a job are in quarantine, over several intervals."""

    reason: str
    rows: int
    intervals: int
    first: AwareDatetime
    last: AwareDatetime
    examples: tuple[str, ...] = Field(description="Offending values of the last interval, most frequent first.")


class QuarantineSummary(Report):
    """What a job has in quarantine: by reason, most rows first, and the input files that could not be used at all."""

    job: str
    intervals: int
    rows_in: int
    rows_quarantined: int
    reasons: tuple[QuarantinedReason, ...]
    rejected_files: tuple[RejectedFile, ...]


class TriggerDecision(Report):
    """Whether to train now, and why."""

    fire: bool
    cause: Literal["drift", "degradation", "estimate", "schedule", "evidence", "manual", "bootstrap", "none"]
    reason: str
    since: AwareDatetime | None = Field(default=None, description="Start of the first interval that showed the cause.")
    version: int | None = Field(
        default=None, description="evidence: the version that is compared again on more labels; nothing is trained."
    )
    halted: bool = Field(default=False, description="The last trainings led to nothing, as many as open the breaker.")


class Guard(Report):
    """One limit, beside the job's metric, that a challenger must keep."""

    name: Literal["slices", "calibration", "churn", "speed", "size", "constant"]
    value: float | None = Field(description="What was found, in the limit's unit; null where nothing could be judged.")
    limit: float | None = Field(description="Largest value that is accepted; null: reported only.")
    is_met: bool
    detail: str


class SliceGain(Report):
    """Champion and challenger on the rows of one slice; the p-value is one-sided, against no loss."""

    slice: str = Field(description="Column and level, e.g. country=fr.")
    n: int
    champion: float
    challenger: float
    gain: float
    p_value: float
    is_worse: bool = Field(
        description="Loss proven, false discoveries among all slices controlled, and larger than accepted."
    )


class GateDecision(Report):
    """Whether the challenger may replace the champion, and why."""

    outcome: Literal["promote", "keep", "insufficient_data", "refused"]
    reason: str
    metric: str
    champion: float | None
    challenger: float | None
    gain: float | None = Field(description="Improvement in the metric's own unit; positive is better.")
    low: float | None = Field(description="Lower one-sided confidence bound of the gain.")
    n: int
    bar: float = Field(default=0.0, description="What the bound must exceed: 0, or minus the accepted loss.")
    test: str | None = Field(default=None, description="The paired test behind bound and p-value.")
    units: int | None = Field(default=None, description="Independent units of the test: its days, or its rows.")
    p_value: float | None = Field(default=None, description="One-sided p-value of a gain no larger than the bar.")
    guards: tuple[Guard, ...] = ()
    slices: tuple[SliceGain, ...] = Field(default=(), description="The slices with the strongest evidence of a loss.")


class Decision(Report):
    """One recorded decision. ``id`` is derived from the content, so the same decision is recorded once."""

    id: str
    job: str
    kind: DecisionKind
    at: AwareDatetime
    outcome: str
    reason: str
    details: dict[str, Any]

    @classmethod
    def of(
        cls, job: str, kind: DecisionKind, at: datetime, outcome: str, reason: str, details: dict[str, Any]
    ) -> Decision:
        """The decision with its content-derived id."""
        content = json.dumps([job, kind, at.isoformat(), outcome, reason, details], sort_keys=True, default=str)
        digest = hashlib.sha256(content.encode()).hexdigest()[:12]
        return cls(id=f"{kind}-{digest}", job=job, kind=kind, at=at, outcome=outcome, reason=reason, details=details)


class Promotion(Report):
    """One move of the champion alias, forwards or back, and the decision behind it."""

    job: str
    model: ModelRef
    effective_at: AwareDatetime = Field(description="Intervals that end at or after this instant are scored by it.")
    previous_version: int | None
    decision_id: str
    reason: str


class Watched(Report):
    """What the watch over a promoted version found."""

    outcome: Literal["kept", "rolled_back"]
    version: int = Field(description="The version that is watched.")
    reason: str
    intervals: int = Field(description="Matured intervals since its promotion.")
    lost: int = Field(description="Of the latest of them, in how many in a row the version before is better.")
    back_to: int | None = Field(default=None, description="The version that is champion again.")
    restated: tuple[AwareDatetime, ...] = Field(
        default=(), description="Starts of the intervals that were scored again."
    )


class ApprovalAnswer(Report):
    """What became of a request for approval."""

    decision: Decision = Field(description="The answer: approved, rejected, expired or superseded.")
    promotion: Promotion | None = Field(description="The move of the champion that an approval led to.")
    rollout: Decision | None = Field(default=None, description="The start of the rollout that an approval led to.")
    replayed: bool = Field(description="The answer was known already; nothing was decided by this call.")


class Baseline(Report):
    """How the model performed on its holdout: the yardstick for realised performance."""

    metric: str
    value: float
    spread: float = Field(description="Robust standard deviation of the metric between intervals.")
    n: int


class Profile(Report):
    """The drift reference that travels with a model version; the sample itself is ``reference.parquet`` beside it."""

    train_start: AwareDatetime
    train_end: AwareDatetime
    holdout_end: AwareDatetime
    rows: int
    baseline: Baseline
    effects: dict[str, float] = Field(
        description="Per column, the largest effect size that stretches of the training period showed against the whole."
    )
    seasonal: dict[str, dict[str, float]] = Field(
        default_factory=dict,
        description="The same per season, within which stretches were compared: weekday, hour, ...",
    )
    separation: float | None = Field(
        default=None,
        description="Largest AUC by which a classifier told stretches of the training period from the rest.",
    )
    importance: dict[str, float] = Field(
        default_factory=dict,
        description="Per feature, its share of what moves the predictions; the shares add up to 1.",
    )
    volumes: dict[str, int] = Field(
        default_factory=dict, description="Rows of each interval of the period: start -> rows."
    )
    classes: tuple[str, ...] = ()


class Acceleration(Report):
    """What became of a version's accelerated form when it was held against the estimator, on the same rows."""

    kind: str | None = Field(description="lookup, walk or linear; null when the estimator itself is used.")
    reason: str
    rows: int = Field(default=0, description="Real held-out rows that both scored.")
    adversarial_rows: int = Field(default=0, description="Rows made of them: missing, infinite, extreme, unknown.")
    max_difference: float = Field(default=0.0, description="Largest difference of two scores.")
    flips: dict[str, int] = Field(default_factory=dict, description="Rows decided otherwise, overall and by slice.")


class RegisteredModel(Report):
    """A version as it was registered, with the digest of each of its files."""

    model: ModelRef
    files: dict[str, str] = Field(description="Relative path -> SHA-256.")
    as_of: AwareDatetime
    train_start: AwareDatetime
    train_end: AwareDatetime
    holdout_end: AwareDatetime
    left_out: dict[str, str] = Field(
        default_factory=dict, description="Intervals of the training history that could not be read: start -> problem."
    )
    window: str = Field(default="sliding", description="Stretch of history it learnt from: retrain.window_policy.")
    settings: str = Field(default="default", description="Which of model.candidates it is; default: model.parameters.")
    contest: dict[str, float] = Field(
        default_factory=dict, description="The job's metric of each candidate, window and settings, in the backtest."
    )
    acceleration: Acceleration | None = None


class RetrainReport(Report):
    """What one call of retrain did: the trigger, the version, the comparison, and what became of it."""

    job: str
    as_of: AwareDatetime
    trigger: TriggerDecision
    outcome: Literal[
        "not_triggered",
        "promoted",
        "rollout",
        "not_considered",
        "kept",
        "awaiting_approval",
        "dry_run",
        "insufficient_data",
        "refused",
        "disabled",
    ]
    reason: str
    model: ModelRef | None
    gate: GateDecision | None
    decision_ids: tuple[str, ...]
    report_uri: str | None = None


class Misfit(Report):
    """One thing in the record of decisions that does not fit."""

    at: str = Field(description="The record, anchor or alias, with its id.")
    expected: str
    got: str


class Audit(Report):
    """What an audit found of one job."""

    job: str
    records: int = Field(description="Decisions and promotions.")
    promotions: int
    champion: int | None = Field(description="The version that the alias names.")
    anchored: int = Field(description="Position of the latest record that an anchor in the registry names; 0 for none.")
    misfits: tuple[Misfit, ...] = Field(
        description="What does not fit, the first record first; empty when all is well."
    )
