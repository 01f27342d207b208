"""One incident per cause: what opens it, what it lasts through, and what ends it."""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from pipeline import incidents
from pipeline.verdicts import ColumnDrift, DriftReport, Estimate, Fault, Incident, Multivariate, PerformanceReport

if TYPE_CHECKING:
    from collections.abc import Iterable

DAY = timedelta(days=1)
T0 = datetime(2026, 1, 1, tzinfo=UTC)
Reported = DriftReport | PerformanceReport


def column(name: str = "temp", verdict: str = "drift", **changes: Any) -> ColumnDrift:
    fields: dict[str, Any] = {
        "column": name,
        "role": "prediction" if name == "prediction" else "feature",
        "kind": "number",
        "verdict": verdict,
        "p_value": 0.001,
        "effect": 0.4,
        "threshold": 0.1,
        "psi": 0.3,
        "null_share": 0.0,
        "reference_null_share": 0.0,
        "unseen_share": 0.0,
        "rows": 100,
        "importance": 0.5,
        "tier": "page" if verdict == "drift" else None,
        "reason": f"{name} moved",
    }
    return ColumnDrift(**{**fields, **changes})


def drift(day: int, *columns: ColumnDrift, **changes: Any) -> DriftReport:
    verdict = "drift" if any(c.verdict == "drift" for c in columns) else "stable"
    fields: dict[str, Any] = {
        "job": "orders",
        "start": T0 + day * DAY,
        "end": T0 + (day + 1) * DAY,
        "verdict": verdict,
        "reason": f"day {day}",
        "rows": 100,
        "window_start": T0 + day * DAY,
        "model_version": 1,
        "detector": "scipy",
        "columns": columns,
    }
    return DriftReport(**{**fields, **changes})


def performance(day: int, verdict: str = "drift", **changes: Any) -> PerformanceReport:
    fields: dict[str, Any] = {
        "job": "orders",
        "start": T0 + day * DAY,
        "end": T0 + (day + 1) * DAY,
        "as_of": T0 + (day + 5) * DAY,
        "verdict": verdict,
        "reason": f"mae of day {day}",
        "metric": "mae",
        "value": 2.0,
        "limit": 1.0,
        "n": 100,
        "rows_scored": 100,
        "model_version": 1,
        "slices": (),
    }
    return PerformanceReport(**{**fields, **changes})


def fault(name: str | None = "temp", kind: str = "stuck") -> Fault:
    return Fault(kind=kind, column=name, detail="one value in all rows")


def multivariate(verdict: str, *ranked: str) -> Multivariate:
    shares = tuple((name, 0.2) for name in ranked)
    return Multivariate(
        auc=0.8, threshold=0.6, p_value=0.001, moved=verdict == "drift", verdict=verdict, ranked=shares, rows=100
    )


def estimate(verdict: str = "stable", **changes: Any) -> Estimate:
    fields: dict[str, Any] = {
        "metric": "mae",
        "value": 2.0,
        "low": 1.9,
        "high": 2.1,
        "n": 100,
        "error": 0.1,
        "compared": 10,
        "is_valid": True,
        "verdict": verdict,
        "reason": "mae 2 expected",
    }
    return Estimate(**{**fields, **changes})


def after(reports: Iterable[Reported], known: Iterable[Incident] = ()) -> dict[str, Incident]:
    """The state of all incidents once the reports have come, by id."""
    states = {incident.id: incident for incident in known}
    for report in reports:
        lasting = [i for i in states.values() if i.status == "open"]
        former = [i for i in states.values() if i.status == "closed"]
        states |= {i.id: i for i in incidents.update(lasting, report, closed=former)}
    return states


def only(reports: Iterable[Reported], known: Iterable[Incident] = ()) -> Incident:
    (incident,) = after(reports, known).values()
    return incident


def test_ten_days_of_one_cause_are_one_incident_that_is_told_once():
    known: list[Incident] = []
    told = []
    for day in range(10):
        (changed,) = incidents.update(known, drift(day, column()))
        told.append(incidents.news(known[0] if known else None, changed))
        known = [changed]
    assert told == ["opened", *[None] * 9]
    (incident,) = known
    assert (incident.opened, incident.latest, incident.intervals) == (T0, T0 + 9 * DAY, 10)
    assert incident.status == "open"


