"""A real Airflow on this machine for demos, tests and benchmarks: SQLite, LocalExecutor, loopback only.

`python -m deploy.local_airflow --home DIR --jobs DIR` keeps its UI open until Ctrl-C. Not a production deployment
(that is docker-compose.yml). Must leave no process behind, whatever happens to the process that started it.
"""

from __future__ import annotations

import argparse
import base64
import configparser
import fcntl
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING, Self

from deploy.airflow_api import AirflowApi, AirflowUnavailable
from deploy.supervisor import Supervised
from pipeline.errors import PipelineError, TerminalError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import TracebackType

REPOSITORY = Path(__file__).resolve().parent.parent
USERNAME = "admin"
# A training uses every core it gets, scoring streams: one training and two partitions at once suit a small machine.
POOLS = {"pipeline_training": (1, "Trainings at once"), "pipeline_scoring": (2, "Partitions scored at once")}
# Every job has a DAG file of its own.
BUNDLE = {"name": "jobs", "classpath": "pipeline_bundle.JobsDagBundle", "kwargs": {}}
_COMPONENTS = ("api-server", "scheduler", "dag-processor")
_POLL_SECONDS = 0.3
# Workers are forked from one process that has imported these, otherwise every task pays some seconds of CPU for them
# (the price: a change of the package's code shows after a restart). skops comes first, because its import looks at every
# attribute of every loaded module, which makes Airflow's modules log thousands of deprecation warnings.
PRELOADED = (
    "skops.io",
    "airflow.executors.local_executor",
    "airflow.sdk.execution_time.task_runner",
    "airflow.models.dagbag",
    "airflow.api_fastapi.core_api.security",
    "airflow.providers.standard.operators.python",
    "mlflow.sklearn",
    "great_expectations",
    "alibi_detect.cd",
    "pipeline.tasks",
)
_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "GX_ANALYTICS_ENABLED": "false",
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_OFFLINE": "1",
    "PIPELINE_SCORING_POOL": "pipeline_scoring",
    "PIPELINE_TRAINING_POOL": "pipeline_training",
}
_NO_PROXY = "127.0.0.1,localhost"


