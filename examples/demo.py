"""The whole loop through a real Airflow, interval by interval: score, monitor, evaluate, retrain, gate, promote.

`python -m examples.demo` runs the simulated job and fails unless the planted change was found and mended; with
`--job FILE --from DATE --to DATE` it runs any job's own data. Everything is written below its home, nothing elsewhere.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import sys
import time
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from deploy.local_airflow import LocalAirflow, is_running
from examples import findings as found
from examples.findings import Findings
from examples.simulate import simulate
from pipeline import jobfile
from pipeline.errors import InvalidRequest, PipelineError
from pipeline.intervals import Interval, format_instant, parse_instant
from pipeline.ledger import Ledger
from pipeline.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.job import JobSpec
    from pipeline.reports import Decision

DEMO_JOB = Path(__file__).resolve().parent / "jobs" / "demo.yaml"
FIRST_DAY, CHANGE_ON = date(2026, 1, 1), date(2026, 1, 12)
START, END = datetime(2026, 1, 7, tzinfo=UTC), datetime(2026, 1, 20, tzinfo=UTC)
_MARKER = ".pipeline-demo"
_POLL_SECONDS = 0.2
_START_SECONDS = 300.0


class RunFailed(PipelineError):
    """A DAG run failed; the message carries the end of the failed task's log."""

    exit_code = 1


class Demo:
    """One walk through a job's intervals: an Airflow that works, and its ledger to look at."""

    def __init__(self, home: Path, job: JobSpec, intervals: Sequence[Interval]) -> None:
        """Write the job into the home; it must be a fresh home, see `fresh_home`."""
        self.settings = Settings.in_home(home, jobs=home / "jobs")
        self.job = job
        self.intervals = tuple(intervals)
        self.settings.jobs.mkdir(parents=True)
        # JSON is YAML; absent values are left out, because null is not a value of every field.
        text = json.dumps(job.model_dump(mode="json", exclude_none=True), indent=2)
        (self.settings.jobs / f"{job.name}.yaml").write_text(text + "\n")
        # The shell's registry and ledger may be those of a production deployment.
        state = {"MLFLOW_TRACKING_URI": self.settings.tracking_uri, "PIPELINE_LEDGER_URL": self.settings.ledger_url}
        self.airflow = LocalAirflow(home, self.settings.jobs, environ=state)
        self.ledger = Ledger(self.settings.ledger_url, lambda: datetime.now(UTC))
        self._dags = {step: f"{job.name}__{step}" for step in ("score", "evaluate", "retrain")}
        self._patience = 4 * job.schedule.timeout.total_seconds()

    def findings(self) -> Findings:
        """What the ledger holds by now."""
        return Findings.read(self.ledger, self.job, self.intervals)

    def get_ready(self) -> None:
        """Wait for Airflow and the job's DAGs, and let them run."""
        self.airflow.wait_until_healthy(_START_SECONDS)
        self.airflow.wait_for_dags(self._dags.values(), _START_SECONDS)
        for dag_id in self._dags.values():
            self.airflow.unpause(dag_id)

    def bootstrap(self) -> None:
        """Train the first champion on what was known at the first interval's start."""
        as_of = format_instant(self.intervals[0].start)
        conf = {"as_of": as_of, "bootstrap": True, "reason": "First champion of the demo."}
        run_id = self.airflow.trigger(self._dags["retrain"], conf)
        if self.airflow.wait(self._dags["retrain"], run_id, self._patience) != "success":
            self._refuse_failures()

    def live_through(self, interval: Interval) -> None:
        """Score the interval and return when everything that this set in motion has come to an end."""
        self.airflow.trigger(self._dags["score"], {"start": format_instant(interval.start)})
        deadline = time.monotonic() + self._patience
        while not self._is_through(interval.end):
            # Asking the ledger is cheap; asking Airflow takes time from the tasks.
            for _ in range(10):
                time.sleep(_POLL_SECONDS)
                if self._trigger_decision(interval.end):
                    break
            self._refuse_failures()
            if time.monotonic() > deadline:
                raise RunFailed(f"the interval {interval} is not through after {self._patience:.0f} s")

    def settle(self) -> None:
        """Return when the last runs are over, all of them with success."""
        while not all(run.is_over for dag_id in self._dags.values() for run in self.airflow.runs(dag_id)):
            time.sleep(_POLL_SECONDS)
        self._refuse_failures()

    def _trigger_decision(self, as_of: datetime) -> Decision | None:
        made = self.ledger.decisions(self.job.name, kind="trigger", until=as_of)
        return next((decision for decision in made if decision.at == as_of), None)

    def _is_through(self, as_of: datetime) -> bool:
        """Whether the trigger decision at ``as_of`` is recorded and, if it fired, carried out."""
        decision = self._trigger_decision(as_of)
        if decision is None or decision.outcome != "fire":
            return decision is not None
        return all(run.is_over for run in self.airflow.runs(self._dags["retrain"]))

    def _refuse_failures(self) -> None:
        self.airflow.check_alive()
        for run in self.airflow.failed_runs():
            raise RunFailed(
                f"the run {run.run_id} of {run.dag_id} failed",
                got="\n" + self.airflow.failure(run.dag_id, run.run_id) + "\n",
                left_behind=f"everything so far in {self.settings.home}",
                next_step=f"look at it in the UI: {ui_command(self.settings)}",
            )


