"""The accelerated form of a model as a value: which inputs it reads, its arrays, and the bytes that a version keeps of it.

The bytes are a function of the value alone. Reading them runs no code and believes nothing: every index is checked.
"""

from __future__ import annotations

import io
import json
import zipfile
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline import engine
from pipeline.acceleration.features import NotAccelerable, applied

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pyarrow as pa
    from numpy.typing import NDArray

    from pipeline.job import Column

_PLAN = "plan.json"
# What a large model of scikit-learn takes itself; more would make every scoring process wait for it.
_MOST_BYTES = 256 * 2**20


class Refused(Exception):
    """The rows hold a value that the model itself does not take; it is to say so in its own words."""


@dataclass(frozen=True)
class Input:
    """One input column, its levels if it holds categories, and which values the model refuses.

    ``refuses`` has any of "missing", "infinite" and "unknown".
    """

    column: str
    levels: tuple[str, ...] | None
    refuses: tuple[str, ...] = ()

    @cached_property
    def _code_of(self) -> dict[str | None, int]:
        levels = self.levels or ()
        return {**{level: code for code, level in enumerate(levels)}, None: len(levels)}

    def codes(self, data: pa.RecordBatch, column: Column) -> NDArray[np.int64]:
        """The number of each row's level; after the levels come missing and unknown. Raises `Refused`."""
        texts, which = engine.categories(data, self.column, column)
        missing = len(self.levels or ())
        codes = np.array([self._code_of.get(text, missing + 1) for text in texts], dtype=np.int64).take(which)
        for name, code in (("missing", missing), ("unknown", missing + 1)):
            if name in self.refuses and (codes == code).any():
                raise Refused(name)
        return codes

    def numbers(self, data: pa.RecordBatch, column: Column) -> NDArray[np.float64]:
        """The column's values, NaN for missing. Raises `Refused`."""
        values = engine.numbers(data, self.column, column)
        if "missing" in self.refuses and np.isnan(values).any():
            raise Refused("missing")
        if "infinite" in self.refuses and np.isinf(values).any():
            raise Refused("infinite")
        return values


@dataclass(frozen=True)
class Term:
    """One thing that is computed of an input: a number after ``steps``, or what belongs to each level."""

    input: int
    steps: tuple[tuple[str, float], ...] = ()

    def numbers(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """The values after the steps; what overflows is infinite."""
        with np.errstate(over="ignore", invalid="ignore"):
            return np.ascontiguousarray(applied(self.steps, values))


@dataclass(frozen=True)
class Program:
    """What an accelerated model is: its kind, how sums become predictions, what it reads, and its arrays by name.

    ``link`` is "identity", "probabilities", "expit" (one sum) or "softmax".
    """

    kind: str
    link: str
    inputs: tuple[Input, ...]
    terms: tuple[Term, ...]
    arrays: Mapping[str, NDArray[Any]]

    def to_bytes(self) -> bytes:
        """A ZIP of the plan and one .npy per array, without compression and dates."""
        if sum(array.nbytes for array in self.arrays.values()) > _MOST_BYTES:
            raise NotAccelerable(f"its accelerated form would have more than {_MOST_BYTES // 2**20} MiB")
        plan = {"kind": self.kind, "link": self.link, "inputs": [asdict(i) for i in self.inputs]}
        plan["terms"] = [asdict(term) for term in self.terms]
        content = io.BytesIO()
        with zipfile.ZipFile(content, "w") as archive:
            archive.writestr(zipfile.ZipInfo(_PLAN), json.dumps(plan, sort_keys=True))
            for name, array in sorted(self.arrays.items()):
                member = io.BytesIO()
                np.save(member, np.ascontiguousarray(array), allow_pickle=False)
                archive.writestr(zipfile.ZipInfo(f"{name}.npy"), member.getvalue())
        return content.getvalue()

    @classmethod
    def from_bytes(cls, content: bytes) -> Program:
        """The value that `to_bytes` wrote; its arrays are to be checked by the kind they belong to."""
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            plan = json.loads(archive.read(_PLAN))
            arrays = {
                name.removesuffix(".npy"): np.load(io.BytesIO(archive.read(name)), allow_pickle=False)
                for name in archive.namelist()
                if name != _PLAN
            }
        inputs = tuple(
            Input(i["column"], None if i["levels"] is None else tuple(i["levels"]), tuple(i["refuses"]))
            for i in plan["inputs"]
        )
        terms = tuple(Term(term["input"], tuple((name, by) for name, by in term["steps"])) for term in plan["terms"])
        return cls(plan["kind"], plan["link"], inputs, terms, arrays)

    def read(self, data: pa.RecordBatch, columns: Mapping[str, Column]) -> list[NDArray[Any]]:
        """The values of every input, in their order: float64 for numbers, int64 codes for categories.

        Raises `Refused`, and `ContractViolation` for a column that is absent or of another type.
        """
        return [
            i.numbers(data, columns[i.column]) if i.levels is None else i.codes(data, columns[i.column])
            for i in self.inputs
        ]


def linked(link: str, sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sums, shape (n, k), as what the estimator answers: (n,) numbers, or (n, classes) probabilities.

    Every value is computed from its own row alone, in one order.
    """
    if link == "identity":
        return sums[:, 0]
    if link == "probabilities":
        return sums
    if link == "expit":
        from scipy.special import expit

        positive = expit(sums[:, 0])
        return np.stack([1 - positive, positive], axis=1)
    shares = np.exp(sums - sums.max(axis=1, keepdims=True))
    total = shares[:, 0].copy()
    for c in range(1, shares.shape[1]):
        total += shares[:, c]
    shares /= total[:, None]
    return np.asarray(shares)


def check(is_sound: bool) -> None:
    """Raise ``ValueError`` when the arrays of a program do not fit together."""
    if not is_sound:
        raise ValueError("the arrays of the accelerated model do not fit together")
