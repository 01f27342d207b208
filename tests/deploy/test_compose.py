"""What the compose file, the image and the secrets promise, checked without a container engine."""

from __future__ import annotations

import copy
import json
import re
import stat
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jsonschema
import pytest
import yaml

from deploy.local_airflow import PRELOADED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).resolve().parents[2]
COMPOSE = ROOT / "docker-compose.yml"
BOOTSTRAP = ROOT / "deploy" / "bootstrap"

REFERENCE = re.compile(r"\$\{(?P<name>\w+)(?P<operator>:\?|:-)?[^}]*\}")
REQUIRED = re.compile(r"\$\{\w+:\?run deploy/bootstrap\}")
SECRET_NAME = re.compile(r"(PASSWORD|SECRET|KEY|TOKEN)$")
CREDENTIALS = re.compile(r"://[^/:@]+:(?P<password>\$\{[^}]*\}|[^@/]*)@")


def load() -> dict[str, Any]:
    document = yaml.safe_load(COMPOSE.read_text())
    assert isinstance(document, dict)
    return document


def run_bootstrap(file: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([BOOTSTRAP, file], capture_output=True, text=True, timeout=30, check=False)


def read_env(file: Path) -> dict[str, str]:
    return dict(line.split("=", 1) for line in file.read_text().splitlines() if line and not line.startswith("#"))


def is_one_shot(service: dict[str, Any]) -> bool:
    return str(service.get("restart")).startswith("on-failure")


def image_offences(service: dict[str, Any]) -> Iterator[str]:
    tag = service.get("image", "").partition(":")[2]
    if not re.match(r"\d+\.\d+", tag):
        yield f"image {service.get('image')!r} names no exact version"


def exposure_offences(service: dict[str, Any]) -> Iterator[str]:
    for port in service.get("ports", []):
        if not (isinstance(port, str) and port.startswith("127.0.0.1:")):
            yield f"port {port!r} is published beyond the loopback interface"
    if service.get("network_mode") or service.get("pid") or service.get("ipc"):
        yield "shares a namespace of the host"
    for volume in service.get("volumes", []):
        if "docker.sock" in str(volume):
            yield "reaches the container engine"
        if isinstance(volume, dict) and volume["type"] == "bind" and not volume.get("read_only"):
            yield f"may write to {volume['source']} of the host"
        if isinstance(volume, str) and volume.startswith((".", "/")) and not volume.endswith(":ro"):
            yield f"may write to {volume} of the host"


def privilege_offences(service: dict[str, Any]) -> Iterator[str]:
    uid = str(service.get("user", "0")).partition(":")[0]
    if not uid.isdigit() or int(uid) == 0:
        yield "runs as root"
    if service.get("cap_drop") != ["ALL"] or service.get("cap_add") or service.get("privileged"):
        yield "keeps capabilities"
    if "no-new-privileges:true" not in service.get("security_opt", []):
        yield "may gain privileges"
    if not service.get("read_only"):
        yield "may write to its own image"


def operation_offences(service: dict[str, Any]) -> Iterator[str]:
    for limit in ("mem_limit", "pids_limit"):
        if not service.get(limit):
            yield f"has no {limit}"
    if "restart" not in service:
        yield "has no restart policy"
    if not service.get("logging", {}).get("options", {}).get("max-size"):
        yield "may fill the disk with its log"
    if not is_one_shot(service) and not service.get("healthcheck", {}).get("test"):
        yield "has no healthcheck"


def secret_offences(service: dict[str, Any]) -> Iterator[str]:
    for name, value in service.get("environment", {}).items():
        if SECRET_NAME.search(name) and not REQUIRED.fullmatch(str(value)):
            yield f"{name} is not a required secret of deploy/bootstrap"
        for match in CREDENTIALS.finditer(str(value)):
            if not REQUIRED.fullmatch(match["password"]):
                yield f"{name} holds a literal password"


def offences(document: dict[str, Any]) -> list[str]:
    checks = (image_offences, exposure_offences, privilege_offences, operation_offences, secret_offences)
    return [
        f"{name}: {offence}"
        for name, service in document["services"].items()
        for check in checks
        for offence in check(service)
    ]


def test_compose_file_is_valid_by_the_compose_specification() -> None:
    schema = json.loads((Path(__file__).with_name("compose-spec.json")).read_text())
    problems = [f"{e.json_path}: {e.message}" for e in jsonschema.Draft202012Validator(schema).iter_errors(load())]
    assert problems == []


def test_the_schema_refuses_a_compose_file_with_a_misspelt_key() -> None:
    schema = json.loads((Path(__file__).with_name("compose-spec.json")).read_text())
    document = load()
    document["services"]["postgres"]["helthcheck"] = {}
    with pytest.raises(jsonschema.ValidationError, match="helthcheck"):
        jsonschema.Draft202012Validator(schema).validate(document)


def test_every_service_is_confined_limited_watched_and_without_literal_secrets() -> None:
    assert offences(load()) == []


HARMS: dict[str, Callable[[dict[str, Any]], object]] = {
    "names no exact version": lambda s: s.update(image="postgres:latest"),
    "beyond the loopback": lambda s: s.update(ports=["8080:8080"]),
    "namespace of the host": lambda s: s.update(network_mode="host"),
    "reaches the container engine": lambda s: s.update(volumes=["/var/run/docker.sock:/s:ro"]),
    "may write to ./data": lambda s: s.update(volumes=["./data:/data"]),
    "runs as root": lambda s: s.pop("user"),
    "keeps capabilities": lambda s: s.update(cap_add=["SYS_ADMIN"]),
    "may gain privileges": lambda s: s.pop("security_opt"),
    "may write to its own image": lambda s: s.pop("read_only"),
    "has no mem_limit": lambda s: s.pop("mem_limit"),
    "has no restart policy": lambda s: s.pop("restart"),
    "may fill the disk": lambda s: s.pop("logging"),
    "has no healthcheck": lambda s: s.pop("healthcheck"),
    "POSTGRES_PASSWORD is not a required secret": lambda s: s["environment"].update(
        POSTGRES_PASSWORD="${POSTGRES_PASSWORD:-postgres}"
    ),
    "URL holds a literal password": lambda s: s["environment"].update(URL="postgresql://airflow:airflow@postgres/db"),
}


@pytest.mark.parametrize(("offence", "harm"), HARMS.items(), ids=list(HARMS))
def test_the_check_of_services_notices_each_harm(offence: str, harm: Callable[[dict[str, Any]], object]) -> None:
    document = copy.deepcopy(load())
    harm(document["services"]["postgres"])
    assert any(offence in found for found in offences(document)), offences(document)


def test_every_required_variable_is_generated_by_bootstrap_and_nothing_else_is(tmp_path: Path) -> None:
    run_bootstrap(tmp_path / ".env")
    operators: dict[str, set[str]] = {}
    for match in REFERENCE.finditer(COMPOSE.read_text()):
        operators.setdefault(match["name"], set()).add(match["operator"])
    required = {name for name, used in operators.items() if ":?" in used}
    assert required == set(read_env(tmp_path / ".env"))
    assert all(len(used) == 1 and None not in used for used in operators.values()), operators


def test_services_hold_only_the_secrets_of_their_own_part() -> None:
    held: dict[str, set[str]] = {}
    for name, service in load()["services"].items():
        held[name] = {m["name"] for m in REFERENCE.finditer(str(service.get("environment"))) if m["operator"] == ":?"}
    airflow = {"AIRFLOW_FERNET_KEY", "AIRFLOW_API_SECRET_KEY", "AIRFLOW_DB_PASSWORD"}
    runs_jobs = airflow | {"LEDGER_DB_PASSWORD", "AIRFLOW_JWT_SECRET"}
    assert held == {
        "postgres": {"POSTGRES_PASSWORD", "AIRFLOW_DB_PASSWORD", "MLFLOW_DB_PASSWORD", "LEDGER_DB_PASSWORD"},
        "mlflow": {"MLFLOW_DB_PASSWORD"},
        "airflow-init": airflow | {"LEDGER_DB_PASSWORD"},
        "airflow-dag-processor": airflow,
        "airflow-triggerer": airflow,
        "airflow-scheduler": runs_jobs,
        "airflow-api-server": runs_jobs | {"AIRFLOW_ADMIN_PASSWORD"},
    }


def test_postgres_is_reachable_from_the_internal_network_only() -> None:
    document = load()
    assert document["services"]["postgres"]["networks"] == ["database"]
    assert "ports" not in document["services"]["postgres"]
    assert document["networks"]["database"] == {"internal": True}


def test_only_the_scheduler_may_write_to_the_state_and_only_mlflow_to_the_artifacts() -> None:
    writers: dict[str, set[str]] = {"pipeline-home": set(), "mlflow-artifacts": set()}
    for name, service in load()["services"].items():
        for volume in service.get("volumes", []):
            source = volume.partition(":")[0] if isinstance(volume, str) else volume["source"]
            if source in writers and not str(volume).endswith(":ro"):
                writers[source].add(name)
    assert writers == {"pipeline-home": {"airflow-scheduler"}, "mlflow-artifacts": {"mlflow"}}


def test_tasks_are_forked_from_a_process_with_the_same_imports_as_in_a_local_airflow() -> None:
    environment = load()["services"]["airflow-scheduler"]["environment"]
    listed = environment["AIRFLOW__SCHEDULER__MP_FORKSERVER_PRELOAD"].split(",")
    assert tuple(name.strip() for name in listed) == PRELOADED
    assert environment["AIRFLOW__SCHEDULER__MP_START_METHOD"] == "forkserver"


def test_every_part_of_the_stack_has_telemetry_switched_off() -> None:
    quiet = {
        "DO_NOT_TRACK": "true",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "GX_ANALYTICS_ENABLED": "false",
        "TRANSFORMERS_VERBOSITY": "error",
    }
    for name, service in load()["services"].items():
        if name != "postgres":
            assert quiet.items() <= service["environment"].items(), name


def test_image_is_exactly_versioned_hash_checked_and_without_root() -> None:
    dockerfile = (ROOT / "deploy" / "Dockerfile").read_text()
    assert re.search(r"^FROM python:3\.12\.\d+-slim-\w+$", dockerfile, re.M)
    assert re.search(r"pip install --require-hashes .*requirements\.lock", dockerfile)
    assert re.findall(r"^USER (.+)$", dockerfile, re.M) == ["50000:0"]
    assert not re.search(r"^(ARG|ADD|COPY \. )", dockerfile, re.M)
    users = {s["user"] for s in load()["services"].values() if s["image"].startswith("batch-inference-pipeline")}
    assert users == {"50000:0"}


def test_the_build_receives_exactly_what_the_dockerfile_copies() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    admitted = {rule[1:] for rule in rules if rule.startswith("!")}
    dockerfile = (ROOT / "deploy" / "Dockerfile").read_text()
    copied = {
        source
        for arguments in re.findall(r"^COPY (?:--\S+ )*(.+) \S+$", dockerfile, re.M)
        for source in arguments.split()
    }
    assert admitted == copied
    assert all((ROOT / path).exists() for path in admitted)


def test_bootstrap_writes_strong_different_secrets_for_the_owner_only(tmp_path: Path) -> None:
    done = run_bootstrap(tmp_path / ".env")
    assert (done.returncode, done.stderr) == (0, "")
    secrets = read_env(tmp_path / ".env")
    assert stat.S_IMODE((tmp_path / ".env").stat().st_mode) == 0o600
    assert len(set(secrets.values())) == len(secrets) == 8
    assert all(re.fullmatch(r"[A-Za-z0-9_=-]{44,64}", value) for value in secrets.values())
    assert not any(value in done.stdout for value in secrets.values())
    run_bootstrap(tmp_path / "other.env")
    assert not set(secrets.values()) & set(read_env(tmp_path / "other.env").values())


def test_bootstrap_makes_a_key_that_fernet_accepts(tmp_path: Path) -> None:
    from cryptography.fernet import Fernet

    run_bootstrap(tmp_path / ".env")
    box = Fernet(read_env(tmp_path / ".env")["AIRFLOW_FERNET_KEY"])
    assert box.decrypt(box.encrypt(b"connection")) == b"connection"


def test_bootstrap_keeps_every_value_and_line_of_a_second_run(tmp_path: Path) -> None:
    file = tmp_path / ".env"
    run_bootstrap(file)
    before = file.read_bytes()
    assert run_bootstrap(file).returncode == 0
    assert file.read_bytes() == before


def test_bootstrap_adds_only_what_is_missing_and_closes_the_file_to_others(tmp_path: Path) -> None:
    file = tmp_path / ".env"
    own = "# ours\nPIPELINE_DATA_DIR=/srv/data\nLEDGER_DB_PASSWORD=kept-Value.of~24_letters"
    file.write_text(own)  # the last line has no end
    file.chmod(0o644)
    assert run_bootstrap(file).returncode == 0
    assert file.read_text().startswith(own + "\n")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert len(read_env(file)) == 9


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("POSTGRES_PASSWORD=postgres", "well-known word"),
        ("AIRFLOW_DB_PASSWORD=airflow", "well-known word"),
        ("AIRFLOW_ADMIN_PASSWORD=Admin", "well-known word"),
        ("MLFLOW_DB_PASSWORD=ChangeMeChangeMeChangeMe", "well-known word"),
        ("LEDGER_DB_PASSWORD=my-password-is-very-long", "well-known word"),
        ("AIRFLOW_JWT_SECRET=", "shorter than 16"),
        ("AIRFLOW_JWT_SECRET=fifteen-letters", "shorter than 16"),
        ("AIRFLOW_FERNET_KEY=sixteen-letters-and-more", "not a Fernet key"),
        ("LEDGER_DB_PASSWORD=slash/and@sign:in-a-url", "characters other than"),
        ("LEDGER_DB_PASSWORD='quoted-long-enough'", "characters other than"),
        ("POSTGRES_PASSWORD=the-same-twice-here\nLEDGER_DB_PASSWORD=the-same-twice-here", "repeats the value"),
    ],
)
def test_bootstrap_refuses_a_weak_value_and_writes_nothing(tmp_path: Path, line: str, reason: str) -> None:
    file = tmp_path / ".env"
    file.write_text(line + "\n")
    done = run_bootstrap(file)
    assert done.returncode == 2
    assert reason in done.stderr
    assert "nothing was written" in done.stderr
    assert line.splitlines()[-1].partition("=")[0] in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == [".env"]
    assert file.read_text() == line + "\n"
