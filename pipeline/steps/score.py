"""Score one planned interval and publish it: one pass over the input, bounded memory, safe to repeat."""

from __future__ import annotations

import json
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from pipeline import __version__, engine
from pipeline.errors import RowsUnaccounted
from pipeline.intervals import format_instant
from pipeline.reports import Manifest
from pipeline.steps import validate
from pipeline.steps.sampling import KeySample

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pipeline.reports import ScoringPlan, ValidationReport
    from pipeline.schema import RowChecker
    from pipeline.steps.context import JobContext
    from pipeline.storage import Published, Staged

# Rows that Great Expectations sees at most; more would only make it slower, not surer.
_EXPECTATION_ROWS = 20_000


def score(ctx: JobContext, plan: ScoringPlan) -> Manifest:
    """The manifest of the published partition. Equal fingerprint: nothing is touched and ``status`` is ``unchanged``.

    Quarantined rows are published first, the predictions last; the predictions file is the commit record and the
    manifest can always be derived from its footer. Raises what `pipeline.steps.validate` raises, `ModelTampered`,
    `InputChanged` and `RowsUnaccounted`; then the previously published partition is still in place.
    """
    target = ctx.target("predictions", plan.interval)
    present = ctx.storage.metadata(target)
    if present is not None and present.get("fingerprint") == plan.fingerprint:
        manifest = _manifest(ctx, plan, present, ctx.storage.published(target), "unchanged")
    else:
        footer, published = _publish(ctx, plan)
        manifest = _manifest(ctx, plan, footer, published, "published")
    _record(ctx, plan, manifest)
    return manifest


def _publish(ctx: JobContext, plan: ScoringPlan) -> tuple[Mapping[str, str], Published]:
    job, interval = ctx.job, plan.interval
    model = ctx.load(plan.model.version)
    columns = ctx.model_columns(model)
    source = validate.opened(ctx, interval, plan.files)
    checker = source.checker
    schema = engine.output_schema(job, source.schema, getattr(model.estimator, "classes_", ()))
    sample = KeySample(job.features.key, _EXPECTATION_ROWS, job.model.seed)
    sample.add(source.schema.empty_table())
    with ExitStack() as stack:
        predictions: Staged = stack.enter_context(ctx.storage.stage(ctx.target("predictions", interval), schema))
        quarantine: Staged = stack.enter_context(
            ctx.storage.stage(ctx.target("quarantine", interval), checker.quarantine_schema)
        )
        for batch in validate.checked(ctx, source):
            if batch.bad is not None:
                quarantine.write(batch.bad)
            if batch.good.num_rows:
                sample.add(batch.good)
                frame = engine.to_frame(batch.good, columns)
                made = engine.predict(model.estimator, frame, job.task)
                predictions.write(engine.output_batch(batch.good, made, schema, plan.model.version))
        accepted = sample.table()
        report = validate.conclude(ctx, interval, checker, accepted if accepted is not None else pa.table({}))
        _assert_accounted(plan, checker, predictions.rows, quarantine.rows)
        footer = _footer(plan, report, predictions.rows)
        if quarantine.rows:
            quarantine.publish(expected_rows=quarantine.rows, metadata=footer)
        else:
            ctx.storage.withdraw(ctx.target("quarantine", interval))
        return footer, predictions.publish(expected_rows=predictions.rows, metadata=footer)


def _assert_accounted(plan: ScoringPlan, checker: RowChecker, scored: int, quarantined: int) -> None:
    counted = sum(checker.reasons.values())
    if checker.rows_in != scored + quarantined or quarantined != counted:
        raise RowsUnaccounted(
            f"job {plan.job!r}: the rows of {plan.interval} do not add up",
            expected=f"{checker.rows_in} rows in = scored + quarantined",
            got=f"{scored} scored + {quarantined} quarantined ({counted} by reason)",
            left_behind="nothing was published; a partition published earlier is untouched",
            next_step="report this with the input files; it is a defect of the product",
        )


def _footer(plan: ScoringPlan, report: ValidationReport, scored: int) -> dict[str, str]:
    return {
        "fingerprint": plan.fingerprint,
        "job": plan.job,
        "interval_start": format_instant(plan.start),
        "interval_end": format_instant(plan.end),
        "model_name": plan.model.name,
        "model_version": str(plan.model.version),
        "model_digest": plan.model.digest,
        "rows_in": str(report.rows_in),
        "rows_scored": str(scored),
        "rows_quarantined": str(report.rows_quarantined),
        "reasons": json.dumps(report.reasons, sort_keys=True),
        "code_version": __version__,
    }


def _manifest(
    ctx: JobContext, plan: ScoringPlan, footer: Mapping[str, str], published: Published, status: Any
) -> Manifest:
    quarantined = int(footer["rows_quarantined"])
    report = ctx.report_uri("validation", plan.interval)
    return Manifest(
        job=plan.job,
        start=plan.start,
        end=plan.end,
        path=published.uri,
        rows_in=int(footer["rows_in"]),
        rows_scored=int(footer["rows_scored"]),
        rows_quarantined=quarantined,
        reasons=json.loads(footer["reasons"]),
        model_name=footer["model_name"],
        model_version=int(footer["model_version"]),
        model_digest=footer["model_digest"],
        fingerprint=footer["fingerprint"],
        sha256=published.sha256,
        code_version=footer["code_version"],
        quarantine_path=ctx.target("quarantine", plan.interval).uri if quarantined else None,
        report_uri=report,
        status=status,
        quiet=plan.quiet,
    )


def _record(ctx: JobContext, plan: ScoringPlan, manifest: Manifest) -> None:
    """Write the manifest beside the data and into the ledger; both repair what a crash left out."""
    # Status and quiet describe this call, not the partition: a rerun must find its own record and leave it alone.
    stable = manifest.model_copy(update={"status": "published", "quiet": False})
    uri = f"{ctx.output}/predictions.manifest/{ctx.job.output_partition(plan.interval)}.json"
    text = stable.model_dump_json(indent=2) + "\n"
    if ctx.storage.read_text(uri) != text:
        ctx.storage.write_text(uri, text)
    known = ctx.ledger.manifest(plan.job, plan.interval)
    heard = known is not None and (plan.quiet or not known.quiet)
    if known is None or not heard or known.model_copy(update={"quiet": False}) != stable:
        ctx.ledger.record_manifest(stable.model_copy(update={"quiet": plan.quiet}))
