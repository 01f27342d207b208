"""Pipelines that users write, as trainers of a job: ``model.trainer: benchmarks.throughput.pipelines:random_forest``."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline

    from pipeline.job import JobSpec


def logistic_regression(job: JobSpec) -> Pipeline:
    """Numbers filled and scaled, categories one-hot."""
    from sklearn.compose import ColumnTransformer
    from sklearn.impute import SimpleImputer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import Pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    numbers, categories = _columns(job)
    scaled = Pipeline([("filled", SimpleImputer(strategy="median")), ("scaled", StandardScaler())])
    columns = [("number", scaled, numbers), ("category", OneHotEncoder(handle_unknown="ignore"), categories)]
    return Pipeline([("columns", ColumnTransformer(columns)), ("model", LogisticRegression(max_iter=300))])


def random_forest(job: JobSpec) -> Pipeline:
    """100 trees of depth 12; numbers filled, categories as codes."""
    from sklearn.compose import ColumnTransformer
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import Pipeline
    from sklearn.preprocessing import OrdinalEncoder

    numbers, categories = _columns(job)
    codes = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1, encoded_missing_value=-2)
    columns = [("number", SimpleImputer(strategy="median"), numbers), ("category", codes, categories)]
    forest = RandomForestClassifier(100, max_depth=12, random_state=job.model.seed, n_jobs=-1)
    return Pipeline([("columns", ColumnTransformer(columns)), ("model", forest)])


def _columns(job: JobSpec) -> tuple[list[str], list[str]]:
    declared = job.features.columns.items()
    return (
        [name for name, column in declared if column.type != "category"],
        [name for name, column in declared if column.type == "category"],
    )
