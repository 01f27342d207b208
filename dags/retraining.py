"""Decide after every evaluation whether to train; train a challenger and promote it if it is proven better."""

from __future__ import annotations

from typing import TYPE_CHECKING

import declared
from airflow.sdk import Param, dag, task

if TYPE_CHECKING:
    from pipeline.job import JobSpec

PROMOTE, KEEP = "Promote", "Keep the champion"
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


def approval_dag(job: JobSpec):
    """Return the DAG that asks a person about a challenger that won; waiting for days it holds up no other training."""
    from airflow.providers.standard.operators.hitl import HITLOperator

    model = declared.asset(job, "model")

    @dag(
        **declared.arguments(job, "approve"),
        schedule=[model],
        max_active_runs=16,
        params={"request": declared.REQUEST},
        doc_md="Ask a person whether a challenger that won the gate becomes the champion.",
    )
    def build():
        @task.short_circuit(pool=declared.SCORING_POOL)
        def ask(**context):
            from pipeline import tasks

            request = declared.request(context, model)
            return request and tasks.ask(job.name, request)

        asked = ask()
        asked.operator.operator_extra_links = declared.LINKS
        decide = HITLOperator(
            task_id="decide",
            subject="{{ ti.xcom_pull(task_ids='ask')['subject'] }}",
            body="{{ ti.xcom_pull(task_ids='ask')['body'] }}",
            options=[PROMOTE, KEEP],
            defaults=KEEP,
            params={"reason": declared.REASON},
            response_timeout=job.promote.approval.expires,
            execution_timeout=None,
        )

        @task(outlets=[model], pool=declared.SCORING_POOL)
        def answer(asked, given, **context):
            from pipeline import tasks

            by = given["responded_by_user"]
            report = tasks.answer(
                job.name,
                asked,
                approved=given["chosen_options"] == [PROMOTE],
                by=by and by["name"],
                reason=given["params_input"].get("reason") or "",
                waited=declared.waited(asked["asked_at"], given["responded_at"]),
            )
            context["outlet_events"][model].extra = report
            return report

        asked >> decide
        answered = answer(asked, decide.output)
        answered.operator.operator_extra_links = declared.LINKS

    return build()


for spec in declared.jobs():
    globals()[f"{spec.name}__retrain"] = retraining_dag(spec)
    if declared.asks(spec):
        globals()[f"{spec.name}__approve"] = approval_dag(spec)
