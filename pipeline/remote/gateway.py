"""The process that is connected to a Ray cluster, and what its workers run. Owns Ray.

Questions and answers are bytes that it does not look into; it returns the answers in the order of the questions.

Why not ``joblib.Parallel(backend="ray")``: measured with Ray 2.60 and joblib 1.6, `ray.util.joblib` refuses
``return_as="generator"``, so that all answers would have to be held; it takes the input from threads of its own; and a worker
that is killed ends the pool with ``ActorDiedError``. No backend of joblib's waits for a slow consumer: with ``pre_dispatch=4`` 40
items had been taken when one answer was. So each batch is one Ray task, which the cluster itself repeats elsewhere.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import socket
import threading
import time
import traceback
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from multiprocessing.connection import Connection
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, NoReturn

from pipeline import __version__
from pipeline.errors import ClusterUnavailable, PipelineError, TerminalError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# A batch whose worker or node is lost is worked on again so often.
_RETRIES = 3
_CONNECT_SECONDS = 10.0
# The head starts a process for every client from afar, and now and then it dies while it starts (ray-project/ray#63202).
_ATTEMPTS = 3
# How often the cluster is looked at while an answer is awaited, and how long it may be away then.
_LOOK_SECONDS = 2.0
_AWAY_SECONDS = 20.0
# Of a cluster with more processors: every batch under way takes memory here, and one process cannot feed more of them.
_MOST_WORKERS = 64
# Another release of these may give other bytes, or cannot read the model.
_SAME = ("numpy", "pandas", "pyarrow", "scikit-learn", "scipy", "numba", "skops")

# In a worker: what every question is given to, and its digest. It comes once to a process, with the first question.
_held: tuple[str, Callable[[Any], Any]] | None = None


def serve(handle: int) -> NoReturn:
    """Serve one parent over the socket ``handle`` until it closes it; the process ends with that."""
    _ending(_serve, Connection(handle))


def _ending(what: Callable[..., None], *arguments: Any) -> NoReturn:
    """End the process with ``what``, whatever else still waits for the cluster: the parent sees the end."""
    code = 0
    try:
        what(*arguments)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        # The parent wants no more. The driver's end is the end of its workers.
        with suppress(Exception):
            import ray

            ray.shutdown()
    except BaseException:
        traceback.print_exc()
        code = 1
    finally:
        os._exit(code)


def _serve(connection: Connection) -> None:
    address, workers, digest, content = pickle.loads(connection.recv_bytes())
    try:
        submit, count = _connected(address, workers, digest, content)
    except PipelineError as error:
        connection.send_bytes(_packed(None, error))
        return
    connection.send_bytes(_packed(count))
    refs: SimpleQueue[Any] = SimpleQueue()
    threading.Thread(target=_ending, args=(_answer, connection, address, refs), daemon=True).start()
    while True:
        refs.put(_submitted(submit, connection.recv_bytes()))


def _connected(address: str, workers: int | None, digest: str, content: bytes) -> tuple[Callable[[bytes], Any], int]:
    """What gives bytes to the cluster, and how many it is to work on at once."""
    try:
        import ray
    except ImportError as error:
        raise TerminalError(
            "this job is scored on a Ray cluster, and Ray is not installed here",
            expected="the package ray, in the release that the cluster runs",
            got=str(error),
            left_behind="nothing was published",
            next_step="pip install 'batch-inference-pipeline[ray]', or set engine.backend to threads or processes",
        ) from error
    # Ray itself would ask for much longer.
    if silence := _silence(address, _CONNECT_SECONDS):
        raise _unreachable(address, silence)
    try:
        _init(address)
    except ConnectionError as error:
        raise _unreachable(address, _ends(error)) from error
    except (ray.exceptions.RayError, RuntimeError, ValueError) as error:
        raise TerminalError(
            f"the Ray cluster at {address} refuses us",
            expected="a cluster of the same releases of Ray and Python, and its token",
            got=_first_line(error),
            left_behind="nothing was published",
            next_step="run the same image on both sides; set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH here if it has a token; "
            "host:port and auto are for the cluster's own nodes, ray://host:10001 is for others",
        ) from error
    with _explained(f"the Ray cluster at {address} cannot be used"):
        processors = int(ray.cluster_resources().get("CPU", 0))
        # In the object store once: a worker takes it from the store of its node, with its first question.
        reference = [digest, _versions(), ray.put(content)]
        work = ray.remote(_work).options(num_cpus=1, max_retries=_RETRIES, retry_exceptions=False)
    return lambda question: work.remote(reference, ray.put(question)), workers or min(max(processors, 1), _MOST_WORKERS)


def _init(address: str) -> None:
    import ray

    for left in reversed(range(_ATTEMPTS)):
        try:
            ray.init(address, log_to_driver=False, configure_logging=False)
            return
        except ConnectionAbortedError:
            if not left:
                raise


def _submitted(submit: Callable[[bytes], Any], question: bytes) -> Any:
    """The reference to the answer, or the error in its place."""
    try:
        with _explained("a batch could not be given to the Ray cluster"):
            return submit(question)
    except PipelineError as error:
        return error


def _answer(connection: Connection, address: str, refs: SimpleQueue[Any]) -> None:
    """Send the answers in the order of the questions."""
    while True:
        ref = refs.get()
        try:
            if isinstance(ref, PipelineError):
                raise ref
            content = _awaited(address, ref)
        except PipelineError as error:
            content = _packed(None, error)
        connection.send_bytes(content)
        del ref, content


def _awaited(address: str, ref: Any) -> bytes:
    import ray

    while True:
        try:
            with _explained(f"an answer of the Ray cluster at {address} is lost"):
                content: bytes = ray.get(ref, timeout=_LOOK_SECONDS)
                return content
        except ray.exceptions.GetTimeoutError:
            _require(address)


def _require(address: str) -> None:
    """Raise `ClusterUnavailable` when nothing answers at the address for a while."""
    until = time.monotonic() + _AWAY_SECONDS
    while silence := _silence(address, _LOOK_SECONDS):
        if time.monotonic() > until:
            raise _unreachable(address, f"{silence}, for {_AWAY_SECONDS:.0f} seconds")
        time.sleep(_LOOK_SECONDS / 4)


def _unreachable(address: str, why: str) -> ClusterUnavailable:
    return ClusterUnavailable(
        f"the Ray cluster at {address} does not answer",
        expected="the head of a Ray cluster there",
        got=why,
        left_behind="nothing was published",
        next_step="look at the cluster (ray status); correct engine.address in the job file, or, if the cluster has a token, "
        "RAY_AUTH_MODE and RAY_AUTH_TOKEN_PATH here",
    )


@contextmanager
def _explained(what: str) -> Iterator[None]:
    """Errors of the cluster as this product's; a time that is up stays what it is."""
    import ray

    try:
        yield
    except ray.exceptions.GetTimeoutError:
        raise
    except ray.exceptions.RayTaskError as error:
        raise TerminalError(
            f"{what}: its workers cannot run what they are given",
            expected=f"batch-inference-pipeline {__version__} on every node",
            got=_first_line(error.cause or error),
            left_behind="nothing was published",
            next_step="run the image of this process on the nodes of the cluster",
        ) from error
    except (ray.exceptions.RayError, ConnectionError) as error:
        raise ClusterUnavailable(
            what,
            expected=f"a worker, or up to {_RETRIES} times another in its place",
            got=f"{type(error).__name__}: {_first_line(error)}",
            left_behind="nothing was published",
            next_step="look at the cluster (ray status); a retry begins the partition again",
        ) from error


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]


