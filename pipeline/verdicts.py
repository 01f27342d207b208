"""What monitoring says of an interval: drift, broken data, performance, incidents. Values like those of `pipeline.reports`."""

from __future__ import annotations

from datetime import timedelta
from typing import Literal

from pydantic import AwareDatetime, Field

from pipeline.reports import Report

Verdict = Literal["stable", "drift", "insufficient_data"]
Role = Literal["feature", "prediction", "label"]
Signal = Literal["distribution", "missing", "unseen"]
# page: somebody should look now; ticket: within days; log: nobody needs to, the model does not depend on it.
Tier = Literal["page", "ticket", "log"]
FaultKind = Literal[
    "missing", "constant", "stuck", "unit", "swapped", "recoded", "duplicated", "truncated", "surplus", "schema"
]
News = Literal["opened", "escalated", "closed"]
IncidentKind = Literal[
    "broken_data",
    "covariate_drift",
    "prediction_drift",
    "label_drift",
    "concept_drift",
    "degradation",
    "invalid_estimate",
    "retraining_halted",
    "promotion_withdrawn",
    "challenger_withdrawn",
]


class ColumnDrift(Report):
    """How far one column moved from the reference; shares are fractions of the rows.

    ``effect``, ``psi`` and ``jensen_shannon`` are freed of what chance alone shows at these numbers of rows.
    """

    column: str
    role: Role
    kind: Literal["number", "category"]
    verdict: Verdict
    moved: bool = Field(default=False, description="This interval exceeds every limit; it takes several to be drift.")
    signals: tuple[Signal, ...] = Field(default=(), description="What of it moved, each with a limit of its own.")
    p_value: float | None
    effect: float | None = Field(description="Normalised Wasserstein (number) or total variation distance (category).")
    expected: float | None = Field(default=None, description="What chance alone shows on average; already taken off.")
    low: float | None = Field(default=None, description="95 % interval of the effect, lower end.")
    high: float | None = Field(default=None, description="95 % interval of the effect, upper end.")
    threshold: float = Field(description="Effect size from which the column counts as moved.")
    psi: float | None
    jensen_shannon: float | None = Field(default=None, description="Jensen-Shannon distance, base 2, in [0, 1].")
    null_share: float
    reference_null_share: float
    unseen_share: float = Field(description="Share of rows with a category that the reference does not have.")
    rows: int
    importance: float | None = Field(default=None, description="The feature's share of what moves the predictions.")
    impact: float | None = Field(
        default=None, description="Mean change of the predictions by this shift, in their standard deviations."
    )
    tier: Tier | None = Field(default=None, description="How loudly a verdict of drift is to be told.")
    reason: str


class Multivariate(Report):
    """How well a classifier tells the window's rows from the reference's: 0.5 = not at all, 1 = always."""

    auc: float
    threshold: float
    p_value: float
    moved: bool
    verdict: Verdict
    ranked: tuple[tuple[str, float], ...] = Field(
        description="Columns that give the difference away, with the AUC that is lost without them; most telling first."
    )
    rows: int = Field(description="Rows per side that were compared.")


class Fault(Report):
    """One way in which delivered data is broken, rather than changed; ``column`` is ``None`` for the whole partition."""

    kind: FaultKind
    column: str | None
    detail: str


class Estimate(Report):
    """The job's metric as it is expected before any label has come, and what such estimates have been worth."""

    metric: str
    value: float
    low: float
    high: float
    n: int
    error: float | None = Field(description="Mean absolute error of earlier estimates on matured intervals.")
    compared: int = Field(description="Matured intervals that the error rests on.")
    is_valid: bool = Field(
        description="False: realised performance left the band of the estimates; decide nothing on it."
    )
    verdict: Verdict = Field(description="drift means that the metric is expected beyond its limit.")
    reason: str


class DriftReport(Report):
    """The drift verdict of one interval, with the evidence for every column."""

    job: str
    start: AwareDatetime
    end: AwareDatetime
    verdict: Verdict
    reason: str
    rows: int
    window_start: AwareDatetime
    model_version: int
    detector: str
    columns: tuple[ColumnDrift, ...]
    tier: Tier | None = Field(default=None, description="How loudly this is to be told; null = not at all.")
    reference: str = Field(default="training data", description="What the window was compared with.")
    multivariate: Multivariate | None = None
    faults: tuple[Fault, ...] = Field(
        default=(), description="Not empty: the data is broken; train and promote nothing."
    )
    interval_rows: int | None = Field(default=None, description="Rows of the interval itself.")
    usual_rows: float | None = Field(default=None, description="Median rows of comparable intervals.")
    sketch: tuple[int, ...] = Field(default=(), description="Smallest hashes of the interval's feature rows.")
    estimate: Estimate | None = None
    rests_on: tuple[str, ...] = Field(default=(), description="What earlier intervals contributed to the verdict.")
    report_uri: str | None = None
    quiet: bool = False

    @property
    def is_violation(self) -> bool:
        """Whether it speaks for a training: drift that is worth a page, in data that is not broken."""
        return self.verdict == "drift" and not self.faults and self.tier in (None, "page")


