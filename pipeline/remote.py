"""A Ray cluster as the place where batches are worked on: connecting, giving out, taking in, and what a lost node means.

Owns Ray, and imports it only when a job asks for it. Must not know what is done to a batch, nor the order of the answers.

Why not ``joblib.Parallel(backend="ray")``: measured with Ray 2.60 and joblib 1.6, `ray.util.joblib` refuses
``return_as="generator"``, so that all answers come at once; it takes the input from threads of its own; and a worker that is
killed ends the pool with ``ActorDiedError``. No backend of joblib's waits for a slow consumer: with ``pre_dispatch=4`` 40
items were taken while one answer was. So each batch is one Ray task, which the cluster itself repeats on another node.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import signal
import socket
import threading
import time
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from pipeline import __version__
from pipeline.errors import ClusterUnavailable, TerminalError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# A batch whose worker or node is lost is worked on again so often.
_RETRIES = 3
_CONNECT_SECONDS = 10.0
# How often the cluster is looked at while an answer is awaited, and how long it may be away then.
_LOOK_SECONDS = 2.0
_AWAY_SECONDS = 20.0
# Where a cluster has no say: more batches at once are more memory here, and one process cannot feed more.
_MOST_WORKERS = 64
# Other versions of these may give other bytes, or cannot read the model.
_SAME = ("numpy", "pandas", "pyarrow", "scikit-learn", "scipy", "numba", "skops")

# In a worker process: what every batch is given to, and its digest. It comes once, with the first batch.
_held: tuple[str, Callable[[Any], Any]] | None = None


class Cluster:
    """The connected cluster, ready for batches. ``workers`` is how many it is to work on at once."""

    def __init__(self, address: str, task: Callable[[Any], Any], prepare: Callable[[], None], workers: int | None):
        import ray
        from ray import cloudpickle

        self._place = _place(address) or _place(ray.get_runtime_context().gcs_address)
        processors = int(ray.cluster_resources().get("CPU", 0))
        self.workers = workers or min(max(processors, 1), _MOST_WORKERS)
        content = cloudpickle.dumps((prepare, task))
        # In the object store once: a worker process takes it from its node's store, with its first batch.
        self._task = [hashlib.sha256(content).hexdigest(), _versions(), ray.put(content)]
        self._work = ray.remote(_work).options(num_cpus=1, max_retries=_RETRIES, retry_exceptions=False)

    def submit(self, question: Any) -> Reply:
        """Give ``question`` to the cluster, through its object store."""
        import ray

        with _explained("a batch could not be given to the Ray cluster"):
            return Reply(self, self._work.remote(self._task, ray.put(question)))

    def require(self) -> None:
        """Raise `ClusterUnavailable` when the head of the cluster does not answer for a while."""
        until = time.monotonic() + _AWAY_SECONDS
        while self._place is not None and not _answers(self._place, _LOOK_SECONDS):
            if time.monotonic() > until:
                raise ClusterUnavailable(
                    f"the Ray cluster at {self._place[0]}:{self._place[1]} went away during a partition",
                    expected="an answer to every batch",
                    got=f"no connection for {_AWAY_SECONDS:.0f} seconds",
                    left_behind="nothing was published",
                    next_step="look at the cluster (ray status); a retry begins the partition again",
                )
            time.sleep(_LOOK_SECONDS / 4)


class Reply:
    """The answer to one question, once it is there."""

    def __init__(self, cluster: Cluster, ref: Any) -> None:
        self._cluster, self._ref = cluster, ref

    def done(self) -> bool:
        """Whether `result` answers at once."""
        import ray

        with _explained("an answer of the Ray cluster is lost"):
            return bool(ray.wait([self._ref], timeout=0)[0])

    def result(self) -> Any:
        """The answer, or the error that the task raised, as it was raised.

        Raises `ClusterUnavailable` when the cluster is gone or its retries are spent, and `TerminalError` when its workers
        cannot run the task at all.
        """
        import ray

        while True:
            try:
                with _explained("an answer of the Ray cluster is lost"):
                    content = ray.get(self._ref, timeout=_LOOK_SECONDS)
                break
            except ray.exceptions.GetTimeoutError:
                self._cluster.require()
        answer, error = pickle.loads(content)
        if error is not None:
            raise error
        return answer


@contextmanager
def connected(
    address: str, task: Callable[[Any], Any], *, prepare: Callable[[], None], workers: int | None = None
) -> Iterator[Cluster]:
    """The cluster at ``address``, working with ``task`` on as many questions at once as ``workers``, or as it has processors.

    ``prepare`` is called once in each worker process. Batches that are under way at the end are dropped, and the
    worker processes end. Raises `ClusterUnavailable` when nothing answers there in time, and `TerminalError` when Ray is not
    installed, or the cluster refuses this process.
    """
    # Whoever runs a cluster may say otherwise.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise TerminalError(
            "this job is scored on a Ray cluster, and Ray is not installed here",
            expected="the package ray, in the release that the cluster runs",
            got=str(error),
            next_step="pip install 'batch-inference-pipeline[ray]', or set engine.backend to threads or processes",
        ) from error
    _connect(ray, address)
    try:
        with _explained(f"the Ray cluster at {address} cannot be used"):
            cluster = Cluster(address, task, prepare, workers)
        yield cluster
    finally:
        ray.shutdown()


def _connect(ray: Any, address: str) -> None:
    if ray.is_initialized():
        raise TerminalError(
            "this process is already connected to a Ray cluster",
            expected=f"no connection before that to {address}",
            got="one made by somebody else, perhaps the job's own code",
            next_step="call ray.shutdown() there",
        )
    place = _place(address)
    if place is not None and not _answers(place, _CONNECT_SECONDS):
        raise _unreachable(address, f"no connection within {_CONNECT_SECONDS:.0f} seconds")
    try:
        with _own_signals():
            ray.init(address, log_to_driver=False, configure_logging=False)
    except ConnectionError as error:
        raise _unreachable(address, str(error)) from error
    except (ray.exceptions.RayError, RuntimeError, ValueError) as error:
        raise TerminalError(
            f"the Ray cluster at {address} refuses this process",
            expected="a cluster of the same releases of Ray and Python, and the cluster's token",
            got=_first_line(error),
            next_step="run the same image on both sides; set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH if it asks for a token",
        ) from error


def _unreachable(address: str, why: str) -> ClusterUnavailable:
    return ClusterUnavailable(
        f"the Ray cluster at {address} does not answer",
        expected="a Ray head node there",
        got=why.partition("\n")[0],
        left_behind="nothing was published",
        next_step="look at the cluster (ray status), or correct engine.address in the job file",
    )


@contextmanager
def _own_signals() -> Iterator[None]:
    """Ray replaces the handler of SIGTERM, by which Airflow ends a task."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _explained(what: str) -> Iterator[None]:
    """Errors of the cluster as those of this product; a time that is up stays what it is."""
    import ray

    try:
        yield
    except ray.exceptions.GetTimeoutError:
        raise
    except ray.exceptions.RayTaskError as error:
        raise TerminalError(
            f"{what}: its workers cannot run what they are given",
            expected=f"batch-inference-pipeline {__version__} and the job's own modules on every node",
            got=_first_line(error.cause or error),
            left_behind="nothing was published",
            next_step="run the image of this process on the nodes of the cluster",
        ) from error
    except (ray.exceptions.RayError, ConnectionError) as error:
        raise ClusterUnavailable(
            what,
            expected=f"a worker, or another one in its place, up to {_RETRIES} times",
            got=f"{type(error).__name__}: {_first_line(error)}",
            left_behind="nothing was published",
            next_step="look at the cluster (ray status); a retry begins the partition again",
        ) from error


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]


