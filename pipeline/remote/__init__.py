"""Batches worked on by a Ray cluster: this process's side, which never touches Ray.

The connection is held by a process of its own (`pipeline.remote.gateway`): Ray ends the process that holds it, without a word,
when its node goes down; it replaces signal handlers, and prints to standard output. Must not know what is done to a batch.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import socket
import subprocess
import sys
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import ClusterUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# Several attempts of the gateway, each of which Ray may take a minute to give up.
_STARTING_SECONDS = 240.0
_ENDING_SECONDS = 10.0


class Cluster:
    """A connected cluster. ``workers`` is how many questions it works on at once."""

    def __init__(self, address: str, process: subprocess.Popen[bytes], connection: Connection, first: bytes) -> None:
        self._address, self._process, self._connection = address, process, connection
        if not self._send(first) or not connection.poll(_STARTING_SECONDS):
            raise self._gone("cannot be connected to", f"nothing within {_STARTING_SECONDS:.0f} seconds")
        self.workers = int(self.receive())

    def submit(self, question: Any) -> Reply:
        """Give ``question`` to the cluster, through its object store."""
        # A process that is gone shows itself where its answer is missed.
        self._send(pickle.dumps(question, protocol=5))
        return Reply(self)

    def ready(self) -> bool:
        """Whether `receive` would answer at once."""
        return self._connection.poll(0)

    def receive(self) -> Any:
        """The next answer, in the order of the questions; raises the error that is in its place."""
        try:
            content = self._connection.recv_bytes()
        except (EOFError, OSError):
            raise self._gone("went away", "the end of the process that was connected to it") from None
        answer, error = pickle.loads(content)
        if error is not None:
            raise error
        return answer

    def _send(self, content: bytes) -> bool:
        try:
            self._connection.send_bytes(content)
        except OSError:
            return False
        return True

    def _gone(self, what: str, why: str) -> ClusterUnavailable:
        with suppress(subprocess.TimeoutExpired):
            why += f" (exit code {self._process.wait(1)})"
        return ClusterUnavailable(
            f"the Ray cluster at {self._address} {what}",
            expected="an answer",
            got=why,
            left_behind="nothing was published",
            next_step="look at the cluster (ray status); a retry begins the partition again",
        )


class Reply:
    """The answer to one question. Replies are asked in the order of the questions only."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    def done(self) -> bool:
        """Whether the answer, or its error, is there."""
        return self._cluster.ready()

    def result(self) -> Any:
        """The answer, or the error that the task raised, as it was raised.

        Raises `ClusterUnavailable` when the cluster is gone or its retries are spent, and `TerminalError` when its workers
        cannot run the task.
        """
        return self._cluster.receive()


@contextmanager
def connected(
    address: str, task: Callable[[Any], Any], *, prepare: Callable[[], None], workers: int | None = None
) -> Iterator[Cluster]:
    """The cluster at ``address``, giving every question to ``task``, ``workers`` at once (default: its processors, at most 64).

    ``prepare`` is called once in each of its worker processes. What is under way at the end is dropped, and the worker
    processes end. Raises `ClusterUnavailable` when nothing answers there in time, and `TerminalError` when Ray is not
    installed or the cluster refuses us.
    """
    import cloudpickle

    content = cloudpickle.dumps((prepare, task))
    first = pickle.dumps((address, workers, hashlib.sha256(content).hexdigest(), content), protocol=5)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        process = _started(theirs)
        connection = Connection(ours.detach())
    try:
        yield Cluster(address, process, connection, first)
    finally:
        connection.close()
        _end(process)


def _started(theirs: socket.socket) -> subprocess.Popen[bytes]:
    program = f"from pipeline.remote import gateway; gateway.serve({theirs.fileno()})"
    root = str(Path(__file__).parents[2])
    # Whoever runs the cluster may say otherwise of the report to Ray's makers.
    environment = {"RAY_USAGE_STATS_ENABLED": "0", **os.environ}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    return subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.DEVNULL,
        stdout=2,  # what Ray has to say belongs to the log; the output is the command's own
        pass_fds=[theirs.fileno()],
        # Ray makes the nodes look for modules where the connected process is; they have their own places.
        cwd="/",
        env=environment,
        # An interrupt of the terminal is for the parent.
        start_new_session=True,
    )


def _end(process: subprocess.Popen[bytes]) -> None:
    """It ends by itself once the connection is closed; a cluster that hangs must not hold us."""
    try:
        process.wait(_ENDING_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
