"""Numbers, names and texts as the page writes them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

from knnlm_store.html.markup import Markup, joined, tag

LAMBDA = "\N{GREEK SMALL LETTER LAMDA}"
NEWLINE = "\N{DOWNWARDS ARROW WITH CORNER LEFTWARDS}"
NOTHING = "\N{WHITE VERTICAL RECTANGLE}"
"""Stands for a token without text: it is a part of a character that a later one completes."""
_SPACE, _TAB = "\N{OPEN BOX}", "\N{RIGHTWARDS ARROW TO BAR}"
_ELLIPSIS = "\N{HORIZONTAL ELLIPSIS}"
_GONE = "no longer in the catalog"


def probability(p: float) -> str:
    """Write a probability, or a share of one."""
    return f"{p:.4f}" if p == 0 or p >= 0.001 else f"{p:.1e}"


def percent(share: float) -> str:
    """Write a part of a whole."""
    return f"{100 * share:.0f} %"


def logarithm(value: float, sign: str = "") -> str:
    """Write a log-probability; sign: "+" for a difference, so that it has one in any case."""
    if math.isnan(value):
        return "undefined"
    return _minus(f"{value:{sign},.3f}").replace("inf", "\N{INFINITY}")


def cut(text: str, limit: int = 160) -> str:
    """Give the beginning of a text that is longer than it may be."""
    return text if len(text) <= limit else text[: limit - 1] + _ELLIPSIS


def quoted(text: str) -> str:
    """Write text in quotes."""
    return f"\N{LEFT DOUBLE QUOTATION MARK}{text}\N{RIGHT DOUBLE QUOTATION MARK}"


def normal(text: str) -> str:
    """Give text with one kind of line break, as a browser reads it anyway."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


def visible(text: str, limit: int = 40) -> str:
    """Give a token's text on one line, its outer spaces visible."""
    text = cut(normal(text), limit)
    inner = text.strip(" ")
    before, _, after = text.partition(inner) if inner else (text, "", "")
    line = len(before) * _SPACE + inner + len(after) * _SPACE
    return line.replace("\n", NEWLINE).replace("\t", _TAB) or NOTHING


def on_one_line(text: str) -> str:
    """Give text of a passage with its line breaks as signs."""
    return re.sub(r"\s*\n\s*", f" {NEWLINE} ", normal(text))


def shortened(name: str, limit: int = 60) -> str:
    """Give a name that is as long as it may be in a narrow place; its end tells most."""
    return name if len(name) <= limit else _ELLIPSIS + name[1 - limit :]


def document(name: str | None, limit: int = 240) -> Markup:
    """Write a document's name; no script in it changes the order of what stands round it."""
    if name is None:
        return tag("em", _GONE)
    return tag("bdi", shortened(name, limit))


def listed(parts: Iterable[object], between: str = ", ") -> Markup:
    """Put parts one after another, apart from each other."""
    return joined(*(joined(between if i else "", part) for i, part in enumerate(parts)))


def hidden(*text: object) -> Markup:
    """Write for those who listen only; it is not copied with what stands round it."""
    return tag("span", *text, class_="u")


def _minus(text: str) -> str:
    return text.replace("-", "\N{MINUS SIGN}")
