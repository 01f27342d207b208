"""The outcome of expectations: as records, and as the Data Docs page that shows them."""

from __future__ import annotations

import json
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any

from pipeline import pages
from pipeline.expectations.library import flat
from pipeline.markup import harmless
from pipeline.reports import ExpectationResult

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pipeline.expectations.questions import Question
    from pipeline.intervals import Interval
    from pipeline.job import JobSpec

# Sections of pages: an hourly job shows the same of most columns in every interval.
_REMEMBERED = 1024
# Great Expectations draws its marks with an icon font from the network.
_STYLE = """<style>
h5, h6 { font-size: 1.05rem; margin: 1.4rem 0 .2rem; } table { margin-bottom: .6rem; } thead[hidden] { display: none; }
i.fas { font-style: normal; font-weight: 700; } i.text-success { color: var(--ok); } i.text-danger { color: var(--bad); }
i.text-warning { color: var(--dim); } i.fa-check-circle::before { content: "\\2713 pass"; }
i.fa-times::before { content: "\\2717 fail"; } i.fa-exclamation-triangle::before { content: "\\26A0 fail"; }
.badge { font-family: ui-monospace, monospace; } .show-scrollbars { overflow-x: auto; }
</style>"""


def result(question: Question, answer: Any, note: str = "") -> ExpectationResult:
    """The record of a question's answer: Great Expectations' result, or the reason (a text) why there is none."""
    observed = answer if isinstance(answer, str) else _observed(answer.result)
    return ExpectationResult(
        type=question.type,
        column=", ".join(question.columns) or None,
        success=not isinstance(answer, str) and bool(answer.success),
        blocking=question.blocking,
        observed=observed + note,
    )


def _observed(found: Mapping[str, Any]) -> str:
    if (value := found.get("observed_value")) is not None:
        return flat(f"{value:.6g}" if isinstance(value, float) else str(value))
    if "unexpected_count" not in found:
        return "no value" if "observed_value" in found else ""
    rows, examples = found.get("element_count"), found.get("partial_unexpected_list") or []
    text = f"{found['unexpected_count']:,} " + ("unexpected" if rows is None else f"of {rows:,} rows unexpected")
    return flat(": ".join(part for part in (text, ", ".join(str(value) for value in examples[:5])) if part))


def page(
    job: JobSpec,
    interval: Interval,
    results: Sequence[ExpectationResult],
    answers: Sequence[Any],
    rows_in: int,
    reasons: Mapping[str, int],
) -> str:
    """The page as HTML; it needs no network, and equal arguments give an equal page."""
    from great_expectations.core import ExpectationSuiteValidationResult
    from great_expectations.render.renderer.page_renderer import ValidationResultsPageRenderer

    failed = [result for result in results if not result.success]
    blocked = sum(result.blocking for result in failed)
    judged = [answer for answer in answers if not isinstance(answer, str)]
    silent = [(r.type, r.column, r.observed) for r, a in zip(results, answers, strict=True) if isinstance(a, str)]
    document = ValidationResultsPageRenderer().render(
        ExpectationSuiteValidationResult(
            success=not blocked, results=judged, suite_name=job.name, statistics={}, meta={}
        )
    )
    # The first section is an overview with links into a site that does not exist here. The others show values of the
    # data, and names, unescaped.
    sections = [
        _section(section.to_json_dict(), number) for number, section in enumerate(document.sections[1:], start=1)
    ]
    lead = f"{len(results)} expectations, {len(failed)} not met, {blocked} of them blocking; {rows_in:,} rows in."
    tables = [
        pages.table(header, rows)
        for header, rows in (
            (("Quarantined for", "Rows"), sorted(reasons.items())),
            (("Not judged", "Column", "Why"), silent),
        )
        if rows
    ]
    return pages.page(f"Validation of {job.name} {interval}", lead, [_STYLE, *tables, *sections])


def _section(content: Mapping[str, Any], number: int) -> str:
    """One column's verdicts; most columns have those of the interval before."""
    try:
        return _known_section(json.dumps(content), number)
    except TypeError:  # values that JSON has no form for
        return _drawn(content, number)


@lru_cache(maxsize=_REMEMBERED)
def _known_section(content: str, number: int) -> str:
    return _drawn(json.loads(content), number)


def _drawn(content: Mapping[str, Any], number: int) -> str:
    return harmless(_view().render({"section": content, "section_loop": {"index": number}}))


@cache
def _view() -> Any:
    """The renderer of one Data Docs section; holds compiled templates only."""
    from great_expectations.render.view import view
    from jinja2 import ChoiceLoader, DictLoader

    sections = view.DefaultJinjaSectionView()
    # A graph is drawn by a script from the network.
    sections.env.loader = ChoiceLoader([DictLoader({"graph.j2": ""}), sections.env.loader])
    return sections
