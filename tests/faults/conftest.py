"""Two scales for every attack: short inside `make test`, full in `make test-faults`, which also writes the figures down."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

Amount = TypeVar("Amount")
FULL = os.environ.get("PIPELINE_FAULTS") == "full"
_OUT = Path(__file__).parents[2] / "benchmarks" / "out" / "faults.json"
_FIGURES: dict[str, dict[str, Any]] = {}


@pytest.fixture
def scale() -> Callable[[Amount, Amount], Amount]:
    """``scale(short, full)``: how much of an attack this run makes."""
    return lambda short, full: full if FULL else short


@pytest.fixture
def figures() -> Callable[..., None]:
    """``figures(name, **numbers)`` keeps what an attack measured; the full scale writes it to a file and the terminal."""
    return lambda name, **numbers: _FIGURES.setdefault(name, {}).update(numbers)


def pytest_sessionfinish() -> None:
    if FULL and _FIGURES:
        known = json.loads(_OUT.read_text()) if _OUT.exists() else {}
        _OUT.parent.mkdir(parents=True, exist_ok=True)
        _OUT.write_text(json.dumps({**known, **_FIGURES}, indent=2) + "\n")


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if FULL:
        for name, numbers in _FIGURES.items():
            terminalreporter.write_line(f"{name}: " + ", ".join(f"{key} {value}" for key, value in numbers.items()))
