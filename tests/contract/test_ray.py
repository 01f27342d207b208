"""A partition on a Ray cluster of two nodes: the same bytes as here, errors as they are, and what a lost node costs.

The cluster is real: two nodes on two loopback addresses, started once, mended where a test has ended a node.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pytest

from pipeline import remote
from pipeline.errors import ClusterUnavailable, ContractViolation, TerminalError
from pipeline.job import ModelSpec, Output
from pipeline.policies import Engine
from pipeline.remote import gateway
from pipeline.runtime import Runtime
from pipeline.settings import Settings
from pipeline.steps import plan
from pipeline.steps import score as scoring
from pipeline.storage import ROW_GROUP
from pipeline.workers import in_order
from tests.clusters import HEAD, OTHER, ROOT, Cluster, free_ports
from tests.worlds import day, write_world

pytestmark = pytest.mark.slow
ROWS = 3 * ROW_GROUP + 1000


@pytest.fixture(scope="module")
def two_nodes():
    with pytest.MonkeyPatch.context() as patch:
        cluster = Cluster()
        for name, value in cluster.environment.items():
            patch.setenv(name, value)
        try:
            yield cluster
        finally:
            cluster.close()


@pytest.fixture
def cluster(two_nodes):
    """The whole cluster; this process and its children may connect to it."""
    two_nodes.mend()
    return two_nodes


class Counts:
    """A task that says where it works, and how many answers it gave there; it fails for some numbers, after a while."""

    def __init__(self, failures: dict[int, float] | None = None) -> None:
        self.failures, self.answered = failures or {}, 0

    def __call__(self, number: int) -> tuple[int, int, str, int, set[int]]:
        import ray
        from threadpoolctl import threadpool_info

        time.sleep(self.failures.get(number, 0.02))
        if number in self.failures:
            raise ContractViolation(f"number {number} cannot be worked on", expected="another", got=str(number))
        self.answered += 1
        threads = {pool["num_threads"] for pool in threadpool_info()}
        return number * number, os.getpid(), ray.util.get_node_ip_address(), self.answered, threads


def on(cluster, task, items, **options):
    return in_order(items, task, lambda item: item + 1, backend="ray", address=cluster.address, **options)


def gateways() -> list[psutil.Process]:
    """The processes of this one that are connected to a cluster."""
    children = psutil.Process().children()
    return [child for child in children if child.is_running() and "gateway" in " ".join(child.cmdline())]


def test_both_nodes_answer_in_order_with_the_task_sent_once_to_each_process(cluster):
    given, most, found = 0, 0, []

    def items():
        nonlocal given
        # A node whose worker process starts late must get its turn.
        while given < 60 or (given < 2000 and len({answer[2] for _, answer in found}) < 2):
            given += 1
            yield given - 1

    for item, answer in on(cluster, Counts(), items()):
        most = max(most, given - len(found))
        found.append((item, answer))
    assert [(item, answer[0]) for item, answer in found] == [(item, (item + 1) ** 2) for item in range(given)]
    assert most <= 2 + 2
    assert {answer[2] for _, answer in found} == {HEAD, OTHER}
    by_process = {pid: [a[3] for _, a in found if a[1] == pid] for pid in {a[1] for _, a in found}}
    assert all(sorted(counts) == list(range(1, len(counts) + 1)) for counts in by_process.values())
    assert os.getpid() not in by_process
    assert set.union(*(answer[4] for _, answer in found)) == {1}
    assert gateways() == []


def test_the_earliest_failure_is_raised_as_it_is_and_nothing_goes_on(cluster):
    found = []
    with pytest.raises(ContractViolation, match=r"^number 5 cannot be worked on; expected another; got 5") as raised:
        found.extend(item for item, _ in on(cluster, Counts({5: 0.3, 6: 0.0}), range(50), workers=4))
    assert type(raised.value) is ContractViolation
    assert found == [0, 1, 2, 3]
    assert gateways() == []


_ENDLESS = """
import sys, time
from pipeline.workers import in_order

for item, _ in in_order(range(10_000), time.sleep, lambda item: 0.2, backend="ray", workers=2, address=sys.argv[1]):
    print("working", flush=True)
