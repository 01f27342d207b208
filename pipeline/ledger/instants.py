"""Instants as the tables hold them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def microseconds(instant: datetime) -> int:
    """Microseconds since 1970 UTC, as the tables hold instants."""
    return (instant - _EPOCH) // timedelta(microseconds=1)
