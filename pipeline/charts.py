"""Small charts as inline SVG text, and the few ways in which pages write numbers and foreign text.

Pure text: colours come from the classes of the page's style, every chart says in words what it shows, and neither a name
out of the data nor a number that is not finite can break the markup.
"""

from __future__ import annotations

import math
import sys
import unicodedata
from dataclasses import dataclass
from html import escape
from itertools import groupby
from typing import TYPE_CHECKING, TypeGuard

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

DASH = "\N{EN DASH}"
# Width of one character of an 11 px sans-serif label: names are cut and labels left out by it.
_LETTER = 6.6
# Would turn the rest of a page's line around.
_BIDI = {chr(code) for code in (*range(0x202A, 0x202F), *range(0x2066, 0x206A))}


@dataclass(frozen=True, slots=True)
class Point:
    """One value of a course; ``at`` counts in any unit of time, ``low`` to ``high`` is the value's band."""

    at: float
    value: float | None
    low: float | None = None
    high: float | None = None
    marked: bool = False


@dataclass(frozen=True, slots=True)
class Course:
    """Points in the order of time; ``look`` is the class that the style draws the line by."""

    points: tuple[Point, ...]
    look: str = "now"
    dotted: bool = False


@dataclass(frozen=True, slots=True)
class _Scale:
    """Positions of values between two pixels; what lies outside is drawn on the edge."""

    low: float
    high: float
    start: float
    stop: float

    def at(self, value: float) -> float:
        # Halves: the difference of two large numbers may be infinite.
        span = self.high / 2 - self.low / 2
        ratio = (value / 2 - self.low / 2) / span if span > 0 else 0.5
        return self.start + (self.stop - self.start) * min(max(ratio, 0.0), 1.0)


def shown(text: str, most: int | None = None) -> str:
    """Foreign text for HTML and SVG: escaped, without control characters, cut to ``most`` characters."""
    # ASCII that can be printed needs no look at each letter.
    clean = text if text.isascii() and text.isprintable() else "".join(_visible(letter) for letter in text)
    if most is not None and len(clean) > most:
        clean = clean[: most - 1].rstrip() + "\N{HORIZONTAL ELLIPSIS}"
    return escape(clean)


def _visible(letter: str) -> str:
    if letter in "\n\t\r":
        return " "
    return "\N{REPLACEMENT CHARACTER}" if letter in _BIDI or unicodedata.category(letter) in ("Cc", "Cs") else letter


def number(value: float | None, digits: int = 4) -> str:
    """A number with so many significant digits; a dash where there is none."""
    if value is None or math.isnan(value):
        return DASH
    if math.isinf(value):
        return "\N{INFINITY}" if value > 0 else "-\N{INFINITY}"
    return f"{value:.{digits}g}"


def percent(share: float | None) -> str:
    """A share of rows in percent, where a few rows never read as none."""
    if share is None or not math.isfinite(100 * share):
        return DASH
    if 0 < share < 0.001:
        return "<0.1 %"
    return f"{100 * share:.1f}".removesuffix(".0") + " %"


def whisker(
    value: float | None,
    low: float | None,
    high: float | None,
    threshold: float | None,
    label: str,
    *,
    domain: tuple[float, float] | None = None,
    is_bad: bool = False,
    is_row: bool = False,
) -> str:
    """A dot with its interval on a line, and the threshold across it; ``domain`` is what the line spans, else from zero.

    In a row of many the line is not labelled.
    """
    width = 180 if is_row else 320
    known = finite([value, low, high, threshold])
    first, last = domain or (0.0, _top(known, 1.12))
    scale, middle = _Scale(first, last, 6, width - 6), 13.0
    parts = [_line(6, middle, width - 6, middle, "axis")]
    if _is_known(threshold):
        x = scale.at(threshold)
        parts.append(_line(x, middle - 11, x, middle + 11, "limit"))
    if _is_known(low) and _is_known(high):
        left, right = scale.at(low), scale.at(high)
        parts.append(_line(left, middle, right, middle, "span"))
        parts += [_line(x, middle - 4, x, middle + 4, "end") for x in (left, right)]
    if _is_known(value):
        parts.append(_mark(scale.at(value), middle, 5, is_bad))
    if not is_row:
        parts += [_text(6, 37, number(first, 2), "start"), _text(width - 6, 37, number(last, 2), "end")]
        if _is_known(threshold):
            told = f"threshold {number(threshold, 3)}"
            # Between the numbers at both ends.
            room = _LETTER * len(told) / 2 + 30
            parts.append(_text(min(max(scale.at(threshold), room), width - room), 37, told, "middle"))
    return _svg(width, 26 if is_row else 40, parts, label, "row" if is_row else "chart")


