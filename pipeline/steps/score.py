"""Score one planned interval and publish it: one pass over the input, bounded memory, safe to repeat."""

from __future__ import annotations

import json
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline import __version__
from pipeline.errors import FileRejected, RowsUnaccounted
from pipeline.expectations import Evidence
from pipeline.failpoints import reach
from pipeline.intervals import format_instant
from pipeline.progress import Progress
from pipeline.reports import Manifest, RejectedFile
from pipeline.steps import validate
from pipeline.steps.plan import shadow_fingerprint
from pipeline.steps.sampling import KeySample
from pipeline.steps.variants import ChallengerFailed, Models
from pipeline.storage import ROW_GROUP, Current
from pipeline.workers import in_order

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Mapping, Sequence

    import pyarrow as pa

    from pipeline.reports import ScoringPlan, ValidationReport
    from pipeline.schema import RowChecker
    from pipeline.steps.context import JobContext
    from pipeline.steps.validate import OpenedInput
    from pipeline.steps.variants import Answers
    from pipeline.storage import Published, Staged, Target

# Rows that stand for a large partition where an expectation can only be asked of a frame.
_EXPECTATION_ROWS = 20_000


def score(ctx: JobContext, plan: ScoringPlan, *, again: bool = False) -> Manifest:
    """The manifest of the published partition. Equal fingerprint: nothing is touched and ``status`` is ``unchanged``.

    ``again`` looks at every row in spite of an equal fingerprint. Quarantined rows and a shadow's predictions are published
    first, the predictions last. A challenger that cannot score its rows leaves them to the champion, and that is recorded:
    it ends its rollout. The predictions file is the commit record and the manifest can always be derived from its footer.

    Raises what `pipeline.steps.validate` raises, `ModelTampered`, `InputChanged`, `RowsUnaccounted`, and `PublishConflict`
    when another run published the interval meanwhile; otherwise the previously published partition is still in place.
    """
    seen = _Seen.of(ctx, plan)
    if seen.holds(plan) and not again:
        footer = seen.footer | _shadow_fault(plan, (seen.shadow.metadata or {}).get("fault", ""))
        manifest = _manifest(ctx, plan, footer, ctx.storage.published(seen.target), "unchanged")
    else:
        before = ctx.storage.published(seen.target).sha256 if seen.footer else None
        footer, published = _publish(ctx, plan, seen)
        reach("score.published")
        status = "unchanged" if published.sha256 == before else "published"
        manifest = _manifest(ctx, plan, footer, published, status)
    _record(ctx, plan, manifest)
    return manifest


@dataclass(frozen=True, slots=True)
class _Seen:
    """What was published of an interval when scoring began, in all of its files: the fence against other runs."""

    target: Target
    predictions: Current
    aside: Target
    quarantine: Current
    beside: Target
    shadow: Current

    @classmethod
    def of(cls, ctx: JobContext, plan: ScoringPlan) -> _Seen:
        target, aside = ctx.target("predictions", plan.interval), ctx.target("quarantine", plan.interval)
        beside = ctx.target("shadow", plan.interval)
        nothing = Current(None, None)
        shadow = ctx.storage.current(beside) if _shadows(plan) else nothing
        return cls(target, ctx.storage.current(target), aside, ctx.storage.current(aside), beside, shadow)

    @property
    def footer(self) -> dict[str, str]:
        """The metadata of the published predictions; empty when there are none."""
        return dict(self.predictions.metadata or {})

    def holds(self, plan: ScoringPlan) -> bool:
        """Whether the plan's outcome is there: a run that died between the files left only some of them."""
        if self.footer.get("fingerprint") != plan.fingerprint:
            return False
        if _shadows(plan) and (self.shadow.metadata or {}).get("fingerprint") != _shadow_footer(plan)["fingerprint"]:
            return False
        if int(self.footer["rows_quarantined"]) == 0:
            return self.quarantine.metadata is None
        return (self.quarantine.metadata or {}).get("fingerprint") == plan.fingerprint


