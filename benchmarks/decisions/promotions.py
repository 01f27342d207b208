"""Promotions of one job from many processes at once: one linear history, the alias at its end, and a sound record.

``python -m benchmarks.decisions --only promotions`` prints it.
"""

from __future__ import annotations

import itertools
import multiprocessing
import tempfile
import time
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import PipelineError, PromotionConflict
from pipeline.job import JobSpec
from pipeline.reports import ModelRef, RegisteredModel
from pipeline.runtime import Runtime
from pipeline.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator

_START = datetime(2026, 1, 1, tzinfo=UTC)
_VERSIONS = 5
_JOB = {
    "name": "orders",
    "task": "binary",
    "schedule": {"interval": "1d", "start": "2026-01-01T00:00:00Z"},
    "features": {"uri": "features", "key": ["id"], "time": "at", "columns": {"amount": {"type": "number"}}},
    "labels": {"uri": "labels", "column": "label", "available_at": "known_at"},
}


def measure(processes: int = 8, each: int = 25, folder: Path | None = None) -> dict[str, Any]:
    """What came of ``each`` promotions by each of so many processes, on one SQLite ledger and one SQLite registry.

    A promotion that lost the race is asked for again, as its error says, until it is made. ``linear``: every promotion
    names the one before it as its predecessor. ``unhandled``: errors that are none of this product's.
    """
    with tempfile.TemporaryDirectory() as scratch:
        settings = deployment(folder or Path(scratch))
        began = time.perf_counter()
        with multiprocessing.get_context("spawn").Pool(processes) as pool:
            found = pool.starmap(_promote, [(settings, number, each) for number in range(processes)])
        seconds = time.perf_counter() - began
        counted = Counter(itertools.chain.from_iterable(found))
        with Runtime(settings) as runtime:
            history = runtime.ledger.promotions("orders")
            (audit,) = runtime.audit(declared())
            alias = runtime.registry.champion("orders")
        versions = [None, *(promotion.model.version for promotion in history)]
        return {
            "processes": processes,
            "promotions": len(history),
            "linear": [promotion.previous_version for promotion in history] == versions[:-1],
            "alias_is_last": alias == versions[-1],
            "audit_sound": not audit.misfits,
            "records": audit.records,
            "conflicts": counted[PromotionConflict.__name__],
            "other_errors": {k: n for k, n in counted.items() if k not in ("promoted", PromotionConflict.__name__)},
            "unhandled": sum(n for kind, n in counted.items() if kind.startswith("unhandled")),
            "seconds": round(seconds, 1),
        }


def _promote(settings: Settings, number: int, each: int) -> list[str]:
    """The outcomes of one process: ``promoted``, or the name of the error; every promotion is tried until it is made."""
    job, outcomes = declared(), []
    with Runtime(settings) as runtime:
        for step, version in enumerate(_versions(number)):
            if outcomes.count("promoted") == each:
                break
            try:
                runtime.promote(job, version, f"process {number}, step {step}")
                outcomes.append("promoted")
            except PipelineError as error:
                outcomes.append(type(error).__name__)
            except Exception as error:
                outcomes.append(f"unhandled {type(error).__name__}: {error}")
    return outcomes


def _versions(number: int) -> Iterator[int]:
    """Versions to promote, for ever; no two processes walk alike."""
    return (1 + (number + step * (1 + number % (_VERSIONS - 1))) % _VERSIONS for step in itertools.count())


def deployment(folder: Path) -> Settings:
    """A new deployment in ``folder`` whose registry and ledger know the versions; they have no files."""
    settings = Settings.in_home(folder, jobs=folder / "jobs")
    with Runtime(settings) as runtime:
        client = runtime.registry._client
        client.create_registered_model("orders")
        for _ in range(_VERSIONS):
            made = client.create_model_version("orders", (folder / "none").as_uri())
            ref = ModelRef(name="orders", version=int(made.version), digest=f"{made.version:0>64}")
            known = RegisteredModel(
                model=ref, files={}, as_of=_START, train_start=_START, train_end=_START, holdout_end=_START
            )
            runtime.ledger.record_model("orders", known)
    return settings


def declared() -> JobSpec:
    """The job that is promoted for."""
    return JobSpec.model_validate(_JOB, strict=False)
