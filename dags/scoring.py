"""Score each data interval of every declared job with its champion, then judge its drift.

Published intervals within the job's lookback whose input has changed since are scored and judged again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import declared
from airflow.sdk import CronDataIntervalTimetable, Param, dag, task, task_group

from pipeline.intervals import format_instant

if TYPE_CHECKING:
    from datetime import datetime

    from pipeline.job import JobSpec

MODEL = Param(
    "as_of",
    type="string",
    pattern=r"^(as_of|current|[1-9][0-9]{0,8})$(?!\n)",
    title="Model",
    description="as_of: the champion at the interval's end; current: the champion now; or a version number.",
)
# Restated by one run at most, the oldest first: the list has to stay a small result, and the next run finds the others.
MOST_RESTATED = 100


def scoring_dag(job: JobSpec):
    """Return the job's scoring DAG."""
    predictions, drift = declared.asset(job, "predictions"), declared.asset(job, "drift")

    @dag(
        **declared.arguments(job, "score"),
        schedule=CronDataIntervalTimetable(job.cadence.cron, timezone="UTC"),
        end_date=declared.last_start(job),
        catchup=job.schedule.catchup,
        max_active_runs=job.schedule.max_active_runs,
        params={"start": declared.START, "model": MODEL, "quiet": declared.QUIET},
        doc_md=__doc__,
    )
    def build():
        @task(outlets=[predictions], pool=declared.SCORING_POOL)
        def score(**context):
            from pipeline import tasks

            start, model = begun(context), context["params"]["model"]
            manifest = tasks.score(job.name, start, model=model, quiet=declared.is_quiet(context))
            context["outlet_events"][predictions].extra = manifest
            return manifest

        @task(outlets=[drift], pool=declared.SCORING_POOL)
        def monitor(manifest, **context):
            from pipeline import tasks

            report = tasks.monitor(job.name, manifest["start"], quiet=declared.is_quiet(context))
            # What a restated interval changes is known at the end of the run's interval, not at the end of its own.
            report["as_of"] = format_instant(job.interval(begun(context)).end)
            context["outlet_events"][drift].extra = report
            return report

        @task(pool=declared.SCORING_POOL)
        def find_changed(manifest, **context):
            if declared.is_quiet(context):
                return []
            from pipeline import tasks

            return tasks.find_changed(job.name, begun(context))[:MOST_RESTATED]

        @task(outlets=[predictions], pool=declared.SCORING_POOL, map_index_template="{{ task.op_kwargs['start'] }}")
        def restate(start, **context):
            from pipeline import tasks

            manifest = tasks.restate(job.name, start, quiet=declared.is_quiet(context))
            context["outlet_events"][predictions].extra = manifest
            return manifest

        @task_group
        def changed(start):
            linked(monitor(linked(restate(start=start))))

        scored = linked(score())
        linked(monitor(scored))
        changed.expand(start=find_changed(scored))

    return build()


def begun(context) -> datetime:
    """The start of the run's interval; nothing has checked yet that it is one of the job's."""
    return declared.instant(context, "start", "data_interval_start")


def linked(output):
    """Give the task whose output this is its buttons; returns the output."""
    output.operator.operator_extra_links = declared.LINKS
    return output


for spec in declared.jobs():
    globals()[f"{spec.name}__score"] = scoring_dag(spec)
