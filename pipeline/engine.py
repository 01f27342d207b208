"""Arrow to the model's frame, predictions, and the published record batch: the hot path, batch by batch.

Owns the conversion between Arrow, pandas and numpy. Estimators are duck-typed; must not import scikit-learn.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import ContractViolation

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from pipeline.job import Column, JobSpec
    from pipeline.policies import Task

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_NULL_HASH = np.uint64(0xA0761D6478BD642F)
# The values of the column ``variant``.
CHAMPION, CHALLENGER = "champion", "challenger"
# Values that tell whether a text column has few different ones.
_PROBED = 1000


@dataclass(frozen=True)
class Predictions:
    """What a model said about ``n`` rows.

    ``labels`` has shape ``(n,)``: a class of ``estimator.classes_``, or a float64. ``scores`` has shape
    ``(n, n_classes)``, the probabilities in the order of ``estimator.classes_``; ``None`` for regression.
    """

    labels: NDArray[Any]
    scores: NDArray[Any] | None


class Scorer(Protocol):
    """What predicts from Arrow rows: a model as it was trained, or an accelerated form of it."""

    def predict(self, data: pa.RecordBatch | pa.Table) -> Predictions:
        """Predictions for every row of ``data``, which has the model's columns among others.

        A row gets the same bits in whatever batch it comes. Safe to be called from several threads at once. Raises
        `ContractViolation` for columns that do not fit, and for an answer that is not finite.
        """
        ...


@dataclass(frozen=True)
class FrameScorer:
    """A `Scorer` that calls ``estimator`` on the frame of ``columns``: works for every model, and copies every value."""

    estimator: Any
    columns: Mapping[str, Column]
    task: Task

    def predict(self, data: pa.RecordBatch | pa.Table) -> Predictions:
        """`predict` on `to_frame`; raises what they raise."""
        return predict(self.estimator, to_frame(data, self.columns), self.task)


def to_frame(data: pa.Table | pa.RecordBatch, columns: Mapping[str, Column]) -> pd.DataFrame:
    """The feature columns of ``data`` in the order of ``columns``, as models are trained and called with them.

    number becomes float64 and boolean float64 0/1, both with NaN for null; category becomes str objects with None
    for null, whole numbers without a fraction (``7``), booleans as ``true``/``false``. Raises `ContractViolation` for
    a column that is absent or cannot be converted.
    """
    frame = {name: _feature(data, name, column) for name, column in columns.items()}
    return pd.DataFrame(frame, columns=list(columns), index=pd.RangeIndex(data.num_rows), copy=False)


def row_hashes(data: pa.Table | pa.RecordBatch, key: Sequence[str], seed: int = 0) -> NDArray[Any]:
    """A uint64 per row, evenly distributed, that depends on the key's values and ``seed`` only.

    Independent of batch boundaries, row order and physical types: int32 7 and int64 7 hash alike, as do float32 7
    and float64 7, a dictionary and its decoded text, and timestamps of different units (to the microsecond). Raises
    `ContractViolation` for a key column that is absent or nested.
    """
    state = _mix(np.full(data.num_rows, seed % 2**64, dtype=np.uint64))
    for name in key:
        values = _column(data, name)
        try:
            state = _mix(state + _GOLDEN ^ _value_hashes(values))
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as err:
            raise ContractViolation(
                f"key column {name!r} cannot be hashed",
                expected="a column of integers, texts, times or other plain values",
                got=f"{values.type}",
                next_step="choose other columns for features.key",
            ) from err
    return state


def predict(estimator: Any, frame: pd.DataFrame, task: Task) -> Predictions:
    """Labels and scores for every row of ``frame``, from one call of the estimator.

    The label is the most probable class; for ``binary`` the last class if its probability is above one half. Raises
    `ContractViolation` when the model answers with NaN, infinity, or another number of rows or classes.
    """
    if task == "regression":
        return answered(estimator.predict(frame) if len(frame) else [], len(frame), (), task)
    # scikit-learn refuses to look at zero rows.
    empty = np.empty((0, len(estimator.classes_)))
    return answered(estimator.predict_proba(frame) if len(frame) else empty, len(frame), estimator.classes_, task)


def answered(answer: Any, rows: int, classes: Sequence[Any], task: Task) -> Predictions:
    """What a model's ``answer`` for ``rows`` rows says: numbers, shape (rows,), or scores, shape (rows, len(classes)).

    Raises `ContractViolation` for another shape, and for NaN or infinity.
    """
    values = np.asarray(answer, dtype=np.float64)
    if task == "regression":
        _check_answer(values, (rows,))
        return Predictions(values, None)
    _check_answer(values, (rows, len(classes)))
    winner = (values[:, -1] > 0.5).astype(np.intp) if task == "binary" else values.argmax(axis=1)
    return Predictions(np.asarray(classes)[winner], values)


def output_schema(job: JobSpec, input_schema: pa.Schema, classes: Sequence[Any]) -> pa.Schema:
    """The schema of the job's published files, without metadata.

    Key and time columns with their input types; ``prediction`` with the type of the classes, or double; ``score``
    (binary: probability of the last class) or one ``score_<class>`` per class; ``model_version``; and ``variant`` (champion
    or challenger) in a job whose rollouts split partitions.
    """
    kept = dict.fromkeys((*job.features.key, job.features.time))
    fields = [pa.field(name, input_schema.field(name).type) for name in kept]
    if job.task == "regression":
        fields.append(pa.field("prediction", pa.float64()))
    else:
        fields.append(pa.field("prediction", pa.array(np.asarray(classes)).type))
        scores = (
            ["score"] if job.task == "binary" else [f"score_{_text(value)}" for value in np.asarray(classes).tolist()]
        )
        fields += [pa.field(name, pa.float64()) for name in scores]
    variant = [pa.field("variant", pa.string())] if job.promote.rollout.splits else []
    return pa.schema([*fields, pa.field("model_version", pa.int32()), *variant])


def merged(champion: Predictions, challenger: Predictions, is_challengers: NDArray[np.bool_]) -> Predictions:
    """What two models with the same classes said about rows of which each was given its own, in the order of the rows."""

    def woven(own: NDArray[Any], other: NDArray[Any]) -> NDArray[Any]:
        both = np.empty((len(is_challengers), *own.shape[1:]), dtype=np.result_type(own, other))
        both[~is_challengers], both[is_challengers] = own, other
        return both

    labels = woven(champion.labels, challenger.labels)
    if champion.scores is None or challenger.scores is None:
        return Predictions(labels, None)
    return Predictions(labels, woven(champion.scores, challenger.scores))


def output_batch(
    batch: pa.RecordBatch,
    predictions: Predictions,
    schema: pa.Schema,
    model_version: int,
    *,
    challenger_version: int = 0,
    is_challengers: NDArray[np.bool_] | None = None,
) -> pa.RecordBatch:
    """The published rows of ``batch``, in its order, with the ``schema`` of `output_schema`.

    ``challenger_version`` scored the rows that ``is_challengers`` tells, ``model_version`` all others.
    """
    other = np.zeros(batch.num_rows, dtype=bool) if is_challengers is None else is_challengers
    computed = {
        "prediction": pa.array(predictions.labels, schema.field("prediction").type),
        "model_version": pa.array(np.where(other, challenger_version, model_version).astype(np.int32)),
    }
    if "variant" in schema.names:
        computed["variant"] = pc.if_else(pa.array(other), CHALLENGER, CHAMPION)
    if predictions.scores is not None:
        names = [name for name in schema.names if name == "score" or name.startswith("score_")]
        # The one binary score is that of the last class.
        columns = predictions.scores[:, -len(names) :]
        computed |= {name: pa.array(np.ascontiguousarray(columns[:, i])) for i, name in enumerate(names)}
    arrays = [computed[name] if name in computed else batch.column(name) for name in schema.names]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _column(data: pa.Table | pa.RecordBatch, name: str) -> pa.Array:
    """One column as a single array."""
    if data.schema.get_field_index(name) < 0:
        raise ContractViolation(
            f"column {name!r} is not there once",
            expected=f"exactly one column {name!r}",
            got=f"columns {', '.join(data.schema.names)}",
            next_step="correct the input, or the job's columns",
        )
    column = data.column(name)
    if isinstance(column, pa.ChunkedArray):
        # Batches of one table may each carry a dictionary of their own.
        column = column.unify_dictionaries().combine_chunks()
    return column


def numbers(data: pa.Table | pa.RecordBatch, name: str, column: Column) -> NDArray[Any]:
    """The float64 values of a feature column of numbers or booleans, null as NaN; raises what `to_frame` raises."""
    with _reading(data, name, column) as values:
        return _numbers(values)


def categories(
    data: pa.Table | pa.RecordBatch, name: str, column: Column
) -> tuple[list[str | None], NDArray[np.int64]]:
    """The different values of a category column as texts, and which of them each row has; raises what `to_frame` raises.

    The last text is ``None``, for rows without a value. Others may be ``None`` too, may be equal, and may belong to no row.
    """
    with _reading(data, name, column) as values:
        return _encoded(values)


@contextmanager
def _reading(data: pa.Table | pa.RecordBatch, name: str, column: Column) -> Iterator[pa.Array]:
    values = _column(data, name)
    try:
        yield values
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as err:
        raise ContractViolation(
            f"feature column {name!r} cannot be read as {column.type}",
            expected=f"a {column.type} column",
            got=f"{values.type}",
            next_step="correct the input, or the column's type in the job file",
        ) from err


def _feature(data: pa.Table | pa.RecordBatch, name: str, column: Column) -> NDArray[Any]:
    if column.type != "category":
        return numbers(data, name, column)
    texts, codes = categories(data, name, column)
    return np.array(texts, dtype=object).take(codes)


def _numbers(values: pa.Array) -> NDArray[Any]:
    """Values as float64, null as NaN."""
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    # Text that looks like a number is not a number: a column that changed its type must not slip through.
    if not (_is_number(values.type) or pa.types.is_boolean(values.type) or pa.types.is_null(values.type)):
        raise pa.ArrowInvalid(f"{values.type} is not numeric")
    return _numpy(pc.cast(values, pa.float64(), safe=False))


def _encoded(values: pa.Array) -> tuple[list[str | None], NDArray[np.int64]]:
    """Python looks at each distinct value once, not at each row."""
    if pa.types.is_null(values.type):
        return [None], np.zeros(len(values), dtype=np.int64)
    encoded = values if pa.types.is_dictionary(values.type) else _encodable(values).dictionary_encode()
    texts = [_text(value) for value in encoded.dictionary.to_pylist()]
    return [*texts, None], _numpy(pc.fill_null(pc.cast(encoded.indices, pa.int64()), len(texts)))


def _encodable(values: pa.Array) -> pa.Array:
    """The same values in a type that Arrow can dictionary-encode."""
    if values.type == pa.string_view():
        return values.cast(pa.large_string())
    if values.type == pa.float16():
        return values.cast(pa.float32())
    return values


def _text(value: Any) -> str | None:
    """The text of one category; equal values have equal texts, whatever type a file stores them in."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float | Decimal):
        if value != value:  # NaN
            return None
        if value == value // 1:
            return str(int(value))
    if isinstance(value, bytes):
        return value.decode(errors="backslashreplace")
    return str(value)


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind))


