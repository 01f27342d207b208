"""The command line: every step without Airflow. Parses, calls the runtime, prints; decides nothing."""

from __future__ import annotations

import json
import logging
import sys
import traceback
from contextlib import redirect_stdout
from typing import TYPE_CHECKING

from pipeline import arguments
from pipeline.arguments import WrongUsage
from pipeline.commands import incidents, jobs, models, partitions, rollouts
from pipeline.errors import PipelineError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Sequence

    from pipeline.commands import Answer

_INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; ``argv`` defaults to the program's arguments.

    0 success, 65 terminal error, 70 unexpected error (with its traceback on stderr), 75 transient error, 130 interrupted.
    Wrong usage raises ``SystemExit(2)``. With ``--json`` stdout gets exactly one JSON object, whatever happens; it has the
    keys ``error`` and ``message`` when the command failed. Everything else goes to stderr.
    """
    given = list(sys.argv[1:] if argv is None else argv)
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    try:
        asked = arguments.parser().parse_args(given)
        # What libraries print must not end up between the lines, or in the JSON object, that somebody reads.
        with redirect_stdout(sys.stderr):
            answer, lines = _COMMANDS[asked.command](asked)
    except WrongUsage as error:
        _fail(given, {"error": "WrongUsage", "message": str(error)}, error.shown)
        raise SystemExit(2) from None
    except PipelineError as error:
        _fail(given, error.attrs(), f"{type(error).__name__}: {error}")
        return error.exit_code
    except KeyboardInterrupt:
        _fail(given, {"error": "Interrupted", "message": "interrupted"}, "interrupted")
        return _INTERRUPTED
    except Exception as error:
        traceback.print_exc()
        what = f"{type(error).__name__}: {error}"
        advice = "this is a defect of the program; run the same command again, and report it with the lines above"
        _fail(given, {"error": type(error).__name__, "message": what, "next_step": advice}, f"{what}; {advice}")
        return PipelineError.exit_code
    print(json.dumps(answer) if asked.json else "\n".join(lines))
    return 0


def _fail(given: Sequence[str], answer: dict[str, str], line: str) -> None:
    if "--json" in given:
        print(json.dumps(answer))
    print(line, file=sys.stderr)


_COMMANDS: dict[str, Callable[[argparse.Namespace], Answer]] = {
    "init": jobs.init,
    "check": jobs.check,
    "schema": jobs.schema,
    "calibrate": jobs.calibrate,
    "status": models.status,
    "explain": models.explain,
    "audit": models.audit,
    "score": partitions.score,
    "snapshot": partitions.snapshot,
    "restate": partitions.restate,
    "quarantine": partitions.quarantine,
    "replay-quarantine": partitions.replay_quarantine,
    "monitor": partitions.monitor,
    "evaluate": partitions.evaluate,
    "incidents": incidents.incidents,
    "notify": incidents.notify,
    "rollout": rollouts.rollout,
    "retrain": models.retrain,
    "promote": models.promote,
    "approve": models.approve,
    "reject": models.reject,
    "rollback": models.rollback,
    "replay": models.replay,
}