def _publish(ctx: JobContext, plan: ScoringPlan, seen: _Seen) -> tuple[dict[str, str], Published]:
    """Score what can be used of the input; a file whose pages turn out to be broken costs a fresh start without it."""
    models = Models.of(ctx, plan)
    rejected: tuple[RejectedFile, ...] = ()
    while True:
        source = validate.opened(ctx, plan.interval, plan.files, rejected=rejected)
        try:
            return _publish_usable(ctx, plan, models, source, seen)
        except ChallengerFailed as failure:
            models = Models.of(ctx, plan, fault=str(failure))
        except FileRejected as refusal:
            rejected = (*source.rejected, validate.as_rejected(plan.files, refusal))
            if len(rejected) == len(plan.files):
                raise


def _publish_usable(
    ctx: JobContext, plan: ScoringPlan, models: Models, source: OpenedInput, seen: _Seen
) -> tuple[dict[str, str], Published]:
    job, checker = ctx.job, source.checker
    schema, by_challenger = models.schema(source.schema), 0
    evidence = Evidence(job, source.schema, ctx.inputs.roll)
    sample = KeySample(job.features.key, _EXPECTATION_ROWS, job.model.seed) if evidence.needs_sample else None
    with ExitStack() as stack:
        predictions: Staged = stack.enter_context(ctx.storage.stage(seen.target, schema, seen=seen.predictions))
        quarantine: Staged = stack.enter_context(
            ctx.storage.stage(seen.aside, checker.quarantine_schema, seen=seen.quarantine)
        )
        shadow: Staged | None = None
        if _shadows(plan):
            shadow = stack.enter_context(ctx.storage.stage(seen.beside, schema, seen=seen.shadow))
        progress = stack.enter_context(Progress(f"{plan.job} {format_instant(plan.start)}", source.rows))
        accepted = _accepted(ctx, source, quarantine, (evidence, sample), progress)
        for batch, said in stack.enter_context(closing(_answered(ctx, models, source, accepted))):
            predictions.write(models.published(batch, said, schema))
            if said.is_challengers is not None:
                by_challenger += int(np.count_nonzero(said.is_challengers))
            if shadow is not None and (beside := models.shadow(batch, said, schema)) is not None:
                shadow.write(beside)
        few = sample.table() if sample is not None else None
        report = validate.conclude(ctx, plan.interval, source, evidence, few)
        _assert_accounted(plan, checker, predictions.rows, quarantine.rows)
        footer = _footer(plan, report, source.rejected, predictions.rows)
        footer |= _challenger_footer(plan, by_challenger, models.fault)
        if quarantine.rows:
            quarantine.publish(expected_rows=quarantine.rows, metadata=footer)
        else:
            ctx.storage.withdraw(seen.aside, seen=seen.quarantine)
        if shadow is not None:
            shadow.publish(expected_rows=shadow.rows, metadata={**_shadow_footer(plan), "fault": models.fault})
        reach("score.quarantined")
        published = predictions.publish(expected_rows=predictions.rows, metadata=footer, unique=tuple(job.features.key))
        return footer | _shadow_fault(plan, models.fault), published


def _accepted(
    ctx: JobContext,
    source: OpenedInput,
    quarantine: Staged,
    witnesses: Iterable[Evidence | KeySample | None],
    progress: Progress,
) -> Generator[pa.RecordBatch, None, None]:
    """The good rows of the input, batch by batch, shown to the witnesses on the way; the bad ones are written."""
    for batch in validate.checked(ctx, source, coded=True):
        progress.add(batch.good.num_rows + batch.outside)
        if batch.bad is not None:
            quarantine.write(batch.bad)
            progress.add(batch.bad.num_rows)
        if batch.good.num_rows:
            for witness in witnesses:
                if witness is not None:
                    witness.add(batch.good)
            yield batch.good


