"""Batches worked on several at a time, answers in the order of the batches: the one place with threads and worker processes.

Owns joblib; `pipeline.remote` does the same on a cluster. Must not know what is done to a batch; what comes
out never depends on how many work on it.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from pipeline import threads

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator

    from pipeline.policies import Backend

_Item = TypeVar("_Item")
_Answer = TypeVar("_Answer")
_Awaited = TypeVar("_Awaited", covariant=True)

# Batches beyond those being worked on: one is ready when a worker is, and one is on its way out.
_SPARE = 2
_WATCH_SECONDS = 0.5
# In a worker process: what every batch is given to. It arrives once, with the process.
_task: Callable[[Any], Any] | None = None


def usable_cpus() -> int:
    """The processors that this process may use: its affinity and its control group's quota count."""
    from joblib import cpu_count

    return int(cpu_count())


def in_order(
    items: Iterable[_Item],
    task: Callable[[Any], _Answer],
    question: Callable[[_Item], Any],
    *,
    backend: Backend = "threads",
    workers: int | None = 1,
    address: str | None = None,
) -> Generator[tuple[_Item, _Answer], None, None]:
    """Every item with ``task(question(item))``, in the order of ``items``, computed by ``workers`` threads or processes.

    ``ray`` is a cluster at ``address``; its workers are as many as its processors (at most 64) for ``None``. At most ``workers``
    + 2 items are held at once; with 0 workers each is computed where the caller is, before the next is asked for.
    Processes, near or far, get ``task`` once and each ``question(item)`` by copy, so both must survive pickling. Numerical
    libraries use one thread per worker: their results must not depend on the machine. An error, of the items or of a task,
    is raised where its item would have come, and what is computed beyond it is dropped. Of a cluster: what
    `pipeline.remote` raises.
    """
    with threads.one(), _pool(backend, workers, address, task) as (submit, count):
        yield from _drained(iter(items), lambda item: submit(question(item)), count + _SPARE)


class _Reply(Protocol[_Awaited]):
    """A `Future`, as far as it is needed."""

    def done(self) -> bool: ...

    def result(self) -> _Awaited: ...


def _drained(
    items: Iterator[_Item], submit: Callable[[_Item], _Reply[_Answer]], most: int
) -> Iterator[tuple[_Item, _Answer]]:
    waiting: deque[tuple[_Item, _Reply[_Answer]]] = deque()
    failure: Exception | None = None
    while True:
        try:
            item = next(items)
        except StopIteration:
            break
        except Exception as error:
            # An earlier item may fail as well, and then that is what is wrong, however fast it was.
            failure = error
            break
        waiting.append((item, submit(item)))
        del item
        while waiting and (len(waiting) >= most or waiting[0][1].done()):
            earliest, answer = waiting.popleft()
            yield earliest, answer.result()
            del earliest, answer
    while waiting:
        earliest, answer = waiting.popleft()
        yield earliest, answer.result()
        del earliest, answer
    if failure is not None:
        raise failure


@contextmanager
def _pool(
    backend: Backend, workers: int | None, address: str | None, task: Callable[[Any], _Answer]
) -> Iterator[tuple[Callable[[Any], _Reply[_Answer]], int]]:
    """What takes questions, and how many it works on at once."""
    if workers == 0:
        yield lambda question: _done(task(question)), 0
    elif backend == "ray":
        assert address is not None
        from pipeline import remote

        with remote.connected(address, task, prepare=threads.one_for_good, workers=workers) as cluster:
            yield cluster.submit, cluster.workers
    else:
        assert workers is not None
        with (_threads if backend == "threads" else _processes)(workers, task) as submit:
            yield submit, workers


@contextmanager
def _threads(workers: int, task: Callable[[Any], _Answer]) -> Iterator[Callable[[Any], _Reply[_Answer]]]:
    pool = ThreadPoolExecutor(workers, "scoring", initializer=threads.one_for_good)
    try:
        yield lambda question: pool.submit(task, question)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def _processes(workers: int, task: Callable[[Any], _Answer]) -> Iterator[Callable[[Any], _Reply[_Answer]]]:
    from joblib.externals.loky import ProcessPoolExecutor

    processes = ProcessPoolExecutor(workers, initializer=_receive, initargs=(task, os.getpid()))
    try:
        yield lambda question: processes.submit(_work, question)
    finally:
        processes.shutdown(wait=True, kill_workers=True)


def _done(answer: _Answer) -> Future[_Answer]:
    future: Future[_Answer] = Future()
    future.set_result(answer)
    return future


def _receive(task: Callable[[Any], Any], parent: int) -> None:
    global _task
    _task = task
    threads.one_for_good()
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    """End this process once ``parent`` is gone, which may have had no time to say so."""
    while os.getppid() == parent:
        time.sleep(_WATCH_SECONDS)
    os._exit(1)


def _work(question: Any) -> Any:
    assert _task is not None
    return _task(question)
