"""What the accepted rows of one partition say about its expectations; collected as they pass, in bounded memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from pipeline.expectations import library
from pipeline.expectations.collectors import Tally, Unanswerable
from pipeline.expectations.judges import Judge, judge
from pipeline.expectations.questions import ABOUT_NULLS, Question, contract_of_columns, declared
from pipeline.expectations.totals import Facts, nothing

if TYPE_CHECKING:
    from pipeline.aggregates import MakeRoll
    from pipeline.expectations.collectors import Collector
    from pipeline.job import JobSpec

    Answer = Any  # Great Expectations' result, or the reason (a text) why there is none.

# Rows that are looked at together.
_PIECE = 131_072
# A partition of so many rows is asked about as one frame: cheaper than collecting for every expectation.
_SMALL = 20_000


class Evidence:
    """Sees every accepted row once, in the columns that the job's expectations need; then answers them.

    A partition of at most 20,000 rows, and what cannot be collected in one of at most 131,072, is given to Great Expectations
    as one frame. Of others it gets metrics of all rows. Raises `InvalidJob` for an expectation that cannot be asked.
    """

    def __init__(
        self,
        job: JobSpec,
        schema: pa.Schema,
        roll: MakeRoll,
        *,
        piece_rows: int = _PIECE,
        frame_rows: int = _SMALL,
    ) -> None:
        self._piece_rows, self._frame_rows = piece_rows, frame_rows
        self.names: list[str] = schema.names
        self._schema = schema
        with library.quiet():
            self._declared = declared(job)
            self._contract = contract_of_columns(job, schema.names)
            self._prepare(roll)
        self._held: list[pa.RecordBatch] = []
        self._waiting = 0
        self._passed = False
        self._missing: set[str] = set()

    @property
    def rows(self) -> int:
        """How many rows were seen."""
        return self._tallies[None].rows

    @property
    def needs_sample(self) -> bool:
        """Whether some expectation can only be asked of a sample, when there are many rows."""
        return len(self._judges) < sum(not self._of_schema(question) for question in self._declared)

    def add(self, batch: pa.RecordBatch) -> None:
        """Look at the next rows; all batches have the columns of the schema, dictionaries aside."""
        whole = self._tallies[None]
        before = dict(whole.nulls)
        whole.add(batch)
        self._missing |= {name for name, count in whole.nulls.items() if count > before.get(name, 0)}
        if not self._needed:
            return
        self._held.append(batch.select(self._needed))
        self._waiting += batch.num_rows
        if self._waiting >= self._piece_rows:
            with library.quiet():
                self._collect()

    def answers(self, rows_in: int, sample: pa.Table | None) -> list[tuple[Question, Answer, str]]:
        """Every question about columns and of the job, its answer, and what to add to what was observed."""
        found: list[tuple[Question, Answer, str]] = []
        if self.rows:
            # Whether no rows at all are acceptable is what the row count decides.
            found = [(question, self._of_column(question), "") for question in self._contract]
        table = None if self._passed else self._table()
        if self._waiting > self._frame_rows or (self._passed and self._waiting):
            self._collect()
        answers = [self._quick(question, rows_in) for question in self._declared]
        open_frame = [p for p, answer in enumerate(answers) if answer is None and self._whole(p, table)]
        for position, answer in zip(open_frame, self._asked(open_frame, table), strict=True):
            answers[position] = answer
        for position, answer in enumerate(answers):
            if answer is None and position in self._judges:
                answers[position] = self._judged(position)
        last = [position for position, answer in enumerate(answers) if answer is None]
        for position, answer in zip(last, self._asked(last, sample), strict=True):
            answers[position] = answer
        note = f" (sample of {sample.num_rows:,} of {self.rows:,} rows)" if sample is not None else ""
        notes = [note if position in last else "" for position in range(len(answers))]
        return found + list(zip(self._declared, answers, notes, strict=True))

    def _prepare(self, roll: MakeRoll) -> None:
        """Decide how every expectation is judged, and what has to be collected for that."""
        self._judges: dict[int, Judge] = {}
        # By condition and name: questions about the same rows of a column share what is collected.
        self._collectors: dict[tuple[Any, ...], Collector] = {}
        self._tallies: dict[str | None, Tally] = {None: Tally()}
        self._failed: dict[tuple[Any, ...], str] = {}
        columns = {name for question in self._contract for name in question.columns}
        for position, question in enumerate(self._declared):
            if self._of_schema(question) or (found := judge(question, self._schema, roll)) is None:
                continue
            self._judges[position] = found
            tally = self._tallies.setdefault(question.condition, Tally())
            tally.kinds |= {name: self._schema.field(name).type for name in question.columns}
            if found.collector is not None:
                self._collectors.setdefault((question.condition, *found.name), found.collector)
        for question in self._declared:
            columns |= {name for name in question.columns if name in self.names}
        self._tallies[None].kinds |= {name: self._schema.field(name).type for name in columns}
        self._needed = self._columns()

    def _columns(self) -> list[str]:
        """The columns that are held until they are looked at: those of the job's own expectations."""
        wanted: set[str] = set()
        for question in self._declared:
            wanted |= set(question.columns)
            in_condition = question.condition_columns(self._schema)
            # Nobody knows which columns a condition needs that is not understood.
            wanted |= set(self.names) if in_condition is None else in_condition
        return [name for name in self.names if name in wanted]

    def _of_schema(self, question: Question) -> bool:
        return question.type.startswith("expect_table_") or question.type == "expect_column_to_exist"

    def _table(self) -> pa.Table:
        schema = pa.schema([self._schema.field(name) for name in self._needed])
        return _together(self._held) if self._held else schema.empty_table()

    def _collect(self) -> None:
        """Let all collectors look at the rows that are held."""
        table, self._held, self._waiting, self._passed = _together(self._held), [], 0, True
        domains: dict[str | None, pa.Table] = {None: table}
        first = {question.condition: question for question in self._declared}
        for condition, tally in self._tallies.items():
            if condition is None:
                continue
            question = first[condition]
            try:
                domains[condition] = self._under(question, table)
                tally.add(domains[condition])
            except Exception as err:
                # Whatever the condition does with these rows is the answer.
                for position, one in enumerate(self._declared):
                    if one.condition == condition and position in self._judges:
                        self._failed.setdefault(self._key(position), self._failure(position, table, err))
        for key, collector in self._collectors.items():
            if key in self._failed or key[0] not in domains:
                continue
            try:
                collector.add(domains[key[0]], self._missing)
            except Unanswerable as why:
                self._failed[key] = str(why)
            except ValueError as err:
                position = next(p for p in self._judges if self._key(p) == key)
                self._failed[key] = self._failure(position, table, err)

    def _under(self, question: Question, table: pa.Table) -> pa.Table:
        columns = sorted(question.condition_columns(self._schema) or ())
        rows = library.frame(table.select(columns), [name for name in columns if name in self._missing])
        kept = pa.array(_flags(library.filtered(question.expectation, rows), table.num_rows))
        return table.filter(kept)

    def _failure(self, position: int, table: pa.Table, err: Exception) -> str:
        """Great Expectations' own words for what went wrong with these rows."""
        question = self._declared[position]
        (said,) = library.asked([question.expectation], library.frame(table))
        problem = library.exception(said.exception_info) or library.flat(str(err))
        return f"could not be evaluated: {problem}"

    def _key(self, position: int) -> tuple[Any, ...]:
        return (self._declared[position].condition, *self._judges[position].name)

    def _of_column(self, question: Question) -> Answer:
        (name,) = question.columns
        absent = self._tallies[None].nulls[name]
        kind = self._schema.field(name).type
        values = {
            "table.row_count": self.rows,
            "column.non_null_proportion": (self.rows - absent) / self.rows,
            "column_values.nonnull.unexpected_count": absent,
            "column_values.nonnull.unexpected_values": nothing(kind, min(absent, 20)) if absent else [],
        }
        return library.judged(question.expectation, values)

    def _quick(self, question: Question, rows_in: int) -> Answer | None:
        """The answer where no row has to be looked at; ``None`` where the rows must answer."""
        if library.counts_rows(question.type):
            return library.judged(question.expectation, {"table.row_count": rows_in})
        if self._of_schema(question):
            known = {"table.columns": self.names, "table.column_count": len(self.names)}
            return _verdict(question, known)
        if question.reads_values and set(question.columns) <= set(self.names):
            if not self.rows:
                return "nothing to check: no rows"
            nulls_of = self._tallies[None].nulls
            if question.type not in ABOUT_NULLS and any(nulls_of[name] == self.rows for name in question.columns):
                return "nothing to check: all values are null"
        return None

    def _whole(self, position: int, table: pa.Table | None) -> bool:
        """Whether the frame of all rows answers."""
        return table is not None and (not self._passed or position not in self._judges)

    def _asked(self, positions: list[int], table: pa.Table | None) -> list[Answer]:
        if table is None or not positions:
            return ["not judged: needs every row"] * len(positions)
        said = library.asked([self._declared[position].expectation for position in positions], library.frame(table))
        return [_vetted(self._declared[position], one) for position, one in zip(positions, said, strict=True)]

    def _judged(self, position: int) -> Answer:
        question, found = self._declared[position], self._judges[position]
        if (failure := self._failed.get(self._key(position))) is not None:
            return failure
        try:
            collected = self._collectors.get(self._key(position))
            facts = Facts(self._tallies[question.condition], self._missing)
            return _vetted(question, _verdict(question, found.metrics(collected, facts)))
        except Unanswerable as why:
            return str(why)
        except ValueError as err:
            return f"could not be evaluated: {library.flat(str(err))}"


