"""The hash chain of a job's decisions and promotions: what a record's link covers, and how it is computed.

Pure: the ledger writes the links, the audit computes them again.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

Kind = Literal["decision", "promotion"]


@dataclass(frozen=True, slots=True)
class Record:
    """One row of the ledger as it is stored: every column by name, but for the link itself.

    ``position`` counts the job's decisions and promotions together, from 1, in order of recording.
    """

    kind: Kind
    columns: Mapping[str, object]
    chain: str

    @property
    def position(self) -> object:
        """Where the record says that it stands in the job's chain."""
        return self.columns["position"]

    def link(self, previous: str) -> str:
        """The link that the record must have after the link ``previous``."""
        return link(previous, self.kind, self.columns)

    def __str__(self) -> str:
        name = self.columns.get("decision")
        return f"{self.kind} {name}" if name else f"{self.kind} in row {self.columns['id']}"


def link(previous: str, kind: Kind, columns: Mapping[str, object]) -> str:
    """SHA-256 in hex over ``previous`` (empty for the first record), the kind, and all columns by name.

    They are written as one JSON array with sorted names, so that no text can pass for the end of another one.
    """
    content = json.dumps([previous, kind, dict(columns)], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(content.encode("ascii")).hexdigest()