def _answered(
    ctx: JobContext, models: Models, source: OpenedInput, batches: Iterable[pa.RecordBatch]
) -> Generator[tuple[pa.RecordBatch, Answers], None, None]:
    """Every batch with what the models say about it; batches are the input's own, whatever number of workers there is."""
    needed = [*ctx.job.features.key, *ctx.job.features.columns]
    # One batch leaves nothing to be done at once.
    count = ctx.workers if source.rows > ROW_GROUP else 0
    yield from in_order(
        batches,
        models.panel.answer,
        lambda batch: batch.select(needed),
        backend=ctx.job.engine.backend,
        workers=count,
        address=ctx.job.engine.address,
    )


def _shadows(plan: ScoringPlan) -> bool:
    return plan.challenger is not None and plan.challenger.kind == "shadow"


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


def _footer(
    plan: ScoringPlan, report: ValidationReport, rejected: Sequence[RejectedFile], scored: int
) -> dict[str, str]:
    lost = sum(file.rows or 0 for file in rejected)
    return {
        "fingerprint": plan.fingerprint,
        "job": plan.job,
        "interval_start": format_instant(plan.start),
        "interval_end": format_instant(plan.end),
        "model_name": plan.model.name,
        "model_version": str(plan.model.version),
        "model_digest": plan.model.digest,
        "rows_in": str(report.rows_in + lost),
        "rows_scored": str(scored),
        "rows_quarantined": str(report.rows_quarantined),
        "rows_rejected": str(lost),
        "reasons": json.dumps(report.reasons, sort_keys=True),
        "rejected_files": json.dumps([file.model_dump() for file in rejected], sort_keys=True),
        "code_version": __version__,
    }


def _challenger_footer(plan: ScoringPlan, rows: int, fault: str) -> dict[str, str]:
    """What the footer says of the other version of a split partition; nothing of a shadow, whose rows are elsewhere."""
    if plan.challenger is None or _shadows(plan):
        return {}
    return {
        "challenger_version": str(plan.challenger.model.version),
        "challenger_digest": plan.challenger.model.digest,
        "challenger_share": str(plan.challenger.share),
        "challenger_rows": str(rows),
        "challenger_fault": fault,
        "rollout": plan.challenger.salt,
    }


def _shadow_fault(plan: ScoringPlan, fault: str) -> dict[str, str]:
    """What the manifest alone says of a shadow that could not score: the predictions are the same without it."""
    return {"challenger_fault": fault} if _shadows(plan) else {}


def _shadow_footer(plan: ScoringPlan) -> dict[str, str]:
    assert plan.challenger is not None
    model = plan.challenger.model
    return {
        "fingerprint": shadow_fingerprint(plan.fingerprint, plan.challenger),
        "job": plan.job,
        "interval_start": format_instant(plan.start),
        "interval_end": format_instant(plan.end),
        "model_name": model.name,
        "model_version": str(model.version),
        "model_digest": model.digest,
        "rollout": plan.challenger.salt,
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
        rows_rejected=int(footer["rows_rejected"]),
        reasons=json.loads(footer["reasons"]),
        model_name=footer["model_name"],
        model_version=int(footer["model_version"]),
        model_digest=footer["model_digest"],
        challenger_version=int(footer["challenger_version"]) if "challenger_version" in footer else None,
        rows_challenger=int(footer.get("challenger_rows", "0")),
        challenger_fault=footer.get("challenger_fault", ""),
        fingerprint=footer["fingerprint"],
        sha256=published.sha256,
        code_version=footer["code_version"],
        quarantine_path=ctx.target("quarantine", plan.interval).uri if quarantined else None,
        rejected_files=tuple(RejectedFile.model_validate(file) for file in json.loads(footer["rejected_files"])),
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
        # Not beside the other manifests: a sweep would have to look through all of them for what a killed process left.
        ctx.storage.write_text(uri, text, staging=ctx.target("predictions", plan.interval).staging)
    reach("manifest.written")
    known = ctx.ledger.manifest(plan.job, plan.interval)
    heard = known is not None and (plan.quiet or not known.quiet)
    if known is None or not heard or known.model_copy(update={"quiet": False}) != stable:
        ctx.ledger.record_manifest(stable.model_copy(update={"quiet": plan.quiet}))
    reach("ledger.recorded")
