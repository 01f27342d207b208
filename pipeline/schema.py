"""The input contract of a job, and the split of its rows into good ones and quarantined ones, vectorised on Arrow.

Every row is counted once, under one reason. Must not read a file, load pandas, or loop over good rows in Python.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import casts, rules
from pipeline.errors import ContractViolation
from pipeline.keys import SeenKeys
from pipeline.rules import kind_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from pipeline.intervals import Interval
    from pipeline.job import JobSpec
    from pipeline.keys import Shelf
    from pipeline.rules import Mask

QUARANTINE_COLUMNS = ("rule_id", "reason_code", "value")
# What a declared column may be physically. Floats serve as categories because integer codes with nulls become floats
# on their way through pandas.
_ALLOWED: dict[str, tuple[str, ...]] = {
    "key": ("integer", "text"),
    "time": ("time",),
    "number": (*rules.NUMERIC, "null"),
    "category": ("text", "integer", "boolean", "float", "null"),
    "boolean": ("boolean", "null"),
}
_EXPECTED = {
    "key": "an integer or text",
    "time": "a timestamp or a date",
    "number": "a number",
    "category": "text, integer codes or a boolean",
    "boolean": "a boolean",
}


def contract_problems(schema: pa.Schema, job: JobSpec) -> list[str]:
    """One sentence for everything in ``schema`` that the job's declaration does not allow; empty when it fits.

    A number is any integer, float or decimal; a category is text, integers, booleans, or floats; a time is a timestamp of
    any unit, with or without a zone, or a date. Dictionary-encoded variants count as what they encode, and a feature that
    is null throughout may have the null type. Columns that the job does not name are no problem.
    """
    problems = [
        f"column {name!r}: appears {count} times, expected once"
        for name, count in Counter(schema.names).items()
        if count > 1
    ]
    fitting = {}
    for name, role in _roles(job).items():
        found = schema.get_all_field_indices(name)
        if not found:
            problems.append(f"column {name!r}: expected {_EXPECTED[role]}, but the column is missing")
        elif len(found) == 1:
            kind = schema.field(name).type
            if kind_of(kind) in _ALLOWED[role]:
                fitting[name] = kind_of(kind)
            else:
                problems.append(f"column {name!r}: expected {_EXPECTED[role]}, got {kind}")
    problems += [
        text for rule in job.checks.rules if (text := rules.rule_problem(rule, fitting.get(rule.column, "null")))
    ]
    return problems


def mixed_schema_problems(schemas: Mapping[str, pa.Schema], job: JobSpec) -> list[str]:
    """One sentence per used column whose types in the files of one partition have no `pipeline.casts.common_type`.

    ``schemas`` maps the files of one partition, in reading order, to their schemas. A used column that only some of the
    files have is a problem of the others.
    """
    problems = []
    for column in _roles(job):
        found = _types_in(schemas, column)
        if found and casts.common_type(*found) is None:
            types = ", ".join(f"{kind} in {file!r}" for kind, file in found.items())
            problems.append(f"column {column!r}: no type holds the values of all files without loss: {types}")
        problems += [
            f"file {file!r}: column {column!r} is missing, but {kind} in {other!r}"
            for file, schema in schemas.items()
            for kind, other in list(found.items())[:1]
            if column not in schema.names
        ]
    return problems


def common_schema(schemas: Mapping[str, pa.Schema], job: JobSpec) -> pa.Schema:
    """The schema as which all files of one partition are read, by `pipeline.casts.cast`; every field may hold nulls.

    ``schemas`` as in `mixed_schema_problems`. The columns stand in the first file's order, those of later files follow. A
    used column has the common type of the files. Any other column is only carried along and may be absent from some
    files (null there); where its types have no common type it becomes text, or bytes (`pipeline.casts.carried_type`), and
    it is left out where nothing holds the values of all files, such as a list beside a number. Dictionaries are
    decoded. Raises `ContractViolation` when `mixed_schema_problems` finds any.
    """
    if problems := mixed_schema_problems(schemas, job):
        raise ContractViolation(
            f"the files of one partition of job {job.name!r} do not go together: {'; '.join(problems)}",
            expected="one type per column that holds the values of every file",
            next_step="have the producer write one type in every file",
        )
    kinds = {
        name: casts.carried_type(*_types_in(schemas, name))
        for name in dict.fromkeys(name for schema in schemas.values() for name in schema.names)
    }
    return pa.schema([pa.field(name, kind) for name, kind in kinds.items() if kind is not None])


@dataclass(frozen=True)
class CheckedBatch:
    """One record batch, split.

    ``good`` has the raw columns in order, ``bad`` the quarantine schema (``None`` when no row is bad), and ``outside`` counts
    the rows of another interval.
    """

    good: pa.RecordBatch
    bad: pa.RecordBatch | None
    outside: int


@dataclass(frozen=True, slots=True)
class _Check:
    """One question to one column. ``fails`` marks the offending values of a column that is no dictionary."""

    code: str
    rule_id: str
    column: str
    fails: Callable[[Any], Mask]
    warns: bool = False

    def failures(self, column: Any) -> Mask:
        """The offending rows of the column; of a dictionary, each value is looked at once."""
        if not pa.types.is_dictionary(column.type):
            return self.fails(column)
        kind = column.type.value_type
        by_code = self.fails(pa.concat_arrays([column.dictionary, pa.nulls(1, kind)]))
        if not by_code.any():
            return np.zeros(len(column), dtype=bool)
        failed: Mask = by_code[column.indices.fill_null(len(by_code) - 1).to_numpy(zero_copy_only=False)]
        return failed


class RowChecker:
    """Checks the record batches of one partition, in file order, and keeps the running totals.

    A row counts once, under the first reason that fits: ``null_key:<column>``, ``null_time``, ``outside_interval``, the
    job's rules in order, ``not_text:<column>`` (bytes that are not UTF-8 in a key or feature), ``not_finite:<column>``
    (an infinity in a number feature), ``duplicate_key``. NaN counts as null everywhere. A time without a zone is UTC.

    When the job selects rows by event time (`JobSpec.filters_by_time`), rows of another interval do not belong to this one and
    are only counted as ``CheckedBatch.outside``; otherwise they are quarantined. A row without a time cannot be placed and
    always belongs. A repeated key is found across batches: the first good row keeps it, and a row that was quarantined for
    another reason never claims it. Keys that take much memory are kept on the ``shelf``, where there is one.

    Quarantined rows carry ``rule_id`` (``checks.rules[2]``, or the name of a built-in check), ``reason_code`` and ``value``
    (the offending value as text of at most 200 characters). Where the input has a column of such a name, in any case, the
    quarantine's own gets underscores in front until it is unique.

    Raises `ContractViolation` when ``input_schema`` breaks the contract.
    """

    def __init__(self, job: JobSpec, interval: Interval, input_schema: pa.Schema, shelf: Shelf | None = None) -> None:
        if problems := contract_problems(input_schema, job):
            raise ContractViolation(
                f"the input of job {job.name!r} for {interval} does not fit its declaration: {'; '.join(problems)}",
                expected="the columns and types of the job file",
                next_step=f"correct the input or the job file, then run 'pipeline check {job.name}'",
            )
        self.rows_in = 0
        self._reasons: Counter[str] = Counter()
        self._warnings: Counter[str] = Counter()
        self._key = job.features.key
        self._time = job.features.time
        self._filters = job.filters_by_time
        self._outside = rules.outside(interval)
        self._checks = _checks(job, input_schema, self._outside)
        self._seen = SeenKeys(shelf)
        self._raw = input_schema
        self._schema = _quarantine_schema(input_schema)

    @property
    def reasons(self) -> dict[str, int]:
        """Quarantined rows so far by reason code, sorted by code."""
        return dict(sorted(self._reasons.items()))

    @property
    def warnings(self) -> dict[str, int]:
        """Rows so far that broke a warn-only rule, by reason code, sorted; quarantined rows included."""
        return dict(sorted(self._warnings.items()))

    @property
    def quarantine_schema(self) -> pa.Schema:
        """The raw columns, then rule id, reason code and value."""
        return self._schema

    def check(self, batch: pa.RecordBatch) -> CheckedBatch:
        """The batch split into good and bad rows; adds to the running totals."""
        outside = 0
        if self._filters:
            strangers = self._outside(rules.plain(batch.column(self._time)))
            outside = int(strangers.sum())
            batch = _keep(batch, ~strangers)
        self.rows_in += batch.num_rows
        columns = {name: batch.column(name) for name in {check.column for check in self._checks}}
        failed = self._first_failures(columns, batch.num_rows)
        self._mark_repeated_keys(columns, failed)
        good = failed < 0
        bad = None if good.all() else self._quarantined(batch, columns, failed)
        return CheckedBatch(_keep(batch, good), bad, outside)

    def _first_failures(self, columns: Mapping[str, Any], rows: int) -> NDArray[np.int64]:
        """Per row the position of the first check that it fails, or -1."""
        failed = np.full(rows, -1, dtype=np.int64)
        for position, check in enumerate(self._checks):
            fails = check.failures(columns[check.column])
            if not fails.any():
                continue
            if check.warns:
                self._warnings[check.code] += int(fails.sum())
            else:
                failed[fails & (failed < 0)] = position
        return failed

    def _mark_repeated_keys(self, columns: Mapping[str, Any], failed: NDArray[np.int64]) -> None:
        candidates = np.flatnonzero(failed < 0)
        keys = [rules.plain(columns[name]) for name in self._key]
        if len(candidates) < len(failed):
            keys = [key.take(pa.array(candidates)) for key in keys]
        failed[candidates[self._seen.repeated(keys)]] = len(self._checks)

    def _quarantined(
        self, batch: pa.RecordBatch, columns: Mapping[str, Any], failed: NDArray[np.int64]
    ) -> pa.RecordBatch:
        bad = np.flatnonzero(failed >= 0)
        kinds = failed[bad]
        values, rows = [], []
        for position in np.unique(kinds):
            mine = bad[kinds == position]
            names = self._key if position == len(self._checks) else (self._checks[position].column,)
            texts = [rules.as_text(rules.plain(columns[name].take(pa.array(mine)))) for name in names]
            values.append(pc.utf8_slice_codeunits(pc.binary_join_element_wise(*texts, "|"), 0, rules.VALUE_LENGTH))
            rows.append(mine)
        labels = [*((check.rule_id, check.code) for check in self._checks), ("duplicate_key", "duplicate_key")]
        for position, count in zip(*np.unique(kinds, return_counts=True), strict=True):
            self._reasons[labels[position][1]] += int(count)
        raw = casts.cast(_keep(batch, failed >= 0), self._raw)
        order = pa.array(np.argsort(np.concatenate(rows)))
        added = [pa.array([label[part] for label in labels]).take(pa.array(kinds)) for part in (0, 1)]
        return pa.RecordBatch.from_arrays(
            [*raw.columns, *added, pa.concat_arrays(values).take(order)], schema=self._schema
        )


def _roles(job: JobSpec) -> dict[str, str]:
    """Every column that the job uses and what it uses it for. A key column that is also the time is a time."""
    features = job.features
    return {
        **dict.fromkeys(features.key, "key"),
        features.time: "time",
        **{name: column.type for name, column in features.columns.items()},
    }


def _types_in(schemas: Mapping[str, pa.Schema], column: str) -> dict[pa.DataType, str]:
    """Every type that the column has, with the first file in which it has it."""
    found: dict[pa.DataType, str] = {}
    for file, schema in schemas.items():
        if positions := schema.get_all_field_indices(column):
            found.setdefault(schema.field(positions[0]).type, file)
    return found


def _quarantine_schema(raw: pa.Schema) -> pa.Schema:
    taken, fields = {name.lower() for name in raw.names}, list(raw)
    for column in QUARANTINE_COLUMNS:
        name = column
        while name in taken:
            name = f"_{name}"
        taken.add(name)
        fields.append(pa.field(name, pa.string()))
    return pa.schema(fields)


def _checks(job: JobSpec, schema: pa.Schema, outside: Callable[[Any], Mask]) -> list[_Check]:
    """All checks but the repeated key, in order of precedence."""
    features = job.features
    checks = [_Check(f"null_key:{name}", "null_key", name, rules.missing) for name in features.key]
    checks.append(_Check("null_time", "null_time", features.time, rules.missing))
    if not job.filters_by_time:
        checks.append(_Check("outside_interval", "outside_interval", features.time, outside))
    for position, rule in enumerate(job.checks.rules):
        fails = rules.rule_check(rule, kind_of(schema.field(rule.column).type))
        checks.append(_Check(rule.code, f"checks.rules[{position}]", rule.column, fails, rule.action == "warn"))
    kinds = {name: kind_of(schema.field(name).type) for name in (*features.key, *features.columns)}
    checks += [_Check(f"not_text:{name}", "not_text", name, rules.not_text) for name in kinds if kinds[name] == "text"]
    checks += [
        _Check(f"not_finite:{name}", "not_finite", name, rules.not_finite)
        for name, column in features.columns.items()
        if column.type == "number" and kinds[name] == "float"
    ]
    return checks


def _keep(batch: pa.RecordBatch, wanted: Mask) -> pa.RecordBatch:
    return batch if wanted.all() else batch.filter(pa.array(wanted))
