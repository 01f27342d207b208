"""A bounded, deterministic sample of a stream of record batches."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from pipeline.engine import row_hashes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray


def plain(rows: pa.Table | pa.RecordBatch) -> pa.Table:
    """The rows with dictionaries decoded: files may encode the same column differently, and joins need one type."""
    table = rows if isinstance(rows, pa.Table) else pa.Table.from_batches([rows])
    for position, field in enumerate(table.schema):
        if pa.types.is_dictionary(field.type):
            table = table.set_column(position, field.name, table.column(position).cast(field.type.value_type))
    return table


class KeySample:
    """The rows whose keys hash lowest: at most ``size`` rows, the same ones whatever the order or batching.

    Bottom-k sampling by key hash: uniform over keys, and memory stays at a small multiple of ``size`` rows. With
    ``size`` rows or fewer everything is kept. Rows stay in the order of arrival.
    """

    def __init__(self, key: Sequence[str], size: int, seed: int = 0) -> None:
        self._key, self._size, self._seed = key, size, seed
        self._batches: list[pa.Table] = []
        self._hashes: list[NDArray[np.uint64]] = []
        self._held = 0
        self.seen = 0

    def add(self, rows: pa.Table | pa.RecordBatch) -> None:
        """Offer rows; all calls must use one schema."""
        if rows.num_rows == 0 and self._batches:
            return
        table = plain(rows)
        self._batches.append(table)
        self._hashes.append(row_hashes(table, self._key, self._seed))
        self._held += table.num_rows
        self.seen += table.num_rows
        if self._held > 2 * self._size:
            self._prune()

    def table(self) -> pa.Table | None:
        """The sample; ``None`` when nothing was ever offered."""
        if self._held > self._size:
            self._prune()
        return pa.concat_tables(self._batches) if self._batches else None

    def _prune(self) -> None:
        hashes = np.concatenate(self._hashes)
        kept = np.sort(np.argpartition(hashes, self._size - 1)[: self._size])
        # Equal keys have equal hashes; which of them stays must not depend on the partition algorithm.
        limit = hashes[kept].max()
        kept = np.flatnonzero(hashes <= limit)[: self._size]
        self._batches = [pa.concat_tables(self._batches).take(pa.array(kept)).combine_chunks()]
        self._hashes = [hashes[kept]]
        self._held = len(kept)
