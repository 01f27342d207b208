"""A parent for a group of processes that must never outlive the one who asked for them.

Runs as its own process and keeps the processes alive until its standard input closes. The kernel closes the pipe when
the asking process ends, however it ends (return, exception, Ctrl-C, SIGKILL), so clean-up needs nobody's cooperation.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING

import psutil  # type: ignore[import-untyped]

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

_POLL_SECONDS = 0.3


class Supervised:
    """A running supervisor, seen from the process that asked for it."""

    def __init__(
        self,
        prepare: Sequence[Sequence[str]],
        processes: Mapping[str, Sequence[str]],
        *,
        logs: Path,
        environ: Mapping[str, str],
        held: IO[bytes],
        grace: float = 8.0,
    ) -> None:
        """Start it: ``prepare`` commands run one after the other, then ``processes`` (name -> command) side by side.

        The output of each goes to ``<name>.log`` in the folder ``logs``, that of the preparation to ``prepare.log``. A
        lock on the open file ``held`` is kept until the last process has ended. At the end the processes have ``grace``
        seconds to leave by themselves.
        """
        logs.mkdir(parents=True, exist_ok=True)
        self._logs = logs
        with held, (logs / "supervisor.log").open("wb") as log:
            self._supervisor = subprocess.Popen(
                [sys.executable, "-P", str(Path(__file__).resolve())],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=logs,
                env=dict(environ),
                pass_fds=[held.fileno()],
                start_new_session=True,  # a Ctrl-C in the terminal reaches the asking process only
            )
        order = {
            "prepare": [list(command) for command in prepare],
            "processes": {name: list(command) for name, command in processes.items()},
            "grace": grace,
        }
        assert self._supervisor.stdin is not None
        self._supervisor.stdin.write(json.dumps(order).encode() + b"\n")
        self._supervisor.stdin.flush()

    def failure(self) -> str | None:
        """Why everything has ended by itself, with the last lines of the log in question; ``None`` while it runs."""
        if self._supervisor.poll() is None:
            return None
        said = (self._logs / "supervisor.log").read_text(errors="replace").strip()
        culprit = self._logs / f"{said.split(' ', 1)[0]}.log" if said else self._logs / "supervisor.log"
        tail = culprit.read_text(errors="replace").splitlines()[-15:] if culprit.exists() else []
        return "\n".join([said or "the supervisor was killed", *tail])

    def stop(self) -> None:
        """End every process and wait until none is left; does nothing the second time."""
        assert self._supervisor.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # when it has ended by itself
            self._supervisor.stdin.close()
        self._supervisor.wait()


def _members(sessions: Iterable[int]) -> list[psutil.Process]:
    """The living processes of the given sessions; a task moves to its own process group, but not to its own session."""
    wanted, found = set(sessions), []
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) in wanted and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (ProcessLookupError, PermissionError, psutil.Error):
            continue
    return found


def _signal(processes: Iterable[psutil.Process], number: signal.Signals) -> None:
    for process in processes:
        try:
            process.send_signal(number)
        except psutil.Error:
            continue


def _end(started: Iterable[subprocess.Popen[bytes]], grace: float) -> None:
    """TERM to everything of the sessions, twice, time to leave, KILL for the rest, until nothing is left."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)  # impatience must not cut this short
    children = list(started)
    sessions = [child.pid for child in children]
    # A second TERM means "do not wait for what you still have to do" to the scheduler and the API server.
    for _ in range(2):
        left = _members(sessions)
        _signal(left, signal.SIGTERM)
        deadline = time.monotonic() + grace / 2
        while left and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS / 3)
            left = _members(sessions)
    while left:
        _signal(left, signal.SIGKILL)
        time.sleep(_POLL_SECONDS / 3)
        left = _members(sessions)
    for child in children:
        child.wait()


def _run(
    prepare: Sequence[Sequence[str]], processes: Mapping[str, Sequence[str]], grace: float, asked: IO[bytes]
) -> str:
    """Run everything until ``asked`` closes; returns what went wrong, empty when nothing did."""
    running: dict[str, subprocess.Popen[bytes]] = {}
    try:
        for command in prepare:
            running["prepare"] = _start("prepare", command)
            while running["prepare"].poll() is None:
                if _closed(asked):
                    return ""
            if code := running.pop("prepare").returncode:
                return f"prepare ended with exit code {code}: {' '.join(command)}"
        running.update((name, _start(name, command)) for name, command in processes.items())
        while not _closed(asked):
            for name, process in running.items():
                if process.poll() is not None:
                    return f"{name} ended with exit code {process.returncode}: {' '.join(processes[name])}"
        return ""
    finally:
        _end(running.values(), grace)


def _start(name: str, command: Sequence[str]) -> subprocess.Popen[bytes]:
    with Path(f"{name}.log").open("ab") as log:
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )


def _closed(pipe: IO[bytes]) -> bool:
    """Whether the pipe was closed; waits a moment for it."""
    readable, _, _ = select.select([pipe], [], [], _POLL_SECONDS)
    return bool(readable) and not pipe.read(1)


def _main() -> int:
    # Whoever signals the supervisor itself gets the same clean end: the pipe's other side is not asked.
    # Handlers, not SIG_IGN: the processes would inherit that.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(143))
    # Unbuffered, because select() does not see what lies in a buffer.
    asked = open(0, "rb", buffering=0, closefd=False)  # noqa: SIM115
    line = asked.readline()
    if not line:
        return 0
    order = json.loads(line)
    problem = _run(order["prepare"], order["processes"], order["grace"], asked)
    if problem:
        print(problem, flush=True)
    return bool(problem)


if __name__ == "__main__":
    sys.exit(_main())
