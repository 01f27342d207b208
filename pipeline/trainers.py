"""Unfitted estimators for a job, and their fitting: the built-in gradient boosting or the user's own function.

Owns scikit-learn. Must not read data or a registry: it sees the frame of `pipeline.engine.to_frame` and a target.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import OrdinalEncoder

from pipeline.errors import ContractViolation, NotEnoughLabels, TrainerFailed

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

    from pipeline.job import JobSpec

BUILT_IN = "gradient_boosting"
# Small steps and regularised leaves: safe on a thousand rows, and still enough rounds for half a million. Nothing is
# set aside for early stopping, so every labelled row is learned from and the number of trees does not depend on chance.
_DEFAULTS: dict[str, Any] = {
    "learning_rate": 0.08,
    "max_iter": 100,
    "max_leaf_nodes": 31,
    "min_samples_leaf": 20,
    "l2_regularization": 1.0,
    "early_stopping": False,
}
# Decided by the job's columns and model.seed, or without meaning in an unattended training.
_NOT_SETTABLE = frozenset({"categorical_features", "random_state", "warm_start", "verbose"})
_LOSS_OF_METRIC = {"mae": "absolute_error", "rmse": "squared_error"}
_MAX_BINS = 255


def build(job: JobSpec) -> BaseEstimator:
    """The job's unfitted estimator, for frames as `pipeline.engine.to_frame` makes them.

    Raises `TrainerFailed` for a parameter that the built-in trainer does not have, and for a user's function that
    cannot be imported, fails, or returns something else than a scikit-learn estimator for the task.
    """
    return _gradient_boosting(job) if job.model.trainer == BUILT_IN else _user_trainer(job)


def fit(job: JobSpec, frame: pd.DataFrame, target: NDArray[Any]) -> BaseEstimator:
    """The job's estimator fitted on one row of ``frame`` per value of ``target``.

    The built-in trainer is deterministic: equal job, rows and library versions give the same model bit for bit,
    whatever the number of threads. It takes infinite values for missing. Raises `NotEnoughLabels` for no rows or a
    single class, `ContractViolation` for missing or infinite labels or more classes than the task has, and
    `TrainerFailed` when fitting fails.
    """
    _check_target(job, frame, target)
    estimator = build(job)
    try:
        if job.model.trainer == BUILT_IN:
            _fit_gradient_boosting(estimator, frame, target)
        else:
            estimator.fit(frame, target)
    except Exception as err:
        raise TrainerFailed(
            f"job {job.name!r}: trainer {job.model.trainer!r} failed while fitting {len(frame)} rows",
            expected=f"an estimator that accepts the columns {', '.join(frame.columns)}",
            got=f"{type(err).__name__}: {err}",
            next_step="correct model.parameters, or the trainer's function",
        ) from err
    return estimator


def _gradient_boosting(job: JobSpec) -> Pipeline:
    """Categories as integer codes first, then numbers; boosted trees split categories natively."""
    family = HistGradientBoostingRegressor if job.task == "regression" else HistGradientBoostingClassifier
    allowed = sorted(set(family().get_params()) - _NOT_SETTABLE)
    unknown = sorted(set(job.model.parameters) - set(allowed))
    if unknown:
        raise TrainerFailed(
            f"job {job.name!r}: model.parameters has {', '.join(unknown)}, which trainer {BUILT_IN!r} does not take",
            expected=f"any of {', '.join(allowed)}",
            next_step="correct model.parameters in the job file",
        )
    parameters = {**_DEFAULTS, **job.model.parameters}
    if job.task == "regression":
        parameters.setdefault("loss", _LOSS_OF_METRIC[job.metric])
    categories = [name for name, column in job.features.columns.items() if column.type == "category"]
    encoder = OrdinalEncoder(
        handle_unknown="use_encoded_value",
        unknown_value=np.nan,
        # The most frequent categories keep a code of their own; the rest share one, within the trees' limit of bins.
        max_categories=_max_bins(parameters),
    )
    model = family(**parameters, categorical_features=list(range(len(categories))), random_state=job.model.seed)
    columns = ColumnTransformer([("category", encoder, categories)], remainder="passthrough")
    return Pipeline([("columns", columns), ("model", model)])


def _fit_gradient_boosting(estimator: Pipeline, frame: pd.DataFrame, target: NDArray[Any]) -> None:
    estimator.fit(_binnable(frame), target)
    # The trees do not depend on the number of threads, but the binning remembers it, though only fitting uses it: on a
    # machine with more processors an equal model would have another digest.
    estimator["model"]._bin_mapper.n_threads = None


def _binnable(frame: pd.DataFrame) -> pd.DataFrame:
    """The same rows without what scikit-learn cannot sort into bins: infinities, and columns without any number."""
    numbers = frame.select_dtypes("float").replace([np.inf, -np.inf], np.nan)
    # A constant is never split, so the column is ignored, whatever it holds later.
    numbers.loc[:, numbers.isna().all()] = 0.0
    return frame.assign(**{str(name): numbers[name] for name in numbers})


def _max_bins(parameters: dict[str, Any]) -> int:
    """The job's max_bins if it is a plausible one; scikit-learn refuses any other when it fits."""
    bins = parameters.get("max_bins", _MAX_BINS)
    return bins if isinstance(bins, int) and 2 <= bins <= _MAX_BINS else _MAX_BINS


