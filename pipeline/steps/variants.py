"""The models of one partition, champion and challenger, and what each says about a batch of its rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pipeline import assignment, engine
from pipeline.errors import TerminalError

if TYPE_CHECKING:
    import pyarrow as pa

    from pipeline.registry import LoadedModel
    from pipeline.reports import Challenger, ScoringPlan
    from pipeline.steps.context import JobContext

    Mask = np.ndarray[tuple[int], np.dtype[np.bool_]]


class ChallengerFailed(Exception):
    """The challenger cannot score the partition. Never leaves scoring: the champion scores all rows instead."""


@dataclass(frozen=True, slots=True)
class _Model:
    loaded: LoadedModel
    scorer: engine.Scorer

    @classmethod
    def of(cls, ctx: JobContext, version: int) -> _Model:
        loaded = ctx.load(version)
        return cls(loaded, ctx.scorer(loaded))

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

    @property
    def panel(self) -> Panel:
        """The models apart from where they came from: all that is needed to predict."""
        other = None if self.challenger is None else self.challenger.scorer
        version = None if self.challenger is None else self.challenger.loaded.ref.version
        return Panel(self.champion.scorer, other, self.plan.challenger, version)

    def published(self, batch: pa.RecordBatch, said: Answers, schema: pa.Schema) -> pa.RecordBatch:
        """The published rows of ``batch``."""
        mine = said.is_challengers
        version, other = self.plan.model.version, self.plan.challenger
        if mine is None or other is None:
            return engine.output_batch(batch, said.predictions, schema, version)
        return engine.output_batch(
            batch, said.predictions, schema, version, challenger_version=other.model.version, is_challengers=mine
        )

    def shadow(self, batch: pa.RecordBatch, said: Answers, schema: pa.Schema) -> pa.RecordBatch | None:
        """The rows of ``batch`` as the shadow predicts them; ``None`` when there is none."""
        if said.shadow is None or self.plan.challenger is None:
            return None
        return engine.output_batch(batch, said.shadow, schema, self.plan.challenger.model.version)


@dataclass(frozen=True, slots=True)
class Answers:
    """What the models say about one batch.

    ``predictions`` are those to be published, ``shadow`` those of a challenger that only watches, and ``is_challengers``
    tells, of a split partition, whose rows are the challenger's.
    """

    predictions: engine.Predictions
    shadow: engine.Predictions | None
    is_challengers: Mask | None


@dataclass(frozen=True, slots=True)
class Panel:
    """The models of one partition. Survives pickling, and predicts in several threads at once."""

    champion: engine.Scorer
    challenger: engine.Scorer | None
    share: Challenger | None
    version: int | None

    def answer(self, batch: pa.RecordBatch) -> Answers:
        """Predictions for every row of ``batch``.

        Raises `ChallengerFailed` when the challenger cannot, and what `pipeline.engine.Scorer` raises when the champion
        cannot.
        """
        if self.challenger is None or self.share is None:
            return Answers(self.champion.predict(batch), None, None)
        if self.share.kind == "shadow":
            return Answers(self.champion.predict(batch), self._tried(batch), None)
        mine = is_challengers(batch, self.share)
        own, other = self.champion.predict(_rows(batch, ~mine)), self._tried(_rows(batch, mine))
        return Answers(engine.merged(own, other, mine), None, mine)

    def _tried(self, batch: pa.RecordBatch) -> engine.Predictions:
        assert self.challenger is not None
        try:
            return self.challenger.predict(batch)
        # Whatever a model on trial does, it must not stop production; the rollout ends for it.
        except Exception as error:
            what = error.what if isinstance(error, TerminalError) else f"{type(error).__name__}: {error}"
            raise ChallengerFailed(f"version {self.version} cannot score: {what}") from error


def is_challengers(rows: pa.Table | pa.RecordBatch, challenger: Challenger) -> Mask:
    """Which rows belong to the challenger, after the salted hash of their entity."""
    hashes = engine.row_hashes(rows, challenger.key, assignment.seed_of(challenger.salt))
    return assignment.is_challengers(hashes, challenger.share)


def _rows(batch: pa.RecordBatch, mask: Mask) -> pa.RecordBatch:
    return batch.take(np.flatnonzero(mask))
