"""``python -m benchmarks.throughput``: this product beside other ways of scoring the same file, in one run on the same cores.

Every contender runs in a process of its own, one after the other; the first repetition is cold, the best of the others is what
ratios are made of. Start-up is told apart. Memory is the highest proportional set size of the process tree, sampled ten times
a second. JSON goes to ``benchmarks/out/throughput.json``, and from there, by ``python -m benchmarks.throughput.page``, to
``docs/results.md``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import threading
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import psutil
import pyarrow.parquet as pq

from benchmarks.decisions.peers import environment
from benchmarks.throughput import world
from benchmarks.throughput.contenders import CONTENDERS, day_of
from pipeline.runtime import Runtime

_ROOT = Path(__file__).parents[2]
_OUT = _ROOT / "benchmarks" / "out" / "throughput.json"
_CLUSTERS = ("ray", "spark")
# The models that are scored with, and the job's ``model.trainer`` of each.
TRAINERS = {
    "gradient_boosting": "gradient_boosting",
    "logistic_regression": "benchmarks.throughput.pipelines:logistic_regression",
    "random_forest": "benchmarks.throughput.pipelines:random_forest",
}
_SAMPLE_SECONDS = 0.1


def main() -> None:
    """Measure what was asked for, print a table, and write the figures."""
    options = _options()
    cores = sorted(os.sched_getaffinity(0))[: options.cores]
    os.sched_setaffinity(0, cores)
    found = {
        "machine": machine(len(cores)),
        "models": {name: [_size(options, name, rows, len(cores)) for rows in options.rows] for name in options.models},
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(found, indent=2) + "\n")
    print(f"figures in {options.out}", file=sys.stderr)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.throughput", description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[2_000_000], help="sizes of the partition")
    parser.add_argument(
        "--models",
        nargs="+",
        default=list(TRAINERS),
        help=f"{', '.join(TRAINERS)}, or a trainer as a job file names it",
    )
    parser.add_argument("--only", nargs="+", default=[*CONTENDERS, *_CLUSTERS], choices=[*CONTENDERS, *_CLUSTERS])
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=_ROOT / ".bench" / "throughput", help="where data is generated")
    parser.add_argument("--out", type=Path, default=_OUT, help="where the figures go")
    return parser.parse_args()


def machine(cores: int) -> dict[str, Any]:
    """What the figures were measured on."""
    versions = ("numpy", "pandas", "pyarrow", "scikit-learn", "numba", "mlflow")
    found = [line for line in _read("/proc/cpuinfo").splitlines() if line.startswith("model name")]
    return {
        "processor": found[0].partition(":")[2].strip() if found else platform.processor() or platform.machine(),
        "cores": cores,
        "memory_gb": round(psutil.virtual_memory().total / 2**30),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "load_before": round(os.getloadavg()[0], 2),
        **{name: version(name) for name in versions},
    }


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def _size(options: argparse.Namespace, model: str, rows: int, cores: int) -> dict[str, Any]:
    folder: Path = options.folder / model.replace(":", ".")
    prepare(folder, TRAINERS.get(model, model))
    world.write(folder, day_of(rows), rows)
    measured = {name: _measured(options, name, folder, rows, cores) for name in options.only}
    own = measured.get("product", {}).get("best")
    for name, one in measured.items():
        if "best" in one:
            one["rows_per_second"] = rows / one["best"]
            one["times_of_product"] = one["best"] / own if own else None
        print(_line(model, name, rows, one), file=sys.stderr, flush=True)
    return {"rows": rows, "contenders": measured, **_differences(folder, rows, options.only)}


def prepare(folder: Path, trainer: str) -> None:
    """A deployment in ``folder`` with a champion, and its estimator in ``model.joblib`` for the others."""
    job = world.prepare(folder, 1000, trainer)
    with Runtime(world.settings(folder)) as runtime:
        model = runtime.context(job).load(runtime.registry.versions(job.model_name)[0])
        joblib.dump(model.estimator, folder / "model.joblib")


def _measured(options: argparse.Namespace, name: str, folder: Path, rows: int, cores: int) -> dict[str, Any]:
    source = world.partition(folder, day_of(rows))
    if name in _CLUSTERS:
        try:
            python = environment("clusters")
        except subprocess.CalledProcessError as error:
            return {"error": f"no environment: {error}"}
        program = [str(_ROOT / "benchmarks" / "peers" / "clusters_program.py")]
        command = [str(python), *program, name, str(folder), str(source), str(cores), str(options.repeats)]
    else:
        program = ["-m", "benchmarks.throughput.contenders"]
        command = [sys.executable, *program, name, str(folder), str(rows), str(options.repeats)]
    began = time.perf_counter()
    with (folder / f"{name}.log").open("w") as said, Memory() as memory:
        process = subprocess.Popen(command, cwd=_ROOT, stdout=subprocess.PIPE, stderr=said, text=True)
        memory.of(process.pid)
        printed = process.communicate()[0].strip().rpartition("\n")[2]
    if process.returncode:
        return {"error": f"exit status {process.returncode}; see {folder / f'{name}.log'}"}
    answer = json.loads(printed)
    seconds = answer["seconds"]
    return {
        "startup": time.perf_counter() - began - sum(seconds),
        "cold": seconds[0],
        "best": min(seconds[1:] or seconds),
        "seconds": seconds,
        "peak_mb": memory.peak / 2**20,
    }


class Memory:
    """The highest memory of a process and all its descendants, in bytes; pages that they share count once."""

    def __init__(self) -> None:
        self.peak = 0
        self._root: int | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Memory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def of(self, pid: int) -> None:
        """Watch that process from now on."""
        self._root = pid

    def _watch(self) -> None:
        while not self._over.wait(_SAMPLE_SECONDS):
            if self._root is None:
                continue
            try:
                root = psutil.Process(self._root)
                tree = [root, *root.children(recursive=True)]
            except psutil.Error:
                continue
            self.peak = max(self.peak, sum(map(_bytes, tree)))


def _bytes(process: psutil.Process) -> int:
    try:
        return int(process.memory_full_info().pss)
    except psutil.Error:
        return 0


def _differences(folder: Path, rows: int, names: list[str]) -> dict[str, float | int]:
    """Between what the product published and what scikit-learn says in memory, row by row."""
    if not {"product", "in_memory"} <= set(names):
        return {}
    published = pq.read_table(
        (folder / "published.txt").read_text(), columns=["prediction", "score"], partitioning=None
    )
    expected = np.load(folder / "in_memory.npy")
    if len(expected) != rows:
        return {}
    return {
        "largest_difference": float(np.abs(published["score"].to_numpy() - expected).max()),
        "decisions_that_differ": int(np.count_nonzero(published["prediction"].to_numpy() != (expected > 0.5))),
    }


def _line(model: str, name: str, rows: int, one: dict[str, Any]) -> str:
    if "error" in one:
        return f"{model:20} {name:10} {rows:>12,} rows  {one['error']}"
    times = "" if one["times_of_product"] is None else f"  {one['times_of_product']:5.2f} x this product's time"
    speed = f"{one['rows_per_second']:>12,.0f} rows/s  {one['peak_mb']:>6,.0f} MB"
    return (
        f"{model:20} {name:10} {rows:>12,} rows  {one['best']:>7.2f} s  {speed}  start-up {one['startup']:.1f} s{times}"
    )


if __name__ == "__main__":
    main()