def test_an_incident_names_job_cause_opening_and_columns():
    incident = only([drift(3, column("temp"), column("wind", tier="ticket"), column("sun", "stable"))])
    content = json.dumps(["orders", "covariate_drift", "2026-01-04T00:00:00Z"])
    assert incident.id == f"incident-{hashlib.sha256(content.encode()).hexdigest()[:12]}"
    assert (incident.job, incident.kind, incident.cause) == ("orders", "covariate_drift", "covariate_drift")
    assert incident.columns == ("temp", "wind")
    assert incident.reason == "temp: temp moved; wind: wind moved"


def test_the_tier_of_covariate_drift_is_that_of_its_loudest_column():
    quiet, middle = column("a", tier="log", importance=0.0), column("b", tier="ticket", importance=0.1)
    assert only([drift(0, quiet)]).tier == "log"
    assert only([drift(0, quiet, middle)]).tier == "ticket"
    assert only([drift(0, quiet, middle, column("c"))]).tier == "page"
    assert only([drift(0, column("d", tier=None, importance=None))]).tier == "page"


def test_columns_that_only_differ_together_are_a_ticket_that_names_the_most_telling():
    told = only([drift(0, column("temp", "stable"), multivariate=multivariate("drift", "a", "b", "c", "d"))])
    assert (told.cause, told.tier, told.columns) == ("covariate_drift", "ticket", ("a", "b", "c"))
    assert "AUC 0.8" in told.reason


@pytest.mark.parametrize(
    ("report", "cause", "kind", "tier"),
    [
        (drift(0, column("prediction")), "prediction_drift", "prediction_drift", "page"),
        (drift(0, estimate=estimate("drift")), "degradation:estimated", "degradation", "ticket"),
        (drift(0, estimate=estimate("drift", is_valid=False)), "invalid_estimate", "invalid_estimate", "ticket"),
        (drift(0, faults=(fault(None, "duplicated"),)), "broken_data:partition", "broken_data", "page"),
        (drift(0, faults=(fault("temp"),)), "broken_data:temp", "broken_data", "page"),
        (drift(0, column(), faults=(fault("temp"),)), "broken_data:temp", "broken_data", "page"),
        (drift(0, column(importance=0.002), faults=(fault(),)), "broken_data:temp", "broken_data", "log"),
        (performance(0), "degradation", "degradation", "page"),
        (performance(0, cause="inputs"), "degradation", "degradation", "page"),
        (performance(0, cause="concept"), "concept_drift", "concept_drift", "page"),
        (performance(0, cause="broken_data"), "degradation", "degradation", "page"),
        (performance(0, "stable", label=column("label", role="label")), "label_drift", "label_drift", "ticket"),
    ],
)
def test_every_cause_opens_one_incident_of_its_kind_and_tier(report, cause, kind, tier):
    incident = only([report])
    assert (incident.cause, incident.kind, incident.tier) == (cause, kind, tier)


def test_an_estimated_degradation_says_that_it_is_estimated():
    assert "estimated" in only([drift(0, estimate=estimate("drift"))]).reason


def test_each_broken_column_is_an_incident_with_all_of_its_faults():
    found = after([drift(0, faults=(fault("a"), fault("b"), fault("a", "unit")))]).values()
    assert {i.cause: i.reason for i in found} == {
        "broken_data:a": "stuck: one value in all rows; unit: one value in all rows",
        "broken_data:b": "stuck: one value in all rows",
    }


def test_what_broken_data_explains_is_no_incident_of_its_own():
    moved = (column("temp"), column("prediction"))
    broken = drift(0, *moved, faults=(fault("temp"),), multivariate=multivariate("drift", "temp", "wind"))
    assert {i.cause for i in after([broken]).values()} == {"broken_data:temp"}
    whole = drift(0, *moved, faults=(fault(None, "truncated"),), multivariate=multivariate("drift", "temp"))
    assert {i.cause for i in after([whole]).values()} == {"broken_data:partition"}


def test_what_broken_data_does_not_explain_is_told_beside_it():
    ignored = column("noise", importance=0.001, tier="log")
    report = drift(0, ignored, column("temp"), column("prediction"), faults=(fault("noise"),))
    found = {i.cause: i for i in after([report]).values()}
    assert set(found) == {"broken_data:noise", "covariate_drift", "prediction_drift"}
    assert found["covariate_drift"].columns == ("temp",)


