"""Batch prediction with Ray Data or Spark on this machine's processors, as their documentation shows it.

``python clusters_program.py ray|spark FOLDER INPUT CORES REPEATS``; FOLDER holds ``model.joblib`` and gets the output. Prints one
JSON object: ``startup`` (until the cluster is up) and ``seconds`` of every repetition.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import joblib

# Ray and Spark look at annotations when they run.
import pandas as pd  # noqa: TC002
import pyarrow as pa  # noqa: TC002

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_ROWS = 131_072


def predicted(estimator: Any, rows: pd.DataFrame) -> pd.DataFrame:
    """The rows that are written of ``rows``."""
    score = estimator.predict_proba(rows[list(estimator.feature_names_in_)])[:, -1]
    return rows[["row_id", "event_ts"]].assign(prediction=(score > 0.5).astype("int64"), score=score)


class Predictor:
    """What Ray keeps in every worker: the model, loaded once."""

    def __init__(self, path: str) -> None:
        self.estimator = joblib.load(path)

    def __call__(self, rows: pa.Table) -> pd.DataFrame:
        """The rows that are written of ``rows``; Ray's own frames have Arrow's types, which scikit-learn refuses."""
        return predicted(self.estimator, rows.to_pandas())


def ray_data(folder: Path, source: str, cores: int) -> Callable[[], None]:
    """``map_batches`` with one actor per core."""
    import ray  # type: ignore[import-not-found]

    ray.init(num_cpus=cores + 1, include_dashboard=False, log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False

    def run() -> None:
        ray.data.read_parquet(source).map_batches(
            Predictor,
            fn_constructor_args=(str(folder / "model.joblib"),),
            batch_size=_ROWS,
            batch_format="pyarrow",
            concurrency=cores,
        ).write_parquet(str(folder / "ray"))

    return run


def spark(folder: Path, source: str, cores: int) -> Callable[[], None]:
    """``mapInPandas`` on a local master."""
    from pyspark.sql import SparkSession  # type: ignore[import-not-found]

    os.environ["PYSPARK_PYTHON"] = sys.executable
    session = (
        SparkSession.builder.master(f"local[{cores}]")
        .config("spark.driver.memory", "4g")
        .config("spark.sql.execution.arrow.maxRecordsPerBatch", str(_ROWS))
        .config("spark.ui.enabled", "false")
        .getOrCreate()
    )
    model = str(folder / "model.joblib")

    def batches(parts: Iterator[pd.DataFrame]) -> Iterator[pd.DataFrame]:
        estimator = joblib.load(model)
        for rows in parts:
            score = estimator.predict_proba(rows[list(estimator.feature_names_in_)])[:, -1]
            yield rows[["row_id", "event_ts"]].assign(prediction=(score > 0.5).astype("int64"), score=score)

    def run() -> None:
        session.read.parquet(source).mapInPandas(
            batches, "row_id long, event_ts timestamp, prediction long, score double"
        ).write.mode("overwrite").parquet(str(folder / "spark"))

    return run


def main(name: str, folder: str, source: str, cores: str, repeats: str) -> None:
    """Run one of the two and print its times."""
    began = time.perf_counter()
    run = {"ray": ray_data, "spark": spark}[name](Path(folder), source, int(cores))
    startup, seconds = time.perf_counter() - began, []
    for _ in range(int(repeats)):
        began = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - began)
    print(json.dumps({"startup": startup, "seconds": seconds}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
