"""Tell a recorded decision in sentences: what led to it, its numbers, and what followed. From recorded facts only."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from pipeline.charts import number
from pipeline.errors import InvalidRequest
from pipeline.intervals import format_instant

if TYPE_CHECKING:
    from pipeline.ledger import Ledger
    from pipeline.reports import Decision
    from pipeline.verdicts import DriftReport, PerformanceReport

_ANSWERS = {
    "requested": "job {job} asked for a person's approval, until {expires_at}, to make version {version} the champion: it had "
    "won the gate ({gate}).",
    "approved": "somebody approved that version {version} becomes the champion of job {job}.",
    "rejected": "somebody rejected that version {version} becomes the champion of job {job}.",
    "expired": "the request to make version {version} the champion of job {job} expired: version {champion_version} stayed.",
    "superseded": "the request to make version {version} the champion of job {job} was superseded: nothing was moved.",
}
_LATEST = 10  # intervals among which a training's causes are looked for


def decision(ledger: Ledger, id: str) -> Decision:
    """The recorded decision of that id; raises `InvalidRequest` for an unknown one."""
    found = ledger.decision(id)
    if found is None:
        raise InvalidRequest(
            f"no decision has the id {id!r}",
            expected="an id such as gate-1a2b3c4d5e6f",
            got=id,
            left_behind="nothing was changed",
            next_step="pipeline status prints the latest ids, pipeline retrain and replay those of what they decided",
        )
    return found


def made_with(ledger: Ledger, decision: Decision) -> list[Decision]:
    """The other decisions on the same job at the same instant, in order of recording."""
    together = ledger.decisions(decision.job, since=decision.at, until=decision.at)
    return [other for other in together if other.id != decision.id]


def story(ledger: Ledger, decision: Decision) -> list[str]:
    """The decision as lines of text: the sentence, the reason, the numbers, what led to it, what came of it."""
    others = made_with(ledger, decision)
    lines = [sentence(decision), decision.reason]
    if decision.kind == "trigger":
        lines += _violations(ledger, decision)
    elif decision.kind == "gate":
        lines += _numbers(decision)
    elif decision.kind == "approval":
        lines += _dialogue(ledger, decision)
    elif decision.kind in ("promotion", "rollback"):
        lines += [_grounds(ledger, decision, others), *_reign(ledger, decision)]
    return [*lines, *(f"At the same time: {sentence(other)} ({other.id})" for other in others)]


def sentence(decision: Decision) -> str:
    """What was decided, in one sentence."""
    at, job, d = format_instant(decision.at), decision.job, decision.details
    if decision.kind == "trigger":
        verb = "started a training" if decision.outcome == "fire" else "did not start a training"
        return f"At {at} the policy of job {job} {verb}{'' if d['cause'] == 'none' else ' (' + d['cause'] + ')'}."
    if decision.kind == "training":
        made = f" of version {d['version']}" if d.get("version") else ""
        return f"The training{made} for job {job} as of {at} ({d['cause']}): {decision.outcome.replace('_', ' ')}."
    if decision.kind == "watch":
        return (
            f"At {at} the watch over job {job} took version {d['version']} back; version {d['back_to']} rules again, after "
            f"{d['intervals']} matured intervals."
        )
    if decision.kind == "gate":
        if d["champion_version"] is None:
            return (
                f"At {at} the gate of job {job} compared version {d['challenger_version']}, which was to be the first "
                "champion, with a constant prediction, and found no proof that it is better."
            )
        found = {
            "promote": "and found it better" if not d.get("bar") else "and found it good enough",
            "keep": _kept(d),
            "insufficient_data": "but had too little to go by",
            "refused": "and refused, since one had learnt from rows of the comparison",
        }
        return (
            f"At {at} the gate of job {job} compared version {d['challenger_version']} with the champion, version "
            f"{d['champion_version']}, {found[decision.outcome]}."
        )
    if decision.kind == "rollout":
        return (
            f"At {at} the rollout ({d['kind']}) of version {d['challenger_version']} of job {job} beside version "
            f"{d['champion_version']} was {decision.outcome.replace('_', ' ')}, from {d['effective_at']} on."
        )
    if decision.kind == "approval":
        return f"At {at} {_ANSWERS[decision.outcome].format(job=job, **d)}"
    again, instead = (" again", "withdrawn") if decision.kind == "rollback" else ("", "replaced")
    before = f"; version {d['previous_version']} was {instead}" if d["previous_version"] else ", the first one"
    return f"From {at} on version {d['version']} is{again} the champion of job {job}{before}."


def _violations(ledger: Ledger, decision: Decision) -> list[str]:
    """The latest verdicts on the champion of that time that speak for a training, with their numbers."""
    # A promotion that came of this very decision takes effect at the same instant.
    ruling = ledger.champion(decision.job, decision.at - timedelta.resolution)
    if ruling is None:
        return []
    version = ruling.model.version
    drift = ledger.drift(decision.job, ended_by=decision.at, last=_LATEST, loud_on=version)
    performance = ledger.performance(decision.job, as_of=decision.at, last=_LATEST, loud_on=version)
    told = [_drifted(report) for report in drift if report.is_violation]
    told += [_degraded(report) for report in performance if report.is_violation]
    judged = len({report.start for report in drift} | {report.start for report in performance})
    if not judged:
        return [f"No verdict on version {version}, the champion then, had been recorded."]
    return [
        f"Of the latest {judged} intervals judged on version {version}, the champion then, these violated:"
        if told
        else f"None of the latest {judged} intervals judged on version {version}, the champion then, violated.",
        *told,
    ]


def _drifted(report: DriftReport) -> str:
    moved = [
        f"{column.column} {column.effect:.3g} over {column.threshold:.3g}"
        for column in report.columns
        if column.verdict == "drift" and column.effect is not None
    ]
    return f"  {format_instant(report.start)} drift: {report.reason}{' (' + ', '.join(moved) + ')' if moved else ''}"


def _degraded(report: PerformanceReport) -> str:
    return (
        f"  {format_instant(report.start)} {report.metric} {number(report.value)} beyond the limit "
        f"{number(report.limit)} on {report.n} labelled rows: {report.reason}"
    )


def _kept(details: dict[str, Any]) -> str:
    """Why the challenger was kept out: a guard, or no proof."""
    broken = [guard["name"] for guard in details.get("guards", ()) if not guard["is_met"]]
    is_proven = details["low"] is not None and details["low"] > details.get("bar", 0.0)
    if broken and is_proven:
        return f"and kept it out by the {'guard' if len(broken) == 1 else 'guards'} {', '.join(broken)}"
    return "and did not find it better" if not details.get("bar") else "and did not find it good enough"


def _numbers(decision: Decision) -> list[str]:
    """The numbers that a gate decision rests on, one per line; those of a decision of an older release are fewer."""
    d = decision.details
    if d["gain"] is None:
        return []
    lines = [
        f"  {d['metric']} of the champion: {d['champion']:.6g}",
        f"  {d['metric']} of the challenger: {d['challenger']:.6g}",
        f"  gain: {d['gain']:.6g} (positive is better), at least {d['low']:.6g} with the confidence asked for",
        f"  labelled rows that neither had learnt from: {d['n']}",
    ]
    if d.get("look"):
        lines[-1] += f", of {d['begin']} to {d['end']}; look {d['look']}"
    if d.get("test"):
        lines.append(f"  test: {d['test']}, p = {d['p_value']:.2g} against a gain of at most {d['bar']:g}")
    for guard in d.get("guards", ()):
        limit = "none" if guard["limit"] is None else f"{guard['limit']:g}"
        lines.append(
            f"  guard {guard['name']} {'met' if guard['is_met'] else 'NOT met'}, limit {limit}: {guard['detail']}"
        )
    return lines


def _dialogue(ledger: Ledger, decision: Decision) -> list[str]:
    """The request of an answer, or the answers to a request."""
    if "request" in decision.details:
        asked = decision.details["request"]
        return [
            f"It answers {asked}, after {decision.details['gate']}; it could be answered until "
            f"{decision.details['expires_at']}."
        ]
    known = ledger.decisions(decision.job, kind="approval")
    given = [other for other in known if other.details.get("request") == decision.id]
    return [f"Answer: {sentence(other)} ({other.id}) {other.reason}" for other in given] or ["Nobody has answered yet."]


def _grounds(ledger: Ledger, decision: Decision, others: list[Decision]) -> str:
    """What allowed a move of the champion: a gate, a rollout, a watch, the first training, or a person."""
    version = decision.details["version"]
    if decision.kind == "rollback":
        known = ledger.decisions(decision.job, kind="watch", since=decision.at)
        watch = next((other.id for other in known if other.reason == decision.reason), None)
        if watch is not None:
            return f"The watch withdrew version {decision.details['previous_version']} by itself ({watch})."
        return f"Somebody withdrew version {decision.details['previous_version']}; the reason above is theirs."
    for other in ledger.decisions(decision.job, kind="rollout", until=decision.at):
        # What a rollout decides takes effect later than it was decided.
        ended = (other.outcome, other.details["challenger_version"], other.details["effective_at"])
        if ended == ("completed", version, format_instant(decision.at)):
            return f"Version {version} had won the gate, and its rollout was completed ({other.id})."
    for other in others:
        if (other.kind, other.outcome) == ("approval", "approved") and other.details["version"] == version:
            return f"Version {version} had won the gate ({other.details['gate']}) and was approved ({other.id})."
        if other.kind == "gate" and (other.outcome, other.details["challenger_version"]) == ("promote", version):
            return f"Version {version} had won the gate ({other.id})."
    if any(other.kind == "trigger" and other.details["cause"] == "bootstrap" for other in others):
        return f"Version {version} was trained to be the first champion: no gate was asked."
    return f"No gate was asked at that time: somebody promoted version {version}; the reason above is theirs."


def _reign(ledger: Ledger, decision: Decision) -> list[str]:
    """What became of the champion that a move made."""
    promotions = ledger.promotions(decision.job)
    moved = [position for position, promotion in enumerate(promotions) if promotion.decision_id == decision.id]
    version = decision.details["version"]
    if not moved:
        return ["The alias was not moved: the move was not carried out, or not yet."]
    after = promotions[moved[-1] + 1 :]
    published = ledger.manifests(decision.job, since=decision.at - timedelta.resolution)
    carried = sum(manifest.model_version == version for manifest in published)
    end = (
        f"until version {after[0].model.version} took over, from {format_instant(after[0].effective_at)} on "
        f"({after[0].decision_id})"
        if after
        else "and still is"
    )
    return [f"Version {version} was champion {end}; {carried} of the partitions published since carry it now."]
