"""The whole page: a section for each explanation, readable without script, colours or a mouse."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from knnlm_store.attribution import Explanation
from knnlm_store.explained import changes, documents, shading
from knnlm_store.explained.details import Details, room
from knnlm_store.explained.look import STYLE
from knnlm_store.explained.tokens import Tokens
from knnlm_store.explained.written import cut, listed, logarithm, normal, percent, quoted
from knnlm_store.html.markup import Markup, joined, tag
from knnlm_store.html.page import folded, page
from knnlm_store.wording import counted

_CONTRIBUTION = (
    "Worth counts tokens: 1.00 is one token that the document made alone. It is a contribution, "
    "not an effect: without the document, others would have come in its place. Highlighted are the "
    "tokens of which it made 1 % or more."
)


def page_of(explanations: Sequence[tuple[str, Explanation]]) -> str:
    """Give one page, HTML, of explanations that have a title each."""
    around = room(explanation for _, explanation in explanations)
    sections = [
        _Section(number, title, explanation, around, several=len(explanations) > 1)
        for number, (title, explanation) in enumerate(explanations)
    ]
    told = quoted(sections[0].title) if len(sections) == 1 else counted(len(sections), "text")
    title = f"Explanation of {told}"
    style = STYLE + documents.highlighting()
    return page(title, style, tag("h1", title), _contents(sections), *(s.write() for s in sections))


def _contents(sections: Sequence[_Section]) -> Markup:
    if len(sections) < 2:
        return Markup()
    links = [tag("li", tag("a", tag("bdi", s.title), href=f"#x{s.number}")) for s in sections]
    return tag("nav", tag("ol", *links), aria_label="Texts")


class _Section:
    def __init__(
        self, number: int, title: str, explanation: Explanation, around: int, *, several: bool
    ) -> None:
        self.number = number
        self.title = cut(" ".join(title.split())) or f"text {number + 1}"
        self._explanation = explanation
        self._level = 3 if several else 2
        ranks = documents.ranks(explanation.documents)
        details = Details(number, len(explanation.tokens), around, ranks)
        lit = {name: rank for name, rank in ranks.items() if rank <= documents.HIGHLIGHTED}
        self._tokens = Tokens(number, explanation, details, lit)

    def write(self) -> Markup:
        id_, text = f"x{self.number}", f"x{self.number}-text"
        title = tag("h2", tag("bdi", self.title)) if self._level > 2 else ""
        return tag(
            "section",
            title,
            tag("a", "Skip to the text", href=f"#{text}", class_="skip"),
            _facts(self._explanation),
            self._head("Documents"),
            tag("p", _CONTRIBUTION, class_="soft") if self._explanation.documents else "",
            documents.ranking(self.number, self._explanation),
            self._changes(),
            self._head("Text", id=text, tabindex="-1"),
            self._text(),
            _settings(self._explanation.settings),
            class_="x",
            id=id_,
            aria_label=self.title,
        )

    def _head(self, *text: object, **attributes: str) -> Markup:
        return tag(f"h{self._level}", *text, **attributes)

    def _changes(self) -> Markup:
        if not self._explanation.without:
            return Markup()
        head = self._head("Without ", changes.named(self._explanation))
        return joined(head, changes.changes(self.number, self._explanation))

    def _text(self) -> Markup:
        tokens = self._explanation.tokens
        if not tokens:
            return tag("p", "There are no tokens.")
        text = normal("".join(token.text for token in tokens))
        return joined(
            shading.legend(compared=bool(self._explanation.without)),
            self._tokens.folded_prompt(),
            self._tokens.write(),
            folded("The text alone", tag("p", text, class_="plain", lang="")),
        )


def _facts(explanation: Explanation) -> Markup:
    """Say in a sentence how much the datastore made of it."""
    tokens = len(explanation.tokens)
    if not tokens:
        return Markup()
    share = sum(token.knn_share for token in explanation.tokens)
    return tag(
        "p",
        "The datastore made ",
        tag("strong", percent(share / tokens)),
        f" of the probability of {counted(tokens, 'token')}, on average. "
        f"Log-probability {logarithm(changes.total(explanation))}.",
    )


def _settings(settings: dict[str, Any]) -> Markup:
    """Write the mixture's settings, those of each part of a blend apart."""
    parts = settings.get("parts") or ([settings] if settings else [])
    if not parts:
        return Markup()
    each = [tag("ul", *(tag("li", line) for line in _lines(part))) for part in parts]
    return folded("Settings of the mixture", joined(*each))


def _lines(part: object) -> list[Markup]:
    if not isinstance(part, dict):
        return [joined(part)]
    told = ((name, value) for name, value in part.items() if value is not None)
    return [listed([name, tag("bdi", value)], between=" ") for name, value in told]
