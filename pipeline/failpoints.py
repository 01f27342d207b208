"""Named places where a fault can be injected from outside: how the promises about crashes are tested.

Without ``PIPELINE_FAILPOINT`` in the environment `reach` does nothing. Must not import anything of the package.
"""

from __future__ import annotations

import errno
import os
import signal
import time
from pathlib import Path

# In the order in which a scoring run passes them.
NAMES = (
    "stage.opened",
    "stage.row_group",
    "stage.closed",
    "stage.synced",
    "stage.verified",
    "publish.locked",
    "publish.kept",
    "publish.replaced",
    "publish.synced",
    "score.quarantined",
    "score.published",
    "manifest.written",
    "ledger.recorded",
)
_SETTING, _LOG = "PIPELINE_FAILPOINT", "PIPELINE_FAILPOINT_LOG"
_PAUSE_SECONDS = 0.2
_passed: dict[str, int] = {}


def reach(name: str) -> None:
    """Fail here if the environment asks for it: ``PIPELINE_FAILPOINT=<name>:<action>[:<n>]``, at the n-th passage.

    Actions: ``kill`` ends the process as SIGKILL does, ``raise`` raises ``RuntimeError``, ``enospc`` the ``OSError`` of a
    full disk, ``sleep`` waits for 0.2 s at every passage from the n-th on. Every passage is appended to the file that
    ``PIPELINE_FAILPOINT_LOG`` names, and so is every fault before it strikes: a test counts what really happened.
    """
    log, setting = os.environ.get(_LOG), os.environ.get(_SETTING, "")
    if not log and not setting:
        return
    passage = _passed[name] = _passed.get(name, 0) + 1
    _append(log, name)
    wanted, action, *nth = setting.split(":") if setting else ("", "")
    due = int(nth[0]) if nth else 1
    if wanted != name or passage < due or (action != "sleep" and passage > due):
        return
    _append(log, f"{name}:{action}")
    _strike(name, action)


def _append(log: str | None, line: str) -> None:
    if log:
        with Path(log).open("a", encoding="utf-8") as stream:
            stream.write(f"{line}\n")


def _strike(name: str, action: str) -> None:
    if action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif action == "enospc":
        raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)} (injected at {name})")
    elif action == "sleep":
        time.sleep(_PAUSE_SECONDS)
    elif action == "raise":
        raise RuntimeError(f"injected at {name}")
    else:
        raise ValueError(f"{_SETTING}: {action!r} is none of kill, raise, enospc, sleep")
