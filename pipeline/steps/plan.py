"""Decide what one scoring run will do: which files, which model version. Writes nothing but the plan's record."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any, Literal

from pipeline import __version__
from pipeline.errors import NoData
from pipeline.intervals import format_instant, partitions
from pipeline.reports import Challenger, InputFile, Manifest, ModelRef, ScoringPlan
from pipeline.steps import champion, rollout

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.intervals import Interval
    from pipeline.steps.context import JobContext

# Which version scores: the champion as of the interval's end, the champion now, or a given version.
ModelPolicy = Literal["as_of", "current"] | int


def plan(
    ctx: JobContext,
    interval: Interval,
    *,
    model: ModelPolicy = "as_of",
    challenger: Challenger | None = None,
    quiet: bool = False,
) -> ScoringPlan:
    """The plan for one interval, with the input frozen by digest and the models resolved to versions.

    ``as_of`` finds the challenger in rollout at the interval's end; any other policy scores with one version, unless
    ``challenger`` is given, as when a partition is made again.

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
    if model == "as_of":
        challenger = rollout.in_force(ctx, interval.end, resolved)
    made = ScoringPlan(
        job=ctx.job.name,
        start=interval.start,
        end=interval.end,
        model=resolved,
        challenger=challenger,
        files=tuple(files),
        fingerprint=_fingerprint(ctx, files, resolved, challenger),
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


def challenger_of(ctx: JobContext, manifest: Manifest) -> Challenger | None:
    """The challenger that took part in a published partition; ``None`` when there was none."""
    planned = ctx.ledger.plan(ctx.job.name, manifest.interval, manifest.fingerprint)
    return planned.challenger if planned else None


def shadow_fingerprint(fingerprint: str, challenger: Challenger) -> str:
    """What the footer of a shadow file says that stands beside the predictions with that ``fingerprint``."""
    return hashlib.sha256(f"{fingerprint} {challenger.model_dump_json()}".encode()).hexdigest()


def _fingerprint(ctx: JobContext, files: Sequence[InputFile], model: ModelRef, challenger: Challenger | None) -> str:
    content: dict[str, Any] = {
        "inputs": sorted((file.path, file.sha256) for file in files),
        "model": model.model_dump(),
        "code": __version__,
        "job": ctx.job.scoring_digest(),
    }
    # What a shadow says is published elsewhere: the predictions are the same without it.
    if challenger is not None and challenger.kind != "shadow":
        content["challenger"] = challenger.model_dump()
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
