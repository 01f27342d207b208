"""Arrow to frames, hashes and published batches, on real Arrow data and real scikit-learn estimators."""

from __future__ import annotations

from datetime import UTC, date, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from sklearn.dummy import DummyClassifier, DummyRegressor
from sklearn.linear_model import LogisticRegression

from pipeline import engine
from pipeline.errors import ContractViolation
from pipeline.job import Column

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipeline.job import JobSpec

NUMBER, CATEGORY, BOOLEAN = (Column(type=kind) for kind in ("number", "category", "boolean"))


def one(values: pa.Array | pa.ChunkedArray, column: Column) -> list[Any]:
    """One column through `to_frame`, NaN as None."""
    frame = engine.to_frame(pa.table({"x": values}), {"x": column})
    return [None if value is None or value != value else value for value in frame["x"]]


def test_to_frame_gives_exactly_the_declared_columns_in_their_order() -> None:
    table = pa.table({"a": [1], "b": ["x"], "c": [True], "unused": [0]})
    frame = engine.to_frame(table, {"c": BOOLEAN, "a": NUMBER, "b": CATEGORY})
    assert list(frame.columns) == ["c", "a", "b"]
    assert [str(kind) for kind in frame.dtypes] == ["float64", "float64", "object"]


@pytest.mark.parametrize(
    "values",
    [
        pa.array([1, None, 3], pa.int8()),
        pa.array([1, None, 3], pa.uint64()),
        pa.array([1.0, None, 3.0], pa.float32()),
        pa.array([1.0, None, 3.0], pa.float16()),
        pa.array([Decimal("1.00"), None, Decimal("3.00")]),
        pa.array([1, None, 3]).dictionary_encode(),
        pa.chunked_array([pa.array([1]), pa.array([None, 3])]),
        pa.chunked_array([pa.array([1]).dictionary_encode(), pa.array([None, 3]).dictionary_encode()]),
    ],
    ids=lambda values: str(values.type),
)
def test_numbers_of_any_type_become_float64_with_nan_for_null(values: pa.Array) -> None:
    assert one(values, NUMBER) == [1.0, None, 3.0]


@pytest.mark.parametrize(
    ("values", "texts"),
    [
        (pa.array(["a", None, "a"]), ["a", None, "a"]),
        (pa.array(["a", None], pa.large_string()), ["a", None]),
        (pa.array(["a", None], pa.string_view()), ["a", None]),
        (pa.array(["b", None, "a"]).dictionary_encode(), ["b", None, "a"]),
        (pa.DictionaryArray.from_arrays([0, 1, None], ["a", None]), ["a", None, None]),
        (
            pa.chunked_array([pa.array(["a"]).dictionary_encode(), pa.array(["b", "a"]).dictionary_encode()]),
            ["a", "b", "a"],
        ),
        (pa.array([7, None, -1], pa.int16()), ["7", None, "-1"]),
        (pa.array([7.0, float("nan"), None, 7.5, -0.0]), ["7", None, None, "7.5", "0"]),
        (pa.array([Decimal("7.00"), None, Decimal("7.50")]), ["7", None, "7.50"]),
        (pa.array([True, False, None]), ["true", "false", None]),
        (pa.array([b"a", None]), ["a", None]),
        (pa.array([date(2026, 1, 2)]), ["2026-01-02"]),
        (pa.nulls(2), [None, None]),
        (pa.array([], pa.string()), []),
    ],
    ids=lambda value: str(getattr(value, "type", "")),
)
def test_categories_of_any_type_become_text_with_none_for_null(values: pa.Array, texts: list[str | None]) -> None:
    assert one(values, CATEGORY) == texts


def test_booleans_become_zero_one_and_nan() -> None:
    assert one(pa.array([True, False, None]), BOOLEAN) == [1.0, 0.0, None]


def test_a_column_of_nulls_only_is_a_column_of_nan() -> None:
    assert one(pa.nulls(2), NUMBER) == [None, None]


def test_to_frame_refuses_text_where_a_number_is_declared_even_when_it_looks_like_one() -> None:
    with pytest.raises(ContractViolation, match="'x' cannot be read as number; expected a number column; got string"):
        one(pa.array(["1", "2"]), NUMBER)


def test_to_frame_refuses_data_without_a_declared_column() -> None:
    with pytest.raises(ContractViolation, match="exactly one column 'missing'; got columns a"):
        engine.to_frame(pa.table({"a": [1]}), {"missing": NUMBER})


