"""The floors of ``pipeline/``: imports go down, adapters stay apart, the clock is read in one place; and ruff agrees.

The walks read source text with ``ast`` and import nothing, so they see imports inside functions and type-checking
blocks as well. Each is also run on a sentence that breaks its rule.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).parents[2]
PIPELINE = ROOT / "pipeline"

FLOORS: tuple[tuple[str, ...], ...] = (
    (
        "errors",
        "chain",
        "failpoints",
        "intervals",
        "reports",
        "verdicts",
        "policies",
        "release",
        "job",
        "settings",
        "document",
        "jobfile",
    ),
    (
        *("schema", "casts", "rules", "keys", "aggregates", "windows", "seasons", "threads"),
        *(
            "pooling",
            "chance",
            "effects",
            "stretches",
            "variation",
            "clusters",
            "signals",
            "drift",
            "breakage",
            "calibration",
            "impact",
        ),
        *("metrics", "maturity", "performance", "estimates", "incidents", "triggers"),
        *("grouped", "resampling", "paired", "guards", "gates", "assignment", "rollout"),
        *("charts", "frame", "driftpage", "performancepage", "pages", "markup"),
    ),
    (
        *("storage", "ledger", "registry", "modelfiles", "expectations", "channels"),
        *(
            "detectors",
            "estimation",
            "trainers",
            "engine",
            "acceleration",
            "kernels",
            "workers",
            "remote",
            "progress",
            "scaffold",
        ),
    ),
    ("steps",),
    ("cli", "commands", "arguments", "runtime", "replay", "tasks", "__main__"),
)
FLOOR_OF = {module: floor for floor, modules in enumerate(FLOORS) for module in modules}
# Files of one adapter that are not a folder.
ADAPTER_OF = {"modelfiles": "registry", "acceleration": "engine", "kernels": "engine", "remote": "workers"}
# A step may use those named before it.
STEPS = (
    *(
        "context",
        "kept",
        "sampling",
        "labels",
        "champion",
        "rollout",
        "plan",
        "validate",
        "variants",
        "score",
        "changes",
    ),
    *("restate", "quarantine", "audit", "explain", "overview"),
    *("reference", "current", "profile", "estimate", "history", "incidents", "monitor", "calibrate", "notify"),
    *(
        "truth",
        "user_metrics",
        "measure",
        "arms",
        "evaluate",
        "looks",
        "decide",
        "contest",
        "disjoint",
        "retrain",
        "comparison",
    ),
    *("approval", "promote", "advance", "watch"),
)
# What the lower floors may import beside the standard library.
LIBRARIES = {
    0: {"pydantic", "pydantic_core", "yaml"},
    1: {"numpy", "scipy", "pyarrow"},
}
# The one adapter that may import a heavy library, even inside a function.
OWNER = {
    "threadpoolctl": "threads",
    "alibi_detect": "detectors",
    "great_expectations": "expectations",
    "mlflow": "registry",
    "sklearn": "trainers",
    "skops": "registry",
    "fsspec": "storage",
    "numba": "engine",
    "ray": "workers",
}
# Reading a bounded sample of files that no job declares yet is the scaffold's own task. Detectors and estimates fit models
# of their own, which are never registered.
ALSO_ALLOWED = {("scaffold", "fsspec"), ("detectors", "sklearn"), ("estimation", "sklearn")}
CLOCKS = {
    *("datetime.datetime.now", "datetime.datetime.utcnow", "datetime.datetime.today", "datetime.date.today"),
    *("time.time", "time.time_ns"),
}


@dataclass(frozen=True)
class Import:
    """One imported name, fully dotted, and where it is written."""

    module: str
    target: str
    line: int
    for_types: bool

    @property
    def importer(self) -> str:
        """The importing module or folder directly under ``pipeline``; empty for ``pipeline`` itself."""
        return part(self.module, 1)

    def __str__(self) -> str:
        return f"{self.module}, line {self.line}: {self.target}"


def part(dotted: str, position: int) -> str:
    names = dotted.split(".")
    return names[position] if len(names) > position else ""


@cache
def sources(package: Path) -> dict[str, ast.Module]:
    """Every module of the package by dotted name."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        names = path.relative_to(package.parent).with_suffix("").parts
        dotted = ".".join(names[:-1] if names[-1] == "__init__" else names)
        found[dotted] = ast.parse(path.read_text(encoding="utf-8"), str(path))
    return found


