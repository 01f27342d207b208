"""What the DAG files share: the declared jobs, their assets, retries by error type, Params and times.

Imported while DAG files are parsed, so it imports nothing heavier than Airflow's SDK, pydantic and yaml.
"""

from __future__ import annotations

import importlib
import os
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow.sdk import Asset, ExceptionRetryPolicy, Param, RetryAction, RetryRule, get_parsing_context
from pipeline_links import ModelLink, ReportLink

from pipeline import jobfile
from pipeline.errors import InvalidRequest
from pipeline.intervals import parse_instant

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from pipeline.job import JobSpec

# Repeating cannot mend a terminal error; every other error is retried.
RETRY = ExceptionRetryPolicy(rules=[RetryRule("pipeline.errors.TerminalError", action=RetryAction.FAIL)])
# Airflow doubles the delay after every try, up to the longest one: together they outlast an hour without storage or
# database. A task process that was killed counts as a try as well; nobody asks the policy about it, it is always retried.
RETRIES = 10
RETRY_DELAY = timedelta(seconds=float(os.environ.get("PIPELINE_RETRY_DELAY_SECONDS", "30")))
LONGEST_RETRY_DELAY = timedelta(minutes=10)
# A deployment that has created the pools names them here; default_pool exists everywhere.
SCORING_POOL = os.environ.get("PIPELINE_SCORING_POOL", "default_pool")
TRAINING_POOL = os.environ.get("PIPELINE_TRAINING_POOL", "default_pool")
LINKS = (ReportLink(), ModelLink())

# The format only picks the widget: nothing checks it, so the pattern does. In Python's ``$`` a line break may follow.
_INSTANT = {
    "type": ["null", "string"],
    "format": "date-time",
    "maxLength": 40,
    "pattern": r"^[12][0-9]{3}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])"
    r"(T([01][0-9]|2[0-3]):[0-5][0-9](:[0-5][0-9](\.[0-9]{1,6})?)?(Z|[+-][0-9]{2}:[0-9]{2})?)?$(?!\n)",
}
START = Param(
    None, **_INSTANT, title="Interval start", description="Start of the data interval, UTC. Manual runs need it."
)
AS_OF = Param(
    None, **_INSTANT, title="As of", description="Only what was known at this instant counts. Manual runs need it."
)
REASON = Param("", type="string", maxLength=200, title="Reason", description="Kept with the decision.")
REQUEST = Param(
    "",
    type="string",
    pattern=r"^(approval-[0-9a-f]{12})?$(?!\n)",
    title="Request",
    description="The id of a request for approval. Manual runs need it.",
)
QUIET = Param(False, type="boolean", title="Quiet", description="Publish, but never alert, retrain or promote.")


def jobs() -> list[JobSpec]:
    """The valid jobs; a task's own process gets only the job that it works for.

    Broken job files are left out here and reported by ``invalid_jobs.py``. A DAG file that is imported by `dags_of` gets none.
    """
    if _IMPORTED:
        return []
    folder = jobs_folder()
    wanted = get_parsing_context().dag_id
    if wanted:
        return [jobfile.find(wanted.rsplit("__", 1)[0], folder)]
    return list(jobfile.load_all(folder)[0].values())


def dags_of(file: str) -> dict[str, Any]:
    """The DAGs of one job file by id; a task's own process gets only its DAG.

    Raises `InvalidJob` for a broken file, and for one that names the same job as another file.
    """
    job = jobfile.load(Path(file))
    jobfile.find(job.name, Path(file).parent)
    wanted = get_parsing_context().dag_id
    named = {f"{job.name}__{kind}": maker for kind, maker in _MAKERS.items() if kind != "approve" or asks(job)}
    return {dag_id: _maker(*maker)(job) for dag_id, maker in named.items() if wanted in (None, dag_id)}


def asks(job: JobSpec) -> bool:
    """Whether a person has the last word on a promotion, so that the job has a DAG ``approve``."""
    return job.promote.approval.required


def _maker(module: str, function: str) -> Callable[[JobSpec], Any]:
    _IMPORTED.append(module)
    try:
        maker: Callable[[JobSpec], Any] = getattr(importlib.import_module(module), function)
    finally:
        _IMPORTED.pop()
    return maker


