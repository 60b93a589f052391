"""The plain-text part of a campaign that has only HTML, made from the source of its template (RFC 2046 section 5.1.4).

Jinja2 tags stay where they stand; what they print is not escaped there, and `safe` HTML loses its tags. Nobody sees:
head, style, script, comments, and what is styled `display:none`. A link keeps its address, an image its `alt`.

Not a browser: layout by CSS, nested lists and quotations come out flat. Who wants better writes `text`.
"""

import re
from html.parser import HTMLParser
from typing import Final

_TAG = re.compile(r"\{\{.*?\}\}|\{%.*?%\}|\{#.*?#\}", re.DOTALL)
_MARK = re.compile("\ue000([0-9]+)\ue001")
_LITERAL = re.compile(r"\{[{%#]")
_SPACE = re.compile(r"[ \t\r\n\f\u00a0]+")
_BLANK_LINES = re.compile(r"\n{3,}")

_UNSEEN: Final = frozenset({"head", "style", "script", "title", "template", "noscript", "svg", "select"})
_VOID: Final = frozenset(
    {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"}
)
_PARAGRAPHS: Final = frozenset(
    {"p", "h1", "h2", "h3", "h4", "h5", "h6", "ul", "ol", "table", "blockquote", "pre"}
)
_LINES: Final = frozenset(
    {"div", "tr", "li", "section", "article", "header", "footer", "center", "address", "dt", "dd"}
)


def html_to_text(source: str) -> str:
    """A Jinja2 template of plain text that says what this one of HTML says."""
    tags: list[str] = []

    def mark(match: re.Match[str]) -> str:
        tags.append(_for_text(match[0]))
        return f"\ue000{len(tags) - 1}\ue001"

    parser = _Text()
    parser.feed(_TAG.sub(mark, source.replace("\ue000", "").replace("\ue001", "")))
    parser.close()
    # what only looks like a tag, written with entities, must stay text
    literal = _LITERAL.sub(lambda match: "{{ '" + match[0] + "' }}", parser.text())
    return _MARK.sub(lambda match: tags[int(match[1])], literal)


def _for_text(tag: str) -> str:
    if not tag.startswith("{{") or not re.search(r"\bsafe\b", tag):
        return tag
    return "{{ (" + tag[2:-2].strip("-+").strip() + ")|striptags }}"


class _Text(HTMLParser):
    """Text of the elements that are seen, with a line or an empty line where a block begins and ends."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self._out: list[str] = []
        self._unseen = ""  # the open element that is not seen
        self._depth = 0  # of elements of that name, it and those inside
        self._numbers: list[int | None] = []  # of the open lists, None for one without numbers
        self._links: list[tuple[str, int]] = []
        self._pre = 0

    def text(self) -> str:
        lines = [
            line.strip(" ") if not line.startswith("\x00") else line
            for line in "".join(self._out).split("\n")
        ]
        text = _BLANK_LINES.sub("\n\n", "\n".join(lines).replace("\x00", ""))
        return text.strip("\n") + "\n"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        if self._unseen == tag == "p":
            self._unseen = ""  # a paragraph ends where the next begins
        if self._unseen:
            self._depth += tag == self._unseen
            return
        if tag in _UNSEEN or _is_hidden(values.get("style", "")):
            if tag not in _VOID:
                self._unseen, self._depth = tag, 1
            return
        if tag == "br":
            self._out.append("\n")
        elif tag == "hr":
            self._out.append("\n\n----\n\n")
        elif tag == "img":
            self._out.append(_SPACE.sub(" ", values.get("alt", "")))
        elif tag == "a":
            self._links.append((values.get("href", "").strip(), len(self._out)))
        elif tag in ("td", "th"):
            self._out.append(" ")
        elif tag in _PARAGRAPHS or tag in _LINES:
            self._begin(tag, values)

    def _begin(self, tag: str, values: dict[str, str]) -> None:
        self._break(2 if tag in _PARAGRAPHS and not (tag in ("ul", "ol") and self._numbers) else 1)
        if tag == "pre":
            self._pre += 1
        elif tag in ("ul", "ol"):
            start = values.get("start", "1")
            self._numbers.append((int(start) if start.isdecimal() else 1) if tag == "ol" else None)
        elif tag == "li":
            number = self._numbers[-1] if self._numbers else None
            self._out.append("- " if number is None else f"{number}. ")
            if number is not None:
                self._numbers[-1] = number + 1

    def handle_endtag(self, tag: str) -> None:
        if self._unseen:
            self._depth -= tag == self._unseen
            if not self._depth:
                self._unseen = ""
            return
        if tag == "a" and self._links:
            self._end_link()
        elif tag == "pre" and self._pre:
            self._pre -= 1
        elif tag in ("ul", "ol") and self._numbers:
            self._numbers.pop()
        if tag in _PARAGRAPHS or tag in _LINES:
            self._break(2 if tag in _PARAGRAPHS and not self._numbers else 1)

    def _end_link(self) -> None:
        href, start = self._links.pop()
        shown = "".join(self._out[start:]).strip()
        bare = href.removeprefix("mailto:").removeprefix("https://").removeprefix("http://").rstrip("/")
        if href and not href.startswith(("#", "javascript:")) and bare not in shown:
            self._out.append(f" <{href}>" if shown else f"<{href}>")

    def handle_data(self, data: str) -> None:
        if self._unseen:
            return
        if self._pre:
            self._out.append("\n".join("\x00" + line for line in data.split("\n")))
            return
        text = _SPACE.sub(" ", data)
        if text.startswith(" ") and (not self._out or self._out[-1].endswith(("\n", " "))):
            text = text[1:]
        if text:
            self._out.append(text)

    def _break(self, lines: int) -> None:
        """At least so many line ends, once something was said."""
        ended = len(tail := "".join(self._out[-4:]).rstrip(" ")) - len(tail.rstrip("\n"))
        if self._out:
            self._out.append("\n" * max(0, lines - ended))


def _is_hidden(style: str) -> bool:
    return "display:none" in style.replace(" ", "").lower()
