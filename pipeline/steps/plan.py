"""Decide what one scoring run will do: which files, which model version. Writes nothing but the plan's record."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Literal

from pipeline import __version__
from pipeline.errors import NoData
from pipeline.intervals import format_instant, partitions
from pipeline.reports import InputFile, ModelRef, ScoringPlan
from pipeline.steps import champion

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


def input_files(ctx: JobContext, interval: Interval, known: Sequence[InputFile] = ()) -> list[InputFile]:
    """The feature files of one interval with size and SHA-256, sorted by path; empty when there are none.

    A file that is one of the ``known`` by path, size and mark is not read for its digest.
    """
    return ctx.inputs.files(ctx.job.features.uri, partitions(ctx.job.feature_partition, interval), known)


def scored_files(ctx: JobContext, interval: Interval) -> list[InputFile]:
    """`input_files` for steps that look at an interval again: without the files that its published manifest rejected."""
    planned, manifest = ctx.ledger.plan(ctx.job.name, interval), ctx.ledger.manifest(ctx.job.name, interval)
    rejected = {(file.path, file.sha256) for file in manifest.rejected_files} if manifest else set()
    found = input_files(ctx, interval, planned.files if planned else ())
    return [file for file in found if (file.path, file.sha256) not in rejected]


def resolve(ctx: JobContext, interval: Interval, model: ModelPolicy) -> ModelRef:
    """The version that scores ``interval``; see `plan` for what is raised, and `InvalidRequest` for an unknown one."""
    if isinstance(model, int):
        return ctx.registered(model).model
    return champion.current(ctx) if model == "current" else champion.at(ctx, interval.end)


def _fingerprint(ctx: JobContext, files: Sequence[InputFile], model: ModelRef) -> str:
    content = {
        "inputs": sorted((file.path, file.sha256) for file in files),
        "model": model.model_dump(),
        "code": __version__,
        "job": ctx.job.scoring_digest(),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
