"""What DAG tasks call: text in, a small JSON object out. The only place where reports become XCom values.

Every call opens the deployment that the environment names. Results stay far below the 4 kB that XCom may carry.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from pipeline.intervals import format_instant, parse_instant
from pipeline.reports import TriggerDecision
from pipeline.runtime import Runtime

if TYPE_CHECKING:
    from datetime import datetime

    from pipeline.job import JobSpec
    from pipeline.reports import Manifest

Json = dict[str, Any]
_EVIDENCE = {"columns", "multivariate", "faults", "sketch", "rests_on"}  # of a drift report; the ledger has it
_NAMED = 10  # columns or intervals that a result lists by name; counts are always complete


def score(name: str, start: datetime, *, model: str, quiet: bool) -> Json:
    """Score the interval that begins at ``start``; returns the manifest and the path of its validation report.

    ``model`` is ``as_of``, ``current`` or the text of a version number; ``quiet`` marks a backfill.
    """
    with Runtime.open() as runtime:
        job = runtime.job(name)
        policy: Any = int(model) if model.isdigit() else model
        (manifest,) = runtime.score(job, start, model=policy, quiet=quiet)
        return _published(job, manifest)


def find_changed(name: str, start: datetime) -> list[str]:
    """The starts of published intervals within the job's lookback before ``start`` whose input changed since."""
    with Runtime.open() as runtime:
        return [format_instant(found) for found in runtime.changed(runtime.job(name), start)]


def restate(name: str, start: str, *, quiet: bool) -> Json:
    """Score a published interval again from its present input; returns what `score` returns."""
    with Runtime.open() as runtime:
        job = runtime.job(name)
        return _published(job, runtime.restate(job, parse_instant(start), quiet=quiet))


def monitor(name: str, start: str, *, quiet: bool) -> Json:
    """Judge the drift of one published interval; returns verdict, reason, and the drifted and the broken columns."""
    with Runtime.open() as runtime:
        job = runtime.job(name)
        (report,) = runtime.monitor(job, parse_instant(start), quiet=quiet)
        drifted = [c.column for c in report.columns if c.verdict == "drift"]
        broken = [f"{fault.column or 'partition'}: {fault.kind}" for fault in report.faults]
        return {
            **report.model_dump(mode="json", exclude=_EVIDENCE),
            "auc": report.multivariate.auc if report.multivariate else None,
            "faults": broken[:_NAMED],
            "drifted": len(drifted),
            "columns": drifted[:_NAMED],
            "report": _report(job, report.start, "drift"),
        }


def evaluate(name: str, as_of: datetime, *, quiet: bool) -> Json:
    """Evaluate what matured by ``as_of`` and let it decide on a rollout; returns counts and the latest value of the metric.

    Intervals that cannot be measured are recorded; `report_unmeasured` raises for them, once the event is out.
    """
    with Runtime.open() as runtime:
        job = runtime.job(name)
        reports = runtime.evaluate(job, as_of, quiet=quiet, strict=False)
        decided = None if quiet else runtime.advance(job, as_of)
        return {
            "job": name,
            "as_of": format_instant(as_of),
            "quiet": quiet,
            "evaluated": len(reports),
            "restated": sum(report.restated for report in reports),
            "degraded": sum(report.verdict == "drift" for report in reports),
            "metric": job.metric,
            "latest": reports[-1].value if reports else None,
            "rollout": decided.outcome if decided else None,
        }


def watch(name: str, as_of: str) -> Json:
    """Look after a model that was promoted lately; returns what was found, and how many intervals were restated."""
    with Runtime.open() as runtime:
        found = runtime.watch(runtime.job(name), parse_instant(as_of))
        if found is None:
            return {"job": name, "outcome": "nothing to watch"}
        return {"job": name, **found.model_dump(mode="json", exclude={"restated"}), "restated": len(found.restated)}


def notify(name: str) -> Json:
    """Tell people of the incidents that changed since they were last told; returns what they were told."""
    with Runtime.open() as runtime:
        notices = runtime.notify(runtime.job(name))
        told = [f"{notice.incident.id} {notice.news}: {notice.incident.cause}" for notice in notices]
        return {"job": name, "told": len(told), "incidents": told[:_NAMED]}


def report_unmeasured(name: str, as_of: str) -> None:
    """Raise `ContractViolation` or `LabelsOverdue` for what the evaluation at ``as_of`` could not measure."""
    with Runtime.open() as runtime:
        runtime.require_measured(runtime.job(name), parse_instant(as_of))


def decide(name: str, as_of: datetime | None, *, manual: bool) -> Json | None:
    """The decision that starts a training, or ``None`` when there is no cause to train.

    A manual run always trains. A run that only backfills started (no ``as_of``) never does.
    """
    if as_of is None:
        return None
    if manual:
        return {"as_of": format_instant(as_of), "trigger": None}
    with Runtime.open() as runtime:
        decision = runtime.decide(runtime.job(name), as_of)
        trigger = decision.model_dump(mode="json")
        return {"as_of": format_instant(as_of), "trigger": trigger} if decision.fire else None


