"""Serve job reports and the facts of model versions inside the Airflow UI, to users who are logged in."""

from __future__ import annotations

import os
from pathlib import Path
from typing import ClassVar

from airflow.api_fastapi.core_api.security import GetUserDep
from airflow.plugins_manager import AirflowPlugin
from fastapi import FastAPI, HTTPException
from fastapi.responses import HTMLResponse

from pipeline import jobfile, pages
from pipeline.errors import PipelineError
from pipeline.job import JobSpec
from pipeline.settings import Settings

app = FastAPI(title="Batch inference reports", docs_url=None, redoc_url=None, openapi_url=None)
# Reports are static pages of our own; a script in one would be somebody else's.
_HEADERS = {"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; img-src data:"}


@app.get("/reports/{name}/{path:path}", response_class=HTMLResponse)
def report(name: str, path: str, user: GetUserDep) -> HTMLResponse:
    """Return one HTML report of one job; 404 for anything outside of the job's reports folder."""
    job, settings = _job(name)
    root = Path(job.output.uri or settings.home / "outputs" / job.name) / "reports"
    file = (root / path).resolve()
    if not file.is_relative_to(root.resolve()) or file.suffix != ".html" or not file.is_file():
        raise HTTPException(404, f"job {name!r} has no report {path!r}")
    return HTMLResponse(file.read_text(encoding="utf-8"), headers=_HEADERS)


@app.get("/models/{name}/{version}", response_class=HTMLResponse)
def model(name: str, version: int, user: GetUserDep) -> HTMLResponse:
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


def _job(name: str) -> tuple[JobSpec, Settings]:
    settings = Settings.from_env(os.environ)
    try:
        return jobfile.find(name, settings.jobs), settings
    except PipelineError as error:
        raise HTTPException(404, str(error)) from error


class PipelinePages(AirflowPlugin):
    """Register the pages with Airflow's API server."""

    name = "pipeline_pages"
    fastapi_apps: ClassVar = [{"app": app, "url_prefix": "/pipeline", "name": "Batch inference reports"}]