def sparkline(course: Course, threshold: float | None, label: str) -> str:
    """A course in the height of a table's row: line, threshold, diamonds where it was marked, a dot at the present."""
    width, height = 100, 26
    known = finite([*(point.value for point in course.points), threshold])
    times = _times([course], 5, width - 6)
    levels = _Scale(0.0, _top(known, 1.05), height - 4, 4)
    parts = [_limit_line(levels, threshold, 2, width - 2), _course(course, times, levels, 2.6)]
    return _svg(width, height, parts, label, "spark")


def timeline(
    courses: Sequence[Course],
    threshold: float | None,
    ends: tuple[str, str],
    label: str,
    *,
    from_zero: bool = False,
    limit_name: str = "threshold",
    is_large: bool = False,
) -> str:
    """Courses over time with bands, the threshold as a dashed line, and the first and the last date below.

    A point without a value interrupts its line.
    """
    width, height = (480, 170) if is_large else (320, 118)
    points = [point for course in courses for point in course.points]
    known = finite([threshold, *(value for p in points for value in (p.value, p.low, p.high))])
    ticks = _ticks(0.0 if from_zero else min(known, default=0.0), max(known, default=1.0))
    left, bottom = 12 + _LETTER * max(len(number(tick, 3)) for tick in ticks), height - 18
    times = _times(courses, left + 6, width - 8)
    levels = _Scale(ticks[0], ticks[-1], bottom, 8)
    parts = [_line(left, levels.at(tick), width, levels.at(tick), "grid") for tick in ticks]
    parts += [_text(left - 5, levels.at(tick) + 4, number(tick, 3), "end") for tick in ticks]
    parts += [_band(course, times, levels) for course in courses]
    parts.append(_limit_line(levels, threshold, left, width))
    parts += [_course(course, times, levels, 4) for course in courses]
    if _is_known(threshold):
        y = levels.at(threshold)
        parts.append(
            _text(left + 4, y + 12 if y < 20 else y - 4, f"{limit_name} {number(threshold, 3)}", "start", "halo")
        )
    first, last = ends
    if first != last:
        parts.append(_text(left, height - 3, first, "start"))
    parts.append(_text(width - 1, height - 3, last, "end"))
    return _svg(width, height, parts, label, "chart large" if is_large else "chart")


def histogram(labels: Sequence[str], reference: Sequence[float], current: Sequence[float], label: str) -> str:
    """Paired bars of the shares of bins: the reference as an outline, the current window filled inside it."""
    width, bottom, left = 320, 104, 46.0
    top = _top(finite([*reference, *current]))
    levels, slot = _Scale(0.0, top, bottom, 12), (width - left) / max(len(labels), 1)
    gap = min(2.0, slot / 6)
    parts = [_line(left, levels.at(share), width, levels.at(share), "grid") for share in (top / 2, top)]
    parts += [_text(left - 5, levels.at(share) + 4, percent(share), "end") for share in (0.0, top)]
    for index, (name, then, now) in enumerate(zip(labels, reference, current, strict=True)):
        x = left + index * slot
        outline = _rect(x + gap / 2, levels.at(level(then)), slot - gap, bottom - levels.at(level(then)), "then")
        inner = slot / 5
        filled = _rect(x + inner, levels.at(level(now)), slot - 2 * inner, bottom - levels.at(level(now)), "now")
        parts.append(f"<g>{_shares(name, then, now)}{outline}{filled}</g>")
    parts += [_line(left, bottom, width, bottom, "axis"), *_bin_labels(labels, left, slot, bottom + 14)]
    return _svg(width, bottom + 20, parts, label)


