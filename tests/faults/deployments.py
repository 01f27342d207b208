"""Deployments that the tests of one file share: what is costly, a registry with trained versions, is made once."""

from __future__ import annotations

import json
import shutil
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from pipeline.job import JobSpec
from pipeline.runtime import Runtime
from pipeline.settings import Settings
from tests.worlds import day, job_on

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.worlds import World


def orders_of(world: World, **changes: Any) -> JobSpec:
    """The job on a world, with quick training and promotions by hand only; ``changes`` as in `job_on`."""
    quick = {"model": {"parameters": {"max_iter": 4}}, "promote": {"mode": "disabled"}}
    return job_on(_orders, world, **{**quick, **changes})


def _orders(*, features: dict[str, Any], labels: dict[str, Any], **settings: Any) -> JobSpec:
    columns = {"amount": {"type": "number"}, "country": {"type": "category"}}
    document = {
        "name": "orders",
        "task": "binary",
        "schedule": {"interval": "1d", "start": "2026-01-01T00:00:00Z"},
        "features": {"key": ["row_id"], "time": "event_ts", "columns": columns, **features},
        "labels": {"column": "label", "available_at": "label_available_at", **labels},
        **settings,
    }
    return JobSpec.model_validate_json(json.dumps(document))


@contextmanager
def deployed(home: Path, mlflow_template: Path) -> Iterator[Runtime]:
    """An opened deployment in ``home`` whose clock stands still, after everything that the worlds hold."""
    shutil.copy(mlflow_template, home / "mlflow.db")
    with Runtime(Settings.in_home(home, jobs=home / "jobs"), clock=lambda: day(400)) as runtime:
        yield runtime


def publishing_to(job: JobSpec, place: Path) -> JobSpec:
    """The job with its outputs elsewhere."""
    return job.model_copy(update={"output": job.output.model_copy(update={"uri": str(place)})})