def _user_trainer(job: JobSpec) -> BaseEstimator:
    module, _, function = job.model.trainer.partition(":")
    try:
        estimator = getattr(importlib.import_module(module), function)(job)
    except (Exception, SystemExit) as err:
        raise _trainer_failed(job, module, function, f"{type(err).__name__}: {err}") from err
    if not isinstance(estimator, BaseEstimator):
        raise _trainer_failed(job, module, function, f"an object of type {type(estimator).__qualname__}")
    needed = ["fit", "predict"] if job.task == "regression" else ["fit", "predict", "predict_proba"]
    missing = [name for name in needed if not hasattr(estimator, name)]
    if missing:
        raise _trainer_failed(job, module, function, f"{type(estimator).__qualname__} without {', '.join(missing)}")
    return estimator


def _trainer_failed(job: JobSpec, module: str, function: str, got: str) -> TrainerFailed:
    return TrainerFailed(
        f"job {job.name!r}: function {function!r} of module {module!r} gave no trainer",
        expected=f"an unfitted scikit-learn estimator for task {job.task!r}",
        got=got,
        next_step="correct the function, or model.trainer; the module must be importable from PYTHONPATH",
    )


def _check_target(job: JobSpec, frame: pd.DataFrame, target: NDArray[Any]) -> None:
    if len(target) == 0 or len(frame) != len(target):
        raise NotEnoughLabels(
            f"job {job.name!r}: cannot train",
            expected="labelled rows, one label per row",
            got=f"{len(frame)} rows and {len(target)} labels",
            next_step="wait for labels, or check labels.uri, labels.partition and the key columns",
        )
    unusable = _unusable(target)
    if unusable:
        raise ContractViolation(
            f"job {job.name!r}: {unusable} of {len(target)} labels in column {job.labels.column!r} are missing or infinite",
            expected="a value for every training row",
            next_step="leave rows without a label out, or correct the labels",
        )
    if job.task == "regression":
        return
    classes = np.unique(target)
    if len(classes) < 2:
        raise NotEnoughLabels(
            f"job {job.name!r}: cannot train a classifier",
            expected="labels of at least two classes",
            got=f"only {classes[0]!r} in {len(target)} rows",
            next_step="lengthen retrain.window so that it holds both outcomes",
        )
    if job.task == "binary" and len(classes) > 2:
        raise ContractViolation(
            f"job {job.name!r}: column {job.labels.column!r} has {len(classes)} classes",
            expected="two classes for task 'binary'",
            got=", ".join(str(value) for value in classes[:10]),
            next_step="set task: multiclass, or correct the labels",
        )


def _unusable(target: NDArray[Any]) -> int:
    """How many labels are None, NaN or infinite."""
    if target.dtype.kind == "f":
        return int(np.count_nonzero(~np.isfinite(target)))
    if target.dtype.kind == "O":
        # NaN is the only value that differs from itself.
        return sum(value is None or value != value for value in target)
    return 0
