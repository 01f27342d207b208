"""Keep every job healthy: sweep leftovers, and fail visibly when intervals are missing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import declared
from airflow.sdk import CronDataIntervalTimetable, dag, task

if TYPE_CHECKING:
    from pipeline.job import JobSpec


def operations_dag(job: JobSpec):
    """Return the job's operations DAG."""

    @dag(
        **declared.arguments(job, "operations"),
        schedule=CronDataIntervalTimetable("30 0 * * *", timezone="UTC"),
        end_date=job.schedule.end,
        catchup=False,
        max_active_runs=1,
        params={"as_of": declared.AS_OF},
        doc_md=__doc__,
    )
    def build():
        @task
        def sweep():
            from pipeline import tasks

            return tasks.sweep(job.name)

        @task
        def find_gaps(**context):
            from pipeline import tasks

            return tasks.find_gaps(job.name, declared.instant(context, "as_of", "data_interval_end"))

        sweep()
        find_gaps()

    return build()


for spec in declared.jobs():
    globals()[f"{spec.name}__operations"] = operations_dag(spec)
