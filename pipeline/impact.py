"""What a shift of one column does to predictions: its values moved back to where the reference has them.

Pure functions of arrays; must not know a model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pipeline.pooling import present

if TYPE_CHECKING:
    from pipeline.pooling import Array, Kind


def undone(reference: Array, current: Array, kind: Kind, seed: int = 0) -> Array:
    """``current`` with the shift taken out: each row keeps its rank, the values are distributed as the reference's.

    Numbers are mapped from quantile to quantile. Of categories as few rows as possible change: those in excess take the
    categories that are wanting. Rows without a value stay without; without a reference value nothing changes.
    """
    held = present(reference, kind)
    return _numbers(reference[held], current) if kind == "number" else _categories(reference[held], current, seed)


def _numbers(reference: Array, current: Array) -> Array:
    held = present(current, "number")
    moved = current.astype(np.float64, copy=True)
    if not len(reference) or not held.any():
        return moved
    values = current[held]
    order = np.sort(values)
    # Equal values keep one rank, the middle of theirs.
    rank = (np.searchsorted(order, values, "left") + np.searchsorted(order, values, "right")) / (2 * len(values))
    moved[held] = np.quantile(reference, rank)
    return moved


def _categories(reference: Array, current: Array, seed: int) -> Array:
    held = present(current, "category")
    moved = current.copy()
    rows = np.flatnonzero(held)
    if not len(reference) or not len(rows):
        return moved
    names, counts = np.unique(reference.astype(str), return_counts=True)
    goal = dict(zip(names.tolist(), np.floor(counts / counts.sum() * len(rows)).astype(int).tolist(), strict=True))
    rng = np.random.default_rng(seed)
    shuffled = rows[rng.permutation(len(rows))]
    excess = []
    for row in shuffled:
        name = str(current[row])
        if goal.get(name, 0) > 0:
            goal[name] -= 1
        else:
            excess.append(row)
    wanting = [name for name, count in goal.items() for _ in range(count)]
    # What rounding left over is drawn as the reference is distributed.
    wanting += (
        rng.choice(names, len(excess) - len(wanting), p=counts / counts.sum()).tolist()
        if len(excess) > len(wanting)
        else []
    )
    moved[np.array(excess, dtype=np.int64)] = np.array(wanting[: len(excess)], dtype=object)
    return moved
