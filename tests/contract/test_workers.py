"""Batches worked on several at a time: order, bounds, errors, and where the work is done."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from pipeline import workers
from pipeline.errors import ContractViolation
from pipeline.workers import in_order

MANY = [(backend, count) for backend in ("threads", "processes") for count in (1, 3)]


def slow_when_early(number: int) -> int:
    """Later questions are answered first."""
    time.sleep(0.02 if number % 3 == 0 else 0.0)
    return number * number


def whereabouts(_: int) -> tuple[int, int]:
    time.sleep(0.01)
    return os.getpid(), threading.get_ident()


def fail_at(numbers: dict[int, float], number: int) -> int:
    if number in numbers:
        time.sleep(numbers[number])
        raise ContractViolation(f"number {number} cannot be worked on", expected="another", got=str(number))
    return number


class FailsAt:
    """A task that fails for some numbers, after a while of its own; it survives pickling."""

    def __init__(self, numbers: dict[int, float]) -> None:
        self.numbers = numbers

    def __call__(self, number: int) -> int:
        return fail_at(self.numbers, number)


@pytest.mark.parametrize(("backend", "count"), [("threads", 0), *MANY])
def test_answers_come_in_the_order_of_the_items(backend, count):
    found = list(in_order(range(20), slow_when_early, lambda item: item + 1, backend=backend, workers=count))
    assert found == [(item, (item + 1) ** 2) for item in range(20)]


@pytest.mark.parametrize("count", [1, 2, 4])
def test_no_more_than_the_workers_and_two_items_are_held_at_once(count):
    given, most = 0, 0

    def items():
        nonlocal given
        for item in range(30):
            given += 1
            yield item

    for done, _ in enumerate(in_order(items(), slow_when_early, lambda item: item, workers=count), start=1):
        most = max(most, given - done + 1)
        time.sleep(0.005)  # a consumer that cannot keep up
    assert most <= count + 2


@pytest.mark.parametrize(("backend", "count"), MANY)
def test_the_earliest_failure_is_the_one_that_is_raised(backend, count):
    task = FailsAt({4: 0.1, 5: 0.0})
    found = []
    with pytest.raises(ContractViolation, match=r"number 4 cannot be worked on.*expected another.*got 4"):
        found.extend(item for item, _ in in_order(range(20), task, lambda item: item, backend=backend, workers=count))
    assert found == [0, 1, 2, 3]


@pytest.mark.parametrize(("backend", "count"), MANY)
def test_items_that_end_in_an_error_give_their_earlier_answers_first(backend, count):
    def items():
        yield from range(3)
        raise OSError("the disk went away")

    found: list[tuple[int, int]] = []
    with pytest.raises(OSError, match="the disk went away"):
        found.extend(in_order(items(), slow_when_early, lambda item: item, backend=backend, workers=count))
    assert found == [(0, 0), (1, 1), (2, 4)]


def test_a_failure_of_an_earlier_item_outranks_the_end_of_the_items():
    def items():
        yield from range(3)
        raise OSError("the disk went away")

    with pytest.raises(ContractViolation, match="number 1 cannot be worked on"):
        list(in_order(items(), FailsAt({1: 0.1}), lambda item: item, workers=4))


def test_without_workers_the_work_is_done_where_the_caller_is():
    assert {answer for _, answer in in_order(range(3), whereabouts, lambda item: item, workers=0)} == {
        (os.getpid(), threading.get_ident())
    }


def test_threads_stay_in_this_process_and_processes_do_not():
    threads = [answer for _, answer in in_order(range(8), whereabouts, lambda item: item, workers=2)]
    processes = [
        answer for _, answer in in_order(range(8), whereabouts, lambda item: item, backend="processes", workers=2)
    ]
    assert {pid for pid, _ in threads} == {os.getpid()}
    assert threading.get_ident() not in {thread for _, thread in threads}
    assert os.getpid() not in {pid for pid, _ in processes}


def test_no_thread_is_left_when_the_consumer_gives_up():
    before = set(threading.enumerate())
    found = in_order(range(100), slow_when_early, lambda item: item, workers=3)
    next(found)
    found.close()
    assert set(threading.enumerate()) <= before


def test_numerical_libraries_use_one_thread_in_every_worker():
    def threads(_: int) -> set[int]:
        from threadpoolctl import threadpool_info

        return {pool["num_threads"] for pool in threadpool_info()}

    for count in (0, 2):
        assert {1} == set.union(
            *(answer for _, answer in in_order(range(4), threads, lambda item: item, workers=count))
        )


def test_the_processors_of_this_process_are_counted():
    assert 1 <= workers.usable_cpus() <= (os.cpu_count() or 1)


_ENDLESS = """
import time
from pipeline.workers import in_order

def task(item):
    time.sleep(0.2)
    return item

for item, _ in in_order(range(10_000), task, lambda item: item, backend="processes", workers=2):
    print("working", flush=True)
"""


def test_worker_processes_end_with_a_parent_that_is_killed():
    root = str(Path(workers.__file__).parents[1])
    parent = subprocess.Popen(
        [sys.executable, "-c", _ENDLESS], stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": root}
    )
    assert parent.stdout is not None
    with parent:
        parent.stdout.readline()
        children = psutil.Process(parent.pid).children(recursive=True)
        parent.kill()
    assert children
    _, alive = psutil.wait_procs(children, timeout=30)
    for process in alive:
        process.kill()
    assert alive == []
