"""Parquet files, read strictly: checksums verified, and never more or fewer rows or columns than promised."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import ContractViolation
from pipeline.storage.places import BLOCK

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

ROW_GROUP = 131_072
# Buffered reads without prefetching keep memory flat: 163 MB instead of 463 MB for a row group of 314 MB, no slower.
_READER = {"pre_buffer": False, "buffer_size": BLOCK, "page_checksum_verification": True}
_LIBRARY_KEYS = {b"ARROW:schema", b"pandas"}


@contextmanager
def opened(path: Path, uri: str) -> Iterator[pq.ParquetFile]:
    """The local file ``path``, read under the name ``uri``; what is corrupt raises `ContractViolation`, also later."""
    with _readable(uri), pa.OSFile(str(path)) as source, pq.ParquetFile(source, **_READER) as parquet:
        yield parquet


def footer(stream: BinaryIO, uri: str, advice: str = "") -> pq.FileMetaData:
    """The footer of the open file ``uri``; ``advice`` is the way out that a `ContractViolation` names."""
    with _readable(uri, advice):
        return pq.read_metadata(stream)


def own_metadata(footer: pq.FileMetaData) -> dict[str, str]:
    """The key-value pairs of a footer without those that libraries put there for themselves."""
    pairs = footer.metadata or {}
    return {key.decode(): value.decode() for key, value in pairs.items() if key not in _LIBRARY_KEYS}


def table(parquet: pq.ParquetFile, uri: str, columns: Sequence[str] | None) -> pa.Table:
    """All rows at once, under the conditions of `batches`."""
    names = _projection(parquet, uri, columns)
    read = parquet.read(names)
    _require_rows(parquet, uri, read.num_rows)
    return read


def _require_rows(parquet: pq.ParquetFile, uri: str, read: int) -> None:
    # pyarrow reads what the row groups say and never compares it with the total. Some writers leave the total at zero.
    footer = parquet.metadata
    promised = footer.num_rows or sum(footer.row_group(group).num_rows for group in range(footer.num_row_groups))
    if read != promised:
        raise unreadable(uri, f"{read} rows where its footer promises {promised}")


def _projection(parquet: pq.ParquetFile, uri: str, columns: Sequence[str] | None) -> list[str]:
    """The columns to read, by default all; raises `ContractViolation` when one is absent or a name occurs twice."""
    names = list(parquet.schema_arrow.names)
    if len(set(names)) < len(names):
        raise unreadable(uri, f"column names occur twice: {', '.join(sorted(names))}")
    if absent := [name for name in columns or () if name not in names]:
        raise ContractViolation(
            f"{uri} lacks columns",
            expected=", ".join(absent),
            got=", ".join(names),
            next_step="correct the file or the job's columns",
        )
    return names if columns is None else list(columns)


def unreadable(uri: str, reason: str, advice: str = "") -> ContractViolation:
    """The `ContractViolation` for a file that is not what its name says; ``advice`` is its way out."""
    return ContractViolation(
        f"{uri} is not readable as Parquet",
        got=reason,
        next_step=advice or "have the file delivered again, or take it out of the folder",
    )


@contextmanager
def _readable(uri: str, advice: str = "") -> Iterator[None]:
    """Turn what pyarrow says of a corrupt file into `ContractViolation`; failures of the disk pass."""
    try:
        yield
    except (pa.ArrowException, UnicodeDecodeError) as err:
        raise unreadable(uri, str(err), advice) from err
    except OSError as err:
        # pyarrow reports broken pages as a bare OSError without a number.
        if type(err) is not OSError or err.errno is not None:
            raise
        raise unreadable(uri, str(err), advice) from err
