"""What follows from a model alone and every interval needs: computed once per process, and kept as long as the model is."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar, cast
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from pipeline.registry import LoadedModel
    from pipeline.steps.context import JobContext

Made = TypeVar("Made")

_made: WeakKeyDictionary[LoadedModel, dict[Hashable, object]] = WeakKeyDictionary()


def with_model(ctx: JobContext, model: LoadedModel, name: str, make: Callable[[], Made], *inputs: Hashable) -> Made:
    """What ``make`` returned when it was first asked for under this name, of this model and a job's task and columns.

    It must depend on nothing else but ``inputs``, of which few may differ, and nobody may change what it returned.
    """
    kept = _made.setdefault(model, {})
    key = (name, ctx.job.task, tuple(ctx.job.features.columns.items()), *inputs)
    if key not in kept:
        kept[key] = make()
    return cast("Made", kept[key])
