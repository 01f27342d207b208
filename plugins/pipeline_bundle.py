"""A DAG bundle in which every job file has a DAG file of its own: no parse grows with the number of jobs.

Airflow parses a DAG file as a whole, again and again, and gives up on one that takes too long (`[core] dagbag_import_timeout`).
The files in ``dags`` declare the DAGs of all jobs. With this bundle a changed job file is parsed alone and at once, a broken one
is its own import error, and the others wait for `[dag_processor] min_file_process_interval`, which may therefore be long. It is
switched on by `[dag_processor] dag_bundle_config_list`:

    [{"name": "jobs", "classpath": "pipeline_bundle.JobsDagBundle", "kwargs": {"refresh_interval": 10}}]
"""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from typing import Any

from airflow.configuration import conf
from airflow.dag_processing.bundles.base import BaseDagBundle

# The DAG processor parses files in forks of itself: what it has imported they need not import again and again.
from pipeline import jobfile

_MADE = '''\
"""The Airflow DAGs of a job file, which follows; made by pipeline_bundle.py: change the job file instead."""

import sys

if {dags!a} not in sys.path:
    sys.path.insert(0, {dags!a})

import declared

globals().update(declared.dags_of({file!a}))

# {file!a}
{content}
'''


class JobsDagBundle(BaseDagBundle):
    """One DAG file per job file of ``jobs``, by default ``PIPELINE_JOBS`` or the folder ``jobs`` in Airflow's DAGs folder.

    The files lie in Airflow's storage of bundles, on every machine that needs them, and can be made again at any time. Each
    holds its job file as a comment, which Airflow shows as the code of the DAGs.
    """

    supports_versioning = False

    def __init__(self, *, jobs: str | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._dags = Path(conf.get_mandatory_value("core", "dags_folder")).expanduser()
        self._jobs = Path(jobs or os.environ.get("PIPELINE_JOBS") or self._dags / "jobs").absolute()

    @property
    def path(self) -> Path:
        """The folder of the DAG files."""
        return self.base_dir / "dags"

    def get_current_version(self) -> None:
        """None: a run gets its job as it is."""

    def initialize(self) -> None:
        """Make the files that are missing: a task needs no more than that."""
        self.path.mkdir(parents=True, exist_ok=True)
        known = {path.name for path in self.path.iterdir()}
        self._make({name: file for name, file in self._files().items() if name not in known})
        super().initialize()

    def refresh(self) -> None:
        """Make the files that are missing, or whose job file has changed; remove those whose job file is gone."""
        files = self._files()
        self._make(files)
        for path in self.path.glob("*.py"):
            if path.name not in files:
                path.unlink(missing_ok=True)

    def _files(self) -> dict[str, Path]:
        """The job files by the names of their DAG files."""
        return {_module(file.name): file for file in jobfile.files(self._jobs)}

    def _make(self, files: dict[str, Path]) -> None:
        for name, file in files.items():
            try:
                text = self._text(file)
            except OSError:
                continue  # it has just been removed
            path = self.path / name
            if path.exists() and path.read_text("utf-8") == text:
                continue
            # Others read meanwhile: under its name is always a whole file.
            written = self.path / f".{name}.{os.getpid()}"
            written.write_text(text, "utf-8")
            written.replace(path)

    def _text(self, file: Path) -> str:
        lines = file.read_text("utf-8", errors="replace").replace("\0", "").splitlines()
        content = "\n".join(f"#     {line}".rstrip() for line in lines)
        return _MADE.format(dags=str(self._dags), file=str(file), content=content)


def _module(name: str) -> str:
    """The name of a job file's DAG file: one that Python can import, and another one for every job file."""
    module = re.sub(r"[^A-Za-z0-9_]", "_", name)
    if re.fullmatch(r"[A-Za-z0-9_]+\.ya?ml", name):
        return f"{module}.py"
    return f"{module}_{hashlib.sha256(os.fsencode(name)).hexdigest()[:12]}.py"
