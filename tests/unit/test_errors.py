"""Errors: what a message says, and what survives on the way to a log or another process."""

from __future__ import annotations

import inspect
import multiprocessing
import pickle

import pytest

from pipeline import errors
from pipeline.errors import NoChampion, PipelineError, StorageUnavailable, TerminalError, TransientError

KINDS = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, PipelineError)]


def example(kind: type[PipelineError]) -> PipelineError:
    return kind(
        "no champion on model 'taxi'",
        expected="an alias 'champion'",
        got="versions 3 and 4",
        left_behind="nothing was published",
        next_step="run 'pipeline promote taxi --version 4'",
    )


def raise_example() -> None:
    raise example(NoChampion)


def test_a_message_says_what_expected_got_left_behind_and_next_in_this_order():
    assert str(example(NoChampion)) == (
        "no champion on model 'taxi'; expected an alias 'champion'; got versions 3 and 4; nothing was published; "
        "next: run 'pipeline promote taxi --version 4'"
    )


def test_parts_that_are_not_given_leave_no_trace_in_the_message():
    assert str(TerminalError("the disk is full")) == "the disk is full; nothing was written"
    assert str(TerminalError("the disk is full", left_behind="")) == "the disk is full"


@pytest.mark.parametrize("kind", KINDS)
def test_every_error_survives_pickling_with_all_its_evidence(kind):
    error = example(kind)
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is kind
    assert str(copy) == str(error)
    assert copy.args == error.args
    assert copy.attrs() == error.attrs()


def test_an_error_crosses_a_process_boundary_unchanged():
    with (
        multiprocessing.get_context("spawn").Pool(1) as pool,
        pytest.raises(NoChampion, match="pipeline promote taxi") as caught,
    ):
        pool.apply(raise_example)
    assert caught.value.got == "versions 3 and 4"


def test_the_evidence_is_flat_text_for_logs():
    assert example(StorageUnavailable).attrs() == {
        "error": "StorageUnavailable",
        "message": str(example(StorageUnavailable)),
        "what": "no champion on model 'taxi'",
        "expected": "an alias 'champion'",
        "got": "versions 3 and 4",
        "left_behind": "nothing was published",
        "next_step": "run 'pipeline promote taxi --version 4'",
    }


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind is not PipelineError])
def test_every_error_says_by_its_kind_whether_a_retry_can_help(kind):
    assert issubclass(kind, TerminalError) != issubclass(kind, TransientError)
    assert kind.exit_code == (65 if issubclass(kind, TerminalError) else 75)
    assert kind.__doc__
