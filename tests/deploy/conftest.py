"""A real PostgreSQL for the tests of the deployment: Debian's package, installed when absent and running as root."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

APT = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}


def find_postgres() -> Path | None:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: int(path.parts[4]))
    return found[-1].parent if found else None


def install_postgres() -> None:
    """Debian's package, without the cluster that it would create and start on its own."""
    lock = ["-o", "DPkg::Lock::Timeout=300"]
    install = ["apt-get", *lock, "install", "--yes", "--no-install-recommends"]
    subprocess.run(["apt-get", *lock, "update"], env=APT, check=True, capture_output=True, timeout=300)
    subprocess.run([*install, "postgresql-common"], env=APT, check=True, capture_output=True, timeout=300)
    with Path("/etc/postgresql-common/createcluster.conf").open("a") as settings:
        settings.write("\ncreate_main_cluster = false\n")
    subprocess.run([*install, "postgresql"], env=APT, check=True, capture_output=True, timeout=600)


@pytest.fixture(scope="session")
def postgres_bin() -> Path:
    """The directory of PostgreSQL's programs."""
    if find_postgres() is None and os.geteuid() == 0 and shutil.which("apt-get"):
        try:
            install_postgres()
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as err:
            pytest.skip(f"PostgreSQL is absent and could not be installed: {err}")
    found = find_postgres()
    if found is None:
        pytest.skip("PostgreSQL is absent and installing it needs root and apt-get")
    return found
