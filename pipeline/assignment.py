"""Which model an entity belongs to during a rollout: a place in [0, 1) from a salted hash of its key, and a growing share.

The place depends on the key's values and the salt alone, so an entity stays where it is in every interval, rerun and backfill,
and one that the challenger has is never given back while the share grows. Pure functions of hashes.
"""

from __future__ import annotations

import hashlib
import math
from typing import TYPE_CHECKING

import numpy as np
from scipy.special import bdtr, bdtrc

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Over a whole rollout, however long, a clean split is taken for a corrupted one with at most this probability.
SPLIT_ALPHA = 1e-4
# float64 holds 53 bits exactly.
_DROPPED, _UNIT = np.uint64(11), 2.0**-53


def seed_of(salt: str) -> int:
    """The seed of the key's hashes: 64 bits of the SHA-256 of ``salt``. Splits of two salts are independent."""
    return int.from_bytes(hashlib.sha256(salt.encode()).digest()[:8], "big")


def places(hashes: NDArray[np.uint64]) -> NDArray[np.float64]:
    """The entities' places, float64 in [0, 1), from their salted uint64 hashes, which must be even over all 64 bits.

    `pipeline.engine.row_hashes` is; the multilinear hash of `pipeline.keys` is not: sequential keys share its high bits.
    """
    found: NDArray[np.float64] = (hashes >> _DROPPED).astype(np.float64) * _UNIT
    return found


def is_challengers(hashes: NDArray[np.uint64], share: float) -> NDArray[np.bool_]:
    """Which entities the challenger scores: those whose place is below ``share``."""
    found: NDArray[np.bool_] = places(hashes) < share
    return found


def p_value(assigned: int, entities: int, share: float) -> float:
    """The exact two-sided binomial p-value of ``assigned`` out of ``entities`` when ``share`` was intended; 1 without any.

    Twice the smaller tail. Count entities, not rows: the rows of one entity go together.
    """
    if entities == 0 or not 0 < share < 1:
        return 1.0
    below = float(bdtr(assigned, entities, share))
    above = float(bdtrc(assigned - 1, entities, share)) if assigned else 1.0
    return min(1.0, 2 * min(below, above))


def is_mismatched(p: float, look: int) -> bool:
    """Whether the p-value of the ``look``-th interval (from 1) of a rollout shows a corrupted split.

    The ``look``-th one may spend ``6 / (pi look)**2`` of `SPLIT_ALPHA`: these shares add up to 1, and the bound holds
    although the same entities come again.
    """
    return p < SPLIT_ALPHA * 6 / (math.pi * look) ** 2