"""


def test_nothing_works_on_for_a_parent_that_is_killed(cluster):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", _ENDLESS, cluster.address]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as parent:
        assert parent.stdout is not None
        parent.stdout.readline()
        children = psutil.Process(parent.pid).children(recursive=True)
        cluster.await_work(OTHER)
        parent.kill()
    assert children
    _, alive = psutil.wait_procs(children, timeout=30)
    for process in alive:
        process.kill()
    assert alive == []
    cluster.await_rest()


@pytest.fixture(scope="module")
def _deployment(tmp_path_factory, _mlflow_template):
    """A deployment, and twelve days of orders, day 10 being one of four batches with some bad rows."""
    root = tmp_path_factory.mktemp("ray")
    world = write_world(root / "data", days=12, rows=300)
    world.rewrite(10, spread)
    shutil.copy(_mlflow_template, root / "mlflow.db")
    settings = Settings.in_home(root / "home", jobs=root / "jobs", tracking_uri=f"sqlite:///{root / 'mlflow.db'}")
    with Runtime(settings, lambda: day(40)) as runtime:
        yield runtime, world


@pytest.fixture
def runtime(_deployment):
    """The one deployment of this module."""
    return _deployment[0]


@pytest.fixture
def orders(_deployment, orders_on, tmp_path):
    """The job, with a champion, publishing where nothing is yet."""
    runtime, world = _deployment
    job = orders_on(world, output={"uri": str(tmp_path)})
    if not runtime.ledger.models(job.name):
        runtime.retrain(job, day(10), bootstrap=True)
    return job


def spread(table: pa.Table) -> pa.Table:
    """Many orders out of a day's few."""
    index = np.arange(ROWS)
    few = table.take(pa.array(index % table.num_rows))
    amount = np.where(index % 40_000 == 9, np.inf, few["amount"].to_numpy() + index % 97)
    return few.set_column(0, "row_id", pa.array(index)).set_column(2, "amount", pa.array(amount))


def published(runtime, job, start, **engine):
    """What one run with that engine publishes: the digest of the predictions, the quarantine, and the accounts."""
    workers = engine.get("workers")
    with Runtime(runtime.settings.model_copy(update={"workers": workers}), runtime.clock) as opened:
        context = opened.context(job.model_copy(update={"engine": Engine(**engine)}))
        made = scoring.score(context, plan.plan(context, job.interval(start)), again=True)
    return made.sha256, Path(made.quarantine_path).read_bytes(), made.rows_scored, str(made.reasons)


def nothing_published(job) -> bool:
    return not [path for path in Path(job.output.uri).rglob("*") if path.suffix == ".parquet"]


def test_the_bytes_published_are_those_of_any_number_of_workers_here(cluster, runtime, orders):
    here = {published(runtime, orders, day(10), workers=count) for count in (1, 2, 4)}
    here.add(published(runtime, orders, day(10), backend="processes", workers=2))
    there = published(runtime, orders, day(10), backend="ray", address=cluster.address)
    from_afar = published(runtime, orders, day(10), backend="ray", address=cluster.client_address, workers=4)
    assert len({*here, there, from_afar}) == 1
    assert there[2] + 10 == ROWS


def test_a_batch_that_cannot_be_scored_stops_the_partition(cluster, runtime, orders, tmp_path):
    world = write_world(tmp_path / "data", days=10, rows=300)
    job = orders.model_copy(
        update={
            "name": "fragile",
            "features": orders.features.model_copy(update={"uri": str(tmp_path / "data/features")}),
            "model": ModelSpec(trainer="tests.clusters:fragile", trusted_types=("tests.clusters.Fragile",)),
            "output": Output(uri=str(tmp_path / "out")),
        }
    )
    runtime.retrain(job, day(10), bootstrap=True)
    world.rewrite(10, lambda few: replaced(spread(few), row=2 * ROW_GROUP + 5, amount=-1.0))
    with pytest.raises(ContractViolation, match="finite"):
        published(runtime, job, day(10), backend="ray", address=cluster.address)
    assert nothing_published(job)


