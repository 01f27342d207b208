"""Score each data interval of every declared job with its champion, then judge its drift."""

from __future__ import annotations

from typing import TYPE_CHECKING

import declared
from airflow.sdk import CronDataIntervalTimetable, Param, dag, task

if TYPE_CHECKING:
    from pipeline.job import JobSpec

MODEL = Param(
    "as_of",
    type="string",
    pattern=r"^(as_of|current|[1-9][0-9]{0,8})$(?!\n)",
    title="Model",
    description="as_of: the champion at the interval's end; current: the champion now; or a version number.",
)


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

            start, quiet = declared.instant(context, "start", "data_interval_start"), declared.is_quiet(context)
            manifest = tasks.score(job.name, start, model=context["params"]["model"], quiet=quiet)
            context["outlet_events"][predictions].extra = manifest
            return manifest

        @task(outlets=[drift], pool=declared.SCORING_POOL)
        def monitor(manifest, **context):
            from pipeline import tasks

            report = tasks.monitor(job.name, manifest["start"], quiet=declared.is_quiet(context))
            context["outlet_events"][drift].extra = report
            return report

        scored = score()
        monitored = monitor(scored)
        for output in (scored, monitored):
            output.operator.operator_extra_links = declared.LINKS

    return build()


for spec in declared.jobs():
    globals()[f"{spec.name}__score"] = scoring_dag(spec)
