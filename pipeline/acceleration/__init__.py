"""Accelerated forms of trained models: faster scorers that are proven, for each model, to say what the estimator says.

`optimise` makes one at registration and records what was found; `scorer` uses it, or the estimator where it cannot be used.
Which form is tried follows from the type of the estimator alone: for each there is one that measurement shows to be the
fastest by far, so that no noise of a clock can make equal trainings differ.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import warnings
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from pipeline import engine
from pipeline.acceleration import boosting, features, forests, linear, parity
from pipeline.acceleration.features import NotAccelerable
from pipeline.acceleration.programs import Input, Program, Refused, linked
from pipeline.errors import ContractViolation
from pipeline.reports import Acceleration

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import timedelta
    from types import ModuleType

    from numpy.typing import NDArray

    from pipeline.job import Column

__all__ = ["AcceleratedScorer", "edges", "optimise", "prove", "scorer"]
_LOG = logging.getLogger(__name__)
_KINDS: Mapping[str, ModuleType] = {"lookup": boosting, "walk": forests, "linear": linear}
_NEEDS_COMPILER = ("lookup", "walk")
_ROWS = 65_536  # rows in work at once
_REMEMBERED = 256  # rows whose answers are kept with the program
_USABLE_AT_ONCE = 4

_compiled: set[str] = set()
_usable: dict[str, Program | str] = {}


@dataclass(frozen=True)
class AcceleratedScorer:
    """A `pipeline.engine.Scorer` that computes what ``plain`` would say without pandas and scikit-learn.

    Rows with values that the estimator refuses are given to ``plain``, which refuses them in its own words.
    """

    program: Program
    plain: engine.FrameScorer

    def predict(self, data: pa.RecordBatch | pa.Table) -> engine.Predictions:
        """As of `pipeline.engine.Scorer`. The time is spent without the interpreter's lock."""
        if data.num_rows == 0:
            return self.plain.predict(data)
        starts = range(0, data.num_rows, _ROWS)
        try:
            answers = [answer(self.program, data.slice(start, _ROWS), self.plain.columns) for start in starts]
        except Refused:
            return self.plain.predict(data)
        classes = getattr(self.plain.estimator, "classes_", ())
        return engine.answered(np.concatenate(answers), data.num_rows, classes, self.plain.task)


def optimise(
    plain: engine.FrameScorer,
    rows: pa.Table,
    *,
    remembered: pa.Table,
    wanted: str = "auto",
    budget: timedelta,
    slices: Sequence[str] = (),
) -> tuple[bytes | None, Acceleration]:
    """The accelerated form of a fitted model, proven on held-out ``rows``, or ``None``; and what was found.

    ``wanted`` is "auto", "off" or a kind; ``remembered`` are rows that will be stored beside the model, by which `scorer`
    checks the form again. ``budget`` is for compiling, which is ended when it is spent. Never raises for a model that has
    no accelerated form: that is a reason. The bytes depend on the model and the remembered rows only.
    """
    if wanted == "off":
        return None, Acceleration(kind=None, reason="model.acceleration is off")
    with warnings.catch_warnings():
        # Of estimators that are shown values they do not expect.
        warnings.simplefilter("ignore")
        return _optimised(plain, rows, remembered, wanted, budget, slices)


def _optimised(
    plain: engine.FrameScorer,
    rows: pa.Table,
    remembered: pa.Table,
    wanted: str,
    budget: timedelta,
    slices: Sequence[str],
) -> tuple[bytes | None, Acceleration]:
    try:
        program = _program(plain, wanted)
        if program.kind in _NEEDS_COMPILER:
            _compile(program.kind, budget.total_seconds())
        program = _remembering(program, plain, remembered.slice(0, _REMEMBERED))
        content = program.to_bytes()
    except NotAccelerable as reason:
        return None, Acceleration(kind=None, reason=f"not used: {reason}")
    # What was anything else in the estimator than expected is no error of the training.
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, ContractViolation) as err:
        return None, Acceleration(kind=None, reason=f"not used: {type(err).__name__}: {err}")
    found = prove(content, plain, rows, edges(program), slices)
    return (content if found.kind else None), found


def prove(
    content: bytes,
    plain: engine.FrameScorer,
    rows: pa.Table,
    jumps: Mapping[str, NDArray[np.float64]],
    slices: Sequence[str] = (),
) -> Acceleration:
    """What the accelerated form in ``content`` says, held against ``plain``; its ``kind`` is ``None`` if it is wrong.

    ``jumps`` are the `edges` of the program that was made of ``plain``.
    """
    try:
        program = _read(content)
        fast = AcceleratedScorer(program, plain)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return parity.proven(program.kind, fast, plain, rows, plain.columns, jumps, slices)
    except (ArithmeticError, LookupError, TypeError, ValueError, ContractViolation) as err:
        return Acceleration(kind=None, reason=f"not used: {type(err).__name__}: {err}")


