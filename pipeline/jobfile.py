"""Reading job files: YAML in, a valid `JobSpec` out - or every problem of the file at once, with line and way out.

Cheap enough for DAG parsing. Must not import more than the ground floor, nor let a bad file hide a good one.
"""

from __future__ import annotations

import contextlib
import difflib
import json
import os
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from pydantic import BaseModel, ValidationError

from pipeline.document import Document, Problem, shown
from pipeline.errors import InvalidJob, UnknownJob
from pipeline.intervals import format_instant, parse_instant
from pipeline.job import JobSpec
from pipeline.verdicts import Calibration

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from pydantic.fields import FieldInfo
    from pydantic_core import ErrorDetails

_NAME = re.compile(r"[a-z][a-z0-9_]{0,62}")
_FIELD_IN_TEXT = re.compile(r"\b[a-z_]+(?:\.[a-z_]+|\[\d+\])+")
# What pydantic found, in our words: (expected, way out). Error types that are absent keep pydantic's message.
_WORDS: dict[str, tuple[str, str]] = {
    "string_type": ("text", "put the value in quotes"),
    "bool_type": ("true or false", "write true or false, without quotes"),
    "int_type": ("a whole number", "write digits only, without quotes and without a decimal point"),
    "float_type": ("a number", "write it without quotes"),
    "finite_number": ("a finite number", "leave the limit out instead of writing .inf or .nan"),
    "tuple_type": ("a list", "write [a, b], or one line '- a' per entry"),
    "dict_type": ("a mapping", "indent its keys below it"),
    "model_type": ("a mapping", "indent its keys below it, or remove it to take the defaults"),
    "greater_than": ("a value above {gt}", "raise it"),
    "greater_than_equal": ("a value of at least {ge}", "raise it"),
    "less_than": ("a value below {lt}", "lower it"),
    "less_than_equal": ("a value of at most {le}", "lower it"),
    "literal_error": ("{expected}", "write one of them"),
    "string_pattern_mismatch": ("text of the form {pattern}", "change it to fit the form"),
    "string_too_short": ("text of at least {min_length} character", "fill it in"),
    "too_short": ("at least {min_length} entry", "add one"),
    **dict.fromkeys(
        ("datetime_type", "datetime_parsing", "datetime_from_date_parsing", "timezone_aware"),
        ("an instant such as 2026-01-31T00:00:00Z", "write an ISO 8601 date or instant; without an offset it is UTC"),
    ),
    **dict.fromkeys(
        ("time_delta_type", "time_delta_parsing"),
        ("an ISO 8601 duration such as P14D or PT2H", "write days as P14D, hours as PT6H, minutes as PT15M"),
    ),
}


@dataclass(frozen=True)
class BrokenJob:
    """A job file that cannot be used; ``name`` is the declared name if it is readable and valid, else the file's stem."""

    file: Path
    name: str
    problems: tuple[Problem, ...]

    def error(self) -> InvalidJob:
        """One error that lists every problem."""
        count = f"{len(self.problems)} problem{'s' if len(self.problems) > 1 else ''}"
        return InvalidJob(
            f"job file {self.file} has {count}:\n" + "\n".join(f"- {problem}" for problem in self.problems),
            left_behind="the job was not loaded",
            next_step=f"correct the file, then run 'pipeline check {self.file}'",
        )


def load(path: Path) -> JobSpec:
    """The job that a file declares, its relative URIs made absolute against the file's folder.

    Raises `InvalidJob` with every problem that can be found in one go. Rules between fields are checked only once
    the fields themselves are valid.
    """
    job = _examine(path)
    if isinstance(job, BrokenJob):
        raise job.error()
    return job


def files(folder: Path) -> list[Path]:
    """The job files of a folder, whether good or broken, by name; none of a folder that does not exist."""
    try:
        with os.scandir(folder) as entries:
            names = sorted(entry.name for entry in entries if not entry.is_dir())
    except OSError:
        return []
    return [path for path in map(folder.joinpath, names) if _is_job_file(path)]


