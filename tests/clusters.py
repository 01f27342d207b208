"""A Ray cluster of two nodes on loopback addresses, each with its own processes, and a model that can be made to fail."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
from sklearn.base import BaseEstimator, ClassifierMixin

if TYPE_CHECKING:
    import pandas as pd

    from pipeline.job import JobSpec

ROOT = Path(__file__).parents[1]
HEAD, OTHER = "127.0.0.2", "127.0.0.3"
_STARTED = "Ray runtime started"
_STARTING_SECONDS = 90


class Cluster:
    """Two nodes of one processor each. Whoever connects needs ``environment``."""

    def __init__(self) -> None:
        # Ray's sockets lie below, and the path of a socket is short.
        self.home = Path(tempfile.mkdtemp(prefix="bip-ray-", dir="/tmp"))
        self.environment = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        self._nodes: dict[str, subprocess.Popen[bytes]] = {}
        self._port = self._client_port = 0

    @property
    def address(self) -> str:
        """The address on a node of the cluster."""
        return f"{HEAD}:{self._port}"

    @property
    def client_address(self) -> str:
        """The address from anywhere."""
        return f"ray://{HEAD}:{self._client_port}"

    def mend(self, *nodes: str) -> None:
        """Start what is not there of ``nodes`` (default: both); nothing else lives on without the head."""
        if HEAD not in self._nodes:
            self.stop()
            self._port, self._client_port = free_ports(HEAD, 2)
            self._start(
                HEAD,
                "--head",
                f"--port={self._port}",
                f"--ray-client-server-port={self._client_port}",
                "--include-dashboard=false",
                "--disable-usage-stats",
                f"--temp-dir={self.home}/r",
            )
            _await(lambda: answers(HEAD, self._port), "the head of the cluster")
        if OTHER in (nodes or (OTHER,)) and OTHER not in self._nodes:
            self._start(OTHER, f"--address={self.address}")
        for node in self._nodes:
            _await(lambda node=node: _STARTED in self._log(node).read_text(), f"node {node}")

    def await_work(self, node: str) -> None:
        """Return once a task runs on the node."""

        def busy() -> bool:
            workers = psutil.Process(self._nodes[node].pid).children(recursive=True)
            return any(map(_is_working, workers))

        _await(busy, f"a task on {node}")

    def await_rest(self) -> None:
        """Return once no task runs, and no process waits for one."""

        def idle() -> bool:
            nodes = [psutil.Process(process.pid) for process in self._nodes.values()]
            running = [each for node in nodes for each in node.children(recursive=True)]
            return not any(map(_is_working, running))

        _await(idle, "rest")

    def kill(self, node: str) -> None:
        """End a node at once, with everything that runs on it."""
        process = self._nodes.pop(node)
        found = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        for each in found:
            each.kill()
        psutil.wait_procs(found, timeout=30)
        process.wait()

    def client_servers(self) -> set[psutil.Process]:
        """The processes that the head has started, one for each client from afar."""
        return {
            each for each in psutil.Process(self._nodes[HEAD].pid).children(recursive=True) if _serves_a_client(each)
        }

    def kill_next_client_server(self, known: set[psutil.Process]) -> psutil.Process:
        """End the first one that is not among those ``known``, as soon as it is there."""
        _await(lambda: self.client_servers() - known, "the server of a client")
        process = min(self.client_servers() - known, key=psutil.Process.create_time)
        process.kill()
        return process

    def stop(self) -> None:
        """End both nodes."""
        for node in list(self._nodes):
            self.kill(node)

    def close(self) -> None:
        """End both nodes and remove what they wrote. Nothing of the cluster runs afterwards."""
        self.stop()
        left = [process for process in psutil.process_iter(["cmdline"]) if self._owns(process)]
        for process in left:
            process.kill()
        shutil.rmtree(self.home)
        assert left == []

    def _owns(self, process: psutil.Process) -> bool:
        return any(str(self.home) in part for part in process.info["cmdline"] or ())

    def _start(self, node: str, *arguments: str) -> None:
        command = [str(Path(sys.executable).with_name("ray")), "start", "--block", *arguments]
        limits = ["--num-cpus=1", "--object-store-memory=150000000"]
        environment = {"RAY_USAGE_STATS_ENABLED": "0", **os.environ, **self.environment, "PYTHONPATH": str(ROOT)}
        with self._log(node).open("wb") as log:
            self._nodes[node] = subprocess.Popen(
                [*command, f"--node-ip-address={node}", *limits],
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,
            )

    def _log(self, node: str) -> Path:
        return self.home / f"{node}.log"


def free_ports(host: str, count: int) -> list[int]:
    """Ports of ``host`` where nothing listens."""
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind((host, 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def answers(host: str, port: int) -> bool:
    """Whether something listens there."""
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex((host, port)) == 0


def _is_working(process: psutil.Process) -> bool:
    """Whether a process of Ray works on a batch; one that has ended meanwhile does not."""
    try:
        return "ray::_work" in process.cmdline()[:1]
    except psutil.Error:
        return False


def _serves_a_client(process: psutil.Process) -> bool:
    try:
        return any("specific-server" in part for part in process.cmdline())
    except psutil.Error:
        return False


def _await(true: Any, what: str) -> None:
    until = time.monotonic() + _STARTING_SECONDS
    while not true():
        assert time.monotonic() < until, f"{what}: not started in time"
        time.sleep(0.1)


class Fragile(ClassifierMixin, BaseEstimator):
    """Knows how orders come about, and has no answer for amounts below zero."""

    def fit(self, rows: pd.DataFrame, labels: Any) -> Fragile:
        self.classes_ = np.unique(labels)
        return self

    def predict(self, rows: pd.DataFrame) -> Any:
        return self.classes_[self.predict_proba(rows).argmax(axis=1)]

    def predict_proba(self, rows: pd.DataFrame) -> Any:
        amount = rows["amount"].to_numpy()
        chance = np.where(amount < 0, np.nan, 1 / (1 + np.exp(-0.03 * (amount - 100))))
        return np.column_stack([1 - chance, chance])


def fragile(job: JobSpec) -> Fragile:
    """The trainer of `Fragile`."""
    return Fragile()
