"""How the folders of partitioned Parquet name time: the strftime template that all of them follow.

Pure functions of paths; must not list or read anything.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

# What a folder may be called, by the finest unit of time that the folders above it name. Only the first one may carry a
# whole date; below it a bare number can only be the next smaller unit.
_YEAR = r"(?:19|20)\d{2}"
_NEXT: dict[str, tuple[tuple[str, str], ...]] = {
    "": (
        (rf"{_YEAR}-\d{{2}}-\d{{2}}T\d{{2}}", "%Y-%m-%dT%H"),
        (rf"{_YEAR}-\d{{2}}-\d{{2}}-\d{{2}}", "%Y-%m-%d-%H"),
        (rf"{_YEAR}-\d{{2}}-\d{{2}}", "%Y-%m-%d"),
        (rf"{_YEAR}-\d{{2}}", "%Y-%m"),
        (rf"{_YEAR}\d{{6}}", "%Y%m%d%H"),
        (rf"{_YEAR}\d{{4}}", "%Y%m%d"),
        (rf"{_YEAR}\d{{2}}", "%Y%m"),
        (_YEAR, "%Y"),
    ),
    "%Y": ((r"\d{2}", "%m"),),
    "%m": ((r"\d{2}", "%d"),),
    "%d": ((r"\d{2}", "%H"), (r"\d{4}", "%H%M")),
    "%H": ((r"\d{2}", "%M"),),
    "%M": (),
}


def infer_template(paths: Sequence[str]) -> str:
    """The template of the folders of ``paths`` (files, relative to the root), e.g. ``ds=%Y-%m-%d/hr=%H``.

    Leading folders only: what lies below the last one that names time does not matter. ``""`` when the first folder
    names no time or one file breaks the pattern; rows are then selected by their event time.
    """
    folders = [path.split("/")[:-1] for path in paths]
    parts: list[str] = []
    for depth in range(min(map(len, folders), default=0)):
        part = _folder_template([names[depth] for names in folders], "/".join(parts))
        if part is None:
            break
        parts.append(part)
    template = "/".join(parts)
    return template if all(instant(path, template) for path in paths) else ""


def _folder_template(names: Sequence[str], above: str) -> str | None:
    key, _, _ = names[0].rpartition("=")
    finest = re.findall(r"%[YmdHM]", above)[-1:] or [""]
    for pattern, directives in _NEXT[finest[0]]:
        prefix = f"{key}=" if key else ""
        if all(re.fullmatch(re.escape(prefix) + pattern, name) for name in names):
            return prefix.replace("%", "%%") + directives
    return None


@lru_cache(maxsize=100_000)
def instant(path: str, template: str) -> datetime | None:
    """The start of the time that the folder of ``path`` names; ``None`` when it does not follow the template."""
    folder = "/".join(path.split("/")[: template.count("/") + 1])
    try:
        found = datetime.strptime(folder, template).replace(tzinfo=UTC)
    except ValueError:
        return None
    return found if found.strftime(template) == folder else None
