"""Proof that the rows of a file are told apart by their keys: exact, and fast enough to be made at every publishing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from pipeline.keys import SeenKeys

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from numpy.typing import NDArray

    from pipeline.keys import Shelf

# More keys than this are not held in memory.
_HELD_BYTES = 64 << 20
# Whole numbers are flagged in a table while it is not larger than they are; else they are sorted.
_FLAGS_PER_KEY = 8


def faults(read: Callable[[], Iterable[pa.RecordBatch]], columns: Sequence[str], shelf: Shelf | None = None) -> str:
    """What keeps the ``columns`` of the batches from telling the rows apart, in words; empty when nothing does.

    ``read`` gives the batches, once or twice. Numbers that ascend need no memory, up to 64 MiB of other keys are held,
    and more go to the ``shelf``.
    """
    ascending, size, last = True, 0, None
    for batch in read():
        for name in columns:
            if nulls := batch.column(name).null_count:
                return f"{nulls} rows have no {name}"
        size += sum(_plain(batch.column(name)).nbytes for name in columns)
        ascending = ascending and _ascends(batch, columns, last)
        last = batch.column(columns[0])[-1].as_py() if batch.num_rows else last
    if ascending:
        return ""
    keys = (pa.record_batch([_plain(batch.column(name)) for name in columns], list(columns)) for batch in read())
    if size <= _HELD_BYTES:
        repeated = _repeated(list(keys))
    else:
        seen = SeenKeys(shelf)
        repeated = sum(int(np.count_nonzero(seen.repeated(key.columns))) for key in keys)
    return f"{repeated} rows repeat the {', '.join(columns)} of another row" if repeated else ""


def _ascends(batch: pa.RecordBatch, columns: Sequence[str], last: Any) -> bool:
    """Whether a single column of whole numbers goes on above ``last`` and never down or twice."""
    column = batch.column(columns[0])
    if len(columns) > 1 or not pa.types.is_integer(column.type):
        return False
    numbers = column.to_numpy()
    if len(numbers) and last is not None and int(numbers[0]) <= last:
        return False
    return bool((numbers[1:] > numbers[:-1]).all())


def _plain(column: pa.Array) -> pa.Array:
    return column.dictionary_decode() if pa.types.is_dictionary(column.type) else column


def _repeated(keys: list[pa.RecordBatch]) -> int:
    """How many rows have the key of an earlier one."""
    names, types = keys[0].schema.names, keys[0].schema.types
    if len(types) == 1 and pa.types.is_integer(types[0]):
        return _repeated_integers(np.concatenate([_wide(key.column(0).to_numpy()) for key in keys]))
    table = pa.Table.from_batches(keys)
    return int(table.num_rows - pa.TableGroupBy(table, names, use_threads=False).aggregate([]).num_rows)


def _wide(keys: NDArray[Any]) -> NDArray[Any]:
    """The same whole numbers in 64 bits, so that their differences do not overflow."""
    return keys if keys.dtype == np.uint64 else keys.astype(np.int64, copy=False)


def _repeated_integers(keys: NDArray[Any]) -> int:
    low, high = int(keys.min()), int(keys.max())
    if high - low < _FLAGS_PER_KEY * len(keys):
        flags = np.zeros(high - low + 1, dtype=bool)
        flags[keys - keys.dtype.type(low)] = True
        return len(keys) - int(np.count_nonzero(flags))
    keys.sort()
    return int(np.count_nonzero(keys[1:] == keys[:-1]))
