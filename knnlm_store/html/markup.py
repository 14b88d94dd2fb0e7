"""Elements of HTML and SVG, in which nobody's text can become markup."""

from __future__ import annotations

import html
import re

_UNREADABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
_REORDERING = re.compile("[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_VOID = {"meta", "br", "input", "rect", "line", "circle", "path"}


class Markup(str):
    """Text that is markup already; all other text is escaped."""

    __slots__ = ()


def escape(text: object) -> Markup:
    """Make text harmless; what no page can hold, or would turn its order, becomes U+FFFD."""
    if isinstance(text, Markup):
        return text
    readable = _UNREADABLE.sub("\ufffd", str(text))
    return Markup(html.escape(_REORDERING.sub("\ufffd", readable)))


def tag(name: str, /, *children: object, **attributes: object) -> Markup:
    """Make an element, well-formed as XML too.

    Attributes that are None are left out; `class_` is class, `data_k` is data-k.
    """
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in _VOID and not children:
        return Markup(f"<{name}{written}/>")
    return Markup(f"<{name}{written}>{joined(*children)}</{name}>")


def joined(*parts: object) -> Markup:
    """Put parts one after another."""
    return Markup("".join(escape(part) for part in parts))


def table(
    name: str, head: list[str], rows: list[list[object]], marked: int | None = None
) -> Markup:
    """Make a table that scrolls if it is too wide; the first column names the row.

    marked: number of a row that stands out.
    """
    top = tag("tr", *(tag("th", name, scope="col") for name in head))
    body = [
        tag(
            "tr",
            tag("th", row[0], scope="row"),
            *(tag("td", cell) for cell in row[1:]),
            class_="marked" if number == marked else None,
        )
        for number, row in enumerate(rows)
    ]
    whole = tag("table", tag("thead", top), tag("tbody", *body))
    return tag("div", whole, class_="scroll", tabindex="0", role="region", aria_label=name)
