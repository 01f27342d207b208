"""Which stretch of time a step looks at: monitoring, maturity of labels, training and holdout.

Pure interval arithmetic; what was not known at ``as_of`` is never inside a window.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from pipeline.intervals import Interval

if TYPE_CHECKING:
    from datetime import datetime

    from pipeline.job import JobSpec

# With little history the holdout shrinks to this share of it: what is proven and what is learnt need rows alike.
_LARGEST_HOLDOUT_SHARE = 0.5
_WEEK = timedelta(days=7)


@dataclass(frozen=True, slots=True)
class TrainingWindow:
    """Rows to learn from, and the later rows to compare on; both lie before ``as_of`` and do not overlap."""

    train: Interval
    holdout: Interval

    @property
    def span(self) -> Interval:
        """Training and holdout together."""
        return Interval(self.train.start, self.holdout.end)


def monitored(job: JobSpec, interval: Interval) -> Interval:
    """The stretch that is compared with the reference: ``drift.window`` intervals that end with ``interval``."""
    return Interval(job.cadence.shift(interval.start, 1 - job.drift.window), interval.end)


def matured_by(job: JobSpec, as_of: datetime) -> datetime:
    """The instant by which an interval must have ended for its labels to count as complete at ``as_of``."""
    return as_of - job.labels.mature_after


def labelled_by(job: JobSpec, as_of: datetime) -> datetime:
    """The end of the last whole interval whose labels count as complete at ``as_of``."""
    return job.cadence.floor(matured_by(job, as_of))


def history(job: JobSpec, as_of: datetime) -> Interval:
    """The whole intervals of labelled history that a training at ``as_of`` may use: ``retrain.window``, rounded up."""
    end = labelled_by(job, as_of)
    return Interval(job.cadence.floor(end - job.retrain.window), end)


def stretches(job: JobSpec, as_of: datetime, since: datetime | None) -> dict[str, Interval]:
    """The stretches of history that ``retrain.window_policy`` allows, in order of preference.

    ``since`` is the start of the first interval that showed the change for which the training was asked, if any. Whatever
    the policy, the sliding window stands in for one that is not there.
    """
    sliding = history(job, as_of)
    found = {
        "since_change": Interval(job.cadence.floor(since), sliding.end) if since and since < sliding.end else None,
        "sliding": sliding,
        "expanding": Interval(
            job.cadence.floor(sliding.end - max(job.retrain.max_history, job.retrain.window)), sliding.end
        ),
    }
    policy = job.retrain.window_policy
    names = ("sliding", "expanding", "since_change") if policy == "backtest" else (policy, "sliding")
    return {name: span for name in names if (span := found[name]) is not None}


def learnable(job: JobSpec, as_of: datetime) -> timedelta:
    """The longest history that a training at ``as_of`` may learn from: since ``schedule.start``, and without its holdout."""
    longest = max(stretches(job, as_of, None).values(), key=lambda span: span.end - span.start)
    available = longest.end - max(longest.start, job.schedule.start)
    return max(available - job.retrain.holdout, available * (1 - _LARGEST_HOLDOUT_SHARE))


def shortest_since_change(job: JobSpec) -> timedelta:
    """The shortest stretch from which a change is learnt and proven: ``retrain.holdout`` and a week, or twice a shorter one."""
    return job.retrain.holdout + min(job.retrain.holdout, _WEEK)


def training(job: JobSpec, available: Interval) -> TrainingWindow | None:
    """The split of ``available``, the labelled history that is really there; both its ends lie on the job's grid.

    The holdout is the latest ``retrain.holdout``, rounded up to whole intervals; at most half of ``available``, but at
    least one interval. ``None`` when ``available`` is shorter than two intervals.
    """
    largest = Interval(available.end - (available.end - available.start) * _LARGEST_HOLDOUT_SHARE, available.end)
    earliest = next((held.start for held in job.cadence.split(largest)), job.cadence.shift(available.end, -1))
    cut = max(job.cadence.floor(available.end - job.retrain.holdout), earliest)
    if cut <= available.start:
        return None
    return TrainingWindow(Interval(available.start, cut), Interval(cut, available.end))