def test_two_later_intervals_without_the_cause_close_it_and_one_does_not():
    shown, one, two = drift(0, column()), drift(1, column(verdict="stable")), drift(2, column(verdict="stable"))
    assert only([shown, one]).status == "open"
    closed = only([shown, one, two])
    assert (closed.status, closed.closed, closed.latest) == ("closed", two.end, shown.start)
    assert incidents.news(only([shown, one]), closed) == "closed"


def test_a_return_of_the_cause_starts_the_count_to_the_closing_again():
    days = [drift(day, column(verdict=verdict)) for day, verdict in enumerate(["drift", "stable", "drift", "stable"])]
    lasting = only(days)
    assert (lasting.status, lasting.intervals, lasting.clear) == ("open", 2, (days[3].end,))


def test_too_little_data_speaks_neither_for_nor_against():
    gap = drift(2, column(verdict="insufficient_data"), verdict="insufficient_data")
    days = [drift(0, column()), drift(1, column(verdict="stable")), gap]
    assert only(days).status == "open"
    assert only([*days, drift(3, column(verdict="stable"))]).status == "closed"


@pytest.mark.parametrize(
    ("shown", "unjudged"),
    [
        (drift(0, column()), {"columns": (column(verdict="insufficient_data"),)}),
        (drift(0, column()), {"columns": (column(),), "faults": (fault("temp"),)}),
        (drift(0, column()), {"columns": (column(),), "faults": (fault(None, "surplus"),)}),
        (drift(0, multivariate=multivariate("drift", "a")), {"multivariate": multivariate("insufficient_data")}),
        (drift(0, column("prediction")), {"faults": (fault("temp"),)}),
        (drift(0, faults=(fault("temp"),)), {"columns": (column(verdict="insufficient_data"),)}),
        (drift(0, estimate=estimate("drift")), {"estimate": None}),
        (drift(0, estimate=estimate("drift")), {"estimate": estimate(is_valid=False)}),
        (drift(0, estimate=estimate(is_valid=False)), {"estimate": estimate(compared=0)}),
    ],
)
def test_a_cause_that_could_not_be_judged_stays_open(shown, unjudged):
    found = after([shown, *(drift(day, **unjudged) for day in range(1, 5))]).values()
    first = next(i for i in found if i.opened == T0)
    assert (first.status, first.clear, first.intervals) == ("open", (), 1)


@pytest.mark.parametrize(
    ("shown", "clear"),
    [
        (drift(0, faults=(fault("temp"),)), drift),
        (drift(0, column("prediction")), drift),
        (drift(0, multivariate=multivariate("drift", "a")), drift),
        (drift(0, estimate=estimate("drift")), lambda day: drift(day, estimate=estimate())),
        (drift(0, estimate=estimate(is_valid=False)), lambda day: drift(day, estimate=estimate("drift"))),
        (performance(0), lambda day: performance(day, "stable")),
        (performance(0, cause="concept"), lambda day: performance(day, "stable")),
        (
            performance(0, "stable", label=column("label", role="label")),
            lambda day: performance(day, label=column("label", "stable", role="label")),
        ),
    ],
)
def test_every_cause_closes_when_its_own_reports_no_longer_show_it(shown, clear):
    found = after([shown, clear(1), clear(2)]).values()
    assert next(i for i in found if i.opened == T0).status == "closed"


def test_drift_reports_and_performance_reports_do_not_close_each_others_incidents():
    fine = [drift(day, estimate=estimate()) for day in (1, 2, 3)]
    realised = [performance(day, "stable", label=column("label", "stable", role="label")) for day in (1, 2, 3)]
    label = column("label", role="label")
    assert {i.status for i in after([performance(0, label=label), *fine]).values()} == {"open"}
    shown = drift(0, column(), column("prediction"), estimate=estimate("drift"))
    assert {i.status for i in after([shown, *realised]).values()} == {"open"}


def test_other_damage_does_not_close_degraded_performance():
    lasting = after([performance(0), *(performance(day, cause="concept") for day in (1, 2, 3))])
    assert {i.cause: i.status for i in lasting.values()} == {"degradation": "open", "concept_drift": "open"}


