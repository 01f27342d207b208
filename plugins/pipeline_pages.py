"""Serve job reports and the facts of model versions inside the Airflow UI, to users who are logged in."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, ClassVar

from airflow.api_fastapi.core_api.security import GetUserDep
from airflow.plugins_manager import AirflowPlugin
from fastapi import FastAPI, HTTPException, Request
from fastapi import Path as InPath
from fastapi.responses import HTMLResponse, JSONResponse

from pipeline import jobfile, pages
from pipeline.errors import PipelineError, TransientError
from pipeline.job import JobSpec
from pipeline.settings import Settings

app = FastAPI(title="Batch inference reports", docs_url=None, redoc_url=None, openapi_url=None)
# Reports are static pages of our own; a script in one would be somebody else's.
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'self'",
    "X-Content-Type-Options": "nosniff",
}
# No part begins with a dot, so none climbs or is hidden.
_REPORT = re.compile(r"([\w=-][\w=.-]{0,200}/){0,9}[\w=-][\w=.-]{0,200}\.html", re.ASCII)
# A job's name, and not the path of a job file, which `pipeline.jobfile.find` takes as well.
Name = Annotated[str, InPath(pattern=r"^[a-z][a-z0-9_]{0,62}$")]
Version = Annotated[int, InPath(ge=1, le=2**31 - 1)]


@app.get("/reports/{name}/{path:path}", response_class=HTMLResponse)
def report(name: Name, path: str, user: GetUserDep) -> HTMLResponse:
    """Return one HTML report of one job; 404 for anything outside of the job's reports folder."""
    from pipeline.storage import Storage

    job, settings = _job(name)
    root = f"{job.output.uri or settings.home / 'outputs' / job.name}/reports"
    text = None
    if _REPORT.fullmatch(path) and not _leads_out(root, path):
        text = Storage(settings.home / "scratch").read_text(f"{root}/{path}")
    if text is None:
        raise HTTPException(404, f"job {name!r} has no report {path!r}")
    return HTMLResponse(text, headers=_HEADERS)


@app.get("/models/{name}/{version}", response_class=HTMLResponse)
def model(name: Name, version: Version, user: GetUserDep) -> HTMLResponse:
    """Return the recorded facts of one model version of one job."""
    from airflow.sdk.timezone import utcnow

    from pipeline.ledger import Ledger

    job, settings = _job(name)
    ledger = Ledger(settings.ledger_url, utcnow)
    try:
        registered = ledger.model(job.model_name, version)
        promotions = [p for p in ledger.promotions(job.name) if p.model.version == version]
    finally:
        ledger.close()
    if registered is None:
        raise HTTPException(404, f"job {name!r} has no model version {version}")
    facts = pages.table(
        ["fact", "value"],
        [
            ("digest", registered.model.digest),
            ("trained as of", registered.as_of),
            ("training rows from", registered.train_start),
            ("to", registered.train_end),
            ("holdout to", registered.holdout_end),
            *(("champion from", f"{p.effective_at}: {p.reason}") for p in promotions),
        ],
    )
    files = pages.table(["file", "SHA-256"], sorted(registered.files.items()))
    lead = f"Model {registered.model.name}, registered for job {job.name}."
    return HTMLResponse(
        pages.page(f"Version {version} of {registered.model.name}", lead, [facts, files]), headers=_HEADERS
    )


@app.exception_handler(PipelineError)
def failure(request: Request, error: PipelineError) -> JSONResponse:
    """Return the error's own message: 503 when asking again may help, else 404."""
    return JSONResponse({"detail": str(error)}, 503 if isinstance(error, TransientError) else 404)


def _job(name: str) -> tuple[JobSpec, Settings]:
    settings = Settings.from_env(os.environ)
    return jobfile.find(name, settings.jobs), settings


def _leads_out(root: str, path: str) -> bool:
    """Whether a link below a local ``root`` points out of it."""
    folder = Path(root)
    return "://" not in root and not (folder / path).resolve().is_relative_to(folder.resolve())


class PipelinePages(AirflowPlugin):
    """Register the pages with Airflow's API server."""

    name = "pipeline_pages"
    fastapi_apps: ClassVar = [{"app": app, "url_prefix": "/pipeline", "name": "Batch inference reports"}]
