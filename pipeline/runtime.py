"""One deployment, opened: the only place with a wall clock and the only one that builds adapters.

DAG tasks, the CLI and replays call the same methods here; each returns a frozen report.
"""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from pipeline import jobfile, workers
from pipeline.errors import InvalidRequest, TerminalError
from pipeline.intervals import Interval, format_instant
from pipeline.ledger import Ledger
from pipeline.registry import Registry
from pipeline.reports import TriggerDecision
from pipeline.settings import Settings
from pipeline.steps import (
    advance,
    approval,
    audit,
    calibrate,
    champion,
    changes,
    decide,
    evaluate,
    explain,
    monitor,
    notify,
    overview,
    plan,
    promote,
    quarantine,
    restate,
    retrain,
    score,
    watch,
)
from pipeline.steps.context import JobContext
from pipeline.storage import Inputs, ReadLimits, Storage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from types import TracebackType

    from pydantic import SecretStr

    from pipeline.job import JobSpec
    from pipeline.reports import (
        ApprovalAnswer,
        Audit,
        Decision,
        Manifest,
        Promotion,
        QuarantineSummary,
        RetrainReport,
        Watched,
    )
    from pipeline.steps.plan import ModelPolicy
    from pipeline.steps.restate import Withdrawal
    from pipeline.verdicts import Calibration, DriftReport, Incident, Notice, PerformanceReport, Tier

# A staged file younger than this may belong to a run that is still going.
_STAGING_AGE = timedelta(hours=24)
_LOOKBACK = 100
_SHOWN_DECISIONS = 5


