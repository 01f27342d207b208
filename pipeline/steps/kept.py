"""What follows from a model, or from a published partition, and is needed again: computed once per process.

What follows from a model is kept as long as the model is; of partitions, the latest small ones are: their labels come over days,
and they are measured again with each of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar, cast
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from pipeline.registry import LoadedModel
    from pipeline.reports import Manifest
    from pipeline.steps.context import JobContext

Made = TypeVar("Made")

_made: WeakKeyDictionary[LoadedModel, dict[Hashable, object]] = WeakKeyDictionary()
# Partitions with at most so many rows, and of how many of them something is kept.
SMALL, _PARTITIONS = 20_000, 32
_made_of: dict[tuple[str, str], dict[Hashable, object]] = {}


def with_model(ctx: JobContext, model: LoadedModel, name: str, make: Callable[[], Made], *inputs: Hashable) -> Made:
    """What ``make`` returned when it was first asked for under this name, of this model and a job's task and columns.

    It must depend on nothing else but ``inputs``, of which few may differ, and nobody may change what it returned.
    """
    kept = _made.setdefault(model, {})
    key = (name, ctx.job.task, tuple(ctx.job.features.columns.items()), *inputs)
    if key not in kept:
        kept[key] = make()
    return cast("Made", kept[key])


def with_small(ctx: JobContext, manifest: Manifest, name: str, make: Callable[[], Made], *inputs: Hashable) -> Made:
    """What ``make`` returned when it was first asked for under this name, of this partition; of a large one, made anew.

    It must depend on nothing else but ``inputs``, and nobody may change what it returned.
    """
    if manifest.rows_in > SMALL:
        return make()
    kept = _made_of.pop((ctx.output, manifest.sha256), {})
    _made_of[ctx.output, manifest.sha256] = kept
    while len(_made_of) > _PARTITIONS:
        _made_of.pop(next(iter(_made_of)))
    if (name, *inputs) not in kept:
        kept[name, *inputs] = make()
    return cast("Made", kept[name, *inputs])
