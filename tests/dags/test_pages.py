"""The pages inside Airflow's own API server: only for users who are logged in, only reports, and no scripts."""

from __future__ import annotations

import json
import os
import warnings
from datetime import UTC, datetime
from pathlib import Path

import pytest

from pipeline.reports import ModelRef, Promotion, RegisteredModel
from pipeline.runtime import Runtime

pytestmark = pytest.mark.airflow

AT = datetime(2026, 1, 8, tzinfo=UTC)
DIGEST = "0f" * 32
REPORT = "/pipeline/reports/parcels/ds=2026-01-08/drift.html"
MODEL = "/pipeline/models/parcels/1"
SECRET = "the contents of another file"


@pytest.fixture(scope="module")
def home(deploy, parcels):
    """A deployment with one report and one model version, and a file beside the reports that is nobody's business."""
    deploy(parcels(), parcels(name="remote", output={"uri": "memory://results"}))
    with Runtime.open() as runtime:
        model = RegisteredModel(
            model=ModelRef(name="parcels", version=1, digest=DIGEST),
            files={"model.skops": "ab" * 32},
            as_of=AT, train_start=datetime(2026, 1, 1, tzinfo=UTC), train_end=AT, holdout_end=AT,
        )  # fmt: skip
        runtime.ledger.record_model("parcels", model)
        runtime.ledger.record_promotion(
            Promotion(
                job="parcels",
                model=model.model,
                effective_at=AT,
                previous_version=None,
                decision_id="d",
                reason="<b>first</b>",
            )
        )
        for root in (runtime.settings.home / "outputs" / "parcels", "memory://results"):
            runtime.storage.write_text(f"{root}/reports/ds=2026-01-08/drift.html", "<h1>Drift</h1>")
        folder = runtime.settings.home / "outputs" / "parcels"
        (folder / "secret.html").write_text(SECRET)
        (folder / "reports" / ".hidden.html").write_text(SECRET)
        (folder / "reports" / "notes.txt").write_text(SECRET)
        (folder / "reports" / "link.html").symlink_to(folder / "secret.html")
        return runtime.settings.home


@pytest.fixture(scope="module")
def anonymous(home, tmp_path_factory):
    """A client of Airflow's real API server application, plugins and all, that has not logged in."""
    passwords = Path(os.environ["AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE"])
    passwords.write_text(json.dumps({"admin": "correct", "viewer": "horse"}))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from airflow.api_fastapi.app import create_app, purge_cached_app
        from fastapi.testclient import TestClient

        with TestClient(create_app(apps="core")) as client:
            yield client
        purge_cached_app()


@pytest.fixture(scope="module")
def user(anonymous):
    """A function that gets a path as a viewer who has logged in with a browser, which keeps the token in a cookie."""
    answer = anonymous.post("/auth/token", json={"username": "viewer", "password": "horse"})
    token = answer.json()["access_token"]
    return lambda path: anonymous.get(path, headers={"Cookie": f"_token={token}"}, follow_redirects=False)


@pytest.mark.parametrize("path", [REPORT, MODEL, "/pipeline/reports/nothing/at/all.html", "/pipeline/models/x/0"])
def test_nobody_sees_a_page_or_learns_what_exists_without_logging_in(anonymous, path):
    forged = anonymous.get(path, headers={"Authorization": "Bearer e30.e30.x"})
    assert (anonymous.get(path).status_code, forged.status_code) == (401, 403)


def test_every_route_of_the_pages_asks_who_is_there(anonymous):
    import pipeline_pages

    paths = {route.path for route in pipeline_pages.app.routes}
    assert paths == {"/reports/{name}/{path:path}", "/models/{name}/{version}"}


def test_a_user_sees_the_report_and_no_script_can_run_in_it(user):
    answer = user(REPORT)
    assert (answer.status_code, answer.text) == (200, "<h1>Drift</h1>")
    policy = answer.headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; style-src 'unsafe-inline'")
    assert "script" not in policy
    assert answer.headers["X-Content-Type-Options"] == "nosniff"


def test_a_report_on_remote_storage_is_served_as_well(user):
    assert user(REPORT.replace("parcels", "remote")).text == "<h1>Drift</h1>"


def test_the_model_page_shows_digests_times_and_promotions_as_text(user):
    answer = user(MODEL)
    assert answer.status_code == 200
    assert {DIGEST, "ab" * 32, "2026-01-08 00:00:00+00:00", "&lt;b&gt;first&lt;/b&gt;"} <= set(
        answer.text.replace("<td>", "\n").replace("</td>", "\n").replace(": ", "\n").splitlines()
    )
    assert "default-src 'none'" in answer.headers["Content-Security-Policy"]


@pytest.mark.parametrize(
    "path",
    [
        "%2e%2e/secret.html",
        "..%2fsecret.html",
        "%2e%2e%2fsecret.html",
        "ds=2026-01-08/%2e%2e/%2e%2e/secret.html",
        "ds=2026-01-08%2f..%2f..%2fsecret.html",
        "%252e%252e%252fsecret.html",
        "..%5csecret.html",
        "%2fetc/passwd",
        "%2e%2e%2f..%2f..%2f..%2f..%2f..%2fetc/passwd",
        "..;/secret.html",
        "./ds=2026-01-08/%2e/drift.html",
        "drift.html%00",
        "file:%2f%2f/etc/passwd",
        "{home}/outputs/parcels/secret.html",
        "{home}%2foutputs%2fparcels%2fsecret.html",
        ".hidden.html",
        "notes.txt",
        "link.html",
        "DS=2026-01-08/drift.html",
        "ds=2026-01-08",
        "",
        "a" * 5000 + ".html",
    ],
)
def test_only_reports_are_served_whatever_the_path(user, home, path):
    answer = user("/pipeline/reports/parcels/" + path.format(home=home))
    assert (answer.status_code, SECRET in answer.text, "root:" in answer.text) == (404, False, False)


@pytest.mark.parametrize(
    "name", ["nothing", "Parcels", "..", "%2e%2e", "parcels.yaml", "private.yaml", "x" * 64, "{{7*7}}"]
)
def test_only_jobs_are_looked_up_and_never_a_file_that_a_name_might_mean(user, tmp_path, monkeypatch, name):
    (tmp_path / "private.yaml").write_text("task: swordfish")
    monkeypatch.chdir(tmp_path)
    for path in (f"/pipeline/reports/{name}/ds=2026-01-08/drift.html", f"/pipeline/models/{name}/1"):
        answer = user(path)
        assert answer.status_code in (404, 422)
        assert "swordfish" not in answer.text


@pytest.mark.parametrize(("version", "status"), [("2", 404), ("0", 422), ("-1", 422), ("one", 422), ("9" * 30, 422)])
def test_an_unknown_version_is_not_found_and_a_senseless_one_is_refused(user, version, status):
    assert user(f"/pipeline/models/parcels/{version}").status_code == status


def test_a_ledger_that_does_not_answer_is_told_from_a_model_that_does_not_exist(user, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("PIPELINE_LEDGER_URL", f"sqlite:///{tmp_path / 'file' / 'ledger.db'}")
    answer = user(MODEL)
    assert answer.status_code == 503
    assert "ledger" in answer.json()["detail"]
