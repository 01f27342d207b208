"""Broken data, told from genuine drift by what drift does not do: faults of delivered data, with the column and the numbers.

Drift moves part of a distribution; a fault replaces, converts, exchanges or repeats it. Pure functions of values; must not
judge drift, and no result depends on the order of rows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pipeline.breakage import columns, partition
from pipeline.breakage.partition import against_history, similarity, sketch

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pipeline.effects import Array, Kinds, Sample
    from pipeline.verdicts import Fault

__all__ = ["against_history", "find", "similarity", "sketch"]


def find(
    reference: Sample,
    current: Sample,
    kinds: Kinds,
    *,
    rows: int,
    usual_rows: Sequence[int],
    sketch: tuple[int, ...] = (),
    earlier: Mapping[str, tuple[int, ...]] = {},
    duplicated_share: float = 0.0,
    usual_duplicated_share: float = 0.0,
    history: Sample | None = None,
    stretch: Array | None = None,
) -> tuple[Fault, ...]:
    """What is broken: first the faults of the whole partition, then those of the columns of ``kinds``.

    ``rows`` are the exact rows of the interval and ``usual_rows`` those of comparable ones; with fewer than four of them
    nothing is said of volume. ``sketch`` is that of the interval's feature rows, ``earlier`` holds those of earlier intervals
    by their start; ``duplicated_share`` is the share of rows that repeat another one of the interval in every feature,
    ``usual_duplicated_share`` that of the reference. Distributions are judged with at least 50 values on both sides.

    ``stretch`` is the interval of each row of ``history``, by default the reference; more than the like of the current
    interval may be given. With it, nothing is called a fault that columns may show by themselves, judged by these intervals:
    a month fills all of a day, a dry day has one value, gusts are missing without wind.

    Never raises for values of any kind: NaN, infinite, constant, none at all.
    """
    compared = min(rows, max((len(values) for values in current.values()), default=rows))
    known = max((len(values) for values in reference.values()), default=compared)
    # The share of repetitions grows with the rows, at most in proportion to them.
    usual_share = min(1.0, usual_duplicated_share * max(1.0, compared / max(known, 1)))
    with np.errstate(all="ignore"):
        return (
            *against_history(rows, usual_rows, sketch, earlier),
            *partition.repeated_within(compared, duplicated_share, usual_share),
            *columns.faults(reference, current, kinds, reference if history is None else history, stretch),
        )
