"""Every public name of the package says what the caller gets, in at least one whole sentence."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

PIPELINE = Path(__file__).parents[2] / "pipeline"
DOCUMENTED = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
FEWEST_WORDS = 4


def public(tree: ast.Module, module: str) -> Iterator[tuple[str, str]]:
    """The module and its public classes, functions and methods, each with its docstring."""
    yield module, ast.get_docstring(tree) or ""
    pending: list[tuple[str, ast.AST]] = [(module, tree)]
    while pending:
        owner, node = pending.pop()
        for child in ast.iter_child_nodes(node):
            if isinstance(child, DOCUMENTED) and not child.name.startswith("_"):
                name = f"{owner}.{child.name}"
                yield name, ast.get_docstring(child) or ""
                if isinstance(child, ast.ClassDef):
                    pending.append((name, child))


def wanting(source: str, module: str = "module") -> list[str]:
    """The public names whose docstring is no sentence."""
    return [name for name, text in public(ast.parse(source), module) if not is_sentence(text)]


def is_sentence(text: str) -> bool:
    summary = text.split("\n\n")[0]
    return len(summary.split()) >= FEWEST_WORDS and summary.rstrip().endswith((".", ":", "?"))


@pytest.mark.parametrize("path", sorted(PIPELINE.rglob("*.py")), ids=lambda path: str(path.relative_to(PIPELINE)))
def test_every_public_name_is_described(path):
    assert wanting(path.read_text(encoding="utf-8"), path.stem) == []


def test_a_missing_a_short_and_an_unfinished_description_are_found():
    source = '''
"""A module that says what it is."""
class Silent:
    """Holds nothing but itself, and says so."""
    def method(self): ...
    def _private(self): ...
def short():
    """Too short."""
def unfinished():
    """Says many things but never comes to an"""
def fine():
    """The number of things, in metres."""
    def inner(): ...
'''
    assert wanting(source) == ["module.short", "module.unfinished", "module.Silent.method"]
