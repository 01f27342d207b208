"""Where this deployment keeps its state: facts from the environment, no behaviour."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field, SecretStr

if TYPE_CHECKING:
    from collections.abc import Mapping


# Fields whose variable is PIPELINE_ and their name.
_NAMED_ALIKE = ("workers", "read_memory_mb", "read_stall_seconds", "notify_page", "notify_ticket")


class Settings(BaseModel):
    """Locations of one deployment. Build it with `Settings.from_env`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    home: Path = Field(description="State directory: ledger, registry, outputs of jobs that name no other place.")
    jobs: Path = Field(description="Directory of job files.")
    tracking_uri: str = Field(description="MLflow tracking and registry URI.")
    ledger_url: str = Field(description="SQLAlchemy URL of the ledger.")
    workers: int | None = Field(
        default=None, gt=0, description="Batches that one run may score at once; default: the processors it may use."
    )
    read_memory_mb: int = Field(default=1280, gt=0, description="Memory that reading one input file may take, in MiB.")
    read_stall_seconds: float = Field(
        default=20.0, gt=0, description="Reading one input file ends after so long without any rows."
    )

    notify_page: SecretStr = Field(default=SecretStr(""), description="Apprise URLs of who is told of pages.")
    notify_ticket: SecretStr = Field(default=SecretStr(""), description="Apprise URLs of who is told of tickets.")

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> Settings:
        """Settings from ``PIPELINE_HOME``, ``PIPELINE_JOBS``, ``MLFLOW_TRACKING_URI`` and ``PIPELINE_LEDGER_URL``.

        And from ``PIPELINE_WORKERS``, ``PIPELINE_READ_MEMORY_MB``, ``PIPELINE_READ_STALL_SECONDS``, ``PIPELINE_NOTIFY_PAGE`` and
        ``PIPELINE_NOTIFY_TICKET``. Unset ones default to ``.pipeline`` and ``dags/jobs`` under the working directory, to
        SQLite files inside the home, to the limits of the fields, and to nobody.
        """
        home = Path(environ.get("PIPELINE_HOME", ".pipeline")).resolve()
        found = cls.in_home(
            home,
            jobs=Path(environ.get("PIPELINE_JOBS", "dags/jobs")).resolve(),
            tracking_uri=environ.get("MLFLOW_TRACKING_URI"),
            ledger_url=environ.get("PIPELINE_LEDGER_URL"),
        )
        asked = {name: environ.get(f"PIPELINE_{name.upper()}") for name in _NAMED_ALIKE}
        given = {name: text for name, text in asked.items() if text}
        return cls.model_validate({**found.model_dump(), **given})

    @classmethod
    def in_home(
        cls, home: Path, *, jobs: Path, tracking_uri: str | None = None, ledger_url: str | None = None
    ) -> Settings:
        """Settings with everything that is not given kept inside ``home``."""
        return cls(
            home=home,
            jobs=jobs,
            tracking_uri=tracking_uri or f"sqlite:///{home / 'mlflow.db'}",
            ledger_url=ledger_url or f"sqlite:///{home / 'ledger.db'}",
        )
