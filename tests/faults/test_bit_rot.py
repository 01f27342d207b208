"""Files that were sound once: after a flipped bit, a misplaced block or a cut they give the same rows, or are refused.

Pages carry checksums, as the files of this product do; footers and the headers of pages have none. There a flip may change
what a column is called or which type it has. It counts as silently wrong when rows are delivered that differ from the
original ones and the schema does not show it, or shows a change that no contract of a job would notice.
"""

from __future__ import annotations

import random
from collections import Counter
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import FileRejected
from pipeline.rules import NUMERIC, kind_of
from pipeline.storage import Inputs
from pipeline.storage.staged import settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

CODECS = ("none", "snappy", "zstd")
ROWS = 2000


@pytest.fixture
def inputs(tmp_path: Path) -> Iterator[Inputs]:
    opened = Inputs(tmp_path / "scratch")
    yield opened
    opened.close()


def table() -> pa.Table:
    """A column of every kind that jobs use; one with many texts, one without nulls, one with a dictionary."""
    rng = np.random.default_rng(11)
    return pa.table(
        {
            "row_id": pa.array(np.arange(ROWS) * 7),
            "event_ts": pa.array(np.arange(ROWS) * 1_000_000, pa.timestamp("us", "UTC")),
            "amount": pa.array(rng.normal(size=ROWS), mask=rng.random(ROWS) < 0.1),
            "short": pa.array(rng.normal(size=ROWS).astype("float32")),
            "count": pa.array(rng.integers(-50, 50, ROWS), pa.int32()),
            "flag": pa.array(rng.random(ROWS) < 0.5),
            "country": rng.choice(["de", "fr", "nl"], ROWS),
            "kind": pa.array(rng.choice(["a", "b"], ROWS)).dictionary_encode(),
            "note": [f"{i:x}" * 3 for i in rng.integers(0, 10**9, ROWS)],
            "price": pa.array(rng.integers(0, 10**6, ROWS)).cast(pa.decimal128(19, 0)).cast(pa.decimal128(24, 2)),
        }
    )


def sound(path: Path, codec: str) -> bytes:
    """The file as the product writes its own, in several row groups."""
    options = {**settings(table().schema), "compression": codec}
    if codec != "zstd":
        del options["compression_level"]
    assert options["write_page_checksum"]
    pq.write_table(table(), path, row_group_size=800, **options)
    return path.read_bytes()


def damaged(content: bytes, chance: random.Random) -> tuple[str, bytes]:
    """The file with one damage, and where that is. Every second flip strikes what has no checksum: the footer."""
    footer = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    kind = chance.choices(["flip", "footer", "splice", "cut"], [4, 4, 1, 1])[0]
    if kind == "cut":
        return kind, content[: chance.randrange(len(content))]
    if kind == "splice":
        length = chance.choice([1, 16, 512, 4096])
        source, target = (chance.randrange(len(content) - length) for _ in range(2))
        return kind, content[:target] + content[source : source + length] + content[target + length :]
    at = chance.randrange(footer if kind == "footer" else 0, len(content))
    return kind, content[:at] + bytes([content[at] ^ 1 << chance.randrange(8)]) + content[at + 1 :]


def outcome(inputs: Inputs, path: Path, original: pa.Table) -> str:
    """``refused``, ``same``, ``retyped`` (told by the schema) or ``wrong``."""
    (file,) = inputs.files(str(path.parent), [""])
    try:
        schema = inputs.schema(file)
        rows = pa.Table.from_batches(inputs.batches([file]), schema)
    except FileRejected:
        return "refused"
    if schema.equals(original.schema):
        return "same" if rows.equals(original) else "wrong"
    if schema.names != original.schema.names:
        return "wrong"
    return "retyped" if all(harmless(rows[name], original[name]) for name in schema.names) else "wrong"


def harmless(column: pa.ChunkedArray, original: pa.ChunkedArray) -> bool:
    """Whether a column has the same values, or a type that a contract would not take for the original one."""
    if column.equals(original) or role(column) != role(original):
        return True
    if pa.types.is_timestamp(column.type) and column.type.unit == original.type.unit:
        return bool(column.cast(pa.int64()).equals(original.cast(pa.int64())))  # another zone, the same instants
    if pa.types.is_dictionary(original.type):
        return bool(column.cast(pa.string()).equals(original.cast(pa.string())))
    return False


def role(column: pa.ChunkedArray) -> str:
    """What a job may use the column for, as far as its type decides."""
    kind = kind_of(column.type)
    return "number" if kind in NUMERIC else kind


def test_no_damage_makes_a_sound_file_give_other_rows(
    inputs: Inputs, tmp_path: Path, scale: Callable[[int, int], int], figures: Callable[..., None]
) -> None:
    attacks, original, chance = scale(90, 3000), table(), random.Random(20260101)
    folder = tmp_path / "in"
    folder.mkdir()
    path = folder / "part-0.parquet"
    counts: Counter[str] = Counter()
    for codec in CODECS:
        content = sound(path, codec)
        assert outcome(inputs, path, original) == "same"
        struck = 0
        while struck < attacks / len(CODECS):
            kind, broken = damaged(content, chance)
            if broken == content:
                continue  # a splice of a block onto an equal one
            struck += 1
            path.write_bytes(broken)
            found = outcome(inputs, path, original)
            assert found != "wrong", (codec, kind, struck)
            counts[f"{kind} {found}"] += 1
    assert sum(counts.values()) == attacks
    assert {"flip", "footer", "splice", "cut"} == {name.split()[0] for name in counts}
    assert sum(count for name, count in counts.items() if name.endswith("refused")) > attacks / 2
    figures("bit rot", attacks=attacks, wrong=0, **dict(sorted(counts.items())))


def test_without_checksums_the_same_flips_do_give_other_rows(inputs: Inputs, tmp_path: Path) -> None:
    """The proof that the attack would find what it looks for."""
    path = tmp_path / "in" / "part-0.parquet"
    path.parent.mkdir()
    original = table()
    pq.write_table(original, path, compression="none", use_dictionary=False)
    content, chance = path.read_bytes(), random.Random(3)
    found: Counter[str] = Counter()
    for _ in range(20):
        at = chance.randrange(len(content) // 2)
        path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        found[outcome(inputs, path, original)] += 1
    assert found["wrong"] > 5