def utc_now() -> datetime:
    """The present instant of the wall clock, aware and in UTC."""
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
        limits = ReadLimits(settings.read_memory_mb << 20, settings.read_stall_seconds)
        self.inputs = Inputs(settings.home / "scratch", limits)
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
        """Give back database connections and end reading processes; the runtime must not be used afterwards."""
        self.inputs.close()
        self.ledger.close()

    def job(self, name: str) -> JobSpec:
        """The job of that name, or in that file; raises `UnknownJob` or `InvalidJob`."""
        return jobfile.find(name, self.settings.jobs)

    def context(self, job: JobSpec) -> JobContext:
        """What the steps of one job work with: the job, the root of its outputs, and the opened adapters."""
        output = job.output.uri or str(self.settings.home / "outputs" / job.name)
        most_workers = self.settings.workers or workers.usable_cpus()
        return JobContext(job, output, self.inputs, self.storage, self.ledger, self.registry, most_workers)

    def score(
        self,
        job: JobSpec,
        start: datetime,
        end: datetime | None = None,
        *,
        model: ModelPolicy = "as_of",
        quiet: bool = False,
    ) -> Iterator[Manifest]:
        """Score and publish every interval from ``start`` to ``end`` (default: one interval), oldest first.

        ``model`` is ``as_of`` (the champion at each interval's end), ``current`` or a version; ``quiet`` marks a backfill.
        Yields each manifest as soon as it is published, and raises what `pipeline.steps.plan` and
        `pipeline.steps.score` raise for the first interval that fails; those before it stay published.
        """
        ctx = self.context(job)
        for interval in intervals(job, start, end):
            yield score.score(ctx, plan.plan(ctx, interval, model=model, quiet=quiet))

    def changed(self, job: JobSpec, before: datetime) -> list[datetime]:
        """The starts of published intervals within ``features.lookback`` before ``before`` whose input changed since."""
        return [interval.start for interval in changes.changed(self.context(job), before)]

    def restate(self, job: JobSpec, start: datetime, *, quiet: bool = False) -> Manifest:
        """The manifest of a published interval, scored again from its present input by the version that had scored it.

        Raises `InvalidRequest` for one that was never published, and what `score` raises.
        """
        (interval,) = intervals(job, start, None)
        return changes.restate(self.context(job), interval, quiet=quiet)

    def snapshot(self, job: JobSpec, start: datetime) -> str:
        """The path or URI of what is published for the interval now; that file never changes.

        It is there for ``output.keep_versions`` after it was superseded. Raises `NoData` when nothing is published.
        """
        (interval,) = intervals(job, start, None)
        return self.storage.snapshot(self.context(job).target("predictions", interval))

    def quarantined(
        self, job: JobSpec, start: datetime | None = None, end: datetime | None = None
    ) -> QuarantineSummary:
        """What is in quarantine of the intervals from ``start`` (default: the first) to ``end`` (default: the last)."""
        manifests = self.ledger.manifests(job.name, since=start, ended_by=end)
        return quarantine.summarise(self.context(job), manifests)

    def replay_quarantine(self, job: JobSpec, start: datetime) -> tuple[Manifest, Manifest]:
        """The manifests of a published interval before and after all of its rows were validated and scored again.

        Raises `InvalidRequest` for an interval that was never published, and what `score` raises.
        """
        (interval,) = intervals(job, start, None)
        ctx = self.context(job)
        before = ctx.published(interval)
        return before, quarantine.replay(ctx, interval)

    def monitor(
        self, job: JobSpec, start: datetime, end: datetime | None = None, *, quiet: bool = False
    ) -> Iterator[DriftReport]:
        """The drift reports of every interval from ``start`` to ``end`` (default: one interval), oldest first.

        ``quiet`` reports, of a backfill, never lead to a training. Raises what `pipeline.steps.monitor` raises.
        """
        ctx = self.context(job)
        for interval in intervals(job, start, end):
            yield monitor.monitor(ctx, interval, quiet=quiet)

    def evaluate(
        self, job: JobSpec, as_of: datetime, *, quiet: bool = False, strict: bool = True
    ) -> list[PerformanceReport]:
        """Realised performance of the intervals that matured by ``as_of`` and are new or more completely labelled.

        Oldest first. ``quiet`` reports, of a backfill, never lead to a training. Once all is recorded it raises what
        `require_measured` raises, if any report is new and loud; without ``strict`` that is left to the caller.
        """
        ctx = self.context(job)
        reports = evaluate.evaluate(ctx, as_of, quiet=quiet)
        if strict and not all(report.quiet for report in reports):
            evaluate.require_measured(ctx, as_of)
        return reports

    def require_measured(self, job: JobSpec, as_of: datetime) -> None:
        """Raise `ContractViolation` or `LabelsOverdue` for what the evaluation at ``as_of`` could not measure."""
        evaluate.require_measured(self.context(job), as_of)

    def watch(self, job: JobSpec, as_of: datetime) -> Watched | None:
        """What is found at ``as_of`` of a champion that a gate has promoted lately; one that proves worse is rolled back."""
        return watch.watch(self.context(job), as_of)

    def advance(self, job: JobSpec, as_of: datetime) -> Decision | None:
        """What the intervals scored and matured by ``as_of`` decide about the rollout under way, recorded and done.

        To be called after `evaluate`, never for a backfill. ``None`` when there is no rollout, or it goes on as it is.
        """
        return advance.advance(self.context(job), as_of)

    def stop_rollout(self, job: JobSpec, reason: str) -> Decision:
        """Withdraw the challenger of the rollout under way; raises what `pipeline.steps.advance.stop` raises."""
        return advance.stop(self.context(job), self.clock(), reason)

    def decide(self, job: JobSpec, as_of: datetime) -> TriggerDecision:
        """The recorded decision whether to train at ``as_of``; raises `NoChampion` before the first promotion."""
        return decide.decide(self.context(job), as_of)

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
        """Train on what was known at ``as_of``, register, gate, and promote if proven and allowed; or gate a version again.

        ``trigger`` is the decision that led here; without one the call counts as manual and is recorded with ``reason``.
        ``bootstrap`` makes the first champion. ``force`` promotes without the gate. Raises `NotEnoughLabels`, `TrainerFailed`,
        `NoChampion` (unless ``bootstrap``), `InvalidRequest` (a bootstrap of a job that has a champion) and `AliasConflict`.
        """
        ctx = self.context(job)
        if bootstrap:
            reason = champion.stated(job.name, reason or "First champion.")
            retrain.require_champion_absent(ctx, as_of)
        else:
            champion.at(ctx, as_of)
        if trigger is None:
            trigger = TriggerDecision(
                fire=True,
                cause="bootstrap" if bootstrap else "manual",
                reason=reason or "Asked for by hand.",
            )
            decide.record_trigger(ctx, as_of, trigger)
        if trigger.version is not None:
            return promote.consider(ctx, as_of, trigger, ctx.registered(trigger.version))
        decide.record_start(ctx, as_of, trigger)
        try:
            trained = retrain.train(ctx, as_of, trigger.since)
            report = promote.consider(ctx, as_of, trigger, trained, force=force)
        except TerminalError as error:
            decide.record_failure(ctx, as_of, trigger, error)
            raise
        decide.record_end(ctx, report)
        return report

    def promote(self, job: JobSpec, version: int, reason: str, at: datetime | None = None) -> Promotion:
        """Make ``version`` the champion from ``at`` (default: now) on, over all promotions recorded before.

        Raises `InvalidRequest` for an unknown version, the champion itself, an ``at`` before the version was trained, or a
        reason that says nothing, and `PromotionConflict` when somebody else moves the champion meanwhile.
        """
        return promote.promote(self.context(job), at or self.clock(), version, reason)

    def answer(
        self, job: JobSpec, id: str, verdict: approval.Verdict, reason: str = "", at: datetime | None = None
    ) -> ApprovalAnswer:
        """Answer the request ``id`` at ``at`` (default: now), or let it expire; see `pipeline.steps.approval.answer`."""
        return approval.answer(self.context(job), id, verdict, reason, at or self.clock())

    def asked(self, job: JobSpec, id: str) -> Decision | None:
        """The gate's decision that the request ``id`` rests on, if it still waits; raises `InvalidRequest` for no request."""
        return approval.gate(self.context(job), id)

    def blast_radius(self, job: JobSpec, *, restated: bool = True) -> Withdrawal:
        """What `rollback` would do: the promotion that it undoes, who rules then, and the partitions it republishes."""
        return restate.withdrawal(self.context(job), restated=restated)

    def rollback(
        self, job: JobSpec, reason: str, *, restated: bool = False, at: datetime | None = None
    ) -> tuple[Promotion, list[Manifest]]:
        """Go back to the champion before the present one; with ``restated`` also republish what the withdrawn one had scored.

        Without restating the move takes effect ``at`` (default: now); with it, when the withdrawn promotion did, so that
        later backfills agree with the restated partitions. Each call goes one champion further back, but a call with
        ``restated`` first finishes the last rollback: while partitions of the version that it withdrew are still
        published, they are restated and nothing further is withdrawn. Raises `InvalidRequest` without an earlier champion or
        a reason, and `PromotionConflict` when somebody else moves the champion meanwhile.
        """
        if restated and at is not None:
            raise InvalidRequest(
                f"job {job.name!r}: a rollback that restates takes effect when the withdrawn promotion did",
                expected="either a time or restating",
                got=f"both, {format_instant(at)}",
                left_behind="nothing was changed",
                next_step=f"pipeline rollback {job.name} --restate --dry-run shows what it would do",
            )
        ctx, reason = self.context(job), champion.stated(job.name, reason)
        before = self.ledger.champion(job.name)
        found = restate.withdrawal(ctx, restated=restated)
        effective = found.withdrawn.effective_at if restated else at or self.clock()
        done = champion.move(ctx, effective, found.back, reason, "rollback", instead_of=before)
        return done, restate.restate(ctx, found.affected, found.back.version)

    def status(self, job: JobSpec) -> dict[str, Any]:
        """The state of one job at a glance, from the ledger alone: a JSON-ready object.

        ``champion`` is the version in effect now, ``latest`` the start of the latest published interval with its rows,
        ``decisions`` the ids and outcomes of the last few decisions, newest first. What is not known is ``None``.
        """
        return self.statuses([job])[0]

    def statuses(self, jobs: Sequence[JobSpec]) -> list[dict[str, Any]]:
        """`status` of each of the jobs, with no more questions to the ledger than one of them takes."""
        return overview.status(self.ledger, jobs, self.clock())

    def calibrate(self, job: JobSpec, start: datetime, end: datetime, *, budget: float) -> Calibration:
        """The thresholds under which history from ``start`` to ``end`` raises at most ``budget`` alarms per interval.

        Raises `NoData` when that history is too short. Nothing is changed by it.
        """
        span = intervals(job, start, end)
        return calibrate.calibrate(self.context(job), Interval(span[0].start, span[-1].end), budget=budget)

    def incidents(self, job: JobSpec, open_only: bool = True) -> list[Incident]:
        """The job's open incidents, or with ``open_only=False`` all there ever were, by opening."""
        return self.ledger.incidents(job.name, open_only=open_only)

    def notify(self, job: JobSpec) -> list[Notice]:
        """Tell people of the incidents that changed since they were last told; returns what they were told."""
        # Nothing else needs Apprise, and every command and task begins with this module.
        from pipeline.channels import Channels

        urls: dict[Tier, SecretStr] = {"page": self.settings.notify_page, "ticket": self.settings.notify_ticket}
        channels = Channels({tier: text.get_secret_value() for tier, text in urls.items()})
        return notify.notify(self.context(job), channels)

    def audit(self, job: JobSpec | None = None) -> list[Audit]:
        """What an audit finds of one job, or of all that are declared or have a record, by name; nothing is changed."""
        known = {job.name: job.model_name} if job else self._models()
        return [audit.audit(self.ledger, self.registry, name, model) for name, model in sorted(known.items())]

    def explain(self, id: str) -> Decision:
        """The recorded decision of that id; raises `InvalidRequest` for an unknown one."""
        return explain.decision(self.ledger, id)

    def made_with(self, decision: Decision) -> list[Decision]:
        """The other decisions on the same job at the same instant, in order of recording: what led to it, what followed."""
        return explain.made_with(self.ledger, decision)

    def story(self, decision: Decision) -> list[str]:
        """The decision in sentences, from recorded facts: what led to it with its numbers, and what followed."""
        return explain.story(self.ledger, decision)

    def sweep(self, job: JobSpec) -> list[str]:
        """Delete what killed runs left in staging, and superseded files past ``output.keep_versions``; their URIs."""
        ctx, now = self.context(job), self.clock()
        removed = []
        for dataset in ("predictions", "quarantine", "monitoring/drift", "monitoring/performance", "shadow"):
            removed += self.storage.sweep(
                f"{ctx.output}/{dataset}",
                staged_before=now - max(job.schedule.timeout, _STAGING_AGE),
                superseded_before=now - job.output.keep_versions,
            )
        return removed

    def _models(self) -> dict[str, str | None]:
        declared, _ = jobfile.load_all(self.settings.jobs)
        recorded: dict[str, str | None] = dict.fromkeys(self.ledger.jobs())
        return {**recorded, **{job.name: job.model_name for job in declared.values()}}

    def find_gaps(self, job: JobSpec, as_of: datetime) -> list[Interval]:
        """The published intervals among the latest ones; raises `IntervalsMissing` naming those that are not there.

        Looks back over at most 100 intervals, to the first published one; an interval is expected ``schedule.timeout``
        after its end.
        """
        return overview.find_gaps(self.context(job), as_of)


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