def test_to_frame_keeps_the_rows_of_a_batch_without_feature_columns() -> None:
    assert len(engine.to_frame(pa.record_batch({"a": [1, 2]}), {})) == 2


def hashes(*columns: Any, seed: int = 0) -> list[int]:
    table = pa.table({f"k{i}": column for i, column in enumerate(columns)})
    result = engine.row_hashes(table, table.column_names, seed)
    assert result.dtype == np.uint64
    return [int(value) for value in result]


def test_row_hashes_do_not_depend_on_batches_or_order(rng: np.random.Generator) -> None:
    table = pa.table({"id": rng.integers(0, 10**9, 100), "user": [f"u{i % 7}" for i in range(100)]})
    whole = engine.row_hashes(table, ["id", "user"])
    parts = [engine.row_hashes(batch, ["id", "user"]) for batch in table.to_batches(max_chunksize=13)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    order = rng.permutation(100)
    np.testing.assert_array_equal(engine.row_hashes(table.take(order), ["id", "user"]), whole[order])


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (pa.array([7, -7], pa.int32()), pa.array([7, -7], pa.int64())),
        (pa.array([7], pa.uint8()), pa.array([7], pa.int64())),
        (pa.array([7.0, 0.5], pa.float32()), pa.array([7.0, 0.5], pa.float64())),
        (pa.array([7.0, -0.0]), pa.array([7, 0])),
        (pa.array(["a", "b"]), pa.array(["a", "b"]).dictionary_encode()),
        (pa.array(["a", "b"]), pa.array(["a", "b"], pa.large_string())),
        (pa.array(["a", "b"]), pa.array(["a", "b"], pa.string_view())),
        (pa.array([datetime(2026, 1, 2)], pa.timestamp("ms")), pa.array([datetime(2026, 1, 2)], pa.timestamp("ns"))),
        (
            pa.array([datetime(2026, 1, 2)], pa.timestamp("s")),
            pa.array([datetime(2026, 1, 2, tzinfo=UTC)], pa.timestamp("us", "UTC")),
        ),
    ],
    ids=lambda values: str(values.type),
)
def test_row_hashes_depend_on_values_and_not_on_physical_types(one: pa.Array, other: pa.Array) -> None:
    assert hashes(one) == hashes(other)


def test_row_hashes_tell_rows_columns_nulls_and_seeds_apart() -> None:
    assert len(set(hashes(pa.array(["", None, "nan", "0"])))) == 4
    assert len(set(hashes(pa.array([0, None, 1])))) == 3
    assert hashes([1], [2]) != hashes([2], [1])
    assert hashes(["a"], ["b"]) != hashes(["b"], ["a"])
    assert hashes([1], seed=1) != hashes([1], seed=2)


def test_row_hashes_stay_the_same_between_releases() -> None:
    # Samples of different releases must agree: a change here changes which rows every job's samples take.
    assert hashes([1, 2], ["a", None], seed=3) == [2198585505710601008, 1637087746806139946]


