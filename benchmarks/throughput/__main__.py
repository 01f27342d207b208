"""``python -m benchmarks.throughput``: this product beside plain ways of scoring the same file, in one run on the same cores.

Every contender runs in a process of its own, one after the other; the first repetition is cold, the best of the others is what
ratios are made of. Start-up is told apart. Memory is the highest proportional set size of the process tree, sampled ten times
a second. JSON goes to ``benchmarks/out/throughput.json``.
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
_SAMPLE_SECONDS = 0.1


def main() -> None:
    """Measure what was asked for, print a table, and write the figures."""
    options = _options()
    cores = sorted(os.sched_getaffinity(0))[: options.cores]
    os.sched_setaffinity(0, cores)
    found = {
        "machine": {"processor": platform.processor(), "cores": len(cores), "python": platform.python_version()},
        "trainer": options.trainer,
        "sizes": [_size(options, rows, len(cores)) for rows in options.rows],
    }
    _OUT.parent.mkdir(parents=True, exist_ok=True)
    _OUT.write_text(json.dumps(found, indent=2) + "\n")
    print(f"figures in {_OUT.relative_to(_ROOT)}", file=sys.stderr)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.throughput", description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[2_000_000], help="sizes of the partition")
    parser.add_argument("--only", nargs="+", default=list(CONTENDERS), choices=[*CONTENDERS, *_CLUSTERS])
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--trainer", default="gradient_boosting", help="the job's model.trainer")
    parser.add_argument("--folder", type=Path, default=_ROOT / ".bench" / "throughput", help="where data is generated")
    return parser.parse_args()


def _size(options: argparse.Namespace, rows: int, cores: int) -> dict[str, Any]:
    folder: Path = options.folder
    prepare(folder, options.trainer)
    world.write(folder, day_of(rows), rows)
    measured = {name: _measured(options, name, folder, rows, cores) for name in options.only}
    own = measured.get("product", {}).get("best")
    for name, one in measured.items():
        if "best" in one:
            one["rows_per_second"] = rows / one["best"]
            one["times_of_product"] = one["best"] / own if own else None
        print(_line(name, rows, one), file=sys.stderr)
    return {"rows": rows, "contenders": measured, "largest_difference": _difference(folder, rows, options.only)}


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


def _difference(folder: Path, rows: int, names: list[str]) -> float | None:
    """Between the scores that the product published and those of scikit-learn in memory, row by row."""
    if not {"product", "in_memory"} <= set(names):
        return None
    published = pq.read_table((folder / "published.txt").read_text(), columns=["score"], partitioning=None)
    expected = np.load(folder / "in_memory.npy")
    return float(np.abs(published["score"].to_numpy() - expected).max()) if len(expected) == rows else None


def _line(name: str, rows: int, one: dict[str, Any]) -> str:
    if "error" in one:
        return f"{name:10} {rows:>12,} rows  {one['error']}"
    times = "" if one["times_of_product"] is None else f"  {one['times_of_product']:5.2f} x this product's time"
    speed = f"{one['rows_per_second']:>12,.0f} rows/s  {one['peak_mb']:>6,.0f} MB"
    return f"{name:10} {rows:>12,} rows  {one['best']:>7.2f} s  {speed}  start-up {one['startup']:.1f} s{times}"


if __name__ == "__main__":
    main()
