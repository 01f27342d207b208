"""The ways of scoring a partition that run in this product's own environment, each in a process of its own.

``python -m benchmarks.throughput.contenders NAME FOLDER ROWS REPEATS`` prints one JSON object: ``startup`` (imports, opening,
loading the model) and ``seconds`` of every repetition, the first of which is cold.
"""

from __future__ import annotations

import json
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.throughput import world

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    import pandas as pd


def day_of(rows: int) -> datetime:
    """The day whose partition has that many rows; every size has a day of its own."""
    return world.SCORED + timedelta(days=rows // 1_000_000)


def product(folder: Path, day: datetime) -> Callable[[], None]:
    """Plan, read, check, score, write, verify, publish: a whole scoring run, in spite of an equal fingerprint."""
    from pipeline.runtime import Runtime
    from pipeline.steps import plan, score

    runtime = Runtime(world.settings(folder))
    job = runtime.job(str(folder / "throughput.yaml"))
    context = runtime.context(job)

    def run() -> None:
        made = score.score(context, plan.plan(context, job.interval(day)), again=True)
        (folder / "published.txt").write_text(made.path)

    context.load(plan.plan(context, job.interval(world.FIRST + timedelta(days=world.TRAINED_DAYS))).model.version)
    return run


def in_memory(folder: Path, day: datetime) -> Callable[[], float]:
    """The model's ``predict_proba`` alone, on a frame that is there already."""
    import numpy as np

    estimator, frame = _estimator(folder), _frame(world.partition(folder, day))

    def run() -> float:
        began = time.perf_counter()
        scores = estimator.predict_proba(frame)
        seconds = time.perf_counter() - began
        np.save(folder / "in_memory.npy", scores[:, -1])
        return seconds

    return run


def script(folder: Path, day: datetime) -> Callable[[], None]:
    """What one would write in a notebook: read_parquet, predict, to_parquet."""
    import pandas as pd

    estimator = _estimator(folder)

    def run() -> None:
        rows = pd.read_parquet(world.partition(folder, day))
        _write(rows, estimator.predict_proba(rows[_columns()])[:, -1], folder / "script.parquet")

    return run


def pyfunc(folder: Path, day: datetime) -> Callable[[], None]:
    """The script with the model behind ``mlflow.pyfunc``, as the registry serves it: labels only, in memory."""
    import mlflow
    import pandas as pd

    path = folder / "pyfunc"
    if not path.exists():
        mlflow.sklearn.save_model(
            _estimator(folder), path, serialization_format="cloudpickle", pyfunc_predict_fn="predict_proba"
        )
    model = mlflow.pyfunc.load_model(str(path))

    def run() -> None:
        rows = pd.read_parquet(world.partition(folder, day))
        _write(rows, model.predict(rows[_columns()])[:, -1], folder / "pyfunc.parquet")

    return run


def _write(rows: pd.DataFrame, score: Any, path: Path) -> None:
    rows[["row_id", "event_ts"]].assign(prediction=(score > 0.5).astype("int64"), score=score).to_parquet(path)


def _estimator(folder: Path) -> Any:
    import joblib

    return joblib.load(folder / "model.joblib")


def _frame(path: Path) -> pd.DataFrame:
    import pandas as pd

    return pd.read_parquet(path, columns=_columns())


def _columns() -> list[str]:
    return [*world.NUMBERS, *world.CATEGORIES]


CONTENDERS: dict[str, Callable[[Path, datetime], Callable[[], float | None]]] = {
    "product": product,
    "in_memory": in_memory,
    "script": script,
    "pyfunc": pyfunc,
}


def main(name: str, folder: str, rows: str, repeats: str) -> None:
    """Run one contender and print its times."""
    began = time.perf_counter()
    run = CONTENDERS[name](Path(folder), day_of(int(rows)))
    startup, seconds = time.perf_counter() - began, []
    for _ in range(int(repeats)):
        began = time.perf_counter()
        own = run()
        seconds.append(time.perf_counter() - began if own is None else own)
    print(json.dumps({"startup": startup, "seconds": seconds}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
