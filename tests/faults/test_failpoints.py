"""Faults strike where and when they are asked to, leave a trace, and otherwise do nothing."""

from __future__ import annotations

import errno
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from pipeline import failpoints

if TYPE_CHECKING:
    from pathlib import Path


def test_nothing_happens_without_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PIPELINE_FAILPOINT_LOG", str(tmp_path / "log"))
    for name in failpoints.NAMES:
        failpoints.reach(name)
    assert (tmp_path / "log").read_text().splitlines() == list(failpoints.NAMES)


@pytest.mark.parametrize(("action", "error"), [("raise", RuntimeError), ("enospc", OSError), ("explode", ValueError)])
def test_a_fault_strikes_once_and_is_written_down_first(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, action: str, error: type[Exception]
) -> None:
    monkeypatch.setattr(failpoints, "_passed", {})
    monkeypatch.setenv("PIPELINE_FAILPOINT", f"stage.synced:{action}:2")
    monkeypatch.setenv("PIPELINE_FAILPOINT_LOG", str(tmp_path / "log"))
    failpoints.reach("stage.closed")
    failpoints.reach("stage.synced")
    with pytest.raises(error, match=r"injected at stage\.synced|is none of kill") as caught:
        failpoints.reach("stage.synced")
    failpoints.reach("stage.synced")
    lines = (tmp_path / "log").read_text().splitlines()
    assert lines == ["stage.closed", "stage.synced", "stage.synced", f"stage.synced:{action}", "stage.synced"]
    assert action != "enospc" or caught.value.errno == errno.ENOSPC  # type: ignore[attr-defined]


def test_a_killed_process_dies_as_by_sigkill(tmp_path: Path) -> None:
    program = "from pipeline.failpoints import reach; reach('stage.opened'); print('alive')"
    environment = {"PIPELINE_FAILPOINT": "stage.opened:kill", "PIPELINE_FAILPOINT_LOG": str(tmp_path / "log")}
    ended = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, check=False)
    assert (ended.returncode, ended.stdout) == (-signal.SIGKILL, b"")
    assert "stage.opened:kill" in (tmp_path / "log").read_text()