def load_all(folder: Path) -> tuple[dict[str, JobSpec], tuple[BrokenJob, ...]]:
    """The good jobs of a folder by name, and the broken files; both in the order of the file names.

    Reads ``*.yaml`` and ``*.yml`` except hidden files; a folder that does not exist has none. Files that declare the
    same name are all broken, because nothing says which of them is meant.
    """
    results = {path: _examine(path) for path in files(folder)}
    declared = Counter(job.name for job in results.values() if isinstance(job, JobSpec))
    jobs: dict[str, JobSpec] = {}
    broken: list[BrokenJob] = []
    for path, job in results.items():
        if isinstance(job, BrokenJob):
            broken.append(job)
        elif declared[job.name] > 1:
            broken.append(_namesake(path, job, results))
        else:
            jobs[job.name] = job
    return jobs, tuple(broken)


def find(name_or_path: str, folder: Path) -> JobSpec:
    """The job of that name among the files of ``folder``, or the job in the file at that path.

    A text that ends in .yaml or .yml or contains a slash is a path. Raises `UnknownJob` with the known names and
    close matches, and `InvalidJob` when the file of that name is broken.
    """
    if "/" in name_or_path or name_or_path.endswith((".yaml", ".yml")):
        return _load_existing(Path(name_or_path))
    if (only := _only(name_or_path, folder)) is not None:
        return only[1]
    jobs, broken = load_all(folder)
    for candidate in broken:
        if name_or_path in (candidate.name, candidate.file.stem):
            raise candidate.error()
    guess = _did_you_mean(name_or_path, list(jobs))
    hidden = f"; 'pipeline check' explains the {len(broken)} broken files" if broken else ""
    raise UnknownJob(
        f"no job is named {name_or_path!r} in {folder}",
        expected=f"one of {', '.join(jobs)}" if jobs else "a name that a file in that folder declares",
        got=repr(name_or_path),
        next_step=(f"{guess} " if guess else "") + f"name one of them, or pass the path of a job file{hidden}",
    )


def path_of(name_or_path: str, folder: Path) -> Path:
    """The file of a job that `find` finds."""
    find(name_or_path, folder)
    only = None if "/" in name_or_path else _only(name_or_path, folder)
    return only[0] if only else Path(name_or_path)


def calibration_of(path: Path) -> Path:
    """Where the thresholds lie that were measured for the job in the file at ``path``."""
    return path.with_suffix(".calibration.json")


def _only(name: str, folder: Path) -> tuple[Path, JobSpec] | None:
    """The one good file of a folder that declares the name, and its job; ``None`` unless there is exactly one.

    Parses the files alone in which the name stands as a word: a task must not pay for the jobs of all others.
    """
    text, found = name.encode(), []
    word = re.compile(rb"(?<![A-Za-z0-9_])" + re.escape(text) + rb"(?![A-Za-z0-9_])")
    for path in files(folder):
        try:
            content = path.read_bytes()
        except OSError:
            continue  # it declares nothing, and `load_all` says why
        # In double quotes a backslash may hide the name.
        may_declare = (text in content and word.search(content)) or b"\\" in content
        if may_declare and isinstance(job := _examine(path), JobSpec) and job.name == name:
            found.append((path, job))
    return found[0] if len(found) == 1 else None


def _calibrated(job: JobSpec, measured: Path) -> JobSpec:
    """The job with the thresholds that `pipeline calibrate` measured; those of the job file itself come first."""
    if not measured.is_file():
        return job
    try:
        found = Calibration.model_validate_json(measured.read_text("utf-8"))
    except (OSError, ValueError) as err:
        raise InvalidJob(
            f"{measured} holds no thresholds of job {job.name!r}",
            got=str(err).splitlines()[0],
            left_behind="the job was not loaded",
            next_step=f"remove the file, or write it anew with 'pipeline calibrate {job.name}'",
        ) from err
    known = {name: limit for name, limit in found.thresholds.items() if name in job.drift_columns}
    drift = job.drift.model_copy(update={"thresholds": {**known, **job.drift.thresholds}})
    return job.model_copy(update={"drift": drift})