class Maturity(Report):
    """How complete the labels of one interval are, against what experience promises at its age."""

    age: timedelta = Field(description="From the interval's end to the moment of looking.")
    labelled: int
    rows: int
    share: float | None = Field(description="labelled / rows; null without rows.")
    expected: float | None = Field(description="Share that earlier intervals had at this age; null without experience.")
    final: float | None = Field(
        description="Share that earlier intervals reached in the end: the rest is never labelled."
    )
    files: str = Field(default="", description="Digest of what the file system told of the label files, then.")
    pending: AwareDatetime | None = Field(
        default=None, description="When the next label arrives of which the files told; null = none."
    )


class SliceMetric(Report):
    """One metric on one slice of one interval; ``slice`` is ``all`` or ``column=value``."""

    metric: str
    slice: str
    value: float | None
    n: int
    low: float | None = Field(default=None, description="95 % confidence interval, lower end.")
    high: float | None = Field(default=None, description="95 % confidence interval, upper end.")


class Arms(Report):
    """Champion and challenger of a rollout beside each other on one matured interval."""

    start: AwareDatetime
    end: AwareDatetime
    salt: str = Field(description="The rollout: the id of the decision that started it.")
    share: float = Field(description="Share of the entities that the challenger scored; 0 = both scored all rows.")
    champion: float | None = Field(description="The job's metric over the champion's rows.")
    challenger: float | None = Field(description="The same over the challenger's.")
    gain: float | None = Field(
        description="How much better the challenger's is, in the metric's unit; positive is better."
    )
    error: float | None = Field(
        default=None, description="Standard error of the gain as far as it comes from who was assigned to whom."
    )
    by_day: float | None = Field(
        default=None,
        description="Standard deviation of the gain between intervals at most, from those of both versions at training.",
    )
    n_champion: int = Field(description="Labelled rows of the champion.")
    n_challenger: int
    entities: int = Field(default=0, description="Entities with a label.")
    assigned: int = Field(default=0, description="Those of them that the challenger scored.")
    sketch: tuple[int, ...] = Field(default=(), description="Smallest hashes of the entities: shows which ones recur.")
    fault: str = Field(default="", description="What the challenger or the split got wrong; empty = nothing.")


class PerformanceReport(Report):
    """Realised performance of one matured interval, in the units of its metrics."""

    job: str
    start: AwareDatetime
    end: AwareDatetime
    as_of: AwareDatetime
    verdict: Verdict = Field(description="drift means degraded beyond the limit.")
    reason: str
    metric: str
    value: float | None
    low: float | None = Field(default=None, description="95 % confidence interval of the value, lower end.")
    high: float | None = Field(default=None, description="95 % confidence interval of the value, upper end.")
    limit: float | None = Field(description="The metric value from which the interval counts as degraded.")
    baseline: float | None = Field(default=None, description="The metric value of the same model at its training.")
    n: int
    rows_scored: int
    model_version: int
    slices: tuple[SliceMetric, ...]
    cause: Literal["concept", "inputs", "broken_data"] | None = Field(
        default=None, description="Of degraded performance: concept = the inputs are stable, so what they mean changed."
    )
    label: ColumnDrift | None = Field(default=None, description="The labels against those of the training.")
    maturity: Maturity | None = None
    arms: Arms | None = Field(default=None, description="During a rollout: champion and challenger compared.")
    restated: bool = Field(default=False, description="More labels have come since an earlier report on the interval.")
    quiet: bool = False

    @property
    def is_violation(self) -> bool:
        """Whether it speaks for a training: degraded, and not because broken data was scored."""
        return self.verdict == "drift" and self.cause != "broken_data"


class Incident(Report):
    """One cause that people are told of once: opened, updated while it lasts, closed when it is over."""

    id: str = Field(description="incident- and 12 hex digits, from job, cause and opening.")
    job: str
    cause: str = Field(description="What it is about, such as broken_data:temp or covariate_drift.")
    kind: IncidentKind
    tier: Tier
    status: Literal["open", "closed"]
    columns: tuple[str, ...]
    opened: AwareDatetime = Field(description="Start of the first interval that showed it.")
    latest: AwareDatetime = Field(description="Start of the latest interval that showed it.")
    closed: AwareDatetime | None = Field(default=None, description="End of the interval that ended it.")
    intervals: int = Field(description="How many intervals have shown it.")
    reason: str = Field(description="Of the latest interval that showed it, or of the one that made it louder.")
    shown: tuple[AwareDatetime, ...] = Field(
        default=(), description="Starts of the latest intervals that showed it, newest first: none is counted twice."
    )
    clear: tuple[AwareDatetime, ...] = Field(
        default=(), description="Ends of the intervals since then that did not show it; several close the incident."
    )


class Notice(Report):
    """What people were told of an incident."""

    incident: Incident
    news: News | None = Field(description="What was new; null = nothing that anybody is told of.")
    channels: int = Field(description="How many channels took the message.")


class Calibration(Report):
    """Thresholds of one job, measured on its own history for a budget of false alarms; lies beside the job file."""

    job: str
    start: AwareDatetime
    end: AwareDatetime
    budget: float = Field(description="False alarms per interval that are allowed, e.g. 1/90.")
    rate: float = Field(description="Alarms per interval that these thresholds would have raised in the history.")
    at_most: float = Field(description="The same, upper end of its 95 % interval over resampled histories.")
    before: float = Field(description="Alarms per interval with the thresholds in force until now.")
    intervals: int
    model_version: int | None
    season: str
    thresholds: dict[str, float]
