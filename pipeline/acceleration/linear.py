"""Linear models as one sum per row and output: no matrix of features, and for a category one number looked up.

The order of the sum is that of the features, whatever the batch; a product of matrices has an order of its own for each shape.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.acceleration.features import Category, NotAccelerable
from pipeline.acceleration.programs import Program, Refused, Term, check

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from pipeline.acceleration.features import Feature
    from pipeline.acceleration.programs import Input

MODELS = ("LogisticRegression", "LinearRegression", "Ridge", "Lasso", "ElasticNet")


def build(model: Any, features: Sequence[Feature], inputs: Sequence[Input]) -> Program:
    """The program of a fitted model on ``features``. Raises `NotAccelerable`."""
    weights = np.atleast_2d(np.asarray(model.coef_, dtype=np.float64))
    intercept = np.broadcast_to(np.asarray(model.intercept_, dtype=np.float64), (len(weights),))
    link = "identity"
    if hasattr(model, "classes_"):
        link = "expit" if len(model.classes_) == 2 else "softmax"
    elif len(weights) > 1:
        raise NotAccelerable("it has several outputs")
    terms: list[Term] = []
    codes: list[NDArray[np.float64]] = []
    scales: list[NDArray[np.float64]] = []
    names = [i.column for i in inputs]
    of_column: dict[str, NDArray[np.float64]] = {}
    for feature, weight in zip(features, weights.T, strict=True):
        if isinstance(feature, Category):
            # All features of a column of categories depend on the level alone: their sum does too.
            share = np.asarray(feature.values, dtype=np.float64)[:, None] * weight
            of_column[feature.column] = of_column.get(feature.column, 0.0) + share
        else:
            terms.append(Term(names.index(feature.column), feature.steps))
            scales.append(weight)
    terms += [Term(names.index(column)) for column in of_column]
    codes = list(of_column.values())
    arrays = {
        "intercept": np.ascontiguousarray(intercept),
        "scales": np.array(scales).reshape(len(scales), len(weights)),
        "codes": np.concatenate([np.empty((0, len(weights))), *codes]),
        "shifts": np.cumsum([0, *([0] * len(scales)), *map(len, codes)]).astype(np.int64),
    }
    return Program("linear", link, tuple(inputs), tuple(terms), arrays)


def sums(program: Program, values: Sequence[NDArray[Any]]) -> NDArray[np.float64]:
    """The sums, shape (n, outputs), of the values that `Program.read` gave. Raises `Refused`."""
    a = program.arrays
    out = np.repeat(a["intercept"][:, None], len(values[0]), axis=1)
    for j, term in enumerate(program.terms):
        if program.inputs[term.input].levels is None:
            numbers = term.numbers(values[term.input])
            if not np.isfinite(numbers).all():
                raise Refused("infinite")
            with np.errstate(over="ignore", invalid="ignore"):
                for c, scale in enumerate(a["scales"][j]):
                    out[c] += numbers * scale
        else:
            for c in range(len(out)):
                out[c] += a["codes"][a["shifts"][j] : a["shifts"][j + 1], c].take(values[term.input])
    return np.ascontiguousarray(out.T)


def edges(_: Program) -> dict[str, NDArray[np.float64]]:
    """No limits: a linear model has no jumps."""
    return {}


def verify(program: Program) -> None:
    """Raise ``ValueError`` unless the arrays fit together."""
    a, p = program.arrays, len(program.terms)
    k = len(a["intercept"])
    check(all(a[name].dtype == np.float64 for name in ("intercept", "scales", "codes")))
    check(a["scales"].shape[1:] == a["codes"].shape[1:] == (k,) and len(a["shifts"]) == p + 1)
    check(a["shifts"][-1] == len(a["codes"]))
    for j, term in enumerate(program.terms):
        levels = program.inputs[term.input].levels
        check(a["shifts"][j + 1] - a["shifts"][j] == (0 if levels is None else len(levels) + 2))
        check(levels is not None or j < len(a["scales"]))
