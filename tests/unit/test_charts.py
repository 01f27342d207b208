"""Charts: well-formed for whatever numbers and names come, told in words, and drawn where the numbers say."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

import pytest

from pipeline.charts import (
    Course,
    Point,
    histogram,
    number,
    paired_rows,
    percent,
    ranked,
    shown,
    sparkline,
    timeline,
    whisker,
)

if TYPE_CHECKING:
    from collections.abc import Callable

HOSTILE = '</text></svg><script>alert(\'x\')</script>" onload="y" \N{RIGHT-TO-LEFT OVERRIDE}\x00]]>'
NUMBERS = [0.0, -0.0, 1.0, -3.5, 1e-320, 1e308, -1e308, math.inf, -math.inf, math.nan, None]
ENDS = ("2026-03-01", "2026-04-30")


def course(*values: float | None, marked: tuple[int, ...] = ()) -> Course:
    return Course(tuple(Point(float(at), value, marked=at in marked) for at, value in enumerate(values)))


def banded(value: float | None) -> Course:
    return Course((Point(0.0, value, value, value), Point(1.0, 0.5, 0.4, value), Point(2.0, value, None, 1.0)))


# Each draws one number wherever a number goes, and one text wherever a text goes.
EVERY_CHART: list[Callable[[float | None, str], str]] = [
    lambda n, text: whisker(n, n, n, n, text),
    lambda n, text: whisker(0.3, 0.2, n, n, text, domain=(0.5, 1.0), is_bad=True),
    lambda n, text: whisker(n, 0.2, 0.4, 0.1, text, is_row=True),
    lambda n, text: sparkline(course(n), n, text),
    lambda n, text: sparkline(course(0.1, n, 0.2, n, marked=(1, 2)), 0.1, text),
    lambda n, text: timeline([banded(n), course(n, 0.2)], n, ENDS, text),
    lambda n, text: timeline([course(0.1, n, 0.2)], 0.1, (text, text), text, from_zero=True, is_large=True),
    lambda n, text: histogram([text, "b", "c"], [0.5, n or 0.0, 0.0], [n or 0.0, 0.1, 0.2], text),
    lambda n, text: paired_rows([text, *"bcdefghijklm"], [n or 0.0] * 13, [0.1] * 13, text),
    lambda n, text: ranked([(text, n or 0.0), ("b", 0.1)], text),
]


@pytest.mark.parametrize("value", NUMBERS)
@pytest.mark.parametrize("draw", EVERY_CHART)
def test_a_chart_is_well_formed_and_inside_its_frame_for_every_number(
    draw: Callable[[float | None, str], str], value: float | None
) -> None:
    text = draw(value, "plain")
    root = ET.fromstring(text)
    assert not re.search(r"\bnan\b|NaN|\binf\b|None", text)
    width, height = (float(part) for part in root.attrib["viewBox"].split()[2:])
    for element in root.iter():
        for name, most in {"x": width, "cx": width, "x1": width, "x2": width, "y": height, "cy": height}.items():
            assert -1 <= float(element.get(name, 0)) <= most + 1


@pytest.mark.parametrize("draw", EVERY_CHART)
def test_a_hostile_name_stays_text(draw: Callable[[float | None, str], str]) -> None:
    root = ET.fromstring(draw(0.2, HOSTILE))
    tags = {element.tag for element in root.iter()}
    assert tags <= {"svg", "g", "title", "text", "line", "rect", "circle", "path", "polyline", "polygon"}
    assert not any(name.startswith("on") for element in root.iter() for name in element.attrib)


@pytest.mark.parametrize("draw", EVERY_CHART)
def test_a_chart_is_an_image_with_a_label(draw: Callable[[float | None, str], str]) -> None:
    root = ET.fromstring(draw(0.2, "effect of temp"))
    assert (root.attrib["role"], root.attrib["aria-label"]) == ("img", "effect of temp")


@pytest.mark.parametrize(
    ("text", "most", "expected"),
    [
        ("plain", None, "plain"),
        ("<b> & \"'", None, "&lt;b&gt; &amp; &quot;&#x27;"),
        ("abcdef", 4, "abc\N{HORIZONTAL ELLIPSIS}"),
        ("abcd", 4, "abcd"),
        ("&&&&&&", 3, "&amp;&amp;\N{HORIZONTAL ELLIPSIS}"),
        ("a\nb\x00\ud800\N{LEFT-TO-RIGHT ISOLATE}c", None, "a b" + 3 * "\N{REPLACEMENT CHARACTER}" + "c"),
        ("größer \N{SNOWMAN}", None, "größer \N{SNOWMAN}"),
    ],
)
def test_text_is_escaped_after_it_is_cut_and_shows_no_control_character(
    text: str, most: int | None, expected: str
) -> None:
    assert shown(text, most) == expected
    shown(text).encode()


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.123456, "0.1235"),
        (0.0, "0"),
        (1e-9, "1e-09"),
        (None, "\N{EN DASH}"),
        (math.nan, "\N{EN DASH}"),
        (-math.inf, "-\N{INFINITY}"),
    ],
)
def test_numbers_have_four_digits_and_unknown_ones_a_dash(value: float | None, expected: str) -> None:
    assert number(value) == expected


@pytest.mark.parametrize(
    ("share", "expected"),
    [
        (0.0, "0 %"),
        (0.0004, "<0.1 %"),
        (0.123, "12.3 %"),
        (1.0, "100 %"),
        (None, "\N{EN DASH}"),
        (math.nan, "\N{EN DASH}"),
    ],
)
def test_a_share_of_a_few_rows_never_reads_as_none(share: float | None, expected: str) -> None:
    assert percent(share) == expected


def places(text: str, tag: str, attribute: str, look: str | None = None) -> list[float]:
    found = [e for e in ET.fromstring(text).iter(tag) if look is None or e.get("class") == look]
    return [float(element.attrib[attribute]) for element in found]


def test_the_dot_lies_between_its_whiskers_and_right_of_the_threshold_that_it_exceeds() -> None:
    text = whisker(0.3, 0.2, 0.4, 0.1, "effect")
    (dot,), (threshold,) = places(text, "circle", "cx"), places(text, "line", "x1", "limit")
    (low,), (high,) = places(text, "line", "x1", "span"), places(text, "line", "x2", "span")
    assert threshold < low < dot < high
    assert dot - low == pytest.approx(high - dot, abs=0.2)


def test_rows_with_one_domain_can_be_compared() -> None:
    first, second = (whisker(v, None, None, 0.5, "slice", domain=(0.0, 1.0), is_row=True) for v in (0.2, 0.8))
    assert places(first, "line", "x1", "limit") == places(second, "line", "x1", "limit")
    assert places(first, "circle", "cx") < places(second, "circle", "cx")


def test_what_is_bad_has_another_shape() -> None:
    assert "<circle" in whisker(0.3, None, None, 0.1, "effect")
    assert "<circle" not in whisker(0.3, None, None, 0.1, "effect", is_bad=True)
    assert 'class="bad"' in whisker(0.3, None, None, 0.1, "effect", is_bad=True)


def test_a_sparkline_of_one_point_is_one_dot_at_the_present() -> None:
    text = sparkline(course(0.2), 0.1, "effect")
    assert "<polyline" not in text
    assert places(text, "circle", "cx") == [94.0]


def test_a_course_marks_the_points_that_are_marked_and_always_shows_the_present() -> None:
    text = sparkline(course(0.1, 0.3, 0.1, 0.4, 0.1, marked=(1, 3)), 0.2, "effect")
    assert text.count('class="bad"') == 2
    assert places(text, "circle", "cx") == [94.0]


def test_a_point_without_a_value_interrupts_its_line() -> None:
    lines = ET.fromstring(sparkline(course(0.1, 0.2, None, 0.3, 0.2), 0.1, "effect")).iter("polyline")
    assert [len(line.attrib["points"].split()) for line in lines] == [2, 2]


def test_points_lie_where_their_time_is_so_that_a_missing_interval_is_seen() -> None:
    gap = Course(tuple(Point(at, 0.1) for at in (0.0, 1.0, 4.0)))
    (line,) = ET.fromstring(sparkline(gap, None, "effect")).iter("polyline")
    first, second, third = (float(point.split(",")[0]) for point in line.attrib["points"].split())
    assert third - second == pytest.approx(3 * (second - first), abs=0.3)


def test_courses_and_threshold_of_one_timeline_share_their_scale() -> None:
    text = timeline([course(0.7, 0.7), Course((Point(0.0, 0.7), Point(1.0, 0.8)), "truth")], 0.7, ENDS, "roc_auc")
    (threshold,) = places(text, "line", "y1", "limit")
    heights = [p.split(",")[1] for e in ET.fromstring(text).iter("polyline") for p in e.attrib["points"].split()]
    assert [float(height) for height in heights[:3]] == [threshold] * 3
    assert float(heights[3]) < threshold


def test_a_timeline_names_its_ends_its_ticks_and_its_limit() -> None:
    told = [
        e.text for e in ET.fromstring(timeline([course(0.7, 0.8)], 0.65, ENDS, "x", limit_name="limit")).iter("text")
    ]
    assert told == ["0.65", "0.7", "0.75", "0.8", "limit 0.65", *ENDS]


def test_bars_are_as_high_as_their_shares() -> None:
    text = histogram(["a", "b"], [0.5, 0.5], [0.25, 0.75], "x")
    then, now = (places(text, "rect", "height", look) for look in ("then", "now"))
    assert then[0] == then[1]
    assert now[1] == pytest.approx(3 * now[0], abs=0.2)


def test_categories_beyond_the_most_frequent_are_told_as_one_row() -> None:
    shares = [0.3, 0.2, *[0.05] * 10]
    text = paired_rows([f"c{i}" for i in range(12)], shares, shares, "x", most=4)
    told = [e.text for e in ET.fromstring(text).iter("text")]
    assert told[::2] == ["c0", "c1", "c2", "9 others"]
    assert told[-1] == "45 % \N{RIGHTWARDS ARROW} 45 %"


def test_a_category_that_is_new_is_kept_among_the_most_frequent() -> None:
    text = paired_rows(["a", "b", "c", "new"], [0.6, 0.3, 0.1, 0.0], [0.2, 0.1, 0.1, 0.6], "x", most=3)
    assert [e.text for e in ET.fromstring(text).iter("text")][::2] == ["a", "new", "2 others"]