def fresh_home(home: Path) -> Path:
    """The empty home, its former content deleted. Raises `InvalidRequest` for a folder that no demo has made."""
    home = home.resolve()
    if home.exists() and any(home.iterdir()) and not (home / _MARKER).exists():
        raise InvalidRequest(
            f"{home} is not empty and was not made by a demo",
            expected=f"an empty or absent folder, or one with the file {_MARKER}",
            left_behind="nothing was deleted",
            next_step="choose another --home",
        )
    if is_running(home):
        raise InvalidRequest(
            f"an Airflow is still running in {home}",
            left_behind="nothing was deleted",
            next_step="stop it with Ctrl-C where it was started",
        )
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True)
    (home / _MARKER).touch()
    return home


def resolved(job: JobSpec, end: datetime, data: Path | None) -> JobSpec:
    """The job as the demo runs it: triggered by hand, its output inside the home, simulated ``data`` if given."""
    schedule = job.schedule.model_copy(update={"catchup": False, "end": job.schedule.end or end})
    changes: dict[str, object] = {"schedule": schedule, "output": job.output.model_copy(update={"uri": None})}
    if data is not None:
        changes["features"] = job.features.model_copy(update={"uri": str(data / "features")})
        changes["labels"] = job.labels.model_copy(update={"uri": str(data / "labels")})
    return job.model_copy(update=changes)


def run(job_file: Path, start: datetime, end: datetime, home: Path, *, keep_open: bool) -> int:
    """Run the job over its intervals from ``start`` to ``end``; returns the exit code."""
    began = time.monotonic()
    is_simulated = job_file.resolve() == DEMO_JOB
    job = jobfile.load(job_file)
    intervals = list(job.cadence.split(Interval(start, end)))
    if not intervals:
        raise InvalidRequest(f"no whole interval of {job.schedule.interval} lies in {Interval(start, end)}")
    home = fresh_home(home)
    demo = Demo(home, resolved(job, end, home / "data" if is_simulated else None), intervals)
    _say(f"Airflow starts in {home} ...")
    demo.airflow.launch()
    try:
        if is_simulated:
            days = (end.date() - FIRST_DAY) // timedelta(days=1)
            rows = simulate(home / "data", FIRST_DAY, days, CHANGE_ON)
            _say(
                f"{sum(rows.values())} rows on {days} days from {FIRST_DAY} simulated; the world changes on {CHANGE_ON}."
            )
        demo.get_ready()
        _say(f"Airflow is ready after {time.monotonic() - began:.0f} s. The first champion is trained ...")
        demo.bootstrap()
        for interval in intervals:
            lap = time.monotonic()
            demo.live_through(interval)
            _say(found.progress(demo.findings(), interval, time.monotonic() - lap))
        demo.settle()
        problems = _conclude(demo, is_simulated=is_simulated, seconds=time.monotonic() - began)
        if keep_open:
            _keep_open(demo.airflow)
        return bool(problems)
    finally:
        demo.airflow.stop()
        demo.ledger.close()


