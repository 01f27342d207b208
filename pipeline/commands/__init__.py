"""What the commands of the command line do: parsed arguments in, an object and lines for people out.

Heavy libraries are imported by the commands that need them: check, schema and --help must not pay for that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.runtime import Runtime

# The object that --json prints, and the lines for people.
Answer = tuple[dict[str, Any], list[str]]


def opened() -> Runtime:
    """The runtime that the environment names, to be used as a context manager."""
    from pipeline.runtime import Runtime

    return Runtime.open()


def jobs_folder() -> Path:
    """The folder of job files that the environment names."""
    import os

    from pipeline.settings import Settings

    return Settings.from_env(os.environ).jobs
