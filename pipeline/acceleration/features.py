"""What each feature of a fitted pipeline's last estimator is made of: one input column and a few fixed operations.

Reads fitted scikit-learn objects by their types and attributes, and asks encoders what they make of each category.
Must not import scikit-learn, and must refuse whatever it does not know instead of guessing.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from pipeline.job import Column

# Operations on one value in float64, in the arithmetic that scikit-learn uses itself.
OPERATIONS: Mapping[str, Callable[[NDArray[Any], float], NDArray[Any]]] = {
    "fill": lambda values, by: np.where(np.isnan(values), by, values),
    "subtract": lambda values, by: values - by,
    "divide": lambda values, by: values / by,
    "multiply": lambda values, by: values * by,
    "add": lambda values, by: values + by,
}
# A text that no category has: noncharacters are not for interchange.
UNKNOWN = "\ufffe unknown \ufffe"
_ENCODERS = ("OrdinalEncoder", "OneHotEncoder", "TargetEncoder")


class NotAccelerable(Exception):
    """Why an estimator has no accelerated form; a reason in words, never an error of the training."""


@dataclass(frozen=True)
class Number:
    """A feature that is a column of numbers after ``steps``, pairs of an operation's name and its constant."""

    column: str
    steps: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class Category:
    """A feature that depends on a column of categories: its value for each level, for missing, and for unknown."""

    column: str
    values: NDArray[Any]


Feature = Number | Category


def applied(steps: Sequence[tuple[str, float]], values: NDArray[Any]) -> NDArray[Any]:
    """``values`` after the operations of a `Number`."""
    for name, by in steps:
        values = OPERATIONS[name](values, by)
    return values


def final(estimator: Any) -> Any:
    """The estimator itself, or the last one of a pipeline."""
    return estimator.steps[-1][1] if is_a(estimator, "Pipeline") else estimator


def is_a(thing: Any, *names: str) -> bool:
    """Whether ``thing`` is of exactly one of these types of scikit-learn: a subclass may predict differently."""
    kind = type(thing)
    return kind.__module__.partition(".")[0] == "sklearn" and kind.__name__ in names


def trace(estimator: Any, columns: Mapping[str, Column]) -> tuple[list[Feature], dict[str, tuple[str, ...]]]:
    """The features that the last estimator is given, and the levels of each category column.

    Raises `NotAccelerable` for a preprocessing that is not made of known, element-wise parts.
    """
    before = estimator.steps[:-1] if is_a(estimator, "Pipeline") else []
    levels = {
        name: _levels(before, list(columns), name) for name, column in columns.items() if column.type == "category"
    }
    features: list[Feature] = []
    for name in columns:
        if name in levels:
            features.append(Category(name, np.array([*levels[name], None, UNKNOWN], dtype=object)))
        else:
            features.append(Number(name))
    with warnings.catch_warnings():
        # An encoder may warn of the unknown category that it is shown on purpose.
        warnings.simplefilter("ignore")
        for _, step in before:
            features = transformed(step, features, list(columns))
    if any(isinstance(feature, Category) and feature.values.dtype == object for feature in features):
        raise NotAccelerable("a category reaches the model without having been encoded")
    return features, levels


def transformed(step: Any, features: list[Feature], names: Sequence[str]) -> list[Feature]:
    """What a fitted transformer makes of ``features``; ``names`` are those of a frame's columns, if it gets a frame."""
    if len(names) != len(features):
        names = [""] * len(features)
    if step is None or (isinstance(step, str) and step == "passthrough"):
        return features
    if is_a(step, "Pipeline"):
        for _, inner in step.steps:
            features = transformed(inner, features, names)
        return features
    if is_a(step, "ColumnTransformer"):
        made: list[Feature] = []
        for _, inner, chosen in step.transformers_:
            mine = _indices(chosen, names, len(features))
            if mine and not (isinstance(inner, str) and inner == "drop"):
                made += transformed(inner, [features[index] for index in mine], [names[index] for index in mine])
        return made
    return _elementwise(step, features)


def _elementwise(step: Any, features: list[Feature]) -> list[Feature]:
    # Without a function it does nothing; that of histogram gradient boosting only checks.
    if is_a(step, "FunctionTransformer") and (
        step.func is None or getattr(getattr(step.func, "func", None), "__name__", "") == "check_array"
    ):
        return features
    if is_a(step, *_ENCODERS) or (is_a(step, "SimpleImputer") and all(_is_text(feature) for feature in features)):
        return _encoded(step, features)
    if is_a(step, "SimpleImputer", "StandardScaler", "MinMaxScaler", "RobustScaler", "MaxAbsScaler"):
        return [_computed(feature, _operations(step, index)) for index, feature in enumerate(features)]
    raise NotAccelerable(f"a {type(step).__name__} before the model is not known to be one value in, fixed values out")


def _is_text(feature: Feature) -> bool:
    return isinstance(feature, Category) and feature.values.dtype == object


