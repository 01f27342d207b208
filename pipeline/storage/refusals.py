"""Why an input file is refused: the codes that users see, what each means, and the way out."""

from __future__ import annotations

from pipeline.errors import FileRejected

_AGAIN = "have the file delivered again, or take it out of the folder"
_REWRITE = "have the producer write the file differently, or take it out of the folder"

# Code -> (what is said of the file, the way out). Codes are stable: manifests and quarantine summaries carry them.
REFUSALS: dict[str, tuple[str, str]] = {
    # A folder entry that is named like a file but is a pipe, a device, or a link to nothing.
    "not_a_file": ("is not readable as Parquet", _AGAIN),
    # Empty, too short, or without Parquet's marks at both ends: another format, or an upload that was cut off.
    "not_parquet": ("is not readable as Parquet", _AGAIN),
    # Its footer or a page contradicts itself or its checksum; also a file whose parts contradict each other.
    "corrupt": ("is not readable as Parquet", _AGAIN),
    # Its footer or its columns are encrypted; no keys are ever given to the reader.
    "encrypted": ("is encrypted", _REWRITE),
    # Compressed with something else than snappy, gzip, brotli, zstd or lz4.
    "codec": ("is compressed with a codec that is not allowed", _REWRITE),
    # Declares more columns, row groups or bytes than any sound file of its size holds, or a row that exceeds the memory.
    "too_large": ("declares to hold more than is allowed", _REWRITE),
    # Two columns have one name; which of them is meant cannot be known.
    "duplicate_columns": ("has ambiguous columns", _REWRITE),
    # Valid as far as it is known, but of a kind that the Parquet library cannot read.
    "unsupported": ("uses a part of Parquet that cannot be read", _REWRITE),
    # Nothing came from the reading process for too long; it was ended.
    "timeout": ("could not be read in time", _REWRITE),
    # Decoding it needed more memory than reading is allowed (PIPELINE_READ_MEMORY_MB).
    "memory": ("needs more memory than reading may take", _REWRITE),
    # The reading process died of it.
    "crashed": ("crashed the reading process", _AGAIN),
}


_LONGEST = 400


def rejected(uri: str, path: str, code: str, got: str, rows: int | None = None) -> FileRejected:
    """The `FileRejected` for the file ``uri``, which is ``path`` below its root and declares ``rows``."""
    said, advice = REFUSALS[code]
    # It may quote the file: names of any length with line ends and control characters in them.
    got = "".join(char if char.isprintable() else " " for char in got[:_LONGEST])
    return FileRejected(f"{uri} {said}", path=path, code=code, rows=rows, got=f"{code}: {got}", next_step=advice)
