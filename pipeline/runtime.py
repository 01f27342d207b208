"""One deployment, opened: the only place with a wall clock and the only one that builds adapters.

DAG tasks, the CLI and replays call the same methods here; each returns a frozen report.
"""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from pipeline import jobfile
from pipeline.errors import IntervalsMissing, InvalidRequest
from pipeline.intervals import Interval, format_instant
from pipeline.ledger import Ledger
from pipeline.registry import Registry
from pipeline.reports import TriggerDecision
from pipeline.settings import Settings
from pipeline.steps import evaluate, monitor, plan, promote, restate, retrain, score
from pipeline.steps.context import JobContext
from pipeline.storage import Storage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType

    from pipeline.job import JobSpec
    from pipeline.reports import Decision, DriftReport, Manifest, PerformanceReport, Promotion, RetrainReport
    from pipeline.steps.plan import ModelPolicy

# A staged file younger than this may belong to a run that is still going.
_STAGING_AGE = timedelta(hours=24)
_LOOKBACK = 100


def utc_now() -> datetime:
    """The wall clock: aware UTC."""
    return datetime.now(UTC)


class Runtime:
    """The opened adapters of one deployment and the verbs that every front door offers. Use as a context manager."""

    def __init__(self, settings: Settings, clock: Callable[[], datetime] = utc_now) -> None:
        settings.home.mkdir(parents=True, exist_ok=True)
        self.settings = settings
        self.clock = clock
        self.ledger = Ledger(settings.ledger_url, clock)
        local = settings.tracking_uri.startswith("sqlite:")
        self.registry = Registry(settings.tracking_uri, settings.home / "models" if local else None)
        self.storage = Storage(settings.home / "scratch")

    @classmethod
    def open(cls, settings: Settings | None = None) -> Runtime:
        """The runtime of the given settings, by default those of the environment."""
        return cls(settings or Settings.from_env(os.environ))

    def __enter__(self) -> Runtime:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give back database connections."""
        self.ledger.close()

    def job(self, name: str) -> JobSpec:
        """The job of that name, or in that file; raises `UnknownJob` or `InvalidJob`."""
        return jobfile.find(name, self.settings.jobs)

    def context(self, job: JobSpec) -> JobContext:
        """What the steps of one job work with."""
        output = job.output.uri or str(self.settings.home / "outputs" / job.name)
        return JobContext(job, output, self.storage, self.ledger, self.registry)

    def score(
        self,
        job: JobSpec,
        start: datetime,
        end: datetime | None = None,
        *,
        model: ModelPolicy = "as_of",
        quiet: bool = False,
    ) -> Iterator[Manifest]:
        """Score and publish every interval from ``start`` to ``end`` (default: one interval), oldest first."""
        ctx = self.context(job)
        for interval in intervals(job, start, end):
            yield score.score(ctx, plan.plan(ctx, interval, model=model, quiet=quiet))

    def monitor(
        self, job: JobSpec, start: datetime, end: datetime | None = None, *, quiet: bool = False
    ) -> Iterator[DriftReport]:
        """The drift reports of every interval from ``start`` to ``end`` (default: one interval), oldest first."""
        ctx = self.context(job)
        for interval in intervals(job, start, end):
            yield monitor.monitor(ctx, interval, quiet=quiet)

    def evaluate(self, job: JobSpec, as_of: datetime, *, quiet: bool = False) -> list[PerformanceReport]:
        """Realised performance of the intervals that matured by ``as_of`` since the last call."""
        return evaluate.evaluate(self.context(job), as_of, quiet=quiet)

    def decide(self, job: JobSpec, as_of: datetime) -> TriggerDecision:
        """The recorded decision whether to train at ``as_of``."""
        return retrain.decide(self.context(job), as_of)

    def retrain(
        self,
        job: JobSpec,
        as_of: datetime,
        *,
        trigger: TriggerDecision | None = None,
        bootstrap: bool = False,
        reason: str = "",
        force: bool = False,
    ) -> RetrainReport:
        """Train on what was known at ``as_of``, register, gate, and promote if proven and allowed.

        ``trigger`` is the decision that led here; without one the call counts as manual and is recorded with
        ``reason``. ``bootstrap`` makes the first champion. ``force`` promotes without the gate.
        """
        ctx = self.context(job)
        if bootstrap:
            retrain.require_champion_absent(ctx, as_of)
        else:
            plan.resolve(ctx, Interval(job.cadence.shift(job.cadence.floor(as_of), -1), as_of), "as_of")
        if trigger is None:
            trigger = TriggerDecision(
                fire=True,
                cause="bootstrap" if bootstrap else "manual",
                reason=reason or ("First champion." if bootstrap else "Asked for by hand."),
            )
            retrain.record_trigger(ctx, as_of, trigger)
        return promote.consider(ctx, as_of, trigger, retrain.train(ctx, as_of), force=force)

    def promote(self, job: JobSpec, version: int, reason: str, at: datetime | None = None) -> Promotion:
        """Make ``version`` the champion from ``at`` (default: now) on."""
        return promote.promote(self.context(job), at or self.clock(), version, reason)

    def rollback(self, job: JobSpec, reason: str, *, restated: bool = False) -> tuple[Promotion, list[Manifest]]:
        """Go back to the previous champion; with ``restated`` also republish what the withdrawn one had scored.

        Without restating the move takes effect now; with it, it takes effect when the withdrawn promotion did, so that
        later backfills agree with the restated partitions.
        """
        ctx = self.context(job)
        withdrawn, version = promote.previous_champion(ctx)
        manifests = restate.affected(ctx, withdrawn.model.version, withdrawn.effective_at) if restated else []
        at = withdrawn.effective_at if restated else self.clock()
        done = promote.act(ctx, at, ctx.registered(version).model, reason, "rollback")
        return done, restate.restate(ctx, manifests, version)

    def status(self, job: JobSpec) -> dict[str, Any]:
        """The state of one job at a glance, from the ledger alone."""
        promotions = self.ledger.promotions(job.name)
        manifests = self.ledger.manifests(job.name)
        drift = self.ledger.drift(job.name, last=1)
        performance = self.ledger.performance(job.name, last=1)
        return {
            "job": job.name,
            "champion": promotions[-1].model.version if promotions else None,
            "since": format_instant(promotions[-1].effective_at) if promotions else None,
            "intervals": len(manifests),
            "latest": format_instant(manifests[-1].start) if manifests else None,
            "rows_scored": sum(m.rows_scored for m in manifests),
            "rows_quarantined": sum(m.rows_quarantined for m in manifests),
            "drift": drift[-1].verdict if drift else None,
            "metric": job.metric,
            "value": performance[-1].value if performance else None,
            "performance": performance[-1].verdict if performance else None,
        }

    def explain(self, id: str) -> Decision:
        """The recorded decision of that id; raises `InvalidRequest` for an unknown one."""
        decision = self.ledger.decision(id)
        if decision is None:
            raise InvalidRequest(
                f"no decision has the id {id!r}",
                expected="an id such as gate-1a2b3c4d5e6f",
                got=id,
                left_behind="nothing was changed",
                next_step="pipeline replay and retrain print ids; so does the ledger's table 'decisions'",
            )
        return decision

    def sweep(self, job: JobSpec) -> list[str]:
        """Delete what killed runs left in staging and superseded files past their keeping time; returns their URIs."""
        ctx, now = self.context(job), self.clock()
        removed = []
        for dataset in ("predictions", "quarantine", "monitoring/drift", "monitoring/performance"):
            removed += self.storage.sweep(
                f"{ctx.output}/{dataset}",
                staged_before=now - max(job.schedule.timeout, _STAGING_AGE),
                superseded_before=now - job.output.keep_versions,
            )
        return removed

    def find_gaps(self, job: JobSpec, as_of: datetime) -> list[Interval]:
        """The published intervals among the latest ones; raises `IntervalsMissing` naming those that are not there.

        Looks back over at most 100 intervals, to the first published one; an interval is expected ``schedule.timeout``
        after its end.
        """
        manifests = {m.start: m.interval for m in self.ledger.manifests(job.name)}
        if not manifests:
            return []
        end = job.cadence.floor(as_of - job.schedule.timeout)
        start = max(min(manifests), job.cadence.shift(end, -_LOOKBACK))
        expected = list(job.cadence.split(Interval(start, end))) if start < end else []
        if missing := [interval for interval in expected if interval.start not in manifests]:
            first = format_instant(missing[0].start)
            raise IntervalsMissing(
                f"job {job.name!r}: {len(missing)} of the latest {len(expected)} intervals were never published: "
                + ", ".join(format_instant(interval.start) for interval in missing[:10]),
                expected=f"every interval up to {format_instant(end)}",
                got=f"{len(expected) - len(missing)} published",
                left_behind="all published partitions are untouched",
                next_step=f"pipeline score {job.name} --start {first} (or clear the failed runs in Airflow)",
            )
        return expected


def intervals(job: JobSpec, start: datetime, end: datetime | None) -> list[Interval]:
    """The job's intervals from ``start`` to ``end``; raises `InvalidRequest` when an end lies off the schedule's grid."""
    try:
        first = job.interval(start)
        if end is not None and (job.cadence.floor(end) != end or end <= start):
            job.interval(end)
            raise ValueError(f"end {format_instant(end)} must be after start {format_instant(start)}")
    except ValueError as err:
        raise InvalidRequest(
            f"job {job.name!r}: {err}",
            expected=f"instants on the {job.schedule.interval} grid, start before end",
            got=f"start {format_instant(start)}" + (f", end {format_instant(end)}" if end else ""),
            next_step=f"pipeline check {job.name} shows the schedule",
        ) from err
    return [first] if end is None else list(job.cadence.split(Interval(start, end)))
