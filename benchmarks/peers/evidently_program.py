"""Evidently's default drift detection: ``Report([DataDriftPreset()])``, each batch against the whole reference.

The preset finds out the columns' types, picks a test for each by type and by the rows of the reference, and calls the
batch drifted when at least half of the columns drift.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from benchmarks.peers.protocol import Options, Verdict, answer

if TYPE_CHECKING:
    from collections.abc import Callable

    import pandas as pd

# Read when the library is imported: no usage statistics.
os.environ["ITERATIVE_DO_NOT_TRACK"] = "1"


def begin(reference: pd.DataFrame, _first_rows: int) -> Callable[[pd.DataFrame], Verdict]:
    """What judges a batch against ``reference``."""
    from evidently import Report  # type: ignore[import-not-found]
    from evidently.presets import DataDriftPreset  # type: ignore[import-not-found]

    # The tests only say in words what the preset's metrics found; they change no figure.
    report = Report([DataDriftPreset()], include_tests=True)

    def judge(current: pd.DataFrame) -> Verdict:
        alarm, flags = False, {}
        for test in report.run(current, reference).tests_results:
            failed = test.status.value == "FAIL"
            column = test.metric_config.params.get("column")
            if column is None:
                alarm = failed
            else:
                flags[column] = failed
        return Verdict(alarm, [column for column, failed in flags.items() if failed], len(flags))

    return judge


if __name__ == "__main__":
    # Slow, and not part of any batch's time.
    import evidently.presets  # noqa: F401

    answer(Options.from_arguments(), begin)
