"""Foreign HTML made harmless: what another library drew from a partition's own, possibly hostile, values.

Pure: text in, text out.
"""

from __future__ import annotations

from html import escape
from html.parser import HTMLParser

_TAGS = {
    *("div", "span", "p", "br", "h4", "h5", "h6", "i", "strong", "code", "pre"),
    *("table", "thead", "tbody", "tr", "th", "td", "ul", "ol", "li"),
}
_VOID = {"br"}


def harmless(html: str) -> str:
    """The fragment with layout tags only, of whose attributes no more than ``class`` and ``hidden`` remain.

    Any other tag, comment or stray end tag becomes visible text, so that nothing in the result can run, load or link
    anything, and a value such as ``<b>`` is read as it is in the data. White space is collapsed; open tags are closed.
    """
    parser = _Allowlist()
    parser.feed(html)
    parser.close()
    return parser.result()


class _Allowlist(HTMLParser):
    """Copies allowed tags and escapes everything else."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self._parts: list[str] = []
        self._open: list[str] = []

    def result(self) -> str:
        return "".join([*self._parts, *(f"</{tag}>" for tag in reversed(self._open))])

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in _TAGS:
            self.handle_data(self.get_starttag_text() or "")
            return
        kept = "".join(
            f' {name}="{escape(value or "")}"' for name, value in attrs if name in ("class", "hidden") and value != ""
        )
        self._parts.append(f"<{tag}{kept}>")
        if tag not in _VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag in _TAGS - _VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        if self._open and self._open[-1] == tag:
            self._parts.append(f"</{tag}>")
            self._open.pop()
        else:
            self.handle_data(f"</{tag}>")

    def handle_data(self, data: str) -> None:
        text = " ".join(data.split())
        if text:
            lead, trail = " " * data[0].isspace(), " " * data[-1].isspace()
            self._parts.append(escape(f"{lead}{text}{trail}"))
        elif data:
            self._parts.append(" ")

    def handle_comment(self, data: str) -> None:
        self.handle_data(f"<!--{data}-->")

    def handle_decl(self, decl: str) -> None:
        self.handle_data(f"<!{decl}>")

    def handle_pi(self, data: str) -> None:
        self.handle_data(f"<?{data}>")

    def unknown_decl(self, data: str) -> None:
        self.handle_data(f"<![{data}]>")
