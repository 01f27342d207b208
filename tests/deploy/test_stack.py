"""The services of docker-compose.yml run as processes: their own commands, environment, order and healthchecks.

What a container would isolate (host names, ports, directories) is mapped to this machine; nothing else is changed.
PostgreSQL is a real one.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy
import yaml

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

ROOT = Path(__file__).resolve().parents[2]
CONTAINER_PORTS = {"postgres": 5432, "mlflow": 5000, "api": 8080, "scheduler": 8974}
START_SECONDS = 240
BUNDLES = "AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_CONFIG_LIST"
LOCAL = "airflow.dag_processing.bundles.local.LocalDagBundle"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def interpolate(node: Any, environ: Mapping[str, str]) -> Any:
    """``node`` with `${NAME:?}`, `${NAME:-default}` and `$$` replaced as compose replaces them."""
    if isinstance(node, dict):
        return {key: interpolate(value, environ) for key, value in node.items()}
    if isinstance(node, list):
        return [interpolate(value, environ) for value in node]
    if not isinstance(node, str):
        return node

    def replace(match: re.Match[str]) -> str:
        if match[0] == "$$":
            return "$"
        return environ[match["name"]] if match["operator"] == ":?" else environ.get(match["name"], match["word"])

    return re.sub(r"\$\$|\$\{(?P<name>\w+)(?P<operator>:\?|:-)(?P<word>[^}]*)\}", replace, node)


@dataclass
class Stack:
    """The compose file with its secrets, on free ports and in ``home``, and the processes started from it."""

    home: Path
    secrets: dict[str, str]
    services: dict[str, Any]
    path: str
    scratch: Path
    ports: dict[str, int] = field(default_factory=lambda: {name: free_port() for name in CONTAINER_PORTS})
    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def relocate(self, text: str, service: str) -> str:
        """``text`` of the compose file with its hosts, ports and directories replaced by those of this machine."""
        hosts = {
            "@postgres:": "@127.0.0.1:",
            "//mlflow:": "//127.0.0.1:",
            "//airflow-api-server:": "//127.0.0.1:",
            "0.0.0.0": "127.0.0.1",
            "/opt/airflow": f"{self.home}/{service}",
            "/opt/pipeline": str(ROOT),
            str(ROOT / "dags"): f"{self.home}/dags",
            "/var/": f"{self.home}/var/",
        }
        for old, new in hosts.items():
            text = text.replace(old, new)
        for name, port in CONTAINER_PORTS.items():
            text = re.sub(rf"(?<=127\.0\.0\.1:){port}\b|(?<=--port[ =]){port}\b|^{port}$", str(self.ports[name]), text)
        return text

    def environment(self, service: str) -> dict[str, str]:
        """What the compose file gives the service, the two ports a container would isolate, and nothing inherited."""
        own = {k: self.relocate(str(v), service) for k, v in self.services[service].get("environment", {}).items()}
        if bundles := own.get(BUNDLES):
            own[BUNDLES] = json.dumps(
                [
                    *json.loads(bundles),
                    {"name": "probe", "classpath": LOCAL, "kwargs": {"path": str(self.home / "probe")}},
                ]
            )
        return {
            "PATH": self.path,
            "HOME": f"{self.home}/{service}",
            "TMPDIR": str(self.scratch),
            "LANG": "C.UTF-8",
            "AIRFLOW__LOGGING__WORKER_LOG_SERVER_PORT": str(free_port()),
            "AIRFLOW__LOGGING__TRIGGER_LOG_SERVER_PORT": str(free_port()),
            **own,
        }

    def arguments(self, service: str) -> list[str]:
        return [self.relocate(argument, service) for argument in self.services[service]["command"]]

    def start(self, service: str, command: list[str], user: str | None = None, directory: Path | None = None) -> None:
        """Start ``command`` as the leader of a process group of its own, its output in ``<service>.log``."""
        directory = directory or self.home / service
        directory.mkdir(exist_ok=True)
        with self.log(service).open("ab") as log:
            self.running[service] = subprocess.Popen(
                command,
                env=self.environment(service),
                cwd=directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                user=user,
                group=user,
                extra_groups=None if user is None else [],
            )

    def log(self, service: str) -> Path:
        return self.home / f"{service}.log"

    def is_healthy(self, service: str) -> bool:
        """Whether the service's own healthcheck passes; fails the test if the service has ended."""
        if self.running[service].poll() is not None:
            pytest.fail(f"{service} ended with {self.running[service].returncode}:\n{self.log(service).read_text()}")
        command = [self.relocate(word, service) for word in self.services[service]["healthcheck"]["test"][1:]]
        return subprocess.run(command, env=self.environment(service), capture_output=True, check=False).returncode == 0

    def meets(self, service: str, condition: str) -> bool:
        """Whether a service that was started meets a `depends_on` condition of the compose file."""
        if service not in self.running:
            return False
        if condition == "service_healthy":
            return self.is_healthy(service)
        code = self.running[service].poll()
        if code not in (None, 0):
            pytest.fail(f"{service} ended with {code}:\n{self.log(service).read_text()}")
        return code == 0

    def start_all(self) -> None:
        """Start every service in the order of `depends_on` and wait until all are healthy."""
        deadline = time.monotonic() + START_SECONDS
        waiting = [name for name in self.services if name not in self.running]
        unhealthy = {name for name, service in self.services.items() if "test" in service["healthcheck"]}
        while waiting or unhealthy:
            for name in list(waiting):
                needs = self.services[name]["depends_on"]
                if all(self.meets(need, rule["condition"]) for need, rule in needs.items()):
                    self.start(name, self.arguments(name))
                    waiting.remove(name)
            unhealthy = {name for name in unhealthy if name not in self.running or not self.is_healthy(name)}
            if time.monotonic() > deadline:
                logs = "\n".join(f"== {name}\n{self.log(name).read_text()[-3000:]}" for name in unhealthy)
                pytest.fail(f"waiting {waiting}, unhealthy {unhealthy} after {START_SECONDS} s\n{logs}")
            time.sleep(0.5)

    def stop(self, *services: str, seconds: float = 15) -> None:
        """Ask the groups of the services to end, all at once, and end what has not done so in time."""
        stopped = {self.running.pop(name): self.services[name].get("stop_signal", "SIGTERM") for name in services}
        for patience, forced in ((seconds, None), (10.0, "SIGKILL")):
            for process, request in stopped.items():
                if members(process.pid):
                    os.killpg(process.pid, signal.Signals[forced or request])
            deadline = time.monotonic() + patience
            while any(members(process.pid) for process in stopped) and time.monotonic() < deadline:
                time.sleep(0.1)
        for process in stopped:
            process.wait(timeout=10)

    def stop_all(self) -> None:
        """Stop the services, and after them the database that they need until then."""
        self.stop(*(name for name in self.running if name != "postgres"))
        self.stop(*self.running)

    def connect(self, user: str, database: str) -> sqlalchemy.Engine:
        password = self.secrets["POSTGRES_PASSWORD" if user == "postgres" else f"{user.upper()}_DB_PASSWORD"]
        host = f"127.0.0.1:{self.ports['postgres']}"
        url = f"postgresql+psycopg2://{user}:{password}@{host}/{database}"
        return sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool)

    def prepare_databases(self) -> None:
        """Run the init script that the compose file mounts, with the environment of the postgres service."""
        environment = {**self.environment("postgres"), "PGHOST": "127.0.0.1", "PGPORT": str(self.ports["postgres"])}
        script = ROOT / "deploy" / "postgres" / "10-databases.sh"
        subprocess.run([script], env=environment, check=True, capture_output=True, timeout=60)