def _levels(steps: Sequence[tuple[str, Any]], names: Sequence[str], column: str) -> tuple[str, ...]:
    """Every text that an encoder knows of the column, sorted."""
    known: set[str] = set()
    for _, step in steps:
        if is_a(step, "ColumnTransformer"):
            for _, inner, chosen in step.transformers_:
                mine = [names[index] for index in _indices(chosen, names, len(names))]
                if column in mine:
                    known.update(_levels([("", inner)], mine, column))
        elif is_a(step, "Pipeline"):
            known.update(_levels(step.steps, names, column))
        elif is_a(step, *_ENCODERS) and column in names and len(step.categories_) == len(names):
            known.update(level for level in step.categories_[names.index(column)] if isinstance(level, str))
    return tuple(sorted(known))


def _indices(chosen: Any, names: Sequence[str], count: int) -> list[int]:
    if isinstance(chosen, slice):
        if isinstance(chosen.start, str) or isinstance(chosen.stop, str):
            raise NotAccelerable("a ColumnTransformer names its columns by a range of names")
        return list(range(count))[chosen]
    listed = np.atleast_1d(np.asarray(chosen))
    if listed.dtype == bool:
        return [int(index) for index in np.flatnonzero(listed)]
    return [names.index(entry) if isinstance(entry, str) else int(entry) % count for entry in listed.tolist()]


def _computed(feature: Feature, steps: tuple[tuple[str, float], ...]) -> Feature:
    if isinstance(feature, Number):
        return Number(feature.column, feature.steps + steps)
    if feature.values.dtype == object:
        raise NotAccelerable("a category is treated as a number before it is encoded")
    return replace(feature, values=applied(steps, feature.values))


def _operations(step: Any, index: int) -> tuple[tuple[str, float], ...]:
    """What a scaler or imputer does to its feature number ``index``."""
    found: list[tuple[str, Any]]
    if is_a(step, "SimpleImputer"):
        fill = step.statistics_[index]
        if step.add_indicator or not _is_nan(step.missing_values) or _is_nan(fill):
            raise NotAccelerable("a SimpleImputer adds or drops columns, or takes another value than NaN for missing")
        found = [("fill", fill)]
    elif is_a(step, "StandardScaler"):
        found = [("subtract", step.mean_) if step.with_mean else ("", None), ("divide", step.scale_)]
    elif is_a(step, "RobustScaler"):
        found = [("subtract", step.center_), ("divide", step.scale_)]
    elif is_a(step, "MaxAbsScaler"):
        found = [("divide", step.scale_)]
    elif step.clip:
        raise NotAccelerable("a MinMaxScaler clips")
    else:
        found = [("multiply", step.scale_), ("add", step.min_)]
    return tuple(
        (name, float(value if np.ndim(value) == 0 else value[index])) for name, value in found if value is not None
    )


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and value != value


def _encoded(step: Any, features: list[Feature]) -> list[Feature]:
    """What an encoder answers for each value of each feature, found by asking it."""
    categories = [feature for feature in features if isinstance(feature, Category)]
    if len(categories) < len(features):
        raise NotAccelerable(f"a {type(step).__name__} encodes a column of numbers")
    answers = [_asked(step, categories, index) for index in range(len(categories))]
    varies = np.array([[_differ(column) for column in answer.T] for answer in answers])
    if (varies.sum(axis=0) > 1).any():
        raise NotAccelerable(f"a {type(step).__name__} makes one feature of several columns")
    # A feature that never varies may be said of any column.
    owners = varies.argmax(axis=0)
    return [replace(categories[owner], values=answers[owner][:, j]) for j, owner in enumerate(owners)]


def _asked(step: Any, categories: list[Category], index: int) -> NDArray[Any]:
    """The encoder's rows for every value of one feature, the others at their first, which stands in for what it refuses."""
    values = categories[index].values

    def ask(wanted: NDArray[Any]) -> NDArray[Any]:
        kind = np.result_type(*(category.values.dtype for category in categories))
        rows = np.empty((len(wanted), len(categories)), dtype=kind)
        for j, category in enumerate(categories):
            rows[:, j] = wanted if j == index else category.values[0]
        frame = pd.DataFrame(rows, columns=step.feature_names_in_) if hasattr(step, "feature_names_in_") else rows
        answer = step.transform(frame)
        return np.asarray(answer.toarray() if hasattr(answer, "toarray") else answer)

    try:
        return ask(values)
    except ValueError:
        # Rows with a refused value are given to the estimator itself, which refuses them in its own words.
        usual = ask(values[:1])
        return np.vstack([_or_else(ask, values[i : i + 1], usual) for i in range(len(values))])


def _or_else(ask: Callable[[NDArray[Any]], NDArray[Any]], value: NDArray[Any], usual: NDArray[Any]) -> NDArray[Any]:
    try:
        return ask(value)
    except ValueError:
        return usual


def _differ(values: NDArray[Any]) -> bool:
    first = values[0]
    return any(value != first and not (_is_nan(value) and _is_nan(first)) for value in values.tolist())
