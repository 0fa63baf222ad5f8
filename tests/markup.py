"""Reads a page strictly: what it loads, whether its tags are balanced, and what a reader sees."""

from __future__ import annotations

from dataclasses import dataclass, field
from html.parser import HTMLParser

VOID = frozenset({"meta", "br", "hr", "link", "img", "input"})
LOADS = frozenset(
    {"src", "href", "srcset", "data", "action", "poster", "background", "xlink:href", "formaction", "ping"}
)
FOREIGN = frozenset(
    {"script", "link", "iframe", "img", "object", "embed", "image", "use", "base", "form", "audio", "video"}
)


@dataclass
class Page(HTMLParser):
    """`text` is what was written between tags, styles apart; `styles` the style sheets and style attributes."""

    tags: list[str] = field(default_factory=list)
    attributes: list[tuple[str, str]] = field(default_factory=list)
    text: list[str] = field(default_factory=list)
    styles: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self._open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        self.styles += [value or "" for name, value in attrs if name == "style"]
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self._open.pop()

    def handle_endtag(self, tag: str) -> None:
        if not self._open or self._open.pop() != tag:
            self.broken.append(f"</{tag}> closes nothing")

    def handle_data(self, data: str) -> None:
        (self.styles if self._open[-1:] == ["style"] else self.text).append(data)

    @property
    def words(self) -> str:
        return " ".join(self.text)

    def faults(self) -> list[str]:
        """Everything a page that loads nothing and is well-formed would not have."""
        found = list(self.broken) + [f"<{tag}> is never closed" for tag in self._open]
        found += [f"<{tag}>" for tag in self.tags if tag in FOREIGN]
        found += [f"{name}={value!r}" for name, value in self.attributes if name in LOADS or name.startswith("on")]
        style = " ".join(self.styles).lower()
        found += [word for word in ("@import", "url(", "expression(", "http:", "https:", "//") if word in style]
        return found


def read(html: str) -> Page:
    page = Page()
    page.feed(html)
    page.close()
    return page