def _ends(error: BaseException) -> str:
    """Its first line and, where it goes on to quote a traceback, the last one, which says why."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return " ".join(dict.fromkeys((lines[0], lines[-1])))


def _silence(address: str, seconds: float) -> str:
    """Why nothing answers at the address; empty when something does. Where ``auto`` is, Ray knows alone."""
    if address == "auto":
        return ""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), seconds).close()
    except OSError as error:
        return str(error)
    return ""


def _packed(answer: Any, error: Exception | None = None) -> bytes:
    return pickle.dumps((answer, error), protocol=5)


def _work(reference: list[Any], question: bytes) -> bytes:
    """In a worker: the answer, or the error in its place."""
    try:
        return _packed(_received(reference)(pickle.loads(question)))
    except Exception as error:
        return _packed(None, error)


def _received(reference: list[Any]) -> Callable[[Any], Any]:
    """What questions are given to: from the object store the first time, once it proved to be what was put there."""
    global _held
    digest, versions, ref = reference
    if _held is None or _held[0] != digest:
        import ray

        _require_same(versions)
        content = ray.get(ref)
        if (found := hashlib.sha256(content).hexdigest()) != digest:
            raise TerminalError(
                "a worker of the Ray cluster got another model than it was sent",
                expected=f"SHA-256 {digest}",
                got=found,
                left_behind="nothing was published",
                next_step="look at the memory and the disks of the cluster",
            )
        prepare, task = pickle.loads(content)
        prepare()
        _held = digest, task
    return _held[1]


def _versions() -> dict[str, str]:
    """What must be the same on both sides."""
    found = {"batch-inference-pipeline": __version__}
    for name in _SAME:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "none"
    return found


def _require_same(wanted: dict[str, str]) -> None:
    found = _versions()
    if other := sorted(name for name in wanted if wanted[name] != found[name]):
        raise TerminalError(
            "a worker of the Ray cluster has other releases than the process that publishes",
            expected=", ".join(f"{name} {wanted[name]}" for name in other),
            got=", ".join(f"{name} {found[name]}" for name in other),
            left_behind="nothing was published",
            next_step="run the image of this process on the nodes of the cluster",
        )
