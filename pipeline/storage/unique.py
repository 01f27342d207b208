"""Proof that the rows of a file are told apart by their keys: exact, and fast enough to be made at every publishing."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from pipeline.keys import SeenKeys

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

# Keys of more bytes than this are compared batch by batch: slower, but no 32-bit offset can overflow.
_GROUPED_BYTES = 1 << 30
# Whole numbers are flagged in a table while it is not larger than they are; else they are sorted.
_FLAGS_PER_KEY = 8


def faults(batches: Iterable[pa.RecordBatch], columns: Sequence[str]) -> str:
    """What keeps the ``columns`` of the batches from telling the rows apart, in words; empty when nothing does.

    All keys are held in memory.
    """
    keys = []
    for batch in batches:
        key = pa.record_batch([_plain(batch.column(name)) for name in columns], list(columns))
        for name in columns:
            if nulls := key.column(name).null_count:
                return f"{nulls} rows have no {name}"
        keys.append(key)
    repeated = _repeated(keys)
    return f"{repeated} rows repeat the {', '.join(columns)} of another row" if repeated else ""


def _plain(column: pa.Array) -> pa.Array:
    return column.dictionary_decode() if pa.types.is_dictionary(column.type) else column


def _repeated(keys: list[pa.RecordBatch]) -> int:
    """How many rows have the key of an earlier one."""
    if not keys:
        return 0
    names, types = keys[0].schema.names, keys[0].schema.types
    if len(types) == 1 and pa.types.is_integer(types[0]):
        return _repeated_integers([_wide(key.column(0).to_numpy()) for key in keys if key.num_rows])
    if sum(key.nbytes for key in keys) <= _GROUPED_BYTES:
        table = pa.Table.from_batches(keys)
        return int(table.num_rows - pa.TableGroupBy(table, names, use_threads=False).aggregate([]).num_rows)
    seen = SeenKeys()
    return sum(int(seen.repeated(key.columns).sum()) for key in keys)


def _wide(keys: NDArray[Any]) -> NDArray[Any]:
    """The same whole numbers in 64 bits, so that their differences do not overflow."""
    return keys if keys.dtype == np.uint64 else keys.astype(np.int64, copy=False)


def _repeated_integers(parts: Sequence[NDArray[Any]]) -> int:
    ends = [(part[0], part[-1]) for part in parts]
    if all(last < first for (_, last), (first, _) in pairwise(ends)) and all(
        (part[1:] > part[:-1]).all() for part in parts
    ):
        return 0
    count, low, high = sum(map(len, parts)), min(part.min() for part in parts), max(part.max() for part in parts)
    if int(high) - int(low) < _FLAGS_PER_KEY * count:
        flags = np.zeros(int(high) - int(low) + 1, dtype=bool)
        for part in parts:
            flags[part - low] = True
        return count - int(np.count_nonzero(flags))
    keys = np.sort(np.concatenate(parts))
    return int(np.count_nonzero(keys[1:] == keys[:-1]))