def retrain(name: str, decision: Json, *, bootstrap: bool, reason: str) -> Json:
    """Train, gate and promote as decided; returns the outcome with its numbers."""
    with Runtime.open() as runtime:
        trigger = TriggerDecision.model_validate(decision["trigger"]) if decision["trigger"] else None
        report = runtime.retrain(
            runtime.job(name),
            parse_instant(decision["as_of"]),
            trigger=trigger,
            bootstrap=bootstrap,
            reason=reason,
        )
        gate = report.decision_ids[0] if report.report_uri else None
        return {
            # The page has these; here they would be too long.
            **report.model_dump(mode="json", exclude={"gate": {"guards", "slices"}}),
            "model_version": report.model.version if report.model else None,
            "report": f"gates/{gate}.html" if gate else None,
        }


def ask(name: str, request: str) -> Json | None:
    """What people are shown who are asked to approve a promotion; ``None`` when nobody needs to any more.

    ``body`` is Markdown without anybody's free text; ``asked_at`` is the present time, from which waiting counts.
    """
    with Runtime.open() as runtime:
        job = runtime.job(name)
        gate = runtime.asked(job, request)
        if gate is None:
            return None
        version, compared = gate.details["challenger_version"], gate.details["champion_version"]
        report = f"gates/{gate.id}.html"
        return {
            "job": name,
            "request": request,
            "as_of": format_instant(gate.at),
            "asked_at": format_instant(runtime.clock()),
            "model_version": version,
            "report": report,
            "subject": f"{name}: make version {version} the champion instead of version {compared}?",
            "body": "\n\n".join(
                [
                    gate.reason,
                    *("- " + line.strip() for line in runtime.story(gate)[2:] if line.startswith("  ")),
                    f"[The gate's page](/pipeline/reports/{name}/{report}) · `pipeline explain {gate.id}`",
                    "Without an answer the champion stays.",
                ]
            ),
        }


def answer(name: str, asked: Json, *, approved: bool, by: str | None, reason: str, waited: timedelta) -> Json:
    """Record the answer to what `ask` asked, and promote or roll out what was approved; returns what became of it.

    ``by`` names who answered, ``None`` nobody: then the request expires. The answer's time is that of the request and
    ``waited``, so that a run over history lives in its own time.
    """
    with Runtime.open() as runtime:
        job, at = runtime.job(name), parse_instant(asked["as_of"]) + max(waited, timedelta(0))
        if by is None:
            given = runtime.answer(job, asked["request"], "expired", at=at)
        else:
            said = reason.strip() or "No reason given."
            verdict: Any = "approved" if approved else "rejected"
            given = runtime.answer(job, asked["request"], verdict, f"{said} ({by}, in Airflow)", at)
        return {
            "job": name,
            "as_of": asked["as_of"],
            "outcome": "promoted" if given.promotion else "rollout" if given.rollout else given.decision.outcome,
            "reason": given.decision.reason,
            "model_version": asked["model_version"],
            "decision_ids": [
                given.decision.id,
                *([given.promotion.decision_id] if given.promotion else []),
                *([given.rollout.id] if given.rollout else []),
            ],
            "report": asked["report"],
        }


def sweep(name: str) -> Json:
    """Delete what killed runs and superseded versions left behind; returns how many files those were."""
    with Runtime.open() as runtime:
        return {"job": name, "removed": len(runtime.sweep(runtime.job(name)))}


def find_gaps(name: str, as_of: datetime) -> Json:
    """Raise `IntervalsMissing` when intervals were not published in time; returns how many were expected."""
    with Runtime.open() as runtime:
        return {"job": name, "intervals": len(runtime.find_gaps(runtime.job(name), as_of))}


def _published(job: JobSpec, manifest: Manifest) -> Json:
    rejected = manifest.rejected_files
    return {
        **manifest.model_dump(mode="json"),
        "reasons": _most(manifest.reasons),
        "rejected_files": len(rejected),
        "report": _report(job, manifest.start, "validation"),
    }


def _most(reasons: dict[str, int]) -> dict[str, int]:
    """The most frequent reasons; the rest as one, so that the rows still add up."""
    ranked = sorted(reasons.items(), key=lambda entry: (-entry[1], entry[0]))
    rest = sum(rows for _, rows in ranked[_NAMED:])
    return dict(ranked[:_NAMED]) | ({"other": rest} if rest else {})


def _report(job: JobSpec, start: datetime, name: str) -> str:
    """The report's path below the job's ``reports`` folder."""
    return f"{job.output_partition(job.interval(start))}/{name}.html"
