"""Parse DAG files as Airflow does, each in a fork of a process that has loaded Airflow; CPU seconds as JSON on stdout.

Its arguments are the folder of job files, ``bundle`` or ``folder`` (a DAG file per job, or one per kind of DAG for all jobs) and,
for a task's process, the id of its DAG.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import time
from pathlib import Path

_ROOT = Path(__file__).parents[2]
_FILE_OF = {"score": "scoring"}
FILES = ("scoring.py", "evaluation.py", "retraining.py", "operations.py", "invalid_jobs.py")


def main() -> None:
    """Print the seconds that each file takes."""
    jobs, mode, *own = sys.argv[1:]
    os.environ["PIPELINE_JOBS"] = jobs
    os.environ["AIRFLOW__CORE__DAGS_FOLDER"] = str(_ROOT / "dags")
    os.environ["AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_STORAGE_PATH"] = f"{os.environ['AIRFLOW_HOME']}/bundles"
    if own:
        os.environ["_AIRFLOW_PARSING_CONTEXT_DAG_ID"] = own[0]
    sys.path[:0] = [str(_ROOT / folder) for folder in ("dags", "plugins")]
    import airflow.sdk  # noqa: F401

    files = _made() if mode == "bundle" else [_ROOT / "dags" / name for name in FILES]
    if own:
        # A task's process parses only the file that its DAG is in.
        job, _, kind = own[0].rpartition("__")
        files = [file for file in files if file.name in (f"{job}_yaml.py", f"{_FILE_OF[kind]}.py")]
    print(json.dumps({file.name: _parse(file) for file in files}))


def _made() -> list[Path]:
    from pipeline_bundle import JobsDagBundle

    bundle = JobsDagBundle(name="jobs")
    bundle.initialize()
    bundle.refresh()
    return sorted(bundle.path.glob("*.py"))


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
