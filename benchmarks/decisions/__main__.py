"""Everything that is claimed of alarms, measured: ``python -m benchmarks.decisions [--short] [--only NAME]``.

Prints one JSON object per part as soon as it is known, and writes all of them to ``benchmarks/out/decisions.json``.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

_OUT = Path(__file__).parents[1] / "out" / "decisions.json"


def parts(share: float) -> dict[str, Callable[[], Any]]:
    """The parts by name; ``share`` is the part of the full number of cases that is run."""
    from benchmarks.decisions import (
        breakage,
        cost,
        drift,
        estimation,
        gate,
        governor,
        history,
        placements,
        promotions,
        rollout,
        side_by_side,
    )
    from benchmarks.replays import policies

    def cases(full: int) -> int:
        return max(round(full * share), 1)

    return {
        "drift": lambda: drift.measure(cases),
        "real history": lambda: history.measure(cases),
        "broken data": lambda: breakage.measure(cases(50)),
        "estimates": lambda: estimation.measure(cases(100)),
        "gate": lambda: gate.measure(cases),
        "governor": governor.measure,
        "policies": lambda: policies(starts=cases(3)),
        "placements": placements.measure,
        "rollout": lambda: rollout.measure(cases(300)),
        "cost": cost.measure,
        "promotions": lambda: promotions.measure(each=cases(25)),
        "side by side": lambda: side_by_side.measure(null_worlds=cases(10), shift_worlds=cases(5)),
    }


def main() -> None:
    """Run the parts that were asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.decisions", description=__doc__)
    parser.add_argument("--short", action="store_true", help="a tenth of the cases")
    parser.add_argument("--only", metavar="NAME", help="one part, such as: real history")
    asked = parser.parse_args()
    known = parts(0.1 if asked.short else 1.0)
    _OUT.parent.mkdir(exist_ok=True)
    for name in [asked.only] if asked.only else known:
        started = time.perf_counter()
        measured = {
            "result": known[name](),
            "seconds": round(time.perf_counter() - started, 1),
            "short": asked.short,
        }
        print(json.dumps({name: measured}, indent=2), flush=True)
        # Read again: parts may be run beside each other.
        results = json.loads(_OUT.read_text()) if _OUT.exists() else {}
        _OUT.write_text(json.dumps({**results, name: measured}, indent=2) + "\n")


if __name__ == "__main__":
    main()