def test_degradation_on_broken_data_belongs_to_the_incident_of_that_data():
    ignored = drift(0, column(importance=0.001), faults=(fault("temp"),))
    incident = only([ignored, performance(0, cause="broken_data")])
    assert (incident.cause, incident.tier, incident.intervals) == ("broken_data:temp", "page", 1)
    assert incident.reason == "mae of day 0"
    assert incidents.news(only([ignored]), incident) == "escalated"


def test_labels_of_broken_data_that_is_mended_by_now_open_nothing():
    mended = [drift(0, faults=(fault("temp"),)), drift(1), drift(2), drift(3, faults=(fault("wind"),))]
    before = after(mended)
    assert after([performance(0, cause="broken_data")], before.values()) == before


def test_the_tier_only_rises_while_an_incident_is_open():
    days = [drift(day, column(tier=tier)) for day, tier in enumerate(["ticket", "page", "log"])]
    assert [only(days[:n]).tier for n in (1, 2, 3)] == ["ticket", "page", "page"]
    assert incidents.news(only(days[:1]), only(days[:2])) == "escalated"
    assert incidents.news(only(days[:2]), only(days)) is None


def test_nobody_is_told_of_what_the_model_ignores():
    days = [drift(0, column(tier="log")), drift(1), drift(2)]
    before = [None, only(days[:1]), only(days[:2])]
    assert [incidents.news(old, only(days[: n + 1])) for n, old in enumerate(before)] == [None, None, None]


def test_a_late_report_counts_but_does_not_close():
    lasting = only([drift(0, column()), drift(5, column())])
    assert incidents.update([lasting], drift(2)) == []
    assert incidents.update([lasting], drift(3)) == []
    (more,) = incidents.update([lasting], drift(4, column("wind")))
    assert (more.intervals, more.latest, more.columns) == (3, T0 + 5 * DAY, ("temp", "wind"))
    assert more.reason == lasting.reason


def test_a_late_report_may_open_an_incident():
    assert only([drift(5), drift(2, column())]).opened == T0 + 2 * DAY


def test_a_report_on_an_interval_of_a_closed_incident_opens_none():
    closed = after([drift(0, column()), drift(1, column()), drift(2), drift(3)])
    for day in range(4):
        assert after([drift(day, column())], closed.values()) == closed
    assert len(after([drift(4, column())], closed.values())) == 2


def test_a_late_interval_stays_counted_after_the_closing():
    closed = after([drift(3, column()), drift(1, column()), drift(4), drift(5)])
    (incident,) = closed.values()
    assert (incident.opened, incident.intervals, incident.status) == (T0 + 3 * DAY, 2, "closed")
    assert after([drift(1, column())], closed.values()) == closed


def test_quiet_reports_open_update_and_close_nothing():
    assert incidents.update([], drift(0, column(), quiet=True)) == []
    assert incidents.update([], performance(0, quiet=True)) == []
    lasting = only([drift(0, column()), drift(1)])
    assert incidents.update([lasting], drift(2, quiet=True)) == []
    assert incidents.update([lasting], drift(2, column(), quiet=True)) == []


def test_the_memory_of_an_incident_does_not_grow_for_ever():
    lasting = only(drift(day, column()) for day in range(100))
    assert lasting.intervals == 100
    assert len(lasting.shown) == 32
    assert [incidents.update([lasting], drift(day, column())) for day in range(100)] == [[]] * 100


def any_report(rng: np.random.Generator, day: int) -> Reported:
    """A report with anything that may be in one."""
    verdicts = rng.choice(["drift", "stable", "insufficient_data"], 6, p=[0.4, 0.4, 0.2]).tolist()
    if rng.random() < 0.4:
        cause = rng.choice(["concept", "inputs", "broken_data"])
        return performance(day, verdicts[0], cause=cause, label=column("label", verdicts[1], role="label"))
    tiers = rng.choice(["page", "ticket", "log"], 2).tolist()
    columns = (
        column("temp", verdicts[0], tier=tiers[0]),
        column("wind", verdicts[1], tier=tiers[1], importance=0.001),
        column("prediction", verdicts[2]),
    )
    faults = tuple(fault(name) for name in ("temp", "wind", None) if rng.random() < 0.15)
    whole = "insufficient_data" if rng.random() < 0.1 else "stable"
    return drift(
        day,
        *columns,
        verdict=whole,
        faults=faults,
        multivariate=multivariate(verdicts[3], "temp", "wind"),
        estimate=estimate(verdicts[4], is_valid=bool(rng.random() < 0.7)),
    )


