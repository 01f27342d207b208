"""The default drift detection of other tools on the same cases, each in an environment of its own.

The environments are made on first use under ``.bench`` from ``benchmarks/peers/*.txt``; making them is the only thing
that needs a package index. ``benchmarks.peers.protocol`` describes a case.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from uv import find_uv_bin

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_ROOT = Path(__file__).resolve().parents[2]
_PROGRAMS = _ROOT / "benchmarks" / "peers"


@dataclass(frozen=True)
class Judgement:
    """What a tool said of one batch.

    ``alarm`` is the tool's default verdict on the whole batch, ``any_column`` whether it flagged any column; NannyML
    has no default on the whole, so the two agree. ``share`` is that of the flagged ``columns`` among those it compared.
    ``seconds`` leaves out reading the files and importing the tool; NannyML's first batch includes fitting. When
    ``error`` is not ``None`` the tool gave no answer and both verdicts are ``False``: count these apart.
    """

    case: Path
    batch: int
    alarm: bool
    any_column: bool
    columns: tuple[str, ...]
    share: float
    seconds: float
    error: str | None


def judge(
    name: Literal["evidently", "nannyml"],
    cases: Sequence[Path],
    *,
    timeout: float,
    max_rows: int | None = None,
    reference_chunks: Literal["default", "batch"] = "default",
) -> list[Judgement]:
    """One judgement per batch of every case, in the order of ``cases`` and of time, from one start of the tool.

    ``timeout`` is in seconds and for all cases together. Batches without an answer when it is over, or when the process
    ends early, get an error. ``max_rows`` leaves only the first rows of the reference and of each batch: shuffle them
    beforehand when they are to stand for the whole. ``reference_chunks`` concerns NannyML only, which learns its
    thresholds from chunks of the reference: "default" makes ten of them, "batch" chunks of a case's first batch's rows.
    Distances grow as rows get fewer, so thresholds hold for batches of the chunks' size only; and the spread between
    chunks is learned from the chunks, so "batch" means nothing unless the reference is many batches long.
    Raises ``subprocess.CalledProcessError`` when the environment cannot be made.
    """
    python = environment(name)
    with tempfile.TemporaryDirectory() as folder:
        listed = Path(folder, "cases.json")
        listed.write_text(json.dumps([str(case) for case in cases]))
        command = [str(python), "-m", f"benchmarks.peers.{name}_program", str(listed)]
        command += ["--reference-chunks", reference_chunks]
        command += [] if max_rows is None else ["--max-rows", str(max_rows)]
        replies, ending = _run(command, Path(folder), timeout)
    return [
        _judgement(case, batch, replies.get((str(case), batch), {"error": ending}))
        for case in cases
        for batch in _batches(case)
    ]


def environment(name: str) -> Path:
    """The Python of the tool's own environment, which is made or renewed when its requirements ask for it."""
    requirements = _PROGRAMS / f"{name}.txt"
    folder = _ROOT / ".bench" / name
    python, made_from = folder / "bin" / "python", folder / "made-from.txt"
    wanted = f"# {sys.version}\n{requirements.read_text()}"
    if not made_from.exists() or made_from.read_text() != wanted:
        shutil.rmtree(folder, ignore_errors=True)
        uv = find_uv_bin()
        subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, str(folder)], check=True)
        install = [uv, "pip", "install", "--quiet", "--no-deps", "--python", str(python), "-r", str(requirements)]
        subprocess.run(install, check=True)
        made_from.write_text(wanted)
    return python


def version(name: str) -> str:
    """The pinned version of the tool."""
    pins = (line.partition("==") for line in (_PROGRAMS / f"{name}.txt").read_text().splitlines())
    return next(pinned for package, _, pinned in pins if package == name)


def _run(command: Sequence[str], folder: Path, timeout: float) -> tuple[dict[tuple[str, int], dict[str, Any]], str]:
    """The answers of a program by case and batch, and how it ended; ``folder`` is its home and gets its output."""
    # The number of threads is the caller's; nothing else of this process reaches the tool.
    threads = {key: value for key, value in os.environ.items() if key.endswith("_NUM_THREADS")}
    variables = {"PATH": os.defpath, "HOME": str(folder), "LC_ALL": "C.UTF-8", **threads}
    printed, said = folder / "answers.jsonl", folder / "errors.txt"
    with printed.open("w") as answers, said.open("w") as errors:
        try:
            code = subprocess.run(
                command, cwd=_ROOT, env=variables, stdout=answers, stderr=errors, timeout=timeout, check=False
            ).returncode
            ending = f"the program ended with code {code}"
        except subprocess.TimeoutExpired:
            ending = f"no answer within {timeout:g} s"
    last = said.read_text(errors="replace").strip().rpartition("\n")[2]
    # A line that the end of the process cut off is no answer.
    lines = (line for line in printed.read_text().splitlines(keepends=True) if line.endswith("\n"))
    replies = [json.loads(line) for line in lines]
    return {(reply["case"], reply["batch"]): reply for reply in replies}, f"{ending}: {last}" if last else ending


def _batches(case: Path) -> list[int]:
    return sorted(int(path.stem.rpartition("-")[2]) for path in case.glob("current-*.parquet"))


def _judgement(case: Path, batch: int, reply: Mapping[str, Any]) -> Judgement:
    return Judgement(
        case=case,
        batch=batch,
        alarm=reply.get("alarm", False),
        any_column=reply.get("any_column", False),
        columns=tuple(reply.get("columns", ())),
        share=reply.get("share", 0.0),
        seconds=reply.get("seconds", 0.0),
        error=reply.get("error"),
    )
