"""Decide what one scoring run will do: which files, which model version. Writes nothing but the plan's record."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Literal

from pipeline import __version__
from pipeline.errors import AliasConflict, NoChampion, NoData
from pipeline.intervals import format_instant, partitions
from pipeline.reports import InputFile, ModelRef, ScoringPlan

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.intervals import Interval
    from pipeline.steps.context import JobContext

# Which version scores: the champion as of the interval's end, the champion now, or a given version.
ModelPolicy = Literal["as_of", "current"] | int


def plan(ctx: JobContext, interval: Interval, *, model: ModelPolicy = "as_of", quiet: bool = False) -> ScoringPlan:
    """The plan for one interval, with the input frozen by digest and the model resolved to a version.

    Raises `NoData` when the interval has no input file, `NoChampion` when no version is champion, `AliasConflict` when
    the registry's alias was moved behind the ledger's back, `RegistryUnavailable` when the registry does not answer.
    """
    files = input_files(ctx, interval)
    if not files:
        where = [f"{ctx.job.features.uri}/{name}" for name in partitions(ctx.job.feature_partition, interval)]
        raise NoData(
            f"job {ctx.job.name!r} has no input for {interval}",
            expected=f"Parquet files under {where[0]}" + (f" to {where[-1]}" if len(where) > 1 else ""),
            got="no file",
            next_step=f"pipeline score {ctx.job.name} --start {format_instant(interval.start)} once the data is there",
        )
    resolved = resolve(ctx, interval, model)
    made = ScoringPlan(
        job=ctx.job.name,
        start=interval.start,
        end=interval.end,
        model=resolved,
        files=tuple(files),
        fingerprint=_fingerprint(ctx, files, resolved),
        quiet=quiet,
    )
    ctx.ledger.record_plan(made)
    return made


def input_files(ctx: JobContext, interval: Interval) -> list[InputFile]:
    """The feature files of one interval, by path."""
    return ctx.storage.inputs(ctx.job.features.uri, partitions(ctx.job.feature_partition, interval))


def resolve(ctx: JobContext, interval: Interval, model: ModelPolicy) -> ModelRef:
    """The version that scores ``interval``; see `plan` for what is raised."""
    job = ctx.job
    if isinstance(model, int):
        return ctx.registered(model).model
    if model == "current":
        version = ctx.registry.champion(job.model_name)
        if version is None:
            raise _no_champion(ctx, f"model {job.model_name!r} has no alias 'champion'")
        return ctx.registered(version).model
    promotion = ctx.ledger.champion(job.name, interval.end)
    if promotion is None:
        raise _no_champion(ctx, f"job {job.name!r} had no champion as of {format_instant(interval.end)}")
    latest = ctx.ledger.promotions(job.name)[-1]
    alias = ctx.registry.champion(job.model_name)
    if alias != latest.model.version:
        raise AliasConflict(
            f"alias 'champion' of model {job.model_name!r} was moved outside of this product",
            expected=f"version {latest.model.version}, promoted by decision {latest.decision_id}",
            got="no alias" if alias is None else f"version {alias}",
            next_step=f"pipeline promote {job.name} --version N --reason TEXT records which version is right",
        )
    return promotion.model


def _no_champion(ctx: JobContext, what: str) -> NoChampion:
    name = ctx.job.name
    promotions = ctx.ledger.promotions(name)
    if promotions:
        first = promotions[0]
        return NoChampion(
            what,
            expected="a promotion at or before that instant",
            got=f"the first one, version {first.model.version}, takes effect at {format_instant(first.effective_at)}",
            next_step=f"pipeline score {name} --start T --model current, or --model {first.model.version}",
        )
    return NoChampion(
        what,
        expected="a promoted version",
        got="no promotion in the ledger",
        next_step=f"pipeline retrain {name} --as-of T --bootstrap",
    )


def _fingerprint(ctx: JobContext, files: Sequence[InputFile], model: ModelRef) -> str:
    content = {
        "inputs": sorted((file.path, file.sha256) for file in files),
        "model": model.model_dump(),
        "code": __version__,
        "job": ctx.job.scoring_digest(),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
