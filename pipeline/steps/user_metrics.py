"""The user's own metrics (``performance.extra``): found by name, reported, and never a reason for an evaluation to fail."""

from __future__ import annotations

import importlib
import logging
import math
from typing import TYPE_CHECKING

from pipeline import metrics
from pipeline.errors import InvalidJob
from pipeline.verdicts import SliceMetric

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from numpy.typing import NDArray

    from pipeline.job import JobSpec
    from pipeline.metrics import Outcomes, UserMetric

_LOG = logging.getLogger(__name__)


def load(job: JobSpec) -> dict[str, UserMetric]:
    """The functions that ``performance.extra`` names; raises `InvalidJob` for the first that cannot be imported."""
    return {name: _function(job, name) for name in job.performance.extra}


def measure(functions: Mapping[str, UserMetric], outcomes: Outcomes, *, seed: int) -> tuple[SliceMetric, ...]:
    """Each metric over all rows with its interval; ``None`` for one that fails or gives no number, which is logged."""
    found = []
    for name, function in functions.items():
        value = metrics.bootstrapped(_tolerant(name, function), outcomes, seed=seed)
        if value.value is None:
            _LOG.warning("metric %s has no value on %d rows", name, len(outcomes))
        found.append(
            SliceMetric(metric=name, slice="all", value=value.value, n=len(outcomes), low=value.low, high=value.high)
        )
    return tuple(found)


def _tolerant(name: str, function: UserMetric) -> UserMetric:
    """The function with NaN where it fails; only the first failure is logged, for resamplings may fail by the hundred."""
    has_failed = False

    def call(truth: NDArray[Any], prediction: NDArray[Any], scores: NDArray[Any] | None) -> float:
        nonlocal has_failed
        try:
            return float(function(truth, prediction, scores))
        except Exception as err:
            if not has_failed:
                _LOG.warning("metric %s failed, %s: %s", name, type(err).__name__, err)
            has_failed = True
            return math.nan

    return call


def _function(job: JobSpec, name: str) -> UserMetric:
    module, _, attribute = name.partition(":")
    try:
        found: UserMetric = getattr(importlib.import_module(module), attribute)
        if not callable(found):
            raise TypeError(f"{attribute} is {type(found).__name__}, which cannot be called")
    except (Exception, SystemExit) as err:
        raise InvalidJob(
            f"job {job.name!r}: performance.extra names {name!r}, which cannot be used",
            expected="module:function, importable where the pipeline runs",
            got=f"{type(err).__name__}: {err}",
            next_step=f"install or correct the module, or remove the metric, then pipeline check {job.name}",
        ) from err
    return found
