"""One YAML file as plain values and as nodes that know their lines, with everything that is wrong with it as YAML.

Knows nothing of jobs. Must not let a surprise of YAML 1.1 through silently: a key given twice, NO read as false.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

try:
    from yaml import CSafeLoader as _SafeLoader
except ImportError:  # PyYAML without libyaml: the same result, about eight times slower
    from yaml import SafeLoader as _SafeLoader  # type: ignore[assignment]

# A job file has a few hundred values; nested aliases can multiply into billions.
_MAX_VALUES = 100_000
_AMBIGUOUS = {"yes": "true", "on": "true", "no": "false", "off": "false"}


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a job file; ``line`` counts from 1 and is ``None`` where no line is to blame."""

    file: str
    line: int | None
    field: str
    got: str
    expected: str
    way_out: str

    def __str__(self) -> str:
        where = self.file if self.line is None else f"{self.file}, line {self.line}"
        about = f" {self.field}:" if self.field else ""
        return f"{where}:{about} expected {self.expected}, got {self.got}; {self.way_out}"


class _Loader(_SafeLoader):
    """YAML 1.1, except that dates and instants stay text: ISO where they are valid, as written where they are not."""


def _timestamp(loader: _Loader, node: yaml.ScalarNode) -> str:
    try:
        return str(loader.construct_yaml_timestamp(node).isoformat())
    except ValueError:  # 2013-02-30: reported where the field is known
        return str(node.value)


_Loader.add_constructor("tag:yaml.org,2002:timestamp", _timestamp)


@dataclass
class Document:
    """A YAML file whose top level is a mapping; ``values`` (plain JSON values) is ``None`` where it is not."""

    file: str
    problems: list[Problem] = field(default_factory=list)
    root: yaml.Node | None = None
    values: dict[str, Any] | None = None

    @classmethod
    def read(cls, path: Path) -> Document:
        """The document with everything that is wrong below the level of fields in ``problems``."""
        document = cls(str(path))
        try:
            document._parse(path.read_bytes().decode("utf-8-sig"))
        except OSError as err:
            document.note(None, err.strerror or str(err), "a readable file", "check the path and its permissions")
        except UnicodeDecodeError as err:
            document.note(None, f"byte {err.object[err.start]:#04x} at {err.start}", "UTF-8 text", "save it as UTF-8")
        except RecursionError:
            document.note(None, "values nested too deeply to read", "a mapping", "see 'pipeline schema' for the layout")
        except yaml.MarkedYAMLError as err:
            mark = err.problem_mark or err.context_mark
            got = " ".join(part for part in (err.context, err.problem) if part)
            line = None if mark is None else mark.line + 1
            document.note(line, got, "valid YAML", "check indentation, quotes and brackets there")
        except (yaml.YAMLError, ValueError, TypeError) as err:
            document.note(
                None, " ".join(str(err).split()), "valid YAML of text, numbers and lists", "remove that value"
            )
        return document

    def note(self, line: int | None, got: str, expected: str, way_out: str, name: str = "") -> None:
        """Add a problem of this file."""
        self.problems.append(Problem(self.file, line, name, got, expected, way_out))

    def _parse(self, content: str) -> None:
        loader = _Loader(content)
        try:
            self.root = loader.get_single_node()
            if self.root is None:
                self.note(None, "an empty file", "a mapping of fields", "write one with 'pipeline init'")
                return
            if self._survey(self.root, {}) > _MAX_VALUES:
                expected = f"at most {_MAX_VALUES:,} values"
                self.note(1, "more after its aliases are expanded", expected, "write the values out instead")
                return
            values = loader.construct_document(self.root)
        finally:
            loader.dispose()
        if not isinstance(values, dict):
            self.note(self.root.start_mark.line + 1, shown(values), "a mapping of fields", "start with 'name: ...'")
            return
        self.values = json.loads(json.dumps(values))

    def _survey(self, node: yaml.Node, sizes: dict[int, int]) -> int:
        # How many values the node expands to. Counted as endless while its own children are counted, so that an alias
        # to an ancestor makes the total endless too.
        if id(node) in sizes:
            return sizes[id(node)]
        sizes[id(node)] = _MAX_VALUES + 1
        size = 1
        if isinstance(node, yaml.MappingNode):
            self._refuse_duplicates(node)
            for key, value in node.value:
                self._refuse_ambiguous(key)
                size += 1 + self._survey(value, sizes)
        elif isinstance(node, yaml.SequenceNode):
            for entry in node.value:
                self._refuse_ambiguous(entry)
                size += self._survey(entry, sizes)
        sizes[id(node)] = size
        return size

    def _refuse_duplicates(self, node: yaml.MappingNode) -> None:
        # PyYAML silently takes the last of them.
        first: dict[str, int] = {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in first:
                got = f"a second {key.value!r}; the first is on line {first[key.value]}"
                self.note(line, got, "every key once", "remove one of them", key.value)
            first.setdefault(key.value, line)

    def _refuse_ambiguous(self, node: yaml.Node) -> None:
        # In YAML 1.1 the text NO is false; a country code would silently become a truth value.
        meaning = _AMBIGUOUS.get(node.value.lower()) if node.tag == "tag:yaml.org,2002:bool" else None
        if meaning is not None:
            got = f"{node.value}, which YAML reads as {meaning}"
            self.note(node.start_mark.line + 1, got, "text or a truth value", f'write "{node.value}" or {meaning}')

    def locate(self, loc: Sequence[int | str]) -> tuple[int, int]:
        """The 1-based line of a location, and how many of its parts exist in the file."""
        node, line = self.root, 1 if self.root is None else self.root.start_mark.line + 1
        for depth, part in enumerate(loc):
            if isinstance(node, yaml.MappingNode):
                pair = next((pair for pair in reversed(node.value) if pair[0].value == str(part)), None)
                if pair is None:
                    return line, depth
                line, node = pair[0].start_mark.line + 1, pair[1]
            elif isinstance(node, yaml.SequenceNode) and isinstance(part, int):
                node = node.value[part]
                line = node.start_mark.line + 1
            else:
                return line, depth
        return line, len(loc)

    def value(self, loc: Sequence[int | str]) -> Any:
        """The value at a location that exists."""
        found: Any = self.values
        for part in loc:
            found = found[part]
        return found


def shown(value: Any) -> str:
    """A value in YAML's words, at most 60 characters."""
    if isinstance(value, dict | list):
        kind = "mapping" if isinstance(value, dict) else "list"
        return f"a {kind} of {len(value)}" if value else f"an empty {kind}"
    text = "nothing (null)" if value is None else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."
