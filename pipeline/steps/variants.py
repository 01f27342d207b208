"""The models of one partition, champion and challenger, and what each says about a batch of its rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pipeline import assignment, engine
from pipeline.errors import TerminalError

if TYPE_CHECKING:
    import pyarrow as pa

    from pipeline.job import Column
    from pipeline.registry import LoadedModel
    from pipeline.reports import Challenger, ScoringPlan
    from pipeline.steps.context import JobContext


class ChallengerFailed(Exception):
    """The challenger cannot score the partition. Never leaves scoring: the champion scores all rows instead."""


@dataclass(frozen=True, slots=True)
class _Model:
    loaded: LoadedModel
    columns: dict[str, Column]

    @classmethod
    def of(cls, ctx: JobContext, version: int) -> _Model:
        loaded = ctx.load(version)
        return cls(loaded, ctx.model_columns(loaded))

    @property
    def classes(self) -> list[object]:
        return list(getattr(self.loaded.estimator, "classes_", ()))


@dataclass(frozen=True, slots=True)
class Models:
    """The loaded models of a plan. ``fault`` says why the challenger is not among them although the plan has one."""

    ctx: JobContext
    plan: ScoringPlan
    champion: _Model
    challenger: _Model | None
    fault: str

    @classmethod
    def of(cls, ctx: JobContext, plan: ScoringPlan, *, fault: str = "") -> Models:
        """The models of the plan; with ``fault`` only the champion. Raises what loading the champion raises."""
        champion = _Model.of(ctx, plan.model.version)
        if plan.challenger is None or fault:
            return cls(ctx, plan, champion, None, fault)
        version = plan.challenger.model.version
        try:
            challenger = _Model.of(ctx, version)
        except TerminalError as error:
            return cls(ctx, plan, champion, None, f"version {version} cannot be used: {error.what}")
        if challenger.classes != champion.classes:
            return cls(
                ctx, plan, champion, None, f"version {version} knows other classes than version {plan.model.version}"
            )
        return cls(ctx, plan, champion, challenger, "")

    def schema(self, inputs: pa.Schema) -> pa.Schema:
        """The schema of what is published, of a shadow as well."""
        return engine.output_schema(self.ctx.job, inputs, self.champion.classes)

    def score(self, batch: pa.RecordBatch, schema: pa.Schema) -> tuple[pa.RecordBatch, pa.RecordBatch | None, int]:
        """The published rows of ``batch``, those of the shadow if there is one, and how many the challenger scored.

        Raises `ChallengerFailed` when the challenger cannot, and what `pipeline.engine.predict` raises when the champion
        cannot.
        """
        version, other = self.plan.model.version, self.plan.challenger
        if other is None or self.challenger is None:
            return engine.output_batch(batch, self._champion(batch), schema, version), None, 0
        if other.kind == "shadow":
            published = engine.output_batch(batch, self._champion(batch), schema, version)
            return published, engine.output_batch(batch, self._challenger(batch), schema, other.model.version), 0
        mine = is_challengers(batch, other)
        made = engine.merged(self._champion(_rows(batch, ~mine)), self._challenger(_rows(batch, mine)), mine)
        published = engine.output_batch(
            batch, made, schema, version, challenger_version=other.model.version, is_challengers=mine
        )
        return published, None, int(np.count_nonzero(mine))

    def _champion(self, batch: pa.RecordBatch) -> engine.Predictions:
        return self._answers(self.champion, batch)

    def _challenger(self, batch: pa.RecordBatch) -> engine.Predictions:
        assert self.challenger is not None
        try:
            return self._answers(self.challenger, batch)
        # Whatever a model on trial does, it must not stop production; the rollout ends for it.
        except Exception as error:
            what = error.what if isinstance(error, TerminalError) else f"{type(error).__name__}: {error}"
            raise ChallengerFailed(f"version {self.challenger.loaded.ref.version} cannot score: {what}") from error

    def _answers(self, model: _Model, batch: pa.RecordBatch) -> engine.Predictions:
        frame = engine.to_frame(batch, model.columns)
        return engine.predict(model.loaded.estimator, frame, self.ctx.job.task)


def is_challengers(
    rows: pa.Table | pa.RecordBatch, challenger: Challenger
) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Which rows belong to the challenger, after the salted hash of their entity."""
    hashes = engine.row_hashes(rows, challenger.key, assignment.seed_of(challenger.salt))
    return assignment.is_challengers(hashes, challenger.share)


def _rows(batch: pa.RecordBatch, mask: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> pa.RecordBatch:
    return batch.take(np.flatnonzero(mask))
