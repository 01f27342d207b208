"""What the DAG files share: the declared jobs, their assets, retries by error type, Params and times.

Imported while DAG files are parsed, so it imports nothing heavier than Airflow's SDK, pydantic and yaml.
"""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow.sdk import Asset, ExceptionRetryPolicy, Param, RetryAction, RetryRule, get_parsing_context
from pipeline_links import ModelLink, ReportLink

from pipeline import jobfile
from pipeline.intervals import parse_instant

if TYPE_CHECKING:
    from datetime import datetime

    from pipeline.job import JobSpec

# Repeating cannot mend a terminal error; every other error is retried.
RETRY = ExceptionRetryPolicy(rules=[RetryRule("pipeline.errors.TerminalError", action=RetryAction.FAIL)])
# A deployment that has created the pools names them here; default_pool exists everywhere.
SCORING_POOL = os.environ.get("PIPELINE_SCORING_POOL", "default_pool")
TRAINING_POOL = os.environ.get("PIPELINE_TRAINING_POOL", "default_pool")
LINKS = (ReportLink(), ModelLink())

_INSTANT = {"type": ["null", "string"], "format": "date-time", "maxLength": 40}
START = Param(
    None, **_INSTANT, title="Interval start", description="Start of the data interval, UTC. Manual runs need it."
)
AS_OF = Param(
    None, **_INSTANT, title="As of", description="Only what was known at this instant counts. Manual runs need it."
)
REASON = Param("", type="string", maxLength=500, title="Reason", description="Kept with the decision.")
QUIET = Param(False, type="boolean", title="Quiet", description="Publish, but never alert, retrain or promote.")


def jobs() -> list[JobSpec]:
    """The valid jobs; a task's own process gets only the job that it works for.

    Broken job files are left out here and reported by ``invalid_jobs.py``.
    """
    folder = jobs_folder()
    wanted = get_parsing_context().dag_id
    if wanted:
        return [jobfile.find(wanted.rsplit("__", 1)[0], folder)]
    return list(jobfile.load_all(folder)[0].values())


def jobs_folder() -> Path:
    """The folder of job files: ``PIPELINE_JOBS``, or ``jobs`` beside this file."""
    return Path(os.environ.get("PIPELINE_JOBS") or Path(__file__).parent / "jobs")


def arguments(job: JobSpec, kind: str) -> dict[str, Any]:
    """The keyword arguments that every DAG of a job is declared with."""
    return {
        "dag_id": f"{job.name}__{kind}",
        "description": job.description or f"{kind} of {job.name}",
        "start_date": job.schedule.start,
        "tags": ["pipeline", kind, job.name],
        "render_template_as_native_obj": False,
        "default_args": {
            "owner": job.owner,
            "retries": 3,
            "retry_delay": timedelta(seconds=30),
            "retry_exponential_backoff": 2.0,
            "max_retry_delay": timedelta(minutes=10),
            "retry_policy": RETRY,
            "execution_timeout": job.schedule.timeout,
        },
    }


def asset(job: JobSpec, name: str) -> Asset:
    """One of the job's assets: predictions, drift, performance or model."""
    return Asset(name=f"{job.name}.{name}", uri=f"pipeline://{job.name}/{name}", group="pipeline")


def instant(context: Any, param: str, fallback: str) -> datetime:
    """The time a run works on: its Param, or the scheduled interval's edge ``fallback``; never the clock."""
    text = context["params"].get(param)
    if text:
        return parse_instant(text)
    edge: datetime | None = context.get(fallback)
    if edge is None:
        raise ValueError(
            f"this run has no data interval, so it needs the parameter {param!r}; nothing was done; next: trigger it again "
            f"with {param} set to an instant such as 2026-01-31T00:00:00Z"
        )
    return edge


def is_quiet(context: Any) -> bool:
    """Whether the run may only publish: a backfill, or asked for."""
    return context["dag_run"].run_type == "backfill" or bool(context["params"].get("quiet"))


def latest_event(context: Any, trigger: Asset, field: str) -> str | None:
    """The latest ``field`` of the loud events of ``trigger`` that started this run; ``None`` when all were quiet."""
    events = (context.get("triggering_asset_events") or {}).get(trigger, [])
    return max((event.extra[field] for event in events if not event.extra.get("quiet")), default=None)
