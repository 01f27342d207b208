"""The job file as commented YAML text, built by hand because comments are half of its worth.

Must not infer anything: every value comes with the `Findings`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import yaml

from pipeline.intervals import format_instant
from pipeline.policies import BOUNDED, DECIDING
from pipeline.scaffold.columns import Feature, LeftOut
from pipeline.scaffold.pace import Pace, iso, reachable

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime, timedelta

    from pipeline.policies import Task
    from pipeline.scaffold.request import Request

# Rows that tell a shift of a tenth of a standard deviation from chance.
_ROWS_OF_A_WINDOW = 500
# What a promotion is worth by default, in the unit of promote.min_gain (see docs/decisions.md).
_WORTH: dict[Task, float] = {"binary": 0.01, "multiclass": 0.02, "regression": 0.2}
_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_./-]*")


@dataclass(frozen=True)
class Findings:
    """What the data told: everything that the job file says beyond the request."""

    features_uri: str
    features_partition: str
    labels_uri: str
    labels_partition: str
    start: datetime
    columns: tuple[Feature | LeftOut, ...]
    mature_after: timedelta
    rows: float
    labelled: float
    pace: Pace
    intervals_per_training: float
    intervals_per_holdout: float


def job_file(request: Request, findings: Findings) -> str:
    """The text of the whole job file, comments included."""
    features = [column for column in findings.columns if isinstance(column, Feature)]
    left_out = [column for column in findings.columns if isinstance(column, LeftOut)]
    sections = (
        _head(request, findings),
        _features(request, findings, features, left_out),
        _labels(request, findings),
        _model(),
        _checks(features),
        _drift(request, findings),
        _performance(request, findings),
        _retrain(findings),
        _promote(request, findings),
        _engine(),
        _output(),
    )
    return "\n".join(section.strip("\n") + "\n" for section in sections)


def quoted(text: str | int) -> str:
    """A value as YAML that reads back as itself, on one line, in any context."""
    if isinstance(text, int) or (_PLAIN.fullmatch(text) and yaml.safe_load(text) == text):
        return str(text)
    return yaml.safe_dump(text, default_style='"', allow_unicode=True, width=float("inf")).strip()


def number(value: float) -> str:
    """A number as YAML 1.1 reads it: no bare exponent, no trailing noise."""
    text = f"{value:.10g}"
    if "e" not in text:
        return text
    mantissa, exponent = text.split("e")
    return f"{mantissa if '.' in mantissa else mantissa + '.0'}e{exponent}"


def _head(request: Request, findings: Findings) -> str:
    return f"""
# Written by 'pipeline init' from the data. Every value is a suggestion: change what you know better.
# 'pipeline check' tells whether the file is valid, 'pipeline schema' describes every field.
name: {request.name}
task: {request.task}

schedule:
  interval: {request.cadence}  # length of a data interval; each is scored once, soon after its end (UTC)
  start: {format_instant(findings.start)}  # the first interval that has data; training needs some history before it scores
"""


def _features(request: Request, findings: Findings, features: Sequence[Feature], left_out: Sequence[LeftOut]) -> str:
    chosen = "\n".join(f"    {quoted(column.name)}: {{type: {column.type}}}" for column in features)
    omitted = "\n".join(f"    # {quoted(column.name)} - {column.reason}" for column in left_out)
    heading = "\n    # Left out, and why:\n" if omitted else ""
    return f"""
# The rows to score, and the columns that the model learns from.
features:
  uri: {quoted(findings.features_uri)}
  {_partition(findings.features_partition)}
  key: [{", ".join(map(quoted, request.key))}]  # identifies a row; unique within a partition
  time: {quoted(request.time)}  # event time; without a zone it is read as UTC
  columns:
{chosen}{heading}{omitted}
"""


def _partition(template: str) -> str:
    if template:
        return f"partition: {quoted(template)}  # folder of one partition, as strftime names time"
    return 'partition: ""  # no folders of time: every run reads all files and picks its rows by event time'


def _labels(request: Request, findings: Findings) -> str:
    if request.available_at is not None:
        arrival = f"available_at: {quoted(request.available_at)}  # when each label became known; unused before"
    else:
        assert request.delay is not None
        arrival = f"delay: {iso(request.delay)}  # a label is known this long after the event time"
    return f"""
# The ground truth, joined by the key. Columns that lie only here are never features.
labels:
  uri: {quoted(findings.labels_uri)}
  {_partition(findings.labels_partition)}
  column: {quoted(request.label)}
  {arrival}
  mature_after: {iso(findings.mature_after)}  # after an interval's end; 99 % of the sampled labels had arrived by then
  overdue_after: {iso(findings.pace.overdue)}  # still no label this long after that: something is broken
"""


def _model() -> str:
    return """
