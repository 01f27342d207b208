"""Where published files lie: pure names, no access to any file system."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.errors import InvalidRequest


@dataclass(frozen=True, slots=True)
class Target:
    """Where one partition of one data set is published: ``<root>/<partition>/part-0.parquet``.

    ``root`` is an absolute path or fsspec URI, ``partition`` a Hive string such as ``ds=2013-01-31``; one that is
    empty, absolute or climbs out of the root raises `InvalidRequest`.
    """

    root: str
    partition: str

    def __post_init__(self) -> None:
        refuse_escape(self.partition)

    @property
    def uri(self) -> str:
        """The path or URI of the published file."""
        return join(self.root, self.partition, "part-0.parquet")

    @property
    def staging(self) -> str:
        """The folder of unfinished files: beside the root, because no name inside it is hidden from every reader."""
        return sibling(self.root, "staging")

    @property
    def versions(self) -> str:
        """The folder of the files that this partition published earlier, ``<sha256>.parquet`` each."""
        return join(sibling(self.root, "versions"), self.partition)


@dataclass(frozen=True, slots=True)
class Published:
    """A published file: where it is, the SHA-256 (hex) of its bytes and its rows."""

    uri: str
    sha256: str
    rows: int


@dataclass(frozen=True, slots=True)
class Current:
    """What a target shows at one moment: the published file's own footer metadata, and a token of its content.

    Both are ``None`` when nothing is published. Publishing with this as ``seen`` succeeds only as long as it is true.
    """

    metadata: dict[str, str] | None
    token: str | None


def join(root: str, *parts: str) -> str:
    """``root`` and the parts that are not empty, with one slash between them."""
    return "/".join([root.rstrip("/"), *(part for part in parts if part)])


def sibling(root: str, kind: str) -> str:
    """The folder beside a data set that holds its ``staging``, ``versions`` or ``manifest`` files."""
    return f"{root.rstrip('/')}.{kind}"


def refuse_escape(partition: str) -> None:
    """Raise `InvalidRequest` unless ``partition`` names something below its root."""
    if any(part in ("", ".", "..") for part in partition.split("/")):
        raise InvalidRequest(
            f"partition {partition!r} does not name a folder below its root", next_step="correct the partition template"
        )
