"""Where this deployment keeps its state: facts from the environment, no behaviour."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field

if TYPE_CHECKING:
    from collections.abc import Mapping


class Settings(BaseModel):
    """Locations of one deployment. Build it with `Settings.from_env`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    home: Path = Field(description="State directory: ledger, registry, outputs of jobs that name no other place.")
    jobs: Path = Field(description="Directory of job files.")
    tracking_uri: str = Field(description="MLflow tracking and registry URI.")
    ledger_url: str = Field(description="SQLAlchemy URL of the ledger.")

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> Settings:
        """Settings from ``PIPELINE_HOME``, ``PIPELINE_JOBS``, ``MLFLOW_TRACKING_URI`` and ``PIPELINE_LEDGER_URL``.

        Unset ones default to ``.pipeline`` and ``dags/jobs`` under the working directory, and to SQLite files
        inside the home.
        """
        home = Path(environ.get("PIPELINE_HOME", ".pipeline")).resolve()
        return cls.in_home(
            home,
            jobs=Path(environ.get("PIPELINE_JOBS", "dags/jobs")).resolve(),
            tracking_uri=environ.get("MLFLOW_TRACKING_URI"),
            ledger_url=environ.get("PIPELINE_LEDGER_URL"),
        )

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