def paired_rows(
    labels: Sequence[str], reference: Sequence[float], current: Sequence[float], label: str, most: int = 10
) -> str:
    """Paired bars of the shares of categories, one row each with both shares; the rarest are told as one row."""
    rows = list(zip(labels, reference, current, strict=True))
    if len(rows) > most:
        rank = sorted(range(len(rows)), key=lambda i: -max(level(rows[i][1]), level(rows[i][2])))
        kept, rest = sorted(rank[: most - 1]), rank[most - 1 :]
        others = (f"{len(rest)} others", sum(level(rows[i][1]) for i in rest), sum(level(rows[i][2]) for i in rest))
        rows = [*(rows[i] for i in kept), others]
    width, left, right, step = 320, 102.0, 212.0, 20
    top = _top(finite([share for row in rows for share in row[1:]]))
    scale, parts = _Scale(0.0, top, left, right), []
    for index, (name, then, now) in enumerate(rows):
        y = 2.0 + index * step
        parts.append(f"<g>{_shares(name, then, now)}")
        parts.append(_name(left - 6, y + 12, name, 14))
        parts.append(_rect(left, y, scale.at(level(then)) - left, 16, "then"))
        parts.append(_rect(left, y + 4, scale.at(level(now)) - left, 8, "now"))
        parts.append(_text(width - 1, y + 12, f"{percent(then)} \N{RIGHTWARDS ARROW} {percent(now)}", "end") + "</g>")
    return _svg(width, 2 + step * max(len(rows), 1), parts, label)


def ranked(rows: Sequence[tuple[str, float]], label: str) -> str:
    """One bar per name with its value, in the order given."""
    width, left, right, step = 320, 128.0, 268.0, 20
    scale, parts = _Scale(0.0, _top(finite(value for _, value in rows)), left, right), []
    for index, (name, value) in enumerate(rows):
        y = 2.0 + index * step
        parts.append(f"<g><title>{shown(name, 60)}: {number(value, 3)}</title>" + _name(left - 6, y + 12, name, 19))
        parts.append(_rect(left, y + 3, scale.at(level(value)) - left, 10, "now"))
        parts.append(_text(width - 1, y + 12, number(value, 2), "end") + "</g>")
    return _svg(width, 2 + step * max(len(rows), 1), parts, label)


def finite(values: Iterable[float | None]) -> list[float]:
    """Those of the values that can be drawn: known, and finite."""
    return [value for value in values if _is_known(value)]


def level(value: float | None) -> float:
    """The value itself where it can be drawn and ranked, else zero."""
    return value if _is_known(value) else 0.0


def _is_known(value: float | None) -> TypeGuard[float]:
    return value is not None and math.isfinite(value)


def _top(values: Sequence[float], room: float = 1.0) -> float:
    """Where an axis from zero ends: above all values; at 1 when there is none above zero."""
    highest = max(values, default=0.0)
    return min(room * highest, sys.float_info.max) if highest > 0 else 1.0


def _times(courses: Sequence[Course], start: float, stop: float) -> _Scale:
    at = [point.at for course in courses for point in course.points]
    first, last = min(at, default=0.0), max(at, default=0.0)
    # A single instant is the present, and that is drawn on the right.
    return _Scale(first, last, start, stop) if last > first else _Scale(first - 1, first, start, stop)


def _ticks(low: float, high: float) -> list[float]:
    """Three to six round numbers that enclose both."""
    if not high > low:
        low, high = low - (abs(low) / 2 or 0.5), high + (abs(high) / 2 or 0.5)
    rough = max(high / 3 - low / 3, sys.float_info.min)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next((factor * power for factor in (1, 2, 2.5, 5) if factor * power >= rough), 10 * power)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [index * step for index in range(first, last + 1)]


