"""A token's detail: its probabilities, and its sources with their passages."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from knnlm_store.attribution import Explanation, Hit, Passage, Source, TokenTrace
from knnlm_store.explained import shading
from knnlm_store.explained.written import (
    LAMBDA,
    document,
    logarithm,
    on_one_line,
    percent,
    probability,
    visible,
)
from knnlm_store.html.markup import Markup, joined, tag

_BUDGET, _LEAST, _MOST = 2_000_000, 30, 240
"""Characters of all passages of a page; of one, before and after its token, at least and most."""
_WORTH = 0.01
"""Part of p that a source must have made to be highlighted, and for its passage to be shown."""
_NAME = 48
"""Characters of a document's name."""
P_LM = joined("p", tag("sub", "LM"))
P_KNN = joined("p", tag("sub", "kNN"))


class Details:
    """Writes the details of one explanation.

    number: of the explanation, for ids. around: characters of a passage before its token, and
    after it. ranks: of documents that a link can lead to, by name and datastore.
    """

    def __init__(
        self, number: int, tokens: int, around: int, ranks: Mapping[tuple[str | None, str], int]
    ) -> None:
        self._number, self._tokens = number, tokens
        self._around, self._ranks = around, ranks

    def write(self, place: int, token: TokenTrace, id_: str) -> Markup:
        """Write one token's. id_: of its probabilities."""
        share = tag("span", f"{percent(token.knn_share)} from the datastore")
        return tag(
            "div",
            tag("p", tag("b", visible(token.text)), " ", share, class_="k"),
            tag("dl", *_figures(token), id=id_),
            *self._sources(token),
            class_="d",
            role="group",
            aria_label=f"Token {place + 1:,} of {self._tokens:,}",
            tabindex="0",
        )

    def _sources(self, token: TokenTrace) -> Iterator[Markup]:
        if token.sources:
            yield tag("ol", *(self._source(token, source) for source in token.sources))
        if token.other_share > 0:
            yield tag("p", tag("b", probability(token.other_share)), " other documents")
        elif not token.sources:
            yield tag("p", "The datastore has no share in this token.")

    def _source(self, token: TokenTrace, source: Source) -> Markup:
        name = document(source.document, _NAME)
        rank = self._ranks.get((source.document, source.store))
        if rank is not None:
            name = tag("a", f"{rank}. ", name, href=f"#d{self._number}-{rank}")
        share, passage = tag("b", probability(source.share)), Markup()
        if source.passage is not None and is_worth(token, source):
            passage = self._passage(source.passage)
        return tag("li", share, " ", name, tag("small", *_places(source.hits)), passage)

    def _passage(self, passage: Passage) -> Markup:
        before, after = passage.before[-self._around :], passage.after[: self._around]
        token = passage.token.lstrip(" ") or passage.token
        spaces = passage.token.removesuffix(token)
        mark = tag("mark", visible(token, self._around))
        return tag("p", on_one_line(before), spaces, mark, on_one_line(after), class_="q")


def is_worth(token: TokenTrace, source: Source) -> bool:
    """Tell whether a source made enough of p for its passage to be of interest."""
    return token.lmbda * source.share >= _WORTH * token.p


def room(explanations: Iterable[Explanation]) -> int:
    """Give how many characters of passages a page has room for, before a token and after it."""
    passages = sum(
        source.passage is not None and is_worth(token, source)
        for explanation in explanations
        for token in explanation.tokens
        for source in token.sources
    )
    return min(_MOST, max(_LEAST, _BUDGET // (2 * max(passages, 1))))


def _figures(token: TokenTrace) -> Iterator[Markup]:
    yield _figure(P_LM, probability(token.p_lm))
    yield _figure(P_KNN, probability(token.p_knn))
    yield _figure(LAMBDA, probability(token.lmbda))
    yield _figure("p", probability(token.p))
    if token.p_without is not None:
        yield _figure("p without", probability(token.p_without))
        yield _figure(
            "\N{GREEK CAPITAL LETTER DELTA} log p", logarithm(shading.log_change(token), "+")
        )


def _figure(name: object, value: str) -> Markup:
    return tag("div", tag("dt", name), tag("dd", value))


def _places(hits: Sequence[Hit]) -> Iterator[str]:
    """Say where the entries stand, each with its share if there are several."""
    for i, hit in enumerate(hits):
        yield f"{', ' if i else ' at '}{hit.position:,}"
        if len(hits) > 1:
            yield f" ({probability(hit.share)})"
