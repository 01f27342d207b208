"""Airflow's REST API in the words of this product: start a run, wait for it, say why it failed.

Needs nothing but the standard library. Must not know how the Airflow it talks to was started.
"""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from pipeline.errors import TerminalError, TransientError
from pipeline.intervals import format_instant, parse_instant

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from datetime import datetime

_POLL_SECONDS = 0.3
_TIMEOUT_SECONDS = 30.0
_PAGE = 100
_LOG_LINES = 30
# A proxy of the environment must never see what goes to this machine.
_open = urllib.request.build_opener(urllib.request.ProxyHandler({})).open


class AirflowUnavailable(TransientError):
    """Airflow's API server did not answer, or answered that it is overloaded."""


class AirflowRefused(TerminalError):
    """Airflow's API server refused a request."""


@dataclass(frozen=True, slots=True)
class Run:
    """One run of a DAG. ``state`` is Airflow's: queued, running, success or failed."""

    dag_id: str
    run_id: str
    state: str
    kind: str
    conf: dict[str, Any]
    started: datetime | None
    ended: datetime | None

    @classmethod
    def of(cls, answer: Mapping[str, Any]) -> Self:
        """The run that an answer of the API describes."""
        started, ended = answer["start_date"], answer["end_date"]
        return cls(
            dag_id=answer["dag_id"],
            run_id=answer["dag_run_id"],
            state=answer["state"],
            kind=answer["run_type"],
            conf=answer["conf"] or {},
            started=parse_instant(started) if started else None,
            ended=parse_instant(ended) if ended else None,
        )

    @property
    def is_over(self) -> bool:
        """Whether the run has come to an end."""
        return self.state in ("success", "failed")


@dataclass(frozen=True, slots=True)
class TaskInstance:
    """One task of a run, as its present try has it.

    ``try_number`` counts from 1. ``map_index`` is -1 for a task that is not mapped. ``pid`` is the process of the present
    try on the machine that runs it, ``None`` until it has begun. ``id`` is another one for every try, ``seconds`` is how
    long the try took, ``None`` as long as it runs.
    """

    id: str
    run_id: str
    task_id: str
    map_index: int
    state: str | None
    try_number: int
    pid: int | None
    seconds: float | None

    @classmethod
    def of(cls, answer: Mapping[str, Any]) -> Self:
        """The task instance that an answer of the API describes."""
        return cls(
            id=answer["id"],
            run_id=answer["dag_run_id"],
            task_id=answer["task_id"],
            map_index=answer["map_index"],
            state=answer["state"],
            try_number=answer["try_number"],
            pid=answer["pid"],
            seconds=answer["duration"],
        )