def _load_existing(path: Path) -> JobSpec:
    if not path.exists():
        raise UnknownJob(
            f"there is no job file {path}",
            expected="the path of a YAML file, or the name of a job",
            got=repr(str(path)),
            next_step="check the path, or write the file with 'pipeline init'",
        )
    return load(path)


def _is_job_file(path: Path) -> bool:
    return path.suffix in (".yaml", ".yml") and not path.name.startswith(".")


def _namesake(path: Path, job: JobSpec, results: Mapping[Path, JobSpec | BrokenJob]) -> BrokenJob:
    others = [
        str(other)
        for other, twin in results.items()
        if other != path and isinstance(twin, JobSpec) and twin.name == job.name
    ]
    line, _ = Document.read(path).locate(("name",))
    expected = f"a name that no other file declares, but {' and '.join(others)} does"
    return BrokenJob(
        path, job.name, (Problem(str(path), line, "name", shown(job.name), expected, "rename one of them"),)
    )


def _examine(path: Path) -> JobSpec | BrokenJob:
    document = Document.read(path)
    if document.values is None:
        return BrokenJob(path, path.stem, tuple(document.problems))
    try:
        # JSON, because strict validation of Python values refuses a list for a tuple and a text for a duration.
        job = JobSpec.model_validate_json(json.dumps(_in_utc(document.values)))
    except ValidationError as err:
        document.problems.extend(_explain(err, document))
    else:
        if not document.problems:
            return _anchored(_calibrated(job, calibration_of(path)), path.absolute().parent)
    name = document.values.get("name")
    usable = isinstance(name, str) and _NAME.fullmatch(name)
    ordered = sorted(document.problems, key=lambda problem: problem.line or 0)
    return BrokenJob(path, str(name) if usable else path.stem, tuple(ordered))


def _in_utc(values: dict[str, Any]) -> dict[str, Any]:
    # A date or an instant without an offset is meant in UTC; what cannot be read is left for the schema to refuse.
    schedule = values.get("schedule")
    if not isinstance(schedule, dict):
        return values
    read = dict(schedule)
    for name in ("start", "end"):
        if isinstance(read.get(name), str):
            with contextlib.suppress(ValueError, OverflowError):
                read[name] = format_instant(parse_instant(read[name]))
    return {**values, "schedule": read}


def _anchored(job: JobSpec, folder: Path) -> JobSpec:
    def anchor(uri: str) -> str:
        return uri if "://" in uri else os.path.normpath(folder / uri)

    output = job.output
    if output.uri is not None:
        output = output.model_copy(update={"uri": anchor(output.uri)})
    return job.model_copy(
        update={
            "features": job.features.model_copy(update={"uri": anchor(job.features.uri)}),
            "labels": job.labels.model_copy(update={"uri": anchor(job.labels.uri)}),
            "output": output,
        }
    )


def _explain(error: ValidationError, document: Document) -> Iterator[Problem]:
    groups: dict[tuple[int | str, ...], list[ErrorDetails]] = {}
    for details in error.errors(include_url=False):
        loc = details["loc"]
        # The branches of a union are parts of pydantic's location that no file contains.
        where = loc if details["type"] == "missing" else loc[: document.locate(loc)[1]]
        groups.setdefault(where, []).append(details)
    for loc in [loc for loc, errors in groups.items() if errors[0]["type"] == "extra_forbidden"]:
        # A misspelt key is one problem, not an unknown key and a missing one.
        meant = _closest(str(loc[-1]), [str(other[-1]) for other in groups if other[:-1] == loc[:-1] and other != loc])
        if meant and groups[(*loc[:-1], meant)][0]["type"] == "missing":
            del groups[(*loc[:-1], meant)]
    for loc, errors in groups.items():
        if errors[0]["type"] == "value_error":
            yield from _disagreements(loc, str(errors[0]["ctx"]["error"]), document)
        else:
            yield _misfit(loc, errors, document)