@cache
def imports(package: Path) -> list[Import]:
    return [found for module, tree in sources(package).items() for found in imports_of(module, tree)]


def imports_of(module: str, tree: ast.Module) -> Iterator[Import]:
    for_types = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
        for statement in node.body
        for inner in ast.walk(statement)
    }
    for node in ast.walk(tree):
        for target in targets(node):
            yield Import(module, target, node.lineno, id(node) in for_types)


def targets(node: ast.AST) -> list[str]:
    match node:
        case ast.Import():
            return [alias.name for alias in node.names]
        case ast.ImportFrom(module=str(source), level=0):
            return [f"{source}.{alias.name}" for alias in node.names]
        case ast.ImportFrom():
            return ["a relative import"]
        case ast.Call(func=ast.Name("__import__") | ast.Attribute(attr="import_module"), args=[ast.Constant(name), *_]):
            return [str(name)]
    return []


def unknown_modules(package: Path) -> list[str]:
    known = {"", *FLOOR_OF}
    return [
        f"{module} stands on no floor; add it to FLOORS in tests/unit/test_layers.py (and to docs/architecture.md)"
        for module in sources(package)
        if part(module, 1) not in known
    ] + [
        f"{module} has no place among the steps; add it to STEPS in tests/unit/test_layers.py"
        for module in sources(package)
        if part(module, 1) == "steps" and part(module, 2) not in ("", *STEPS)
    ]


def upward_imports(package: Path) -> list[str]:
    return [
        str(found)
        for found in imports(package)
        if part(found.target, 0) == "pipeline"
        and part(found.target, 1) in FLOOR_OF
        and FLOOR_OF[part(found.target, 1)] > FLOOR_OF.get(found.importer, -1)
    ]


def relative_imports(package: Path) -> list[str]:
    return [str(found) for found in imports(package) if found.target == "a relative import"]


def imports_between_adapters(package: Path) -> list[str]:
    def adapter(module: str) -> str:
        return ADAPTER_OF.get(module, module)

    return [
        str(found)
        for found in imports(package)
        if part(found.target, 0) == "pipeline"
        and found.importer in FLOORS[2]
        and part(found.target, 1) in FLOORS[2]
        and adapter(found.importer) != adapter(part(found.target, 1))
    ]


def steps_that_look_ahead(package: Path) -> list[str]:
    return [
        str(found)
        for found in imports(package)
        if found.target.startswith("pipeline.steps.")
        and found.importer == "steps"
        and part(found.module, 2) in STEPS
        and part(found.target, 2) in STEPS
        and STEPS.index(part(found.target, 2)) > STEPS.index(part(found.module, 2))
    ]


def cycles(package: Path) -> list[str]:
    """Modules that need each other when they run; an import for types only does not count."""
    modules = sources(package)
    needs: dict[str, set[str]] = {module: set() for module in modules}
    for found in imports(package):
        dotted = found.target if found.target in modules else found.target.rpartition(".")[0]
        if dotted in modules and dotted != found.module and not found.for_types:
            needs[found.module].add(dotted)
    try:
        TopologicalSorter(needs).prepare()
    except CycleError as error:
        return [" -> ".join(error.args[1])]
    return []


def airflow_imports(package: Path) -> list[str]:
    return [str(found) for found in imports(package) if part(found.target, 0) == "airflow"]


def misplaced_libraries(package: Path) -> list[str]:
    return [str(found) for found in imports(package) if not may_import(found.importer, part(found.target, 0))]


def may_import(importer: str, library: str) -> bool:
    if library in OWNER:
        return ADAPTER_OF.get(importer, importer) == OWNER[library] or (importer, library) in ALSO_ALLOWED
    floor = FLOOR_OF.get(importer, 0)
    if floor not in LIBRARIES or library in sys.stdlib_module_names or library == "pipeline":
        return True
    return any(library in LIBRARIES[below] for below in range(floor + 1))