def test_row_hashes_are_spread_evenly_so_that_a_threshold_takes_a_sample() -> None:
    share = (engine.row_hashes(pa.table({"id": range(100_000)}), ["id"]) < np.uint64(2**64 // 10)).mean()
    assert share == pytest.approx(0.1, abs=0.005)


def test_row_hashes_refuse_a_nested_key() -> None:
    with pytest.raises(ContractViolation, match="key column 'k0' cannot be hashed"):
        hashes([[1], [2]])


def frame(*values: float) -> pd.DataFrame:
    return pd.DataFrame({"x": np.array(values)})


def test_predict_derives_labels_from_the_scores_it_returns() -> None:
    classes = np.array(["blue", "green", "red"])
    model = LogisticRegression().fit(frame(0, 1, 2, 0, 1, 2), classes[[0, 1, 2, 0, 1, 2]])
    result = engine.predict(model, frame(-3, 1, 5), "multiclass")
    assert result.scores is not None
    assert result.scores.shape == (3, 3)
    assert result.labels.tolist() == ["blue", "green", "red"]
    assert (classes[result.scores.argmax(axis=1)] == result.labels).all()


def test_predict_calls_a_tie_negative() -> None:
    model = DummyClassifier(strategy="prior").fit(frame(0, 0), [False, True])
    result = engine.predict(model, frame(1), "binary")
    assert result.scores is not None
    assert result.scores.tolist() == [[0.5, 0.5]]
    assert result.labels.tolist() == [False]


def test_predict_of_no_rows_is_no_predictions() -> None:
    binary = engine.predict(DummyClassifier().fit(frame(0, 0), [0, 1]), frame(), "binary")
    assert binary.scores is not None
    assert (binary.labels.shape, binary.scores.shape) == ((0,), (0, 2))
    regression = engine.predict(DummyRegressor().fit(frame(0), [1.0]), frame(), "regression")
    assert regression.labels.shape == (0,)
    assert regression.scores is None


@pytest.mark.parametrize("constant", [np.nan, np.inf])
def test_predict_refuses_a_model_that_answers_without_a_number(constant: float) -> None:
    model = DummyRegressor(strategy="constant", constant=0.0).fit(frame(0), [0.0])
    model.constant_ = np.array([[constant]])
    with pytest.raises(ContractViolation, match="predicted NaN or infinity for 3 of 3 rows"):
        engine.predict(model, frame(1, 2, 3), "regression")


def test_predict_refuses_an_answer_of_another_shape() -> None:
    model = DummyRegressor().fit(frame(0, 1), np.array([[1.0, 2.0], [3.0, 4.0]]))
    with pytest.raises(ContractViolation, match=r"expected shape \(1,\); got shape \(1, 2\)"):
        engine.predict(model, frame(1), "regression")


@pytest.fixture
def batch() -> pa.RecordBatch:
    return pa.record_batch(
        {
            "amount": pa.array([1.0, 2.0]),
            "event_ts": pa.array([datetime(2026, 1, 1), datetime(2026, 1, 2)], pa.timestamp("us")),
            "row_id": pa.array([11, 12], pa.int32()),
        }
    )


def publish(job: JobSpec, batch: pa.RecordBatch, predictions: engine.Predictions, classes: list[Any]) -> pa.RecordBatch:
    schema = engine.output_schema(job, batch.schema.with_metadata({"origin": "test"}), classes)
    assert schema.metadata is None
    result = engine.output_batch(batch, predictions, schema, 4)
    assert result.schema == schema
    return result


def test_binary_output_has_the_score_of_the_last_class(make_job: Callable[..., JobSpec], batch: pa.RecordBatch) -> None:
    predictions = engine.Predictions(np.array([0, 1]), np.array([[0.9, 0.1], [0.2, 0.8]]))
    result = publish(make_job(), batch, predictions, [0, 1])
    assert result.schema.names == ["row_id", "event_ts", "prediction", "score", "model_version"]
    assert [str(kind) for kind in result.schema.types] == ["int32", "timestamp[us]", "int64", "double", "int32"]
    assert result.to_pydict()["score"] == [0.1, 0.8]
    assert result.to_pydict()["model_version"] == [4, 4]


def test_multiclass_output_has_a_score_per_class_in_the_order_of_classes(
    make_job: Callable[..., JobSpec], batch: pa.RecordBatch
) -> None:
    predictions = engine.Predictions(np.array(["c", "a"], dtype=object), np.array([[0.1, 0.2, 0.7], [0.8, 0.1, 0.1]]))
    result = publish(make_job(task="multiclass"), batch, predictions, ["a", "b", "c"]).to_pydict()
    assert result["prediction"] == ["c", "a"]
    assert (result["score_a"], result["score_b"], result["score_c"]) == ([0.1, 0.8], [0.2, 0.1], [0.7, 0.1])


def test_score_columns_of_numeric_classes_have_no_fraction(
    make_job: Callable[..., JobSpec], batch: pa.RecordBatch
) -> None:
    schema = engine.output_schema(make_job(task="multiclass"), batch.schema, [1.0, 2.0, 3.5])
    assert schema.names[3:6] == ["score_1", "score_2", "score_3.5"]


def test_regression_output_is_a_number_without_scores(make_job: Callable[..., JobSpec], batch: pa.RecordBatch) -> None:
    result = publish(make_job(task="regression"), batch, engine.Predictions(np.array([1.5, 2.5]), None), [])
    assert result.schema.names == ["row_id", "event_ts", "prediction", "model_version"]
    assert result.to_pydict()["prediction"] == [1.5, 2.5]