def _numpy(values: pa.Array) -> NDArray[Any]:
    array: NDArray[Any] = values.to_numpy(zero_copy_only=False)
    return array


def _value_hashes(values: pa.Array) -> NDArray[Any]:
    """A uint64 per value, equal for equal values of related types."""
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    kind = values.type
    if pa.types.is_floating(kind):
        hashes = _float_hashes(_numpy(_filled(values.cast(pa.float64()), 0.0)))
    elif pa.types.is_integer(kind) or pa.types.is_boolean(kind):
        hashes = _mix(_integers(values, pa.uint64()))
    elif pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        instants = values.cast(pa.timestamp("us", getattr(kind, "tz", None)), safe=False)
        hashes = _mix(_integers(instants, pa.int64()))
    else:
        hashes = _text_hashes(values)
    if values.null_count:
        hashes[_numpy(values.is_null())] = _NULL_HASH
    return hashes


def _filled(values: pa.Array, value: float) -> pa.Array:
    return pc.fill_null(values, value) if values.null_count else values


def _text_hashes(values: pa.Array) -> NDArray[Any]:
    """SipHash, with the fixed key of pandas; of a column with few different values each is hashed once."""
    texts = pa.types.is_string(values.type) or pa.types.is_large_string(values.type)
    few = values[:_PROBED]
    if texts and 2 * pc.count_distinct(few, mode="all").as_py() < len(few):
        encoded = values.dictionary_encode()
        distinct = pd.util.hash_array(_numpy(encoded.dictionary), categorize=False)
        hashes: NDArray[Any] = np.append(distinct, _NULL_HASH)[_numpy(_filled(encoded.indices, len(distinct)))]
        return hashes
    return pd.util.hash_array(_texts(values), categorize=False)


