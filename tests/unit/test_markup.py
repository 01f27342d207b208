"""Foreign HTML made harmless."""

from __future__ import annotations

import pytest

from pipeline.markup import harmless


def test_layout_keeps_its_tags_and_classes() -> None:
    html = '<div id="a" class="row"><table><thead hidden><tr><th>x</th></tr></thead></table><br></div>'
    assert harmless(html) == ('<div class="row"><table><thead hidden=""><tr><th>x</th></tr></thead></table><br></div>')


@pytest.mark.parametrize(
    ("html", "text"),
    [
        ("<img src=x onerror=alert(1)>", "&lt;img src=x onerror=alert(1)&gt;"),
        ("<script>alert('1 < 2')</script>", "&lt;script&gt;alert(&#x27;1 &lt; 2&#x27;)&lt;/script&gt;"),
        ('<a href="https://example.org">x</a>', "&lt;a href=&quot;https://example.org&quot;&gt;x&lt;/a&gt;"),
        ("a <!-- b --> c", "a &lt;!-- b --&gt; c"),
        ("<!doctype html>", "&lt;!doctype html&gt;"),
        ("<?php x ?>", "&lt;?php x ?&gt;"),
        ("<b>&lt;i&gt;</b>", "&lt;b&gt;&lt;i&gt;&lt;/b&gt;"),
        ("1 < 2 & 3", "1 &lt; 2 &amp; 3"),
        ("<img src=x", "&lt;img src=x"),
    ],
)
def test_everything_else_becomes_visible_text(html: str, text: str) -> None:
    assert harmless(html) == text


def test_no_attribute_survives_that_could_run_or_load() -> None:
    html = '<div onclick="x()" style="background:url(//evil)" class="a&quot;b" data-x="1">y</div><br onload=x />'
    assert harmless(html) == '<div class="a&quot;b">y</div><br>'


def test_stray_end_tags_are_text_and_open_tags_are_closed() -> None:
    assert harmless("<div><span>x</div>") == "<div><span>x&lt;/div&gt;</span></div>"
    assert harmless("<span/>") == "<span></span>"


def test_white_space_collapses_without_gluing_words() -> None:
    assert harmless("<p>\n   a\n\n  b  </p>\n  <p>c</p>") == "<p> a b </p> <p>c</p>"