def _misfit(loc: tuple[int | str, ...], errors: list[ErrorDetails], document: Document) -> Problem:
    line, depth = document.locate(loc)
    kind, name = errors[0]["type"], str(loc[-1]) if loc else ""
    owner, declared = _declared(loc)
    got = shown(document.value(loc[:depth]))
    wordings = [_WORDS.get(details["type"], (details["msg"], "")) for details in errors]
    expected = " or ".join(
        dict.fromkeys(
            text.format(**details.get("ctx", {})) for (text, _), details in zip(wordings, errors, strict=True)
        )
    )
    way_out = wordings[0][1] or "see 'pipeline schema'"
    if len(errors) > 1:
        way_out = "write one plain value"
    elif kind == "missing":
        got, expected = "nothing", f"a value: {_description(declared)}"
        way_out = f"add '{name}: ...'" + (f" to {_dotted(loc[:-1])}" if loc[1:] else "")
    elif kind == "extra_forbidden":
        known = list(owner.model_fields) if owner else []
        got, expected = f"the unknown key {name!r}", f"one of {', '.join(known)}"
        way_out = _did_you_mean(name, known) or "remove it"
    elif kind == "literal_error":
        way_out = _did_you_mean(got.strip('"'), re.findall(r"'([^']*)'", expected)) or way_out
    elif (kind, name) == ("string_pattern_mismatch", "name"):
        expected, way_out = "lower-case letters, digits and underscores, a letter first, 63 at most", "rename it"
    return Problem(document.file, line, _dotted(loc), got, expected, way_out)


def _disagreements(loc: tuple[int | str, ...], text: str, document: Document) -> Iterator[Problem]:
    # Rules between fields report at their common parent and name the fields in the text, one line per problem.
    for message in text.splitlines():
        named = _FIELD_IN_TEXT.search(message)
        parts = [int(part) if part.isdigit() else part for part in re.findall(r"\w+", named[0])] if named else []
        where = tuple(parts) if parts and parts[0] in JobSpec.model_fields else loc
        line, depth = document.locate(where)
        got = shown(document.value(where)) if depth == len(where) else "nothing"
        expected = _description(_declared(where)[1]) or "values that fit together"
        yield Problem(document.file, line, _dotted(where), got, expected, message)


def _declared(loc: Sequence[int | str]) -> tuple[type[BaseModel] | None, FieldInfo | None]:
    """The model that a location's last part belongs to, and the field that it is there, if it is one."""
    annotation: Any = JobSpec
    owner: type[BaseModel] | None = None
    found: FieldInfo | None = None
    for part in loc:
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            owner, found = annotation, annotation.model_fields.get(str(part))
            annotation = found.annotation if found else None
        else:  # tuple[X, ...] and dict[str, X]
            owner, found = None, None
            annotation = next((a for a in reversed(get_args(annotation)) if a is not Ellipsis), None)
    return owner, found


def _description(declared: FieldInfo | None) -> str:
    if declared is None:
        return ""
    text = declared.description or str(getattr(declared.annotation, "__doc__", ""))
    return text.split("\n")[0].rstrip(".")


def _dotted(loc: Sequence[int | str]) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc).removeprefix(".")


def _closest(word: str, known: Sequence[str]) -> str:
    return next(iter(difflib.get_close_matches(word, known, n=1)), "")


def _did_you_mean(word: str, known: Sequence[str]) -> str:
    closest = _closest(word, known)
    return f"did you mean {closest!r}?" if closest else ""