model:
  trainer: gradient_boosting  # or module:function, which returns an unfitted scikit-learn estimator
  seed: 0
"""


def _checks(features: Sequence[Feature]) -> str:
    rules = "\n".join(f"    - {rule}" for column in features for rule in _rules(column))
    # An empty block would be null, which is no list.
    listed = f"  rules:\n{rules}" if rules else "  rules: []"
    return f"""
# What a partition must be like before it is scored. A missing key or time always quarantines its row. The rules below
# are what the sample looked like, generously widened; they only warn, because data may rightly change.
# Write action: quarantine where a value can only be wrong.
checks:
  min_rows: 1  # a partition with fewer rows is refused
  max_quarantined: 0.05  # above this share of bad rows nothing is published
{listed}
"""


def _rules(column: Feature) -> list[str]:
    name = quoted(column.name)
    found = []
    if column.complete:
        found.append(f"{{column: {name}, rule: not_null, action: warn}}")
    if column.low is not None and column.high is not None:
        limits = f"min: {number(column.low)}, max: {number(column.high)}"
        found.append(f"{{column: {name}, rule: between, {limits}, action: warn}}")
    if column.values:
        values = ", ".join(map(quoted, column.values))
        found.append(f"{{column: {name}, rule: in_set, values: [{values}], action: warn}}")
    return found


def _drift(request: Request, findings: Findings) -> str:
    # Large intervals are compared one by one, like with like; small ones need company, a whole cycle of it.
    window = 1 if findings.rows >= _ROWS_OF_A_WINDOW else findings.pace.drift_window
    meant = (
        "compared with the same hours or weekdays"
        if window == 1
        else "a whole cycle, so that its ups and downs are no drift"
    )
    return f"""
# When inputs or predictions count as drifted away from the champion's training data. Thresholds that suit the job's own
# history are measured by: pipeline calibrate {request.name} --from T --to T
drift:
  detector: alibi  # alibi-detect needs a licence in production; scipy runs the same tests without one
  window: {window}  # intervals looked at together: {meant}
  min_rows: {reachable(findings.rows * window, 200, 2)}  # fewer rows in the window: insufficient_data
  p_value: 0.05  # over all columns together
  effect: 0.1  # smallest shift of a number that counts, in standard deviations
  mass: 0.05  # smallest share of rows that moved to another category, or lost their value
  violations: 2  # a column drifts when it moved in so many ...
  of_last: 3  # ... of so many latest intervals
  share: 0.3  # features with this share of the importance must drift to be a page, or the predictions
"""


def _performance(request: Request, findings: Findings) -> str:
    return f"""
# How realised performance is judged once labels have arrived.
performance:
  metric: {DECIDING[request.task][0]}  # fits the task: {", ".join(DECIDING[request.task])}
  min_labels: {reachable(findings.labelled, 50, 2)}  # fewer labelled rows in an interval: insufficient_data
  tolerance: 0.05  # degraded: worse than the champion at its promotion by more than this share ...
  sigmas: 2.0  # ... and by more than this many deviations between intervals
"""


def _retrain(findings: Findings) -> str:
    pace = findings.pace
    expected = findings.labelled * findings.intervals_per_training
    return f"""
# When and on what a challenger is trained.
retrain:
  enabled: true
  violations: {pace.violations}  # intervals that drifted or degraded ...
  of_last: {pace.of_last}  # ... among this many latest ones
  cooldown: {iso(pace.cooldown)}  # shortest time between two trainings
  growth: 1.02  # also train when there is so many times as much to learn from as the last training had; the gate decides
  window: {iso(pace.training)}  # labelled history that is used
  holdout: {iso(pace.holdout)}  # its latest part: never trained on, champion and challenger are compared there
  min_rows: {reachable(expected, 200, 10)}  # labelled rows needed to train
"""


def _promote(request: Request, findings: Findings) -> str:
    expected = findings.labelled * findings.intervals_per_holdout
    unit = (
        f"in {metric}" if (metric := DECIDING[request.task][0]) in BOUNDED else f"as a share of the champion's {metric}"
    )
    return f"""
# When a challenger replaces the champion. dry_run is the cautious choice: it compares and records, and moves nothing.
promote:
  mode: enabled
  confidence: 0.95  # that on the holdout the challenger is better by more than ...
  min_gain: {_WORTH[request.task]:g}  # ... so much ({unit}): a smaller gain is not worth a promotion
  min_labels: {reachable(expected, 100, 10)}  # labelled holdout rows needed for a decision
"""


def _engine() -> str:
    return """
# Where a partition is scored. What is published does not depend on it.
engine:
  backend: threads  # processes for a model in pure Python, ray for a cluster
"""


def _output() -> str:
    return """
output:
  # uri: where results go; by default outputs/<job> under PIPELINE_HOME
  keep_versions: P7D  # how long superseded files are kept
"""
