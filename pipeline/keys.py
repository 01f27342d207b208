"""Exact detection of repeated row keys over a stream of record batches.

Memory is bounded where there is a `Shelf` for keys that are full of gaps or no numbers; numbers without gaps take none. Must
not loop over rows in Python.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

# Rows hashed at once: bounds the temporary arrays, which take about 24 bytes per byte of key.
_ROWS_AT_ONCE = 32_768


# A run of keys that has grown to this is given to the shelf and grows no more.
_SHELVED_BYTES = 64 << 20
# Fewer whole numbers in a row are not worth a stretch of their own.
_SHORTEST_STRETCH = 1024
# Whole numbers of the width of other numbers.
_WIDTHS = {16: pa.int16(), 32: pa.int32(), 64: pa.int64()}


class Shelf(Protocol):
    """Room for sorted keys outside of this process's memory."""

    def keep(self, values: NDArray[Any]) -> NDArray[Any]:
        """The same values, read from elsewhere whenever they are looked at."""

    def rest(self) -> None:
        """Give back the memory that looking at what was kept has taken."""


class SeenKeys:
    """All keys so far, as sorted runs that merge like those of a log-structured tree: n keys cost n log n in total.

    A single integer column is kept as it is, and as first and last number where none in between is left out. Any other key
    becomes one binary value, found through a 64-bit hash and then compared byte by byte, so that two keys that share
    a hash are still two keys. With a ``shelf``, runs of 64 MiB are kept there; each then takes part in every look-up.
    """

    def __init__(self, shelf: Shelf | None = None) -> None:
        self._shelf = shelf
        # Per run: sorted integers or hashes, and the binary keys in the same order.
        self._runs: list[tuple[NDArray[Any], pa.Array | None]] = []
        self._shelved: list[tuple[NDArray[Any], pa.Array | None]] = []
        self._stretches: _Stretches | None = None

    def repeated(self, columns: Sequence[pa.Array]) -> NDArray[np.bool_]:
        """Which rows repeat the key of an earlier row, of this call or a previous one; the other rows' keys are remembered.

        ``columns`` are the key columns, of integers, text or times, without nulls, in the same order in every call.
        """
        if len(columns) == 1 and pa.types.is_integer(columns[0].type):
            binary, hashes = None, columns[0].to_numpy(zero_copy_only=False)
        else:
            binary = _as_binary(columns)
            hashes = _hashes(binary)
        repeated = np.zeros(len(hashes), dtype=bool)
        order = np.argsort(hashes, kind="stable")
        if binary is None:
            ascending = hashes[order]
            repeated[order[1:][ascending[1:] == ascending[:-1]]] = True
        else:
            # Codes are given in order of first appearance: a row repeats a key when its code is not a new maximum.
            codes = binary.dictionary_encode().indices.to_numpy(zero_copy_only=False)
            repeated[1:] = codes[1:] <= np.maximum.accumulate(codes)[:-1]
        fresh = order[~repeated[order]]
        sorted_hashes = hashes[fresh]
        sorted_keys = None if binary is None else binary.take(pa.array(fresh))
        known = np.zeros(len(fresh), dtype=bool)
        if self._stretches is not None:
            known |= self._stretches.hold(sorted_hashes)
        for run in (*self._runs, *self._shelved):
            known |= _found(sorted_hashes, sorted_keys, *run)
        if self._shelved and self._shelf is not None:
            self._shelf.rest()
        repeated[fresh[known]] = True
        self._remember(sorted_hashes[~known], None if sorted_keys is None else sorted_keys.filter(pa.array(~known)))
        return repeated

    def _remember(self, hashes: NDArray[Any], keys: pa.Array | None) -> None:
        if not len(hashes):
            return
        if keys is None and len(hashes) >= _SHORTEST_STRETCH and int(hashes[-1]) - int(hashes[0]) == len(hashes) - 1:
            if self._stretches is None:
                self._stretches = _Stretches(hashes.dtype)
            self._stretches.add(hashes[0], hashes[-1])
            return
        while self._runs and len(self._runs[-1][0]) <= 2 * len(hashes):
            other_hashes, other_keys = self._runs.pop()
            hashes = np.concatenate([other_hashes, hashes])
            if keys is None:
                hashes.sort(kind="stable")
                continue
            # A stable sort merges two sorted stretches in linear time.
            order = np.argsort(hashes, kind="stable")
            hashes = hashes[order]
            keys = pa.concat_arrays([other_keys, keys]).take(pa.array(order))
        if self._shelf is not None and hashes.nbytes + (0 if keys is None else keys.nbytes) >= _SHELVED_BYTES:
            self._shelved.append((self._shelf.keep(hashes), None if keys is None else _kept(keys, self._shelf)))
        else:
            self._runs.append((hashes, keys))


class _Stretches:
    """Sets of consecutive whole numbers by their ends, both inclusive."""

    def __init__(self, kind: np.dtype[Any]) -> None:
        self._first, self._last = np.empty(0, kind), np.empty(0, kind)

    def add(self, first: np.integer[Any], last: np.integer[Any]) -> None:
        """Add numbers none of which is held already."""
        at = int(np.searchsorted(self._first, first))
        # An end that another stretch touches is no end any more.
        touches_before = at > 0 and int(self._last[at - 1]) + 1 == int(first)
        touches_after = at < len(self._first) and int(last) + 1 == int(self._first[at])
        if touches_before and touches_after:
            self._first, self._last = np.delete(self._first, at), np.delete(self._last, at - 1)
        elif touches_before:
            self._last[at - 1] = last
        elif touches_after:
            self._first[at] = first
        else:
            self._first, self._last = np.insert(self._first, at, first), np.insert(self._last, at, last)

    def hold(self, numbers: NDArray[Any]) -> NDArray[np.bool_]:
        """Which of the numbers are held."""
        at = np.searchsorted(self._first, numbers, side="right") - 1
        found: NDArray[np.bool_] = (at >= 0) & (numbers <= self._last[at])
        return found