def clock_readings(package: Path) -> list[str]:
    return sorted(
        f"{module}, line {line}: {what}"
        for module, tree in sources(package).items()
        if module != "pipeline.runtime"
        for line, what in clock_readings_of(tree)
    )


def clock_readings_of(tree: ast.Module) -> set[tuple[int, str]]:
    meaning: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            meaning |= {alias.asname or alias.name: alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            meaning |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            if node.func.attr in ("now", "utcnow", "today"):
                found.add((node.lineno, ast.unparse(node.func)))
        elif isinstance(node, ast.Attribute | ast.Name):
            first, _, rest = ast.unparse(node).partition(".")
            dotted = meaning.get(first, first) + ("." + rest if rest else "")
            if dotted in CLOCKS:
                found.add((node.lineno, ast.unparse(node)))
    return found


RULES: list[tuple[Callable[[Path], list[str]], str, str]] = [
    (unknown_modules, "novelty.py", ""),
    (unknown_modules, "steps/novelty.py", ""),
    (upward_imports, "job.py", "import pipeline.schema"),
    (upward_imports, "errors.py", "def f():\n    from pipeline.drift import x"),
    (upward_imports, "drift.py", "from pipeline import engine"),
    (upward_imports, "storage/parquet.py", "from pipeline.steps.plan import x"),
    (
        upward_imports,
        "steps/plan.py",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import pipeline.runtime",
    ),
    (upward_imports, "__init__.py", "from pipeline import errors"),
    (upward_imports, "steps/score.py", "import importlib\nimportlib.import_module('pipeline.cli')"),
    (relative_imports, "steps/score.py", "from . import plan"),
    (relative_imports, "steps/score.py", "from ..job import JobSpec"),
    (imports_between_adapters, "ledger.py", "from pipeline import storage"),
    (imports_between_adapters, "storage/store.py", "def f():\n    from pipeline.registry import Registry"),
    (imports_between_adapters, "engine.py", "import pipeline.modelfiles"),
    (steps_that_look_ahead, "steps/plan.py", "from pipeline.steps import score"),
    (steps_that_look_ahead, "steps/retrain.py", "from pipeline.steps.promote import consider"),
    (steps_that_look_ahead, "steps/context.py", "import pipeline.steps.labels"),
    (cycles, "errors.py", "from pipeline import errors_too"),
    (airflow_imports, "tasks.py", "def f():\n    from airflow.sdk import DAG"),
    (airflow_imports, "cli.py", "import airflow"),
    (misplaced_libraries, "job.py", "import numpy as np"),
    (misplaced_libraries, "gates.py", "def f():\n    import pandas"),
    (misplaced_libraries, "expectations/library.py", "import mlflow.sklearn"),
    (misplaced_libraries, "steps/score.py", "def f():\n    from sklearn import metrics"),
    (misplaced_libraries, "steps/score.py", "def f():\n    import ray"),
    (clock_readings, "ledger.py", "from datetime import UTC, datetime\ndatetime.now(UTC)"),
    (clock_readings, "ledger.py", "import datetime as dt\nx = dt.datetime.utcnow"),
    (clock_readings, "ledger.py", "import pandas as pd\npd.Timestamp.now()"),
    (clock_readings, "ledger.py", "from datetime import date\ndate.today()"),
    (clock_readings, "replay.py", "import time\nstart = time.time()"),
    (clock_readings, "replay.py", "from time import time as instant\ninstant()"),
]
WALKS = dict.fromkeys(walk for walk, _, _ in RULES)


@pytest.mark.parametrize("walk", WALKS, ids=lambda walk: walk.__name__)
def test_the_package_has_none_of_these(walk: Callable[[Path], list[str]]) -> None:
    assert walk(PIPELINE) == []


@pytest.mark.parametrize(("walk", "path", "source"), RULES)
def test_each_walk_finds_what_it_looks_for(
    walk: Callable[[Path], list[str]], path: str, source: str, tmp_path: Path
) -> None:
    file = tmp_path / "pipeline" / path
    file.parent.mkdir(parents=True)
    if walk is cycles:
        (tmp_path / "pipeline/errors_too.py").write_text("def f():\n    import pipeline.errors")
    file.write_text(source)
    assert len(walk(tmp_path / "pipeline")) == 1


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("runtime.py", "from datetime import UTC, datetime\nx = datetime.now(UTC)\nfrom pipeline.steps import plan"),
        ("replay.py", "import time\nseconds = time.perf_counter()"),
        ("steps/promote.py", "from pipeline.steps import plan, retrain\nfrom pipeline.steps.context import JobContext"),
        ("storage/store.py", "from pipeline.storage import places\nfrom pipeline import __version__\nimport fsspec"),
        ("registry.py", "from pipeline import modelfiles\nimport mlflow"),
        ("gates.py", "import numpy\nfrom scipy import special\nfrom pipeline.performance import Outcomes"),
        ("job.py", '"""Never calls datetime.now() or imports airflow."""\nimport pydantic'),
    ],
)
@pytest.mark.parametrize("walk", WALKS, ids=lambda walk: walk.__name__)
def test_no_walk_objects_to_what_is_allowed(
    walk: Callable[[Path], list[str]], path: str, source: str, tmp_path: Path
) -> None:
    file = tmp_path / "pipeline" / path
    file.parent.mkdir(parents=True)
    file.write_text(source)
    assert walk(tmp_path / "pipeline") == []