@pytest.mark.parametrize("seed", range(20))
def test_repeated_reports_change_nothing_whatever_has_happened(seed):
    rng = np.random.default_rng(seed)
    states: dict[str, Incident] = {}
    reports: list[Reported] = []
    for day in range(30):
        reports.append(any_report(rng, day))
        states = after(reports[-1:], states.values())
        again = reports[int(rng.integers(len(reports)))]
        assert after([reports[-1]], states.values()) == states
        assert after([again], states.values()) == states
        lasting = [i.cause for i in states.values() if i.status == "open"]
        assert len(lasting) == len(set(lasting))
    assert any(i.status == "closed" for i in states.values())


@pytest.mark.parametrize("seed", range(5))
def test_the_order_of_reports_does_not_change_what_an_incident_counts(seed):
    days = np.random.default_rng(seed).permutation(20)
    lasting = only(drift(int(day), column()) for day in days)
    assert (lasting.intervals, lasting.latest) == (20, T0 + 19 * DAY)


def withdrawn(kind: incidents.Withdrawn, version: int, at: datetime, known: Iterable[Incident] = ()) -> list[Incident]:
    return incidents.of_withdrawal([*known], "orders", kind, version, at, "It was worse.")


def test_a_withdrawal_is_told_once_per_version_and_as_loudly_as_it_deserves():
    (promotion,) = withdrawn("promotion_withdrawn", 2, T0)
    (challenger,) = withdrawn("challenger_withdrawn", 2, T0)
    assert (promotion.cause, promotion.tier, promotion.opened) == ("promotion_withdrawn:2", "page", T0)
    assert (challenger.cause, challenger.tier, challenger.reason) == (
        "challenger_withdrawn:2",
        "ticket",
        "It was worse.",
    )
    assert withdrawn("promotion_withdrawn", 2, T0 + DAY, [promotion]) == []
    (other,) = withdrawn("challenger_withdrawn", 3, T0 + DAY, [promotion, challenger])
    assert len({promotion.id, challenger.id, other.id}) == 3
    assert incidents.news(None, promotion) == "opened"


@pytest.mark.parametrize(("promoted", "end"), [(-3, 7), (0, 7), (2, 2), (9, 7)])
def test_a_withdrawal_is_over_with_the_next_promotion_or_after_a_week(promoted, end):
    (incident,) = withdrawn("promotion_withdrawn", 2, T0)
    since = T0 + promoted * DAY
    assert incidents.outlived([incident], T0 + end * DAY - timedelta(seconds=1), since) == []
    (over,) = incidents.outlived([incident], T0 + end * DAY, since)
    assert (over.status, over.closed, incidents.news(incident, over)) == ("closed", T0 + end * DAY, "closed")
    assert incidents.outlived([over], T0 + 30 * DAY, since) == []


def test_no_report_speaks_for_or_against_a_withdrawal():
    (incident,) = withdrawn("challenger_withdrawn", 2, T0)
    reports: list[Reported] = [drift(day, column(verdict="stable")) for day in range(1, 5)]
    reports += [performance(day, "stable") for day in range(1, 5)]
    assert after(reports, [incident]) == {incident.id: incident}


def test_former_incidents_that_ended_by_the_start_of_a_report_change_nothing_of_it(rng):
    known: dict[str, Incident] = {}
    for day in range(200):
        # One in three reports is late or repeated.
        of = day if rng.random() < 0.67 else max(day - int(rng.integers(1, 12)), 0)
        if rng.random() < 0.5:
            columns = [column(name, str(rng.choice(["drift", "stable"]))) for name in ("temp", "prediction")]
            faults = (Fault(column="hum", kind="stuck", detail="one value"),) if rng.random() < 0.3 else ()
            report = drift(of, *columns, faults=faults)
        else:
            report = performance(
                of, str(rng.choice(["drift", "stable"])), cause=rng.choice(["broken_data", "concept", None])
            )
        open_, closed = ([i for i in known.values() if i.status == status] for status in ("open", "closed"))
        lasting = [incident for incident in closed if incident.closed > report.start]
        changed = incidents.update(open_, report, closed=closed)
        assert incidents.update(open_, report, closed=lasting) == changed
        known |= {incident.id: incident for incident in changed}
    assert sum(incident.status == "closed" for incident in known.values()) > 10