class LocalAirflow(AirflowApi):
    """An Airflow that lives in a folder, and a client to it.

    ``home`` is the product's state directory (``PIPELINE_HOME``); Airflow's own files are in ``home/airflow``. A second
    start in the same home finds the same runs, password and, if it is still free, port. As a context manager it starts
    and stops.
    """

    def __init__(
        self,
        home: Path,
        jobs: Path,
        *,
        port: int | None = None,
        dags: Path | None = None,
        plugins: Path = REPOSITORY / "plugins",
        environ: Mapping[str, str] | None = None,
    ) -> None:
        """Prepare the home; nothing runs yet.

        ``dags`` is a folder of DAG files that are parsed instead of those of the jobs; ``environ`` adds to, or replaces, what
        every process gets to see.
        """
        self.home = home.resolve()
        self.airflow_home = self.home / "airflow"
        self.jobs = jobs.resolve()
        self._config = self.airflow_home / "airflow.cfg"
        self._passwords = self.airflow_home / "passwords.json"
        self._lock = self.airflow_home / "lock"
        self._supervised: Supervised | None = None
        self.airflow_home.mkdir(parents=True, exist_ok=True)
        password = _kept(self._passwords, {USERNAME: secrets.token_urlsafe(12)})[USERNAME]
        self.port = port or self._former_port() or _free_port()
        self._dags, self._plugins = dags.resolve() if dags else None, plugins.resolve()
        self.environ = self._environment(environ or {})
        super().__init__(f"http://127.0.0.1:{self.port}", USERNAME, password)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def logs(self) -> Path:
        """The folder of the components' logs; task logs are beside it in ``logs/dag_id=...``."""
        return self.airflow_home / "components"

    def start(self, timeout: float = 180.0) -> None:
        """Start everything and return when it is healthy and the pools exist. Raises `AirflowUnavailable` otherwise."""
        self.launch()
        try:
            self.wait_until_healthy(timeout)
        except BaseException:
            self.stop()
            raise

    def launch(self) -> None:
        """Start everything without waiting, so that the caller can do its own preparations meanwhile."""
        lock = _locked(self._lock)
        _write_private(self._config, self._configuration())
        settings = self.airflow_home / "config"
        settings.mkdir(exist_ok=True)
        shutil.copy(REPOSITORY / "deploy" / "airflow_local_settings.py", settings)
        # The components' REST server for logs is left out: it binds all interfaces, and one machine reads its files.
        arguments = {"scheduler": ["--skip-serve-logs"]}
        self._supervised = Supervised(
            prepare=[] if self._is_migrated() else [_airflow("db", "migrate")],
            processes={name: _airflow(name, *arguments.get(name, [])) for name in _COMPONENTS},
            logs=self.logs,
            environ=self.environ,
            held=lock,
        )

    def wait_until_healthy(self, timeout: float = 180.0) -> None:
        """Return when every component is healthy and the pools exist. Raises `AirflowUnavailable` otherwise."""
        wanted = ("metadatabase", "scheduler", "dag_processor")
        deadline = time.monotonic() + timeout
        status: dict[str, str | None] = {}
        while any(status.get(name) != "healthy" for name in wanted):
            self.check_alive()
            if time.monotonic() > deadline:
                raise AirflowUnavailable(
                    f"Airflow in {self.airflow_home} is not healthy after {timeout:.0f} s",
                    got=str(status or "no answer"),
                    left_behind="its logs",
                    next_step=f"read {self.logs}",
                )
            time.sleep(_POLL_SECONDS)
            try:
                status = self.health()
            except AirflowUnavailable:
                status = {}
        (self.airflow_home / "migrated").write_text(_airflow_version())
        for name, (slots, description) in POOLS.items():
            self.set_pool(name, slots, description)

    def stop(self) -> None:
        """End every process and wait until none is left. Does nothing when nothing runs."""
        if self._supervised is not None:
            self._supervised.stop()
            self._supervised = None

    def wait(self, dag_id: str, run_id: str, timeout: float) -> str:
        """The final state of the run: success or failed. Raises `AirflowUnavailable` after ``timeout`` seconds."""
        self.check_alive()
        return super().wait(dag_id, run_id, timeout)

    def cli(self, *arguments: str) -> str:
        """Standard output of ``airflow`` with these arguments, in this home. Raises `TerminalError` when it fails."""
        command = _airflow(*arguments)
        done = subprocess.run(command, env=self.environ, cwd=self.airflow_home, capture_output=True, text=True)
        if done.returncode:
            raise TerminalError(
                f"airflow {' '.join(arguments)} ended with exit code {done.returncode}", got=done.stderr[-2000:]
            )
        return done.stdout

    def check_alive(self) -> None:
        """Raises `AirflowUnavailable` with the last lines of a log when a component has ended by itself."""
        if self._supervised is not None and (problem := self._supervised.failure()):
            raise AirflowUnavailable(f"Airflow in {self.airflow_home} has ended", got=problem, left_behind="its logs")

    def _is_migrated(self) -> bool:
        """Whether the database has this version's tables; a migration costs four seconds of CPU even then."""
        mark = self.airflow_home / "migrated"
        return (self.airflow_home / "airflow.db").exists() and mark.exists() and mark.read_text() == _airflow_version()

    def _former_port(self) -> int | None:
        if not self._config.exists():
            return None
        former = configparser.ConfigParser(interpolation=None)
        former.read(self._config)
        port = former.getint("api", "port")
        return port if _is_free(port) else None

    def _configuration(self) -> str:
        url = f"http://127.0.0.1:{self.port}"
        keys = _kept(
            self.airflow_home / "keys.json",
            {
                "fernet": base64.urlsafe_b64encode(secrets.token_bytes(32)).decode(),
                "session": secrets.token_urlsafe(32),
                "jwt": secrets.token_urlsafe(64),
            },
        )
        sections: dict[str, dict[str, object]] = {
            "core": {
                "dags_folder": self._dags or REPOSITORY / "dags",
                "plugins_folder": self._plugins,
                "executor": "LocalExecutor",
                "parallelism": 4,
                "load_examples": False,
                "execution_api_server_url": f"{url}/execution/",
                "simple_auth_manager_users": f"{USERNAME}:admin",
                "simple_auth_manager_passwords_file": self._passwords,
                "fernet_key": keys["fernet"],
                # The default asks the name service, which costs seconds on a machine without one.
                "hostname_callable": "socket.gethostname",
            },
            "database": {"sql_alchemy_conn": f"sqlite:///{self.airflow_home / 'airflow.db'}?timeout=60"},
            "api": {
                "host": "127.0.0.1",
                "port": self.port,
                "base_url": url,
                "secret_key": keys["session"],
            },
            "api_auth": {"jwt_secret": keys["jwt"]},
            "logging": {"base_log_folder": self.airflow_home / "logs"},
            "dag_processor": {
                "refresh_interval": 10,
                "min_file_process_interval": 30,
                "dag_bundle_storage_path": self.airflow_home / "bundles",
                **({} if self._dags else {"dag_bundle_config_list": json.dumps([BUNDLE])}),
            },
            # A worker notices the end of its task at the next heartbeat when it misses the moment itself.
            "workers": {"min_heartbeat_interval": 1},
            "scheduler": {
                "scheduler_idle_sleep_time": 0.3,
                "mp_start_method": "forkserver",
                "mp_forkserver_preload": ",".join(PRELOADED),
            },
        }
        lines = []
        for section, options in sections.items():
            lines += [
                f"[{section}]",
                *(f"{name} = {str(value).replace('%', '%%')}" for name, value in options.items()),
                "",
            ]
        return "\n".join(lines)

    def _environment(self, extra: Mapping[str, str]) -> dict[str, str]:
        """The environment of every process: this Airflow's alone, whatever the caller's shell has set for another."""
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("AIRFLOW_")}
        # It would make every process compile every module again: 6 s instead of 1.3 s of CPU for airflow.sdk.
        inherited.pop("PYTHONDONTWRITEBYTECODE", None)
        threads = str(max(1, (os.cpu_count() or 1) // 2))
        return {
            "OMP_NUM_THREADS": threads,
            "OPENBLAS_NUM_THREADS": "1",
            **inherited,
            **_ENVIRONMENT,
            "AIRFLOW_HOME": str(self.airflow_home),
            "PIPELINE_HOME": str(self.home),
            "PIPELINE_JOBS": str(self.jobs),
            "NO_PROXY": _NO_PROXY,
            "no_proxy": _NO_PROXY,
            "PYTHONUNBUFFERED": "1",
            **extra,
        }


def is_running(home: Path) -> bool:
    """Whether an Airflow runs in this home, whoever started it."""
    lock = home / "airflow" / "lock"
    if not lock.exists():
        return False
    try:
        _locked(lock).close()
    except TerminalError:
        return True
    return False


def _locked(path: Path) -> IO[bytes]:
    """The open lock file; two Airflows on one SQLite database would run every task twice."""
    file = path.open("ab")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as err:
        file.close()
        raise TerminalError(
            f"an Airflow is already running in {path.parent}",
            next_step="stop it (Ctrl-C where it was started), or use another home",
        ) from err
    return file


def _airflow(*arguments: str) -> list[str]:
    # -P: a file in the working directory must not shadow a module.
    return [sys.executable, "-P", "-m", "airflow", *arguments]


def _airflow_version() -> str:
    from importlib.metadata import version

    return version("apache-airflow")


def _kept(path: Path, fresh: Mapping[str, str]) -> dict[str, str]:
    """The secrets that the file keeps; ``fresh`` ones are written when there is no file yet."""
    if not path.exists():
        _write_private(path, json.dumps(fresh))
    kept: dict[str, str] = json.loads(path.read_text())
    return kept


def _write_private(path: Path, text: str) -> None:
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def main(arguments: Sequence[str] | None = None) -> int:
    """Keep an Airflow UI open until Ctrl-C."""
    parser = argparse.ArgumentParser(prog="python -m deploy.local_airflow", description=main.__doc__)
    parser.add_argument("--home", type=Path, default=Path(".pipeline"), help="state directory (PIPELINE_HOME)")
    parser.add_argument("--jobs", type=Path, default=Path("dags/jobs"), help="folder of job files (PIPELINE_JOBS)")
    parser.add_argument("--port", type=int, help="port of the UI on 127.0.0.1; default: a free one")
    options = parser.parse_args(arguments)
    # Both also when the caller, such as a shell script, had told its background jobs to ignore them.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    airflow = LocalAirflow(options.home, options.jobs, port=options.port)
    print(f"Starting Airflow in {airflow.airflow_home} ...", flush=True)
    try:
        with airflow:
            print(
                f"Airflow UI: {airflow.url}\n  user {airflow.username}, password {airflow.password}\n  Ctrl-C stops it.",
                flush=True,
            )
            while True:
                airflow.check_alive()
                time.sleep(1)
    except KeyboardInterrupt:
        print("Airflow has stopped.")
        return 0
    except PipelineError as error:
        print(error, file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
