"""Every error this product raises on purpose, and whether a retry can help.

A message says what happened (with ids), what was expected and what was found, what was left behind,
and the next command. Must not import anything of the package.
"""

from __future__ import annotations

from typing import Any, ClassVar


class PipelineError(Exception):
    """An error with its evidence: ``what``, ``expected``, ``got``, ``left_behind`` and ``next_step``.

    Survives pickling between processes with all attributes. ``exit_code`` is what the CLI returns for it.
    """

    exit_code: ClassVar[int] = 70

    def __init__(
        self,
        what: str,
        *,
        expected: str = "",
        got: str = "",
        left_behind: str = "nothing was written",
        next_step: str = "",
    ) -> None:
        self.what = what
        self.expected = expected
        self.got = got
        self.left_behind = left_behind
        self.next_step = next_step
        super().__init__(self._message())

    def _message(self) -> str:
        parts = [self.what]
        if self.expected:
            parts.append(f"expected {self.expected}")
        if self.got:
            parts.append(f"got {self.got}")
        parts.append(self.left_behind)
        if self.next_step:
            parts.append(f"next: {self.next_step}")
        return "; ".join(part for part in parts if part)

    def attrs(self) -> dict[str, Any]:
        """The evidence as a flat dict for structured logs and ``--json`` output."""
        return {"error": type(self).__name__, "message": str(self), **self.__dict__}

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.__dict__)


def _rebuild(kind: type[PipelineError], attributes: dict[str, Any]) -> PipelineError:
    error = kind.__new__(kind)
    error.__dict__.update(attributes)
    Exception.__init__(error, error._message())
    return error


class TerminalError(PipelineError):
    """Repeating the same call cannot succeed; somebody has to change something first."""

    exit_code: ClassVar[int] = 65


class TransientError(PipelineError):
    """The same call may succeed later: a service was down, a file changed while it was read."""

    exit_code: ClassVar[int] = 75


class InvalidJob(TerminalError):
    """A job file breaks the rules of the job schema."""


class UnknownJob(TerminalError):
    """No job file declares the name that was asked for."""


class InvalidRequest(TerminalError):
    """An argument does not fit the job: a start off the schedule's grid, a version that does not exist."""


class NoData(TerminalError):
    """The interval has no input file."""


class ContractViolation(TerminalError):
    """The input's columns, types or blocking expectations differ from what the job declares."""


class FileRejected(ContractViolation):
    """One input file cannot be used: ``path`` below its root, ``code`` for the reason, ``rows`` as far as it is known."""

    def __init__(self, what: str, *, path: str = "", code: str = "", rows: int | None = None, **evidence: str) -> None:
        self.path = path
        self.code = code
        self.rows = rows
        super().__init__(what, **evidence)


class TooManyQuarantined(TerminalError):
    """More rows broke row rules than the job allows; the partition is not published."""


class RowsUnaccounted(TerminalError):
    """rows in != scored + quarantined. A bug or a corrupt input; never published."""


class NoChampion(TerminalError):
    """No model version is champion at the time that was asked for."""


class FirstChampionRefused(TerminalError):
    """A first champion was asked for that is not proven better than a constant prediction."""


class AliasConflict(TerminalError):
    """The registry's alias and the ledger disagree about the champion."""


class AuditFailed(TerminalError):
    """The record of decisions was changed, or does not agree with the registry; ``jobs`` says what was found of each."""

    def __init__(self, what: str, *, jobs: tuple[dict[str, Any], ...] = (), **evidence: str) -> None:
        self.jobs = jobs
        super().__init__(what, **evidence)


class ModelTampered(TerminalError):
    """The files of a model version differ from those that were registered, or are not of an allowed kind."""


class NotEnoughLabels(TerminalError):
    """Too few labelled rows had arrived to train or to compare."""


class LabelsOverdue(TerminalError):
    """Ground truth of past intervals has not come within the time the job allows."""


class IntervalsMissing(TerminalError):
    """Intervals that should have been published by now were not."""


class TrainerFailed(TerminalError):
    """The job's trainer could not be imported, or did not return a scikit-learn estimator."""


class RegistryUnavailable(TransientError):
    """The model registry did not answer."""


class LedgerUnavailable(TransientError):
    """The ledger database did not answer."""


class StorageUnavailable(TransientError):
    """The storage did not answer, or refused a read or a write."""


class NotDelivered(TransientError):
    """A message did not reach a channel."""


class ClusterUnavailable(TransientError):
    """The Ray cluster did not answer, or lost workers more often than it could replace them."""


class PublishConflict(TransientError):
    """Another run published the same partition in the meantime; its file stays, and this run's was removed."""


class PromotionConflict(TransientError):
    """Somebody else moved the champion while this move was prepared; theirs stands, and this one was not begun."""


class InputChanged(TransientError):
    """An input file changed between planning and the end of reading."""
