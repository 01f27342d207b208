"""The command on incidents: what is wrong with a job now, one line per cause."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.commands import opened
from pipeline.intervals import format_instant

if TYPE_CHECKING:
    import argparse

    from pipeline.commands import Answer
    from pipeline.verdicts import Incident

_HEAD = ("tier", "cause", "opened", "latest", "intervals", "closed", "id")


def incidents(args: argparse.Namespace) -> Answer:
    """The open incidents of a job, or all of them, by opening."""
    with opened() as runtime:
        job = runtime.job(args.job)
        found = runtime.incidents(job, open_only=not args.all)
    answer = {"job": job.name, "incidents": [incident.model_dump(mode="json") for incident in found]}
    return answer, _table(found) if found else [f"job {job.name} has no {'' if args.all else 'open '}incident"]


def notify(args: argparse.Namespace) -> Answer:
    """Tell people what is new, a line per message."""
    with opened() as runtime:
        job = runtime.job(args.job)
        found = runtime.notify(job)
    lines = [f"{notice.news} {notice.incident.cause}, told to {notice.channels} channels" for notice in found]
    answer = {"job": job.name, "told": [notice.model_dump(mode="json") for notice in found]}
    return answer, lines or [f"job {job.name} has nothing new to tell"]


def _table(found: list[Incident]) -> list[str]:
    """A head and two lines per incident: its facts in columns, and the reason below."""
    rows = [_HEAD, *(_row(incident) for incident in found)]
    widths = [max(len(row[place]) for row in rows) for place in range(len(_HEAD))]
    head, *lines = (
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
    told = zip(lines, (f"  {incident.reason}" for incident in found), strict=True)
    return [head, *(line for pair in told for line in pair)]


def _row(incident: Incident) -> tuple[str, ...]:
    return (
        incident.tier,
        incident.cause,
        format_instant(incident.opened),
        format_instant(incident.latest),
        str(incident.intervals),
        format_instant(incident.closed) if incident.closed else "-",
        incident.id,
    )
