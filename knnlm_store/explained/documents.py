"""The documents, ranked by what they contributed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TypeAlias

from knnlm_store.attribution import Explanation, Ranked
from knnlm_store.explained.written import document, hidden, listed, percent, visible
from knnlm_store.html.markup import Markup, joined, tag
from knnlm_store.wording import counted

HIGHLIGHTED = 12
"""Documents whose tokens can be highlighted, and that are shown at once."""
LISTED = 500
"""Documents that are listed at all."""
_RAISED = 5
"""Tokens that are named for a document."""
_BAR = 64
"""Pixels of the largest contribution."""
Name: TypeAlias = tuple[str | None, str]
"""Document and datastore."""


def ranks(documents: Sequence[Ranked]) -> dict[Name, int]:
    """Give the rank of each listed document, from 1; none where a name stands for several."""
    found: dict[Name, int] = {}
    twice = set()
    for rank, each in enumerate(documents, 1):
        name = each.document, each.store
        twice |= {name} & found.keys()
        found.setdefault(name, rank)
    return {name: rank for name, rank in found.items() if rank <= LISTED and name not in twice}


def ranking(number: int, explanation: Explanation) -> Markup:
    """Write the table of documents. number: of the explanation, for ids."""
    documents = explanation.documents
    if not documents:
        return tag("p", "No document has a share in any of these tokens.")
    rows = _Rows(number, explanation)
    left = documents[LISTED:]
    worth = sum(each.contribution for each in left)
    more = f"And {counted(len(left), 'more document')}, worth {worth:.2f} together."
    return joined(
        _table("Documents", rows.whole(), *rows.between(0, HIGHLIGHTED)),
        _folded(rows.between(HIGHLIGHTED, LISTED)),
        tag("p", more) if left else "",
    )


def highlighting() -> str:
    """Give the CSS that shows the tokens of the chosen document alone.

    It asks the table, not the section, so that choosing a token does not ask again for them all.
    """
    chosen = [f".documents:has(.h{rank}:checked) ~ .text .w" for rank in range(1, HIGHLIGHTED + 1)]
    others = ",\n".join(f"{each}:not(.r{rank})" for rank, each in enumerate(chosen, 1))
    own = ",\n".join(f"{each}.r{rank}" for rank, each in enumerate(chosen, 1))
    return (
        f"{others} {{ background: none; border-color: transparent; color: var(--soft); }}\n"
        f"{own} {{ outline: 1px solid var(--edge); }}\n"
    )


class _Rows:
    def __init__(self, number: int, explanation: Explanation) -> None:
        self._number = number
        self._tokens = explanation.tokens
        self._documents = explanation.documents
        self._ranks = ranks(explanation.documents)
        self._raised = _raised(explanation)
        self._several = len({each.store for each in explanation.documents}) > 1

    def whole(self) -> Markup:
        """Write the row of all documents together, at which nothing is highlighted."""
        worth = sum(each.contribution for each in self._documents)
        tokens = sum(token.p_knn > 0 for token in self._tokens)
        radio = self._radio(0, "all documents", checked="checked")
        return _row(radio, "All documents", f"{worth:.2f}", f"{tokens:,}", "")

    def between(self, first: int, end: int) -> list[Markup]:
        """Write the rows of some documents."""
        chosen = list(enumerate(self._documents, 1))[first:end]
        return [self._document(rank, each) for rank, each in chosen]

    def _document(self, rank: int, each: Ranked) -> Markup:
        key = each.document, each.store
        known = self._ranks.get(key) == rank  # else its tokens are not known from those of others
        name = joined(f"{rank}. ", document(each.document))
        store = tag("small", tag("bdi", each.store)) if self._several else ""
        can = known and rank <= HIGHLIGHTED
        return _row(
            self._radio(rank, f"document {rank}") if can else "",
            joined(name, " ", store),
            joined(
                _bar(each.contribution, self._documents[0].contribution), f"{each.contribution:.2f}"
            ),
            f"{each.tokens:,}",
            listed((self._link(*one) for one in self._raised[key]), " ") if known else "",
            id_=f"d{self._number}-{rank}",
        )

    def _radio(self, rank: int, what: str, **more: str) -> Markup:
        told = f"Highlight the tokens of {what}"
        name, class_ = f"h{self._number}", f"h{rank}"
        return tag("input", type="radio", name=name, class_=class_, aria_label=told, **more)

    def _link(self, part: float, place: int) -> Markup:
        text = visible(self._tokens[place].text.strip(" ") or self._tokens[place].text)
        told = hidden(f"Token {place + 1:,}: ")
        link = tag("a", told, tag("bdi", text), href=f"#t{self._number}-{place}")
        return tag("span", link, " ", percent(part), class_="raised")


def _raised(explanation: Explanation) -> Mapping[Name, list[tuple[float, int]]]:
    """For each document give the tokens in which it made most of p, with that part."""
    found: dict[Name, list[tuple[float, int]]] = defaultdict(list)
    for place, token in enumerate(explanation.tokens):
        for source in token.sources:
            part = token.lmbda * source.share / token.p if token.p > 0 else 0.0
            found[source.document, source.store].append((-part, place))
    return defaultdict(
        list, {n: [(-p, at) for p, at in sorted(f)[:_RAISED]] for n, f in found.items()}
    )


def _bar(value: float, largest: float) -> Markup:
    width = round(_BAR * value / largest, 1) if largest > 0 else 0
    inside = tag("rect", width=width, height=8)
    return tag("svg", inside, width=_BAR, height=8, class_="bar", aria_hidden="true")


_HEAD = (("show", "Highlight"), ("document", "Document"), ("worth", "Worth"), ("in", "Tokens"))
_LAST = ("raised", "Raised most, and the part of p it made")


def _table(name: str, *rows: Markup) -> Markup:
    """Make the table. The roles are kept where a narrow window lays it out as a list."""
    columns = [
        tag("th", told, scope="col", role="columnheader", class_=class_)
        for class_, told in (*_HEAD, _LAST)
    ]
    head = tag("thead", tag("tr", *columns, role="row"), role="rowgroup")
    body = tag("tbody", *rows, role="rowgroup")
    return tag("table", head, body, role="table", aria_label=name, class_="documents")


def _folded(rows: Sequence[Markup]) -> Markup:
    if not rows:
        return Markup()
    told = counted(len(rows), "more document")
    return tag("details", tag("summary", told), _table("More documents", *rows))


def _row(radio: object, name: object, *rest: object, id_: str | None = None) -> Markup:
    classes = [class_ for class_, _ in (*_HEAD[2:], _LAST)]
    cells = [
        tag("td", cell, role="cell", class_=class_)
        for class_, cell in zip(classes, rest, strict=True)
    ]
    return tag(
        "tr",
        tag("td", radio, role="cell", class_="show"),
        tag("th", name, scope="row", role="rowheader", class_="document"),
        *cells,
        role="row",
        id=id_,
    )