def _integers(values: pa.Array, kind: pa.DataType) -> NDArray[Any]:
    """Values as the 64 bits of an integer (negative ones in two's complement), null as 0."""
    return _numpy(_filled(values.cast(kind, safe=False), 0)).view(np.uint64)


def _float_hashes(values: NDArray[Any]) -> NDArray[Any]:
    """Whole numbers hash like the integer; others by their bits."""
    whole = (np.abs(values) < 2.0**63) & (values == np.floor(values))
    if not whole.any():
        return _mix(values.view(np.uint64))
    bits = np.where(whole, np.where(whole, values, 0.0).astype(np.int64), values.view(np.int64))
    return _mix(bits.view(np.uint64))


def _texts(values: pa.Array) -> NDArray[Any]:
    """Values as str objects, null as None."""
    if pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
        return _numpy(values)
    texts, codes = _encoded(values)
    return np.array(texts, dtype=object).take(codes)


def _mix(bits: NDArray[Any]) -> NDArray[Any]:
    """The finaliser of splitmix64 (Steele, Lea and Flood, 2014): every input bit reaches every output bit."""
    bits = bits ^ (bits >> np.uint64(30))
    bits *= np.uint64(0xBF58476D1CE4E5B9)
    bits ^= bits >> np.uint64(27)
    bits *= np.uint64(0x94D049BB133111EB)
    bits ^= bits >> np.uint64(31)
    return bits


def _check_answer(values: NDArray[Any], shape: tuple[int, ...]) -> None:
    if values.shape != shape:
        raise ContractViolation(
            "the model's answer has another shape than the rows it was given",
            expected=f"shape {shape}",
            got=f"shape {values.shape}",
            next_step="correct the trainer's estimator and train again",
        )
    unusable = ~np.isfinite(values)
    count = int(np.count_nonzero(unusable if values.ndim == 1 else unusable.any(axis=1)))
    if count:
        raise ContractViolation(
            f"the model predicted NaN or infinity for {count} of {len(values)} rows",
            expected="a finite prediction for every row",
            next_step="quarantine such rows with a rule in checks.rules, or roll back to a version that can score them",
        )
