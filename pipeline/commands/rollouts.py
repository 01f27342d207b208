"""The command on rollouts: what is under way, and an end to it by hand."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.commands import opened
from pipeline.intervals import format_instant

if TYPE_CHECKING:
    import argparse

    from pipeline.commands import Answer


def rollout(args: argparse.Namespace) -> Answer:
    """The decisions on the job's rollouts so far, latest last; with --stop the one under way ends first."""
    with opened() as runtime:
        job = runtime.job(args.job)
        if args.stop:
            runtime.stop_rollout(job, args.stop)
        decided = runtime.ledger.decisions(job.name, kind="rollout")
        running = runtime.status(job)["rollout"]
    lines = [f"{format_instant(d.at)}  {d.outcome}  {d.reason} ({d.id})" for d in decided]
    answer = {"job": job.name, "running": running, "decisions": [d.model_dump(mode="json") for d in decided]}
    return answer, [*lines, f"under way: {running or 'none'}"]