def replaced(table: pa.Table, row: int, amount: float) -> pa.Table:
    """The table with another amount in one row."""
    values = table["amount"].to_numpy().copy()
    values[row] = amount
    return table.set_column(2, "amount", pa.array(values))


def losing(cluster, node):
    """The real batches of a partition, and the loss of a node while the first of them are being worked on."""
    accepted = scoring._accepted

    def batches(*arguments):
        for number, batch in enumerate(accepted(*arguments)):
            if number == 2:
                cluster.await_work(node)
                cluster.kill(node)
            yield batch

    return batches


def test_a_node_lost_during_a_partition_costs_time_and_no_byte(cluster, runtime, orders, monkeypatch):
    here = published(runtime, orders, day(10), workers=2)
    monkeypatch.setattr(scoring, "_accepted", losing(cluster, OTHER))
    assert published(runtime, orders, day(10), backend="ray", address=cluster.address, workers=2) == here


def test_a_cluster_lost_during_a_partition_is_an_error_that_may_pass(two_nodes, runtime, orders, monkeypatch):
    two_nodes.mend(HEAD)
    monkeypatch.setattr(scoring, "_accepted", losing(two_nodes, HEAD))
    with pytest.raises(ClusterUnavailable, match=r"went away|is lost|could not be given"):
        published(runtime, orders, day(10), backend="ray", address=two_nodes.address, workers=2)
    assert nothing_published(orders)
    assert gateways() == []


def test_a_server_that_dies_while_ray_starts_it_for_us_is_asked_for_again(cluster):
    with ThreadPoolExecutor(1) as pool:
        killed = pool.submit(cluster.kill_next_client_server, cluster.client_servers())
        found = list(in_order(range(3), abs, lambda item: item, backend="ray", address=cluster.client_address))
    assert not killed.result().is_running()
    assert found == [(number, number) for number in range(3)]


def test_an_address_where_nothing_answers_is_an_error_that_may_pass():
    (port,) = free_ports(HEAD, 1)
    for address in (f"{HEAD}:{port}", f"ray://{HEAD}:{port}"):
        with pytest.raises(ClusterUnavailable, match=rf"{address} does not answer.*next: look at the cluster"):
            list(in_order(range(3), abs, lambda item: item, backend="ray", address=address))


def test_an_address_that_takes_connections_and_says_nothing_is_given_up(monkeypatch):
    monkeypatch.setattr(remote, "_STARTING_SECONDS", 3.0)
    monkeypatch.setattr(remote, "_ENDING_SECONDS", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        address = f"127.0.0.1:{mute.getsockname()[1]}"
        with pytest.raises(ClusterUnavailable, match=rf"{address} cannot be connected to.*nothing within 3 seconds"):
            list(in_order(range(3), abs, lambda item: item, backend="ray", address=address))
    assert gateways() == []


def test_where_ray_is_not_installed_the_error_says_how_to_install_it(tmp_path, monkeypatch):
    (tmp_path / "ray.py").write_text("raise ModuleNotFoundError(\"No module named 'ray'\")")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(
        TerminalError, match=r"Ray is not installed here.*pip install 'batch-inference-pipeline\[ray\]'"
    ):
        list(in_order(range(3), abs, lambda item: item, backend="ray", address="127.0.0.1:6379"))


def test_workers_with_other_releases_are_refused_by_name():
    gateway._require_same(gateway._versions())
    with pytest.raises(TerminalError, match=r"other releases.*expected numpy 1\.0; got numpy (?!1\.0;).*run the image"):
        gateway._require_same({**gateway._versions(), "numpy": "1.0"})


def test_nothing_imports_ray_until_a_job_asks_for_it():
    program = "import sys, pipeline.jobfile, pipeline.workers, pipeline.remote.gateway; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False).returncode == 0


def test_a_partition_of_one_batch_needs_no_cluster(runtime, orders):
    job = orders.model_copy(update={"engine": Engine(backend="ray", address="127.0.0.1:1")})
    (manifest,) = runtime.score(job, day(11))
    assert manifest.rows_scored == 300
