"""The supervisor leaves no process behind: not one that ignores TERM, not one in its own group, not after a SIGKILL."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from deploy.supervisor import Supervised

REPOSITORY = Path(__file__).resolve().parents[2]
# Writes its own pid and that of a child in a process group of its own; both ignore TERM.
STUBBORN = """
import os, pathlib, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if (child := os.fork()) == 0:
    os.setpgid(0, 0)
    time.sleep(600)
pathlib.Path("pids.part").write_text(f"{os.getpid()} {child}")
os.replace("pids.part", "pids")
time.sleep(600)
"""


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def supervise(folder: Path, prepare: list[list[str]], processes: dict[str, list[str]]) -> Supervised:
    lock = (folder / "lock").open("ab")
    return Supervised(prepare, processes, logs=folder, environ=os.environ, held=lock, grace=0.5)


def wait_until(what: str, is_true, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not is_true():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def alive(pids: list[int]) -> list[int]:
    """Those that still run; a zombie only waits for its parent to take notice."""
    return [pid for pid in pids if psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE]


def pids(folder: Path) -> list[int]:
    wait_until("the processes have started", (folder / "pids").exists)
    return [int(pid) for pid in (folder / "pids").read_text().split()]


def test_stop_ends_processes_that_ignore_term_and_children_in_groups_of_their_own(tmp_path: Path):
    supervised = supervise(tmp_path, [], {"stubborn": python(STUBBORN)})
    started = pids(tmp_path)
    assert alive(started) == started
    assert supervised.failure() is None
    supervised.stop()
    supervised.stop()
    assert not alive(started)


def test_nothing_is_left_when_the_asking_process_is_killed(tmp_path: Path):
    ask = f"""
import os, pathlib, sys, time
sys.path.insert(0, {str(REPOSITORY)!r})
from deploy.supervisor import Supervised
folder = pathlib.Path({str(tmp_path)!r})
lock = (folder / "lock").open("ab")
Supervised([], {{"stubborn": [sys.executable, "-c", {STUBBORN!r}]}}, logs=folder, environ=os.environ, held=lock, grace=0.5)
time.sleep(600)
"""
    with subprocess.Popen(python(ask)) as asking:
        started = pids(tmp_path)
        asking.send_signal(signal.SIGKILL)
    wait_until("all processes have ended", lambda: not alive(started))


def test_everything_ends_when_one_process_dies_and_the_reason_is_told_with_its_last_words(tmp_path: Path):
    dying = python("print('my last words', flush=True); raise SystemExit(7)")
    supervised = supervise(tmp_path, [], {"stubborn": python(STUBBORN), "dying": dying})
    wait_until("the supervisor has noticed", lambda: supervised.failure() is not None)
    assert "dying ended with exit code 7" in (supervised.failure() or "")
    assert "my last words" in (supervised.failure() or "")
    supervised.stop()


def test_processes_start_only_after_the_preparation_and_not_at_all_when_it_fails(tmp_path: Path):
    touch = python("import pathlib; pathlib.Path('prepared').touch()")
    check = python("import pathlib, time; assert pathlib.Path('prepared').exists(); time.sleep(600)")
    supervised = supervise(tmp_path, [touch], {"check": check})
    wait_until("the process has started", (tmp_path / "check.log").exists)
    assert supervised.failure() is None
    supervised.stop()

    refusing = supervise(tmp_path, [python("raise SystemExit('cannot migrate')")], {"never": python(STUBBORN)})
    wait_until("the supervisor has given up", lambda: refusing.failure() is not None)
    assert "prepare ended with exit code 1" in (refusing.failure() or "")
    assert "cannot migrate" in (refusing.failure() or "")
    assert not (tmp_path / "never.log").exists()
    refusing.stop()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signalled_supervisor_ends_its_processes_first(tmp_path: Path, number: signal.Signals):
    supervised = supervise(tmp_path, [], {"stubborn": python(STUBBORN)})
    started = pids(tmp_path)
    psutil.Process(started[0]).parent().send_signal(number)
    wait_until("the supervisor has ended", lambda: supervised.failure() is not None)
    assert not alive(started)
    supervised.stop()