def _conclude(demo: Demo, *, is_simulated: bool, seconds: float) -> list[str]:
    """Print table, account, places and verdict; returns the expectations that were not met."""
    findings, home = demo.findings(), demo.settings.home
    change = datetime(CHANGE_ON.year, CHANGE_ON.month, CHANGE_ON.day, tzinfo=UTC) if is_simulated else None
    problems = found.unaccounted(findings)
    problems += found.unmet(findings, change) if change else []
    output = home / "outputs" / demo.job.name
    rows_in = sum(m.rows_in for m in findings.manifests.values())
    quarantined = sum(m.rows_quarantined for m in findings.manifests.values())
    success = "All expectations were met." if is_simulated else "Every run succeeded and every row is accounted for."
    told = found.account(findings, change)
    told.append(
        f"{rows_in} rows in = {rows_in - quarantined} scored + {quarantined} quarantined. {seconds:.0f} s in all."
    )
    _say("", *found.table(findings), "", "What happened:", *found.bullets(told))
    _say(
        "",
        "Where to look:",
        f"  predictions  {output / 'predictions'}",
        f"  quarantine   {output / 'quarantine'}",
        f"  reports      {output / 'reports'}",
        f"  ledger       {home / 'ledger.db'}    models  {home / 'mlflow.db'}",
        f"  Airflow UI   {ui_command(demo.settings)}",
        "",
        *([f"FAILED: {problem}" for problem in problems] or [success]),
    )
    return problems


def ui_command(settings: Settings) -> str:
    """The command that opens the Airflow UI on this state."""
    if settings.home == Path(".demo").resolve():
        return "make airflow"
    return f"{sys.executable} -m deploy.local_airflow --home {settings.home} --jobs {settings.jobs}"


def _keep_open(airflow: LocalAirflow) -> None:
    _say(f"Airflow UI: {airflow.url}  user {airflow.username}, password {airflow.password}  Ctrl-C stops it.")
    while True:
        airflow.check_alive()
        time.sleep(1)


def _say(*lines: str) -> None:
    print(*lines, sep="\n", flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a job through a real Airflow, interval by interval, and tell what happened."""
    parser = argparse.ArgumentParser(prog="python -m examples.demo", description=main.__doc__)
    parser.add_argument("--job", type=Path, default=DEMO_JOB, help="job file; default: the simulated one")
    parser.add_argument("--from", dest="start", type=parse_instant, help="start of the first interval, UTC")
    parser.add_argument("--to", dest="end", type=parse_instant, help="end of the last interval, UTC")
    parser.add_argument("--home", type=Path, default=Path(".demo"), help="folder for everything; it is emptied first")
    parser.add_argument("--keep-open", action="store_true", help="leave the Airflow UI open at the end, until Ctrl-C")
    options = parser.parse_args(arguments)
    if options.job.resolve() != DEMO_JOB and not (options.start and options.end):
        parser.error("--job needs --from and --to")
    # Both also when the caller, such as a shell script, had told its background jobs to ignore them.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        return run(options.job, options.start or START, options.end or END, options.home, keep_open=options.keep_open)
    except KeyboardInterrupt:
        print("Stopped; nothing is left running.", file=sys.stderr)
        return 130
    except PipelineError as error:
        print(error, file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