def _place(address: str) -> tuple[str, int] | None:
    """Host and port of an address; ``None`` for ``auto``, which Ray finds by itself."""
    if address == "auto":
        return None
    host, _, port = address.removeprefix("ray://").rpartition(":")
    return host.strip("[]"), int(port)


def _answers(place: tuple[str, int], seconds: float) -> bool:
    try:
        socket.create_connection(place, seconds).close()
    except OSError:
        return False
    return True


def _versions() -> dict[str, str]:
    """What must be the same on both sides."""
    found = {"batch-inference-pipeline": __version__}
    for name in _SAME:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "none"
    return found


def _work(reference: list[Any], question: Any) -> bytes:
    """In a worker process: the answer and the error, one of them ``None``, pickled.

    Bytes are copied out of the object store by who takes them, so that no answer points into it once the connection is closed.
    """
    try:
        return pickle.dumps((_received(reference)(question), None), protocol=5)
    except Exception as error:
        return pickle.dumps((None, error), protocol=5)


def _received(reference: list[Any]) -> Callable[[Any], Any]:
    """What batches are given to: from the object store the first time, once it proved to be what was put there."""
    global _held
    digest, versions, ref = reference
    if _held is None or _held[0] != digest:
        import ray

        _require_same(versions)
        content = ray.get(ref)
        if hashlib.sha256(content).hexdigest() != digest:
            raise TerminalError(
                "a worker of the Ray cluster got another model than it was sent",
                expected=f"SHA-256 {digest}",
                got=hashlib.sha256(content).hexdigest(),
                left_behind="nothing was published",
                next_step="look at the memory and disks of the cluster",
            )
        prepare, task = pickle.loads(content)
        prepare()
        _held = digest, task
    return _held[1]


def _require_same(wanted: dict[str, str]) -> None:
    found = _versions()
    if found != wanted:
        other = sorted(name for name in wanted if wanted[name] != found[name])
        raise TerminalError(
            "a worker of the Ray cluster has other releases than the process that publishes",
            expected=", ".join(f"{name} {wanted[name]}" for name in other),
            got=", ".join(f"{name} {found[name]}" for name in other),
            left_behind="nothing was published",
            next_step="run the image of this process on the nodes of the cluster",
        )