def members(session: int) -> list[int]:
    """The living processes of a session (field 6 of /proc/PID/stat); a process that only waits to be reaped is not."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, sid = entry.read_text().rpartition(")")[2].split()[:4]
        except OSError:
            continue
        if int(sid) == session and state not in "ZX":
            found.append(int(entry.parent.name))
    return found


@pytest.fixture
def stack(tmp_path: Path, postgres_bin: Path) -> Iterator[Stack]:
    """The stack of the compose file with secrets of its own; only PostgreSQL runs, with its databases prepared."""
    secrets_file = tmp_path / ".env"
    subprocess.run([ROOT / "deploy" / "bootstrap", secrets_file], check=True, capture_output=True, timeout=30)
    secrets = dict(line.split("=", 1) for line in secrets_file.read_text().splitlines())
    services = interpolate(yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"], secrets)
    programs = [postgres_bin, ROOT / "deploy", Path(sys.executable).parent, "/usr/bin", "/bin"]
    shutil.copytree(ROOT / "dags", tmp_path / "dags", ignore=shutil.ignore_patterns("jobs", "__pycache__"))
    for directory in (
        "dags/jobs",
        "var/log/airflow",
        "var/lib/pipeline",
        "var/lib/mlflow",
        "airflow-api-server",
    ):
        (tmp_path / directory).mkdir(parents=True)
    (tmp_path / "probe").mkdir()
    shutil.copy(Path(__file__).with_name("probe.py"), tmp_path / "probe")
    shutil.copy(ROOT / "examples" / "jobs" / "demo.yaml", tmp_path / "dags" / "jobs")
    with (
        # Not in tmp_path, which only its owner may enter: PostgreSQL refuses to run as root.
        tempfile.TemporaryDirectory(prefix="postgres-") as name,
        # As short as in a container: a socket's path has at most 107 bytes.
        tempfile.TemporaryDirectory(prefix="stack-") as scratch,
    ):
        built = Stack(tmp_path, secrets, services, ":".join(map(str, programs)), Path(scratch))
        try:
            start_postgres(built, Path(name))
            built.prepare_databases()
            yield built
        finally:
            built.stop_all()


def start_postgres(stack: Stack, directory: Path) -> None:
    """A new cluster in ``directory`` with the compose file's initdb arguments and server command, and ready."""
    user = "postgres" if os.geteuid() == 0 else None
    password_file = directory / "password"
    password_file.write_text(stack.secrets["POSTGRES_PASSWORD"])
    if user is not None:
        shutil.chown(directory, user, user)
        shutil.chown(password_file, user, user)
    arguments = stack.services["postgres"]["environment"]["POSTGRES_INITDB_ARGS"].split()
    cluster = directory / "data"
    subprocess.run(
        ["initdb", f"--pgdata={cluster}", "--username=postgres", f"--pwfile={password_file}", "--no-sync", *arguments],
        env=stack.environment("postgres"),
        user=user,
        group=user,
        cwd=directory,
        check=True,
        capture_output=True,
        timeout=60,
    )
    port = str(stack.ports["postgres"])
    place = [
        "-D",
        str(cluster),
        "-k",
        str(directory),
        "-p",
        port,
        "-c",
        "listen_addresses=127.0.0.1",
        "-c",
        "fsync=off",
    ]
    stack.start("postgres", [*stack.arguments("postgres"), *place], user, directory)
    deadline = time.monotonic() + 30
    while not stack.is_healthy("postgres"):
        assert time.monotonic() < deadline, stack.log("postgres").read_text()
        time.sleep(0.1)


