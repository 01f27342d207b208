"""Decide after every evaluation whether to train; train a challenger and promote it if it is proven better."""

from __future__ import annotations

from typing import TYPE_CHECKING

import declared
from airflow.sdk import Param, dag, task

if TYPE_CHECKING:
    from pipeline.job import JobSpec

BOOTSTRAP = Param(False, type="boolean", title="Bootstrap", description="Train and promote the very first champion.")


def retraining_dag(job: JobSpec):
    """Return the job's retraining DAG."""
    performance, model = declared.asset(job, "performance"), declared.asset(job, "model")

    @dag(
        **declared.arguments(job, "retrain"),
        schedule=[performance],
        max_active_runs=1,
        params={"as_of": declared.AS_OF, "bootstrap": BOOTSTRAP, "reason": declared.REASON},
        doc_md=__doc__,
    )
    def build():
        @task.short_circuit(inlets=[performance], pool=declared.SCORING_POOL)
        def decide(**context):
            from pipeline import tasks

            as_of = declared.as_of(context, performance, "as_of")
            return tasks.decide(job.name, as_of, manual=bool(context["params"]["as_of"]))

        @task(outlets=[model], pool=declared.TRAINING_POOL)
        def train(decision, **context):
            from pipeline import tasks

            params = context["params"]
            report = tasks.retrain(job.name, decision, bootstrap=params["bootstrap"], reason=params["reason"])
            context["outlet_events"][model].extra = report
            return report

        trained = train(decide())
        trained.operator.operator_extra_links = declared.LINKS

    return build()


for spec in declared.jobs():
    globals()[f"{spec.name}__retrain"] = retraining_dag(spec)
