"""Compare published predictions with the ground truth that has matured, after every monitored interval.

Then tell people of the incidents that monitoring and evaluation opened or closed. An interval that cannot be measured
fails a task of its own, so that the others' performance is known and acted upon.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import declared
from airflow.sdk import dag, task
from airflow.sdk.exceptions import AirflowSkipException

if TYPE_CHECKING:
    from pipeline.job import JobSpec


def evaluation_dag(job: JobSpec):
    """Return the job's evaluation DAG."""
    drift, performance, model = (declared.asset(job, name) for name in ("drift", "performance", "model"))

    @dag(
        **declared.arguments(job, "evaluate"),
        schedule=[drift],
        max_active_runs=1,
        params={"as_of": declared.AS_OF, "quiet": declared.QUIET},
        doc_md=__doc__,
    )
    def build():
        @task(inlets=[drift], outlets=[performance], pool=declared.SCORING_POOL)
        def evaluate(**context):
            from pipeline import tasks

            as_of = declared.as_of(context, drift, "as_of")
            if as_of is None:
                raise AirflowSkipException("Only backfilled intervals: they are evaluated with the next scheduled one.")
            report = tasks.evaluate(job.name, as_of, quiet=declared.is_quiet(context))
            context["outlet_events"][performance].extra = report
            return report

        @task(outlets=[model], pool=declared.TRAINING_POOL)
        def watch(found, **context):
            from pipeline import tasks

            if found["quiet"]:
                raise AirflowSkipException("A quiet evaluation moves no model.")
            watched = tasks.watch(job.name, found["as_of"])
            if watched["outcome"] != "rolled_back":  # no event: the model is what it was
                raise AirflowSkipException(f"No model was moved: {watched['outcome']}.")
            context["outlet_events"][model].extra = watched
            return watched

        @task
        def report_unmeasured(found):
            from pipeline import tasks

            if not found["quiet"]:
                tasks.report_unmeasured(job.name, found["as_of"])

        # What monitoring found is told even when the evaluation fails.
        @task(trigger_rule="all_done")
        def notify():
            from pipeline import tasks

            return tasks.notify(job.name)

        measured = evaluate()
        report_unmeasured(measured)
        measured >> notify()
        # A page on a rollback waits neither for the next evaluation, nor those of this one for the watch.
        watch(measured) >> notify.override(task_id="notify_rollback", trigger_rule="all_success")()

    return build()


for spec in declared.jobs():
    globals()[f"{spec.name}__evaluate"] = evaluation_dag(spec)