class AirflowApi:
    """A signed-in client. Raises `AirflowUnavailable` or `AirflowRefused`, whose messages carry Airflow's answer."""

    def __init__(self, url: str, username: str, password: str) -> None:
        self.url = url.rstrip("/")
        self.username = username
        self.password = password
        self._token: str | None = None

    def health(self) -> dict[str, str | None]:
        """Status by component (metadatabase, scheduler, dag_processor, triggerer); ``None`` for one that never ran."""
        answer = self._call("GET", "/api/v2/monitor/health", signed=False)
        return {component: facts["status"] for component, facts in answer.items()}

    def unpause(self, dag_id: str) -> None:
        """Let the scheduler start runs of the DAG."""
        self._call("PATCH", f"/api/v2/dags/{dag_id}", {"is_paused": False})

    def trigger(self, dag_id: str, conf: Mapping[str, object] | None = None) -> str:
        """Start a manual run with ``conf`` as its Params; returns its run id."""
        body = {"logical_date": None, "conf": dict(conf or {})}
        return str(self._call("POST", f"/api/v2/dags/{dag_id}/dagRuns", body)["dag_run_id"])

    def run(self, dag_id: str, run_id: str) -> Run:
        """The run as it is now."""
        return Run.of(self._call("GET", f"/api/v2/dags/{dag_id}/dagRuns/{_quote(run_id)}"))

    def run_state(self, dag_id: str, run_id: str) -> str:
        """The run's state: queued, running, success or failed."""
        return self.run(dag_id, run_id).state

    def runs(self, dag_id: str) -> list[Run]:
        """Every run of the DAG, oldest first."""
        return self._runs(dag_id, "order_by=run_after")

    def failed_runs(self) -> list[Run]:
        """Every failed run of any DAG, oldest first."""
        return self._runs("~", "order_by=run_after&state=failed")

    def task_instances(self, dag_id: str) -> list[TaskInstance]:
        """The tasks of every run of the DAG, without order; those whose run has just begun may still be missing."""
        path = f"/api/v2/dags/{dag_id}/dagRuns/~/taskInstances?order_by=id"
        return [TaskInstance.of(answer) for answer in self._all(path, "task_instances")]

    def wait(self, dag_id: str, run_id: str, timeout: float) -> str:
        """The final state of the run: success or failed. Raises `AirflowUnavailable` after ``timeout`` seconds."""
        deadline = time.monotonic() + timeout
        while True:
            try:
                run = self.run(dag_id, run_id)
            except AirflowUnavailable:
                if time.monotonic() > deadline:
                    raise
            else:
                if run.is_over:
                    return run.state
                if time.monotonic() > deadline:
                    raise AirflowUnavailable(
                        f"run {run_id} of DAG {dag_id} is not over after {timeout:.0f} s",
                        expected="success or failed",
                        got=run.state,
                        left_behind="the run goes on",
                    )
            time.sleep(_POLL_SECONDS)

    def wait_for_dags(self, dag_ids: Iterable[str], timeout: float) -> None:
        """Return when every DAG is known. Raises `AirflowRefused` with the tracebacks when a DAG file cannot be imported."""
        missing, deadline = set(dag_ids), time.monotonic() + timeout
        while missing:
            if errors := self.import_errors():
                raise AirflowRefused("a DAG file cannot be imported", got="\n".join(errors))
            found = self._call("GET", f"/api/v2/dags?limit={_PAGE}")["dags"]
            missing -= {dag["dag_id"] for dag in found}
            if missing and time.monotonic() > deadline:
                raise AirflowUnavailable(
                    f"Airflow does not know the DAGs {', '.join(sorted(missing))} after {timeout:.0f} s",
                    next_step="look at the DAG processor's log",
                )
            time.sleep(_POLL_SECONDS)

    def failure(self, dag_id: str, run_id: str) -> str:
        """The last lines of the log of each failed task of the run; empty when no task failed."""
        path = f"/api/v2/dags/{dag_id}/dagRuns/{_quote(run_id)}/taskInstances"
        parts = []
        for task in self._call("GET", f"{path}?limit={_PAGE}")["task_instances"]:
            if task["state"] != "failed":
                continue
            log = f"{path}/{task['task_id']}/logs/{task['try_number']}?map_index={task['map_index']}"
            lines = [line for entry in self._call("GET", log)["content"] for line in _lines(entry)]
            parts += [f"--- {dag_id}.{task['task_id']}, run {run_id}, try {task['try_number']}", *lines[-_LOG_LINES:]]
        return "\n".join(parts)

    def import_errors(self) -> list[str]:
        """One text per DAG file that cannot be imported: its name and the traceback."""
        answer = self._call("GET", f"/api/v2/importErrors?limit={_PAGE}")
        return [f"{error['filename']}:\n{error['stack_trace']}" for error in answer["import_errors"]]

    def backfill(
        self, dag_id: str, from_date: datetime, to_date: datetime, *, max_active_runs: int = 1, reprocess: str = "none"
    ) -> int:
        """Start scoring the intervals that start between the two instants, both included; returns the backfill's id.

        ``reprocess`` says what happens to intervals that already have a run: none (left alone), failed or completed
        (run again). The runs stay queued while the DAG is paused.
        """
        body = {
            "dag_id": dag_id,
            "from_date": format_instant(from_date),
            "to_date": format_instant(to_date),
            "max_active_runs": max_active_runs,
            "reprocess_behavior": reprocess,
        }
        return int(self._call("POST", "/api/v2/backfills", body)["id"])

    def has_running_backfill(self, dag_id: str) -> bool:
        """Whether a backfill of the DAG is not complete; the scheduler notices completion up to a minute late."""
        answer = self._call("GET", f"/api/v2/backfills?dag_id={dag_id}&limit={_PAGE}")
        return any(backfill["completed_at"] is None for backfill in answer["backfills"])

    def set_pool(self, name: str, slots: int, description: str) -> None:
        """Create the pool, or give an existing one this many slots."""
        pool = {"slots": slots, "description": description, "include_deferred": False}
        if name in {known["name"] for known in self._call("GET", f"/api/v2/pools?limit={_PAGE}")["pools"]}:
            self._call("PATCH", f"/api/v2/pools/{name}", {"pool": name, **pool})
        else:
            self._call("POST", "/api/v2/pools", {"name": name, **pool})

    def _runs(self, dag_id: str, query: str) -> list[Run]:
        return [Run.of(answer) for answer in self._all(f"/api/v2/dags/{dag_id}/dagRuns?{query}", "dag_runs")]

    def _all(self, path: str, name: str) -> list[dict[str, Any]]:
        """The entries of every page of a listing."""
        found: list[dict[str, Any]] = []
        while True:
            page = self._call("GET", f"{path}&limit={_PAGE}&offset={len(found)}")[name]
            found += page
            if len(page) < _PAGE:
                return found

    def _call(self, method: str, path: str, body: Mapping[str, object] | None = None, *, signed: bool = True) -> Any:
        headers = {"Accept": "application/json", "Content-Type": "application/json"}
        if signed:
            headers["Authorization"] = f"Bearer {self._sign_in()}"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, headers, method=method)
        what = f"Airflow refused {method} {path}"
        try:
            with _open(request, timeout=_TIMEOUT_SECONDS) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as err:
            got = f"{err.code} {err.read().decode(errors='replace')[:2000]}"
            if err.code == 401:
                self._token = None
            if err.code >= 500 or err.code in (401, 429):
                raise AirflowUnavailable(what, got=got, left_behind="") from err
            raise AirflowRefused(what, got=got, left_behind="") from err
        except (OSError, TimeoutError) as err:
            raise AirflowUnavailable(f"Airflow did not answer {method} {path}", got=str(err), left_behind="") from err

    def _sign_in(self) -> str:
        if self._token is None:
            credentials = {"username": self.username, "password": self.password}
            self._token = str(self._call("POST", "/auth/token", credentials, signed=False)["access_token"])
        return self._token


def _quote(run_id: str) -> str:
    return urllib.parse.quote(run_id, safe="")


def _lines(entry: Mapping[str, Any] | str) -> list[str]:
    """One structured log entry as lines; an exception as its last frames and its message, causes first."""
    if isinstance(entry, str):
        return [entry]
    if entry["event"].startswith("::"):  # marks that fold the log in the UI
        return []
    lines = [f"{entry.get('level', '')} {entry['event']}".strip()]
    for error in reversed(entry.get("error_detail") or []):
        lines += [f"  {f['filename']}:{f['lineno']} in {f['name']}" for f in error["frames"][-5:]]
        lines.append(f"  {error['exc_type']}: {error['exc_value']}")
    return lines
