"""Intervals and their grid: half-open, UTC, without gaps or overlaps."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest

from pipeline.intervals import Cadence, Interval, format_instant, granule, mixes_intervals, parse_instant, partitions

CADENCES = ["1m", "5m", "15m", "30m", "60m", "1h", "6h", "12h", "24h", "1d", "1w", "1mo", "3mo", "12mo"]
EAST = timezone(timedelta(hours=2))
# A leap day, a leap year's end, a Monday, and an instant in the middle of nothing.
MOMENTS = [
    datetime(2024, 2, 29, 23, 59, 59, 999_999, UTC),
    datetime(2024, 12, 31, 12, tzinfo=UTC),
    datetime(2026, 6, 1, tzinfo=UTC),
    datetime(1969, 7, 20, 20, 17, 40, tzinfo=UTC),
]


def at(text: str) -> datetime:
    return parse_instant(text)


@pytest.mark.parametrize(
    ("text", "instant"),
    [
        ("2013-02-01", datetime(2013, 2, 1, tzinfo=UTC)),
        ("2013-02-01T06:00:00Z", datetime(2013, 2, 1, 6, tzinfo=UTC)),
        ("2013-02-01 06:00", datetime(2013, 2, 1, 6, tzinfo=UTC)),
        ("2013-02-01T06:00:00+02:00", datetime(2013, 2, 1, 4, tzinfo=UTC)),
    ],
)
def test_a_text_without_an_offset_is_utc(text, instant):
    assert parse_instant(text) == instant
    assert parse_instant(text).tzinfo is UTC


@pytest.mark.parametrize("text", ["", "soon", "2013-02-30", "1st of May"])
def test_a_text_that_is_no_instant_is_refused(text):
    with pytest.raises(ValueError, match=r"Invalid isoformat|day is out of range"):
        parse_instant(text)


@pytest.mark.parametrize("moment", MOMENTS)
def test_formatting_and_parsing_are_inverse(moment):
    assert parse_instant(format_instant(moment)) == moment
    assert format_instant(moment.astimezone(EAST)) == format_instant(moment)


def test_an_interval_is_written_half_open_and_sorts_by_its_start():
    first, second = Interval(at("2026-01-01"), at("2026-01-02")), Interval(at("2026-01-02"), at("2026-01-03"))
    assert str(first) == "[2026-01-01T00:00:00Z, 2026-01-02T00:00:00Z)"
    assert first < second


def test_an_empty_a_reversed_and_a_naive_interval_are_refused():
    for end in ("2026-01-01", "2025-12-31"):
        with pytest.raises(ValueError, match="must be after start"):
            Interval(at("2026-01-01"), at(end))
    with pytest.raises(ValueError, match="interval end 2026-01-02T00:00:00 has no time zone"):
        Interval(at("2026-01-01"), datetime(2026, 1, 2))


@pytest.mark.parametrize("text", CADENCES)
def test_a_cadence_reads_back_as_it_was_written(text):
    assert str(Cadence.parse(text)) == text


@pytest.mark.parametrize(
    "text", ["", "d", "0d", "2d", "7m", "7h", "48h", "2w", "5mo", "24mo", "1y", "1.5h", " 1d", "1D", "-1h"]
)
def test_a_cadence_that_cron_cannot_express_is_refused_with_what_is_allowed(text):
    with pytest.raises(ValueError, match="is not a cadence; use minutes dividing an hour"):
        Cadence.parse(text)


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("text", CADENCES)
def test_every_instant_lies_in_exactly_one_interval_of_the_grid(text, moment):
    cadence = Cadence.parse(text)
    below = cadence.floor(moment)
    above = cadence.next(below)
    assert below <= moment < above
    assert cadence.floor(below) == below
    assert cadence.floor(above) == above
    assert cadence.floor(above - timedelta(microseconds=1)) == below
    assert cadence.shift(above, -1) == below
    assert cadence.interval(below) == Interval(below, above)


@pytest.mark.parametrize("text", CADENCES)
@pytest.mark.parametrize("steps", [0, 1, 5, 40, -1, -40])
def test_shifting_there_and_back_is_the_identity(text, steps):
    cadence = Cadence.parse(text)
    line = cadence.floor(MOMENTS[0])
    there = cadence.shift(line, steps)
    assert cadence.shift(there, -steps) == line
    assert cadence.floor(there) == there


@pytest.mark.parametrize(
    ("text", "moment", "below"),
    [
        ("15m", "2026-01-01T10:44:59", "2026-01-01T10:30:00"),
        ("6h", "2026-01-01T17:59:59", "2026-01-01T12:00:00"),
        ("1d", "2026-01-01T23:59:59", "2026-01-01"),
        ("1w", "2026-01-04T23:00:00", "2025-12-29"),
        ("1mo", "2026-02-28T23:00:00", "2026-02-01"),
        ("3mo", "2026-06-30T23:00:00", "2026-04-01"),
    ],
)
def test_the_grid_line_below_is_found(text, moment, below):
    assert Cadence.parse(text).floor(at(moment)) == at(below)


def test_an_instant_in_another_zone_falls_on_the_utc_grid():
    assert Cadence.parse("1d").floor(datetime(2026, 1, 2, 1, tzinfo=EAST)) == at("2026-01-01")


def test_a_start_off_the_grid_is_refused_with_the_nearest_lines():
    with pytest.raises(
        ValueError, match="not on the 1d grid; the nearest starts are 2026-01-01T00:00:00Z and 2026-01-02"
    ):
        Cadence.parse("1d").interval(at("2026-01-01T06:00:00"))


@pytest.mark.parametrize(
    ("text", "span", "starts"),
    [
        ("1d", ("2026-01-01", "2026-01-03"), ["2026-01-01", "2026-01-02"]),
        ("1d", ("2026-01-01T00:00:01", "2026-01-03T23:00:00"), ["2026-01-02"]),
        ("1d", ("2026-01-01T06:00:00", "2026-01-01T18:00:00"), []),
        ("1mo", ("2025-12-15", "2026-02-15"), ["2026-01-01"]),
        ("1w", ("2026-01-01", "2026-01-20"), ["2026-01-05", "2026-01-12"]),
    ],
)
def test_a_span_is_split_into_the_whole_intervals_inside_it(text, span, starts):
    pieces = list(Cadence.parse(text).split(Interval(at(span[0]), at(span[1]))))
    assert [piece.start for piece in pieces] == [at(start) for start in starts]
    assert all(piece.end == Cadence.parse(text).next(piece.start) for piece in pieces)


@pytest.mark.parametrize("text", CADENCES)
def test_partition_names_of_neighbouring_intervals_differ(text):
    cadence = Cadence.parse(text)
    lines = [cadence.shift(cadence.floor(MOMENTS[0]), steps) for steps in range(100)]
    assert len({line.strftime(cadence.partition) for line in lines}) == 100


@pytest.mark.parametrize(
    ("text", "cron"),
    [
        ("15m", "*/15 * * * *"),
        ("1m", "* * * * *"),
        ("60m", "*/60 * * * *"),
        ("1h", "0 * * * *"),
        ("6h", "0 */6 * * *"),
        ("1d", "0 0 * * *"),
        ("1w", "0 0 * * 1"),
        ("1mo", "0 0 1 * *"),
        ("3mo", "0 0 1 */3 *"),
    ],
)
def test_the_cron_expression_fires_on_every_grid_line(text, cron):
    assert Cadence.parse(text).cron == cron


@pytest.mark.parametrize(
    ("template", "covered"),
    [
        ("ds=%Y-%m-%d/hm=%H%M", "1m"),
        ("ds=%Y-%m-%d/hr=%H", "1h"),
        ("ds=%Y-%m-%d", "1d"),
        ("%Y/%j", "1d"),
        ("month=%Y-%m", "1mo"),
        ("year=%Y", "12mo"),
    ],
)
def test_the_finest_directive_decides_what_a_folder_covers(template, covered):
    assert granule(template) == Cadence.parse(covered)


def test_a_template_without_time_covers_everything_in_one_folder():
    span = Interval(at("2026-01-01"), at("2026-01-03"))
    assert granule("region=eu") is None
    assert partitions("", span) == [""]
    assert partitions("region=eu", span) == ["region=eu"]


@pytest.mark.parametrize(
    ("template", "span", "names"),
    [
        ("ds=%Y-%m-%d", ("2026-01-31", "2026-02-02"), ["ds=2026-01-31", "ds=2026-02-01"]),
        ("ds=%Y-%m-%d", ("2026-01-31T06:00:00", "2026-01-31T07:00:00"), ["ds=2026-01-31"]),
        ("ds=%Y-%m-%d", ("2026-01-31T23:00:00", "2026-02-01T00:00:01"), ["ds=2026-01-31", "ds=2026-02-01"]),
        ("d=%d/hr=%H", ("2026-01-31T23:00:00", "2026-02-01T01:00:00"), ["d=31/hr=23", "d=01/hr=00"]),
        ("month=%Y-%m", ("2025-12-31", "2026-02-01"), ["month=2025-12", "month=2026-01"]),
    ],
)
def test_partitions_are_the_folders_that_overlap_a_span(template, span, names):
    assert partitions(template, Interval(at(span[0]), at(span[1]))) == names


@pytest.mark.parametrize(
    ("template", "alone", "mixed"),
    [
        ("", "", "15m 1h 1d 1w 1mo 12mo"),
        ("all", "", "1d 12mo"),
        ("ds=%Y-%m-%d/hm=%H%M", "1m 15m 60m 1d 1mo", ""),
        ("ds=%Y-%m-%d/hr=%H", "60m 1h 6h 1d 1w 1mo", "15m 30m"),
        ("ds=%Y-%m-%d", "24h 1d 1w 1mo", "1m 1h 12h"),
        ("month=%Y-%m", "1mo 3mo 12mo", "1h 1d 1w"),
        ("year=%Y", "12mo", "1w 1mo 3mo"),
    ],
)
def test_folders_that_cover_more_time_than_an_interval_mix_intervals_wherever_the_schedule_starts(
    template, alone, mixed
):
    assert not [name for name in alone.split() if mixes_intervals(template, Cadence.parse(name))]
    assert [name for name in mixed.split() if not mixes_intervals(template, Cadence.parse(name))] == []