def test_every_module_of_the_table_has_one_floor_and_exists() -> None:
    listed = [module for modules in FLOORS for module in modules]
    assert len(listed) == len(set(listed))
    there = {part(module, 1) for module in sources(PIPELINE)}
    assert [module for module in listed if module not in there] == []


def ruff(path: str, source: str) -> set[tuple[str, int]]:
    """The import and API bans that ruff reports for ``source`` as if it stood at ``path``: codes and lines."""
    command = [sys.executable, "-m", "ruff", "check", "--no-cache", "--output-format", "json", "--select", "TID"]
    run = subprocess.run(
        [*command, "--stdin-filename", path, "-"], input=source, cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert run.returncode in (0, 1), run.stderr
    return {(found["code"], found["location"]["row"]) for found in json.loads(run.stdout)}


HEAVY = (
    *(
        "airflow",
        "alibi_detect",
        "great_expectations",
        "mlflow",
        "pandas",
        "sklearn",
        "skops",
        "joblib",
        "torch",
        "ray",
    ),
)


def test_ruff_bans_every_heavy_import_at_module_level() -> None:
    lines = [f"import {name}" for name in HEAVY] + [f"from {name} import x" for name in HEAVY]
    found = ruff("pipeline/gates.py", "\n".join(lines))
    assert found == {("TID253", line) for line in range(1, len(lines) + 1)}


def test_ruff_allows_a_heavy_import_inside_a_function_and_in_the_adapter_that_owns_it() -> None:
    assert ruff("pipeline/gates.py", "def f():\n    import pandas\n") == set()
    assert ruff("pipeline/registry.py", "import mlflow\n") == set()
    assert ruff("pipeline/steps/score.py", "import mlflow\n") == {("TID253", 1)}


CLOCK_SOURCE = """import time
import datetime as dt
from datetime import UTC, datetime
a = datetime.now(UTC)
b = dt.datetime.utcnow()
c = datetime.today
d = time.time()
"""


def test_ruff_bans_the_clock_everywhere_but_in_the_runtime() -> None:
    for path in ("pipeline/gates.py", "pipeline/cli.py", "pipeline/steps/plan.py", "pipeline/registry.py"):
        assert ruff(path, CLOCK_SOURCE) == {("TID251", line) for line in (4, 5, 6, 7)}
    assert ruff("pipeline/runtime.py", CLOCK_SOURCE) == set()


WRITING_SOURCE = """import pyarrow.dataset as ds
import pyarrow.parquet as pq
from pyarrow.parquet import write_table
pq.write_table(x, y)
pq.write_to_dataset(x, y)
ds.write_dataset(x, y)
"""


def test_ruff_bans_writing_parquet_past_the_commit_protocol() -> None:
    for path in ("pipeline/steps/score.py", "pipeline/engine.py", "pipeline/storage/store.py", "dags/scoring.py"):
        assert ruff(path, WRITING_SOURCE) == {("TID251", line) for line in (3, 4, 5, 6)}