def _kept(keys: pa.LargeBinaryArray, shelf: Shelf) -> pa.LargeBinaryArray:
    buffers = keys.buffers()
    offsets = np.frombuffer(buffers[1], np.int64)[keys.offset : keys.offset + len(keys) + 1]
    data = np.frombuffer(buffers[2] or b"", np.uint8)[offsets[0] : offsets[-1]]
    parts = [pa.py_buffer(shelf.keep(part)) for part in (offsets - offsets[0], data)]
    return pa.LargeBinaryArray.from_buffers(pa.large_binary(), len(keys), [None, *parts])


def _found(
    hashes: NDArray[Any], keys: pa.Array | None, run_hashes: NDArray[Any], run_keys: pa.Array | None
) -> NDArray[np.bool_]:
    """Which of the sorted keys are in the run."""
    found = np.zeros(len(hashes), dtype=bool)
    if not len(hashes) or hashes[0] > run_hashes[-1] or hashes[-1] < run_hashes[0]:
        return found
    at = np.searchsorted(run_hashes, hashes)
    if keys is None or run_keys is None:
        found[:] = run_hashes[np.minimum(at, len(run_hashes) - 1)] == hashes
        return found
    pending = np.arange(len(hashes))
    # Keys that share a hash lie side by side; nearly always this loop runs once.
    while len(pending := pending[at[pending] < len(run_hashes)]):
        pending = pending[run_hashes[at[pending]] == hashes[pending]]
        same = pc.equal(keys.take(pa.array(pending)), run_keys.take(pa.array(at[pending])))
        found[pending] = same.to_numpy(zero_copy_only=False)
        pending = pending[~found[pending]]
        at[pending] += 1
    return found


def _as_binary(columns: Sequence[pa.Array]) -> pa.LargeBinaryArray:
    """One unambiguous binary value per row: every part but the last is preceded by its length."""
    parts = []
    for column in columns:
        if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
            column = _integers(column).cast(pa.string())
        value = column.cast(pa.large_binary())
        length = pc.binary_length(value).cast(pa.string()).cast(pa.large_binary())
        parts += [length, pa.scalar(b":", pa.large_binary()), value]
    if len(columns) == 1:
        return parts[-1]
    return pc.binary_join_element_wise(*parts[:-3], parts[-1], pa.scalar(b"", pa.large_binary()))


def _integers(column: pa.Array) -> pa.Array:
    if pa.types.is_integer(column.type):
        return column
    return column.view(pa.int32() if pa.types.is_date32(column.type) else pa.int64())


def _hashes(keys: pa.LargeBinaryArray) -> NDArray[np.uint64]:
    """A 64-bit multilinear hash per key: the sum of each byte times its position's pseudo-random weight, modulo 2**64."""
    buffers = keys.buffers()
    offsets = np.frombuffer(buffers[1], np.int64)[keys.offset : keys.offset + len(keys) + 1]
    data = np.frombuffer(buffers[2] or b"", np.uint8)
    longest = int(np.diff(offsets).max(initial=0))
    weights = _mixed(np.arange(1, longest + 1, dtype=np.uint64))
    stretches = range(0, len(keys), _ROWS_AT_ONCE)
    pieces = [_stretch_hashes(offsets[i : i + _ROWS_AT_ONCE + 1], data, weights) for i in stretches]
    return np.concatenate(pieces) if pieces else np.empty(0, dtype=np.uint64)


def _stretch_hashes(
    offsets: NDArray[np.int64], data: NDArray[np.uint8], weights: NDArray[np.uint64]
) -> NDArray[np.uint64]:
    lengths = np.diff(offsets)
    starts = offsets[:-1] - offsets[0]
    positions = np.arange(offsets[-1] - offsets[0]) - np.repeat(starts, lengths)
    # Plus one, so that a zero byte counts too.
    terms = (data[offsets[0] : offsets[-1]].astype(np.uint64) + np.uint64(1)) * weights[positions]
    sums = np.concatenate([np.zeros(1, dtype=np.uint64), np.cumsum(terms, dtype=np.uint64)])
    hashes: NDArray[np.uint64] = sums[starts + lengths] - sums[starts]
    return hashes


def hashed(column: pa.Array) -> NDArray[np.uint64]:
    """A 64-bit hash per value of numbers, booleans, times, text or bytes, the same on every machine; a null counts as zero."""
    kind = column.type
    if pa.types.is_boolean(kind):
        column = column.cast(pa.int8())
    elif not pa.types.is_integer(kind):
        width = _WIDTHS.get(kind.bit_width) if pa.types.is_primitive(kind) else None
        if width is None:
            return _hashes(pc.fill_null(column.cast(pa.large_binary()), b""))
        column = column.view(width)
    return _mixed(pc.fill_null(column, 0).to_numpy(zero_copy_only=False).astype(np.uint64))


def _mixed(numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The SplitMix64 finaliser (Steele, Lea and Flood 2014), an even spread of counters over 64 bits."""
    z = numbers * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
