"""One way to overwrite a partition that readers can trust, and two that they cannot: what proves that an attack sees faults."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from pipeline.storage import Storage, Target

if TYPE_CHECKING:
    from datetime import datetime

_PARTS = 5


class Writer(Protocol):
    """Something that makes ``table`` the whole content of one partition of a data set."""

    def publish(self, root: str, partition: str, table: pa.Table) -> None:
        """Overwrite ``<root>/<partition>``; ``partition`` is a Hive string such as ``ds=2026-01-31``."""


@dataclass(frozen=True)
class Product:
    """The product's own way: stage beside the root, verify, replace; ``scratch`` as in `Storage`."""

    scratch: str

    @property
    def storage(self) -> Storage:
        """The storage that publishes."""
        return Storage(Path(self.scratch))

    def publish(self, root: str, partition: str, table: pa.Table) -> None:
        with self.storage.stage(Target(root, partition), table.schema) as staged:
            for batch in table.to_batches():
                staged.write(batch)
            staged.publish(expected_rows=table.num_rows)

    def sweep(self, root: str, before: datetime) -> list[str]:
        """Remove what was left or superseded before an instant; the URIs that were removed."""
        return self.storage.sweep(root, staged_before=before, superseded_before=before)


@dataclass(frozen=True)
class DeleteMatching:
    """Wrong: pyarrow deletes the partition first and then writes its files; in between some of them are not there."""

    def publish(self, root: str, partition: str, table: pa.Table) -> None:
        key, _, value = partition.partition("=")
        ds.write_dataset(
            table.append_column(key, pa.array([value] * table.num_rows, pa.string())),
            root,
            format="parquet",
            partitioning=ds.partitioning(pa.schema([(key, pa.string())]), flavor="hive"),
            basename_template="part-{i}.parquet",
            existing_data_behavior="delete_matching",
            max_rows_per_file=_part(table),
            max_rows_per_group=_part(table),
        )


@dataclass(frozen=True)
class InPlace:
    """Wrong: the file that readers have open is emptied and written again."""

    def publish(self, root: str, partition: str, table: pa.Table) -> None:
        folder = Path(root, partition)
        folder.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, folder / "part-0.parquet", row_group_size=_part(table))


def _part(table: pa.Table) -> int:
    return int(table.num_rows) // _PARTS + 1