def _verdict(question: Question, values: dict[str, Any]) -> Answer:
    try:
        return library.judged(question.expectation, values)
    except Exception as err:
        return f"could not be evaluated: {library.flat(str(err))}"


def _vetted(question: Question, answer: Answer) -> Answer:
    """The answer, or a reason where the expectation could not be evaluated, or held because no value was left to break it."""
    if isinstance(answer, str):
        return answer
    if problem := library.exception(answer.exception_info):
        return f"could not be evaluated: {problem}"
    rows, missing = answer.result.get("element_count"), answer.result.get("missing_count") or 0
    if rows is not None and rows == missing and question.type not in ABOUT_NULLS:
        return "nothing to check: no values under its condition"
    return answer


def _together(batches: list[pa.RecordBatch]) -> pa.Table:
    """One table; a column that is coded in some batches only is plain in all."""
    first = batches[0].schema
    if any(not batch.schema.equals(first) for batch in batches):
        return pa.concat_tables([_decoded(pa.Table.from_batches([batch])) for batch in batches])
    return pa.Table.from_batches(batches)


def _decoded(table: pa.Table) -> pa.Table:
    for position, kind in enumerate(table.schema.types):
        if pa.types.is_dictionary(kind):
            table = table.set_column(
                position, table.schema.names[position], table.column(position).cast(kind.value_type)
            )
    return table


def _flags(positions: Any, count: int) -> Any:
    kept = np.zeros(count, bool)
    kept[positions] = True
    return kept
