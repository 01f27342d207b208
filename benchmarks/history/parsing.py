"""Parse DAG files as Airflow does, each in a fork of a process that has loaded Airflow; CPU seconds as JSON on stdout.

Its arguments are the folder of job files and, for a task's process, the id of its DAG.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import time
from pathlib import Path

_ROOT = Path(__file__).parents[2]
FILES = ("scoring.py", "evaluation.py", "retraining.py", "operations.py", "invalid_jobs.py")


def main() -> None:
    """Print the seconds that each file takes."""
    jobs, *own = sys.argv[1:]
    os.environ["PIPELINE_JOBS"] = jobs
    if own:
        os.environ["_AIRFLOW_PARSING_CONTEXT_DAG_ID"] = own[0]
    sys.path[:0] = [str(_ROOT / folder) for folder in ("dags", "plugins")]
    import airflow.sdk  # noqa: F401

    # A task's process parses only the file that its DAG is in.
    print(json.dumps({name: _parse(_ROOT / "dags" / name) for name in (FILES[:1] if own else FILES)}))


def _parse(file: Path) -> dict[str, float]:
    reader, writer = os.pipe()
    if os.fork() == 0:
        began = time.process_time()
        spec = importlib.util.spec_from_file_location("parsed", file)
        assert spec is not None  # it is a Python file
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        seconds = time.process_time() - began
        dags = sum(name.count("__") == 1 and not name.startswith("_") for name in vars(module))
        os.write(writer, json.dumps({"seconds": seconds, "dags": dags}).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as answer:
        found: dict[str, float] = json.loads(answer.read())
    os.wait()
    return found


if __name__ == "__main__":
    main()
