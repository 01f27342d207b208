"""Processes that tests give orders to, and that never outlive the test."""

from __future__ import annotations

import multiprocessing
import traceback
from contextlib import suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.connection import Connection
    from types import TracebackType

_SPAWN = multiprocessing.get_context("spawn")
_END_SECONDS = 30.0


class WorkerDied(Exception):
    """The process ended by itself; the argument is its exit code, negative for a signal."""


class Worker:
    """A spawned process that carries out one order at a time. Use as a context manager, which ends it in any case.

    An order is a module-level function and its arguments; it is called with the worker's connection before them. One
    that runs until it is told to stop asks ``connection.poll()``.
    """

    def __init__(self) -> None:
        self._connection, theirs = _SPAWN.Pipe()
        self._process = _SPAWN.Process(target=_serve, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    def order(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Let the process begin; returns at once."""
        try:
            self._connection.send((function, arguments))
        except OSError:
            self._died()

    def stop(self) -> None:
        """Tell an order that runs until it is told to stop."""
        self.tell(None)

    def tell(self, word: object) -> None:
        """Send something to the order that is being carried out."""
        with suppress(OSError):  # it is dead, which `result` tells
            self._connection.send(word)

    def result(self, seconds: float = _END_SECONDS) -> Any:
        """What the order returned. Raises `WorkerDied`, or ``RuntimeError`` with the traceback of what it raised."""
        if not self._connection.poll(seconds):
            self.end()
            raise TimeoutError(f"a worker did not answer within {seconds:.0f} s")
        try:
            succeeded, outcome = self._connection.recv()
        except (EOFError, OSError):
            self._died()
        if not succeeded:
            raise RuntimeError(outcome)
        return outcome

    def end(self) -> None:
        """Kill the process and forget it."""
        if self._connection.closed:
            return
        self._process.kill()
        self._process.join()
        self._process.close()
        self._connection.close()

    def _died(self) -> None:
        self._process.join(_END_SECONDS)
        raise WorkerDied(self._process.exitcode)


def _serve(connection: Connection) -> None:
    while True:
        try:
            function, arguments = connection.recv()
        except EOFError:
            return
        try:
            answer = True, function(connection, *arguments)
        except EOFError:
            return
        except Exception:
            answer = False, traceback.format_exc()
        connection.send(answer)