def _course(course: Course, times: _Scale, levels: _Scale, radius: float) -> str:
    places = [
        (times.at(point.at), levels.at(point.value)) if _is_known(point.value) else None for point in course.points
    ]
    lines, marks = [], []
    for _, run in groupby(places, key=lambda place: place is None):
        held = [place for place in run if place is not None]
        if len(held) > 1:
            lines.append(f'<polyline points="{_path(held)}"/>')
    around = [None, *places, None]
    for index, (point, place) in enumerate(zip(course.points, places, strict=True)):
        if place is None:
            continue
        is_latest, is_alone = index == len(places) - 1, around[index] is None and around[index + 2] is None
        if point.marked or is_latest:
            marks.append(_mark(*place, radius if is_latest else radius * 0.8, point.marked))
        elif course.dotted or is_alone:
            marks.append(_dot(*place, radius / 2))
    return f'<g class="course {course.look}">{"".join(lines)}{"".join(marks)}</g>'


def _band(course: Course, times: _Scale, levels: _Scale) -> str:
    held = [
        (times.at(p.at), levels.at(p.low), levels.at(p.high))
        for p in course.points
        if _is_known(p.value) and _is_known(p.low) and _is_known(p.high)
    ]
    if len(held) == 1:
        x, low, high = held[0]
        return _line(x, low, x, high, f"reach {course.look}")
    outline = [(x, high) for x, _, high in held] + [(x, low) for x, low, _ in reversed(held)]
    return f'<polygon class="band {course.look}" points="{_path(outline)}"/>' if held else ""


def _limit_line(levels: _Scale, threshold: float | None, left: float, right: float) -> str:
    if not _is_known(threshold):
        return ""
    y = levels.at(threshold)
    return _line(left, y, right, y, "limit")


def _shares(name: str, then: float, now: float) -> str:
    return f"<title>{shown(name, 60)}: {shown(percent(then))} then, {shown(percent(now))} now</title>"


def _bin_labels(labels: Sequence[str], left: float, slot: float, y: float) -> list[str]:
    """The first and the last label, and the middle one if there is room between them."""
    parts: list[str] = []
    start, stop, last = left, left + slot * len(labels), len(labels) - 1
    for index in dict.fromkeys((0, last, last // 2)) if labels else ():
        name = labels[index] if len(labels[index]) <= 14 else labels[index][:13] + "\N{HORIZONTAL ELLIPSIS}"
        half, middle = _LETTER * len(name) / 2, left + (index + 0.5) * slot
        if index in (0, last):
            middle = min(max(middle, left + half), left + slot * len(labels) - half)
        if middle - half < start - 1 or middle + half > stop + 1:
            continue
        parts.append(_text(middle, y, name, "middle"))
        start, stop = (start, middle - half - 8) if index == last and index else (middle + half + 8, stop)
    return parts


def _mark(x: float, y: float, radius: float, is_bad: bool) -> str:
    """A diamond for what is bad, a dot otherwise: told apart without colour."""
    if not is_bad:
        return _dot(x, y, radius)
    r = radius * 1.25
    return f'<path class="bad" d="M{x:.1f} {y - r:.1f}l{r:.1f} {r:.1f}-{r:.1f} {r:.1f}-{r:.1f}-{r:.1f}z"/>'


def _dot(x: float, y: float, radius: float) -> str:
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}"/>'


def _line(x1: float, y1: float, x2: float, y2: float, look: str) -> str:
    return f'<line class="{look}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _rect(x: float, y: float, width: float, height: float, look: str) -> str:
    return (
        f'<rect class="{look}" x="{x:.1f}" y="{y:.1f}" width="{max(width, 0.0):.1f}" height="{max(height, 0.0):.1f}"/>'
    )


def _text(x: float, y: float, text: str, anchor: str, look: str = "") -> str:
    named = f' class="{look}"' if look else ""
    return f'<text{named} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{shown(text)}</text>'


def _name(x: float, y: float, name: str, most: int) -> str:
    return f'<text class="label" x="{x:.1f}" y="{y:.1f}" text-anchor="end">{shown(name, most)}</text>'


def _path(points: Iterable[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)


def _svg(width: int, height: float, parts: Iterable[str], label: str, look: str = "chart") -> str:
    return (
        f'<svg class="{look}" viewBox="0 0 {width} {height:.0f}" width="{width}" height="{height:.0f}" role="img" '
        f'aria-label="{shown(label)}">{"".join(parts)}</svg>'
    )