def edges(program: Program) -> Mapping[str, NDArray[np.float64]]:
    """The values of each column at which the program's answers may jump; of columns that are split as they are."""
    found: Mapping[str, NDArray[np.float64]] = _KINDS[program.kind].edges(program)
    return found


def scorer(
    plain: engine.FrameScorer, content: bytes | None, *, key: str, remembered: pa.Table, wanted: str = "auto"
) -> engine.Scorer:
    """The scorer of a version: accelerated if ``content``, which must be verified, still answers as at registration here.

    ``key`` is the version's digest, ``remembered`` as of `optimise`. Otherwise ``plain``, and the log says why.
    """
    if content is None or wanted == "off":
        return plain
    found = _usable.get(key)
    if found is None:
        found = _usable[key] = _checked(plain, content, remembered.slice(0, _REMEMBERED))
        if len(_usable) > _USABLE_AT_ONCE:
            del _usable[next(iter(_usable))]
    if isinstance(found, str):
        _LOG.warning("the model is used without its accelerated form: %s", found)
        return plain
    return AcceleratedScorer(found, plain)


def answer(program: Program, data: pa.RecordBatch | pa.Table, columns: Mapping[str, Column]) -> NDArray[np.float64]:
    """What the estimator would answer for ``data``. Raises `Refused` for rows that it would refuse."""
    sums = _KINDS[program.kind].sums(program, program.read(data, columns))
    return linked(program.link, sums)


def _program(plain: engine.FrameScorer, wanted: str) -> Program:
    model = features.final(plain.estimator)
    kind = next((name for name, module in _KINDS.items() if features.is_a(model, *module.MODELS)), None)
    if kind is None or wanted not in ("auto", kind):
        raise NotAccelerable(
            f"a {type(model).__name__} has no accelerated form{'' if kind is None else f' {wanted!r}'}"
        )
    made, levels = features.trace(plain.estimator, plain.columns)
    inputs = [Input(name, levels.get(name)) for name in plain.columns]
    program: Program = _KINDS[kind].build(model, made, inputs)
    return replace(program, inputs=tuple(_refusing(plain, inputs)))


def _refusing(plain: engine.FrameScorer, inputs: Sequence[Input]) -> list[Input]:
    """The inputs with what the model refuses in each, found by asking it."""

    def row(changed: str = "", value: Any = None) -> pa.Table:
        values = {i.column: (0.0 if i.levels is None else next(iter(i.levels), None)) for i in inputs}
        types = {i.column: pa.float64() if i.levels is None else pa.string() for i in inputs}
        values |= {changed: value} if changed else {}
        return pa.table({name: pa.array([value], types[name]) for name, value in values.items()})

    def is_refused(rows: pa.Table) -> bool:
        try:
            plain.predict(rows)
        except (ValueError, ContractViolation):
            return True
        return False

    questions = {
        i.column: {
            "missing": row(i.column),
            **(
                {"infinite": row(i.column, np.inf)}
                if i.levels is None
                else {"unknown": row(i.column, features.UNKNOWN)}
            ),
        }
        for i in inputs
    }
    # Most models refuse nothing: one call tells.
    if not is_refused(pa.concat_tables(rows for asked in questions.values() for rows in asked.values())):
        return list(inputs)
    return [
        replace(i, refuses=tuple(name for name, rows in questions[i.column].items() if is_refused(rows)))
        for i in inputs
    ]


def _read(content: bytes) -> Program:
    program = Program.from_bytes(content)
    _KINDS[program.kind].verify(program)
    return program


def _remembering(program: Program, plain: engine.FrameScorer, rows: pa.Table) -> Program:
    expected = plain.predict(rows)
    answers = expected.labels if expected.scores is None else expected.scores
    return replace(program, arrays={**program.arrays, "remembered": np.asarray(answers, dtype=np.float64)})


def _checked(plain: engine.FrameScorer, content: bytes, rows: pa.Table) -> Program | str:
    """The program if it answers here what was remembered; else why not."""
    try:
        program = _read(content)
        answers, expected = answer(program, rows, plain.columns), program.arrays["remembered"]
        scale = np.maximum(np.abs(expected), 1.0)
        if answers.shape != expected.shape or not (np.abs(answers - expected) <= parity.LARGEST * scale).all():
            return "it does not answer as it did when the version was registered"
    # Whatever goes wrong with it, there is the estimator.
    except Exception as err:
        return f"{type(err).__name__}: {err}"
    return program


def _compile(kind: str, seconds: float) -> None:
    """Have a kind's loops compiled in a process of their own, once; raises `NotAccelerable` when that takes too long."""
    if kind in _compiled:
        return
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, "-c", f"from pipeline import kernels; kernels.prepare({kind!r})"]
    try:
        done = subprocess.run(
            command,
            env=environment,
            timeout=seconds,
            capture_output=True,
            text=True,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired as err:
        raise NotAccelerable(f"compiling took longer than {seconds:g} s (model.acceleration_budget)") from err
    if done.returncode:
        raise NotAccelerable(f"compiling failed: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
    _compiled.add(kind)