@dataclass(frozen=True)
class Answer:
    """The status and the body of an HTTP answer."""

    status: int
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


def call(url: str, document: Any = None, **headers: str) -> Answer:
    """GET ``url``, or POST ``document`` to it as JSON; any status is an answer."""
    data = None if document is None else json.dumps(document).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json", **headers})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return Answer(answer.status, answer.read())
    except urllib.error.HTTPError as err:
        with err:
            return Answer(err.code, err.read())


def wait_for_dag(api: str, dag: str, bearer: Mapping[str, str], seconds: float = 60) -> None:
    """Return when the DAG processor has published ``dag``."""
    deadline = time.monotonic() + seconds
    while call(f"{api}/api/v2/dags/{dag}", **bearer).status == 404:
        assert time.monotonic() < deadline, f"the DAG processor did not publish {dag}"
        time.sleep(0.5)


def run_probe(api: str, bearer: Mapping[str, str], seconds: float = 60) -> str:
    """The state in which one run of the probe DAG ends."""
    created = call(f"{api}/api/v2/dags/probe/dagRuns", {"logical_date": None}, **bearer)
    assert created.status == 200, created
    deadline = time.monotonic() + seconds
    while True:
        run = call(f"{api}/api/v2/dags/probe/dagRuns/{created.json()['dag_run_id']}", **bearer).json()
        if run["state"] in ("success", "failed") or time.monotonic() > deadline:
            return str(run["state"])
        time.sleep(0.5)


