"""What the programs share: reading cases, timing, and one answer per batch on standard output.

A case is a folder with ``reference.parquet`` and the batches ``current-0.parquet``, ``current-1.parquet`` and so on. A
program is started with the path of a JSON file that lists such folders, and prints one JSON object per line and batch.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import pandas as pd

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# The column of event times, when a case has one.
EVENT_TIME = "event_ts"


@dataclass(frozen=True)
class Verdict:
    """A tool's word on one batch: its verdict on the whole, the columns it flags, and how many columns it compared."""

    alarm: bool
    columns: list[str]
    compared: int


@dataclass(frozen=True)
class Options:
    """The arguments of a program; ``reference_chunks`` is for tools that cut the reference into chunks."""

    cases: Path
    max_rows: int | None
    reference_chunks: str

    @classmethod
    def from_arguments(cls) -> Options:
        """The options of this process's command line."""
        parser = argparse.ArgumentParser()
        parser.add_argument("cases", type=Path)
        parser.add_argument("--max-rows", type=int)
        parser.add_argument("--reference-chunks", choices=["default", "batch"], default="default")
        return cls(**vars(parser.parse_args()))


def batches(case: Path) -> list[tuple[int, Path]]:
    """The batches of a case in the order of time, each with its number."""
    found = ((int(path.stem.rpartition("-")[2]), path) for path in case.glob("current-*.parquet"))
    return sorted(found)


def answer(options: Options, begin: Callable[[pd.DataFrame, int], Callable[[pd.DataFrame], Verdict]]) -> None:
    """Judge every batch of every case and print the answers.

    ``begin`` gets a case's reference and the number of rows of its first batch; what it returns judges a batch. An
    exception becomes the answer for that batch, and the work goes on. What a tool prints itself goes to standard error.
    """
    output = sys.stdout
    with contextlib.redirect_stdout(sys.stderr):
        for case in json.loads(options.cases.read_text()):
            for reply in _judged(Path(case), options, begin):
                _print({"case": case, **reply}, output)


def _judged(
    case: Path, options: Options, begin: Callable[[pd.DataFrame, int], Callable[[pd.DataFrame], Verdict]]
) -> Iterator[dict[str, Any]]:
    reference = _rows(case / "reference.parquet", options.max_rows)
    judge: Callable[[pd.DataFrame], Verdict] | None = None
    for number, path in batches(case):
        current = _rows(path, options.max_rows)
        started = time.perf_counter()
        reply: dict[str, Any]
        try:
            judge = judge or begin(reference, len(current))
            verdict = judge(current)
        except Exception as err:  # The tool may raise anything.
            reply = {"error": f"{type(err).__name__}: {err}"}
        else:
            reply = {
                "alarm": verdict.alarm,
                "any_column": bool(verdict.columns),
                "columns": verdict.columns,
                "share": len(verdict.columns) / max(verdict.compared, 1),
            }
        yield {"batch": number, **reply, "seconds": time.perf_counter() - started}


def _rows(path: Path, max_rows: int | None) -> pd.DataFrame:
    rows = pd.read_parquet(path)
    return rows if max_rows is None else rows.head(max_rows)


def _print(reply: dict[str, Any], output: TextIO) -> None:
    output.write(json.dumps(reply) + "\n")
    output.flush()
