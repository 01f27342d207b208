"""Fixtures that every layer of tests shares: a seeded generator, a small valid job, a real empty MLflow registry, a mailbox."""

from __future__ import annotations

import json
import os
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from pipeline.job import JobSpec

pytest_plugins = ["tests.worlds"]

# Read by the libraries when they are imported, so before anything else.
os.environ.update(
    MLFLOW_DISABLE_TELEMETRY="true",
    DO_NOT_TRACK="true",
    GX_ANALYTICS_ENABLED="false",
    TRANSFORMERS_VERBOSITY="error",
    # Two test processes with threads of their own on two cores wait for each other more than they work.
    OMP_NUM_THREADS="1",
)


@pytest.fixture
def rng() -> np.random.Generator:
    """A generator with a fixed seed."""
    return np.random.default_rng(20130101)


@pytest.fixture
def make_job() -> Callable[..., JobSpec]:
    """A factory of valid daily jobs; keyword arguments replace or extend top-level fields (dicts are merged)."""
    from pipeline.job import JobSpec

    def make(**changes: Any) -> JobSpec:
        document: dict[str, Any] = {
            "name": "orders",
            "task": "binary",
            "schedule": {"interval": "1d", "start": "2026-01-01T00:00:00Z"},
            "features": {
                "uri": "features",
                "key": ["row_id"],
                "time": "event_ts",
                "columns": {"amount": {"type": "number"}, "country": {"type": "category"}},
            },
            "labels": {"uri": "labels", "column": "label", "available_at": "label_available_at"},
        }
        for name, value in changes.items():
            if isinstance(value, dict):
                document[name] = {**document.get(name, {}), **value}
            else:
                document[name] = value
        return JobSpec.model_validate_json(json.dumps(document))

    return make


@pytest.fixture(scope="session")
def _mlflow_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One migrated, empty MLflow database; a migration takes seconds, a copy takes milliseconds."""
    from mlflow.store.db.utils import _safe_initialize_tables, create_sqlalchemy_engine

    path = tmp_path_factory.mktemp("mlflow") / "template.db"
    engine = create_sqlalchemy_engine(f"sqlite:///{path}")
    _safe_initialize_tables(engine)
    engine.dispose()
    return path


@pytest.fixture
def tracking_uri(_mlflow_template: Path, tmp_path: Path) -> str:
    """The URI of a real, empty MLflow registry on SQLite in ``tmp_path``."""
    path = tmp_path / "mlflow.db"
    shutil.copy(_mlflow_template, path)
    return f"sqlite:///{path}"


class Mailbox:
    """What a web server received: the path and the JSON of each post; it refuses the paths in ``refused``."""

    def __init__(self) -> None:
        self.received: list[tuple[str, dict[str, Any]]] = []
        self.refused: set[str] = set()
        mailbox = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                mailbox.received.append((self.path, json.loads(body)))
                self.send_response(500 if self.path in mailbox.refused else 200)
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                """Tests are quiet."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"json://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def mailbox() -> Iterator[Mailbox]:
    """A web server on loopback to which messages can be sent."""
    made = Mailbox()
    thread = threading.Thread(target=made.server.serve_forever)
    thread.start()
    yield made
    made.server.shutdown()
    made.server.server_close()
    thread.join()
