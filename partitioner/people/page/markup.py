"""Markup that cannot be broken from inside: every text and attribute is escaped where it enters. Pure.

`Markup` is a string that is safe as it stands; any other string becomes text. What comes from a manifest (names of
tensors, notes) may hold anything, control characters included, and stays text.
"""

from __future__ import annotations

from collections.abc import Iterable
from html import escape


class Markup(str):
    """A string that is markup already."""

    __slots__ = ()


def text(content: str) -> Markup:
    """`content` as text. Control characters, which neither HTML nor XML can hold, become a visible mark."""
    visible = "".join(c if c.isprintable() or c in " \n\t" else "\ufffd" for c in content)
    return Markup(escape(visible))


def joined(parts: Iterable[str]) -> Markup:
    return Markup("".join(part if isinstance(part, Markup) else text(part) for part in parts))


def el(tag: str, /, *children: str, **attributes: object) -> Markup:
    """One element. `class_` and `stroke_width` become class and stroke-width; what is None is left out."""
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{text(_value(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    if not children and tag in EMPTY:
        return Markup(f"<{tag}{written}>" if tag in VOID else f"<{tag}{written}/>")
    return Markup(f"<{tag}{written}>{joined(children)}</{tag}>")


VOID = frozenset({"meta", "br", "hr"})  # of HTML
EMPTY = VOID | {"line", "rect", "circle", "path", "polyline", "polygon"}


def _value(value: object) -> str:
    # Two decimals place a mark within a hundredth of a pixel.
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