# The DAG files that are being imported for their functions: then they declare nothing by themselves.
_IMPORTED: list[str] = []
# In which file which function makes the DAG of a kind.
_MAKERS = {
    "score": ("scoring", "scoring_dag"),
    "evaluate": ("evaluation", "evaluation_dag"),
    "retrain": ("retraining", "retraining_dag"),
    "approve": ("retraining", "approval_dag"),
    "operations": ("operations", "operations_dag"),
}


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
            "retries": RETRIES,
            "retry_delay": RETRY_DELAY,
            "retry_exponential_backoff": 2.0,
            "max_retry_delay": LONGEST_RETRY_DELAY,
            "retry_policy": RETRY,
            "execution_timeout": job.schedule.timeout,
        },
    }


def asset(job: JobSpec, name: str) -> Asset:
    """One of the job's assets: predictions, drift, performance or model."""
    return Asset(name=f"{job.name}.{name}", uri=f"pipeline://{job.name}/{name}", group="pipeline")


def last_start(job: JobSpec) -> datetime | None:
    """The start of the last interval that ends by ``schedule.end``: Airflow's ``end_date`` limits starts, not ends."""
    end = job.schedule.end
    return None if end is None else job.cadence.shift(job.cadence.floor(end), -1)


def instant(context: Any, param: str, fallback: str) -> datetime:
    """The time a run works on: its Param, or the scheduled interval's edge ``fallback``; never the clock.

    Raises `InvalidRequest` for a run that has neither.
    """
    text = context["params"].get(param)
    if text:
        return _parsed(text)
    if context.get(fallback) is None:
        raise _without_time(param)
    # Airflow's times are pendulum's; their arithmetic is not that of datetime.
    return parse_instant(context[fallback].isoformat())


def as_of(context: Any, trigger: Asset, field: str) -> datetime | None:
    """The time an asset's run works on: the Param ``as_of``, or the latest ``field`` of the asset's events.

    Those are the events that started the run and all later ones; the task needs the asset among its inlets. Quiet events
    do not count: ``None`` when there were no others. Raises `InvalidRequest` for a run that neither an event nor the Param
    gives a time.
    """
    text = context["params"]["as_of"]
    if text:
        return _parsed(text)
    events = (context.get("triggering_asset_events") or {}).get(trigger, [])
    if not events:
        raise _without_time("as_of")
    # An event that comes between a run's planning and its creation belongs to no run, until the next event comes.
    later = context["inlet_events"][trigger].after(context["dag_run"].run_after.isoformat())
    found = [event.extra for event in (*events, *later)]
    loud = [extra[field] for extra in found if field in extra and not extra.get("quiet")]
    return max(map(_parsed, loud), default=None)


def request(context: Any, trigger: Asset) -> str | None:
    """The request for approval that a run is about: the Param ``request``, or that of the latest event that carries one.

    ``None`` when no event does. Raises `InvalidRequest` for a run that has neither an event nor the Param.
    """
    named = context["params"]["request"]
    if named:
        return str(named)
    events = (context.get("triggering_asset_events") or {}).get(trigger, [])
    if not events:
        raise InvalidRequest(
            "no training started this run, so it needs the parameter 'request'",
            expected="the id of a request for approval, as pipeline status prints it",
            got="nothing",
            left_behind="nothing was done",
            next_step="trigger it again with request set",
        )
    waiting = [event.extra for event in events if event.extra.get("outcome") == "awaiting_approval"]
    return max(waiting, key=lambda extra: _parsed(extra["as_of"]))["decision_ids"][-1] if waiting else None


def waited(since: str, until: Any) -> timedelta:
    """How long somebody took to answer; ``until`` is a time, or the text of one."""
    end = until if isinstance(until, str) else until.isoformat()
    return parse_instant(end) - parse_instant(since)


def is_quiet(context: Any) -> bool:
    """Whether the run may only publish: a backfill, or asked for."""
    return context["dag_run"].run_type == "backfill" or bool(context["params"].get("quiet"))


def _parsed(text: str) -> datetime:
    try:
        return parse_instant(text)
    except ValueError as err:
        raise InvalidRequest(
            "this run was given a time that is none",
            expected="an instant such as 2026-01-31T00:00:00Z",
            got=repr(text),
            left_behind="nothing was done",
            next_step="trigger it again with another one",
        ) from err


def _without_time(param: str) -> InvalidRequest:
    return InvalidRequest(
        f"this run has no data interval, so it needs the parameter {param!r}",
        expected="an instant such as 2026-01-31T00:00:00Z",
        got="nothing",
        left_behind="nothing was done",
        next_step=f"trigger it again with {param} set",
    )