def test_no_service_can_connect_to_the_database_of_another(stack: Stack) -> None:
    owners = ("airflow", "mlflow", "ledger")
    for user in owners:
        with stack.connect(user, user).begin() as connection:
            connection.execute(sqlalchemy.text("CREATE TABLE own (n int)"))
            privileged = "SELECT rolsuper OR rolcreaterole OR rolcreatedb FROM pg_roles WHERE rolname = current_user"
            assert connection.execute(sqlalchemy.text(privileged)).scalar_one() is False
        for database in {*owners, "postgres", "template1"} - {user}:
            with pytest.raises(sqlalchemy.exc.OperationalError, match="permission denied for database"):
                stack.connect(user, database).connect()


def test_init_script_run_again_keeps_the_data_and_sets_the_new_password(stack: Stack) -> None:
    with stack.connect("ledger", "ledger").begin() as connection:
        connection.execute(sqlalchemy.text("CREATE TABLE plans AS SELECT 7 AS n"))
    old = stack.connect("ledger", "ledger")
    stack.secrets["LEDGER_DB_PASSWORD"] = "another-long-value-0123"
    stack.services["postgres"]["environment"]["LEDGER_DB_PASSWORD"] = "another-long-value-0123"
    stack.prepare_databases()
    with stack.connect("ledger", "ledger").connect() as connection:
        assert connection.execute(sqlalchemy.text("SELECT n FROM plans")).scalar_one() == 7
    with pytest.raises(sqlalchemy.exc.OperationalError, match="password authentication failed"):
        old.connect()


@pytest.mark.slow
@pytest.mark.airflow
def test_services_start_in_order_run_a_task_refuse_strangers_and_leave_no_process(stack: Stack) -> None:
    stack.start_all()
    api, mlflow = (f"http://127.0.0.1:{stack.ports[name]}" for name in ("api", "mlflow"))
    health = call(f"{api}/api/v2/monitor/health").json()
    assert {name: part["status"] for name, part in health.items()} == dict.fromkeys(
        ("metadatabase", "scheduler", "triggerer", "dag_processor"), "healthy"
    )

    assert call(f"{api}/api/v2/dags").status == 401
    assert call(f"{api}/auth/token", {"username": "admin", "password": "admin"}).status == 401
    login = call(f"{api}/auth/token", {"username": "admin", "password": stack.secrets["AIRFLOW_ADMIN_PASSWORD"]})
    assert login.status == 201
    bearer = {"Authorization": f"Bearer {login.json()['access_token']}"}
    for dag in ("probe", "demo__score"):
        wait_for_dag(api, dag, bearer)
    assert call(f"{api}/api/v2/importErrors", **bearer).json()["import_errors"] == []
    assert run_probe(api, bearer) == "success"
    assert (stack.home / "var/lib/pipeline/probe").read_text() == "ledger OK"

    search = f"{mlflow}/api/2.0/mlflow/experiments/search?max_results=1"
    assert call(search, Host="mlflow:5000").status == 200
    assert call(search, Host="attacker.example").status == 403

    passwords = stack.home / "airflow-api-server" / "passwords.json"
    assert passwords.stat().st_mode & 0o777 == 0o600
    sessions = [process.pid for process in stack.running.values()]
    stack.stop_all()
    assert [pid for session in sessions for pid in members(session)] == []
    logs = "".join(path.read_text() for path in stack.home.glob("*.log"))
    assert [name for name, value in stack.secrets.items() if value in logs] == []
