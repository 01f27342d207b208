"""Measure what a model's own arithmetic costs: scikit-learn, this product's accelerated forms, Treelite and ONNX Runtime.

`python -m benchmarks.throughput.models [--rows N] [--threads N] [--compile-limit SECONDS] [MODEL ...]` prints JSON. Every
engine gets the same rows with 14 numbers and 6 categories, some missing, and has to encode the categories itself:
scikit-learn, Treelite and ONNX Runtime from a frame in memory, the accelerated forms from Arrow batches. Treelite (with tl2cgen
and a C compiler) and ONNX Runtime (with skl2onnx) are measured where they are installed; nothing of the product needs them.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

_TRAIN_ROWS = 100_000
_BATCH = 65_536
_REPEATS = 3
_LEVELS = (4, 8, 12, 30, 60, 200)
_NUMBERS = [f"n{i}" for i in range(14)]
_CATEGORIES = [f"c{j}" for j in range(len(_LEVELS))]
Scores = Any
Engine = Callable[[], Scores]


def data(rows: int, seed: int) -> tuple[Any, Any]:
    """An Arrow table with dictionaries, and a binary outcome that depends on all of its columns."""
    import numpy as np
    import pyarrow as pa

    rng = np.random.default_rng(seed)
    columns, signal = {}, np.zeros(rows)
    for i, name in enumerate(_NUMBERS):
        values = rng.normal(size=rows) if i % 3 else np.round(rng.lognormal(size=rows), 2)
        signal += values * (0.5 if i % 2 else -0.3)
        columns[name] = pa.array(values, mask=rng.random(rows) < 0.03 * (i % 2))
    for name, levels in zip(_CATEGORIES, _LEVELS, strict=True):
        codes = rng.integers(0, levels, rows)
        signal += (codes % 5 - 2) * 0.2
        texts = pa.array([f"{name}-{code:03d}" for code in range(levels)])
        mask = rng.random(rows) < 0.02
        columns[name] = pa.DictionaryArray.from_arrays(pa.array(codes.astype(np.int32), mask=mask), texts)
    return pa.table(columns), (signal + rng.normal(size=rows) > 0.2).astype(np.int64)


def models(threads: int) -> dict[str, Any]:
    """The unfitted pipelines by name: the built-in one, and two that users write."""
    from benchmarks.throughput import pipelines
    from pipeline import trainers

    job = _job()
    forest = pipelines.random_forest(job).set_params(model__n_jobs=threads)
    return {
        "gradient boosting": trainers.build(job),
        "logistic regression": pipelines.logistic_regression(job),
        "random forest": forest,
    }


def _job() -> Any:
    from pipeline.job import JobSpec

    columns = {
        **{name: {"type": "number"} for name in _NUMBERS},
        **{name: {"type": "category"} for name in _CATEGORIES},
    }
    document = {
        "name": "throughput",
        "task": "binary",
        "schedule": {"interval": "1d", "start": "2026-01-01T00:00:00Z"},
        "features": {"uri": "features", "key": ["row_id"], "time": "event_ts", "columns": columns},
        "labels": {"uri": "labels", "column": "label", "delay": "P1D"},
    }
    return JobSpec.model_validate_json(json.dumps(document))


def measure(rows: int, threads: int, limit: float, wanted: list[str]) -> dict[str, Any]:
    """Seconds of each engine for each model, at best of three, and how its scores differ from scikit-learn's.

    Of a machine that others use too, seconds of the processors tell more than those of the clock.
    """
    import numpy as np

    from pipeline import acceleration, engine

    columns = _job().features.columns
    train, target = data(_TRAIN_ROWS, 0)
    table, _ = data(rows, 1)
    frame, held = engine.to_frame(table, columns), table.slice(0, 5_000)
    found = []
    for name, pipeline in models(threads).items():
        if wanted and name not in wanted:
            continue
        model = pipeline.fit(engine.to_frame(train, columns), target)
        plain = engine.FrameScorer(model, columns, "binary")
        start = time.perf_counter()
        content, evidence = acceleration.optimise(
            plain, held, remembered=held.slice(0, 256), budget=timedelta(seconds=limit)
        )
        optimised = time.perf_counter() - start
        fast = acceleration.scorer(plain, content, key=name, remembered=held.slice(0, 256))
        seconds, busy, exact = _timed(lambda model=model: model.predict_proba(frame))
        engines: dict[str, Callable[[], Engine]] = {
            f"accelerated ({evidence.kind})": lambda fast=fast: lambda: _in_threads(fast, table, threads),
            "treelite": lambda model=model: _treelite(model, frame, threads, limit),
            "onnx runtime": lambda model=model: _onnx(model, frame, threads),
        }
        results: dict[str, Any] = {"scikit-learn": {"seconds": round(seconds, 3), "processor_seconds": round(busy, 3)}}
        for title, prepare in engines.items():
            try:
                own, own_busy, scores = _timed(prepare())
            except (ImportError, RuntimeError, ValueError, TimeoutError, TypeError) as err:
                results[title] = {"left_out": f"{type(err).__name__}: {err}"[:200]}
                continue
            results[title] = {
                "seconds": round(own, 3),
                "processor_seconds": round(own_busy, 3),
                "times_faster": round(seconds / own, 2),
                "times_less_work": round(busy / own_busy, 2),
                "max_difference": float(np.abs(scores - exact).max()),
                "flips": int(((scores[:, 1] > 0.5) != (exact[:, 1] > 0.5)).sum()),
            }
        found.append({"model": name, "optimise_seconds": round(optimised, 2), "engines": results})
    return {"rows": rows, "threads": threads, "machine": _machine(), "models": found}


def _timed(run: Engine) -> tuple[float, float, Scores]:
    """The shortest time by the clock, the least of the processors, and the answer."""
    clock, processors, answer = float("inf"), float("inf"), None
    for _ in range(_REPEATS):
        start, busy = time.perf_counter(), time.process_time()
        answer = run()
        clock, processors = min(clock, time.perf_counter() - start), min(processors, time.process_time() - busy)
    return clock, processors, answer


def _in_threads(scorer: Any, table: Any, threads: int) -> Scores:
    import numpy as np

    with ThreadPoolExecutor(threads) as pool:
        return np.concatenate(
            [made.scores for made in pool.map(scorer.predict, table.to_batches(max_chunksize=_BATCH))]
        )


def _treelite(model: Any, frame: Any, threads: int, limit: float) -> Engine:
    import numpy as np
    import tl2cgen
    import treelite

    before, final = model[:-1], model[-1]
    if not hasattr(final, "_predictors") and not hasattr(final, "estimators_"):
        raise ValueError("it knows trees only")
    remapped = getattr(final, "_preprocessor", None)

    def encoded() -> Any:
        values = before.transform(frame)
        return np.ascontiguousarray(values if remapped is None else remapped.transform(values), dtype=np.float64)

    library = Path(tempfile.mkdtemp(prefix="treelite-")) / "model.so"
    converted = treelite.sklearn.import_model(final)
    # In a process of its own: compiling cannot be interrupted otherwise.
    compiling = multiprocessing.get_context("fork").Process(
        target=tl2cgen.export_lib,
        args=(converted,),
        kwargs={"toolchain": "gcc", "libpath": library, "params": {"parallel_comp": threads}},
    )
    compiling.start()
    compiling.join(limit)
    if compiling.is_alive():
        compiling.kill()
        compiling.join()
        raise TimeoutError(f"compiling took longer than {limit:g} s")
    predictor = tl2cgen.Predictor(library, nthread=threads)

    def run() -> Scores:
        scores = np.asarray(predictor.predict(tl2cgen.DMatrix(encoded()))).reshape(len(frame), -1)
        return scores if scores.shape[1] == 2 else np.column_stack([1 - scores[:, 0], scores[:, 0]])

    return run


def _onnx(model: Any, frame: Any, threads: int) -> Engine:
    import numpy as np
    import onnxruntime
    from skl2onnx import convert_sklearn
    from skl2onnx.common.data_types import FloatTensorType, StringTensorType

    types = [(name, FloatTensorType([None, 1])) for name in _NUMBERS]
    types += [(name, StringTensorType([None, 1])) for name in _CATEGORIES]
    converted = convert_sklearn(model, initial_types=types, options={"zipmap": False})
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(converted.SerializeToString(), options, providers=["CPUExecutionProvider"])

    def run() -> Scores:
        feed = {name: frame[name].to_numpy(np.float32)[:, None] for name in _NUMBERS}
        feed |= {name: frame[name].fillna("").to_numpy(object)[:, None] for name in _CATEGORIES}
        return np.asarray(session.run(None, feed)[1], dtype=np.float64)

    return run


def _machine() -> dict[str, Any]:
    versions = {}
    for name in ("scikit-learn", "numba", "treelite", "tl2cgen", "onnxruntime", "skl2onnx"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = None
    return {"python": platform.python_version(), "processors": os.cpu_count(), "load": os.getloadavg()[0], **versions}


def main() -> None:
    """Entry point of ``python -m benchmarks.throughput.models``."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("models", nargs="*", help="names of models; default: all")
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--compile-limit", type=float, default=60.0, help="seconds")
    arguments = parser.parse_args()
    # Before anything that reads it is imported.
    os.environ["OMP_NUM_THREADS"] = str(arguments.threads)
    print(json.dumps(measure(arguments.rows, arguments.threads, arguments.compile_limit, arguments.models), indent=2))


if __name__ == "__main__":
    main()
