"""Small tables as text and as HTML."""

from __future__ import annotations

import html.parser

from cbframe.public import as_html, as_text


def test_text() -> None:
    assert as_text("title", ("a", "bb"), [("xxx", "y"), ("", "<z>")]).splitlines() == [
        "title",
        "a    bb",
        "xxx  y",
        "     <z>",
    ]
    assert as_text("title", ("a",), []) == "title"
    assert as_text("t", ("a",), [("x" * 50,)], width=10).splitlines()[2] == "x" * 9 + "…"


def test_html_is_well_formed_and_escaped() -> None:
    opened: list[str] = []
    text: list[str] = []

    class Parser(html.parser.HTMLParser):
        def handle_starttag(self, tag: str, attrs: object) -> None:
            assert tag in {"div", "p", "strong", "table", "thead", "tbody", "tr", "th", "td"}
            opened.append(tag)

        def handle_endtag(self, tag: str) -> None:
            assert opened.pop() == tag

        def handle_data(self, data: str) -> None:
            text.append(data)

    Parser().feed(as_html("<script>", ("a",), [("<img onerror=alert(1)>",), ("&amp;",)]))
    assert opened == []
    assert text == ["<script>", "a", "<img onerror=alert(1)>", "&amp;"]
