"""The text, token by token, each with its detail beside it.

Tokens are one group of radio buttons: a single tab stop, arrow keys go through them, and the one
that is chosen stays so. A detail stands behind its token and is displayed in one place for all.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from knnlm_store.attribution import Explanation, TokenTrace
from knnlm_store.explained import shading
from knnlm_store.explained.details import P_KNN, P_LM, Details, is_worth
from knnlm_store.explained.written import LAMBDA, NEWLINE, NOTHING, hidden, normal, percent
from knnlm_store.html.markup import Markup, joined, tag

_PROMPT = 600
"""Characters of a prompt that are shown before the text; all of it stands folded above."""
_LINE = 400
"""Tokens after which a line is broken at a word; line breaks of the text have their sign."""
_HINT = (
    "Point at a token, or choose it, to see its probabilities and where they came from. "
    "Arrow keys go from token to token."
)
_TERMS = (
    (P_LM, "what the model alone gives the token"),
    (P_KNN, "the weight of the neighbours in the datastore that hold this token"),
    (LAMBDA, "how far the datastore is trusted here"),
    (joined("p = ", LAMBDA, P_KNN, f" + (1 \N{MINUS SIGN} {LAMBDA})", P_LM), "what both give it"),
    ("Beside a document", joined("its share; the shares add up to ", P_KNN)),
)


class Tokens:
    """Writes the tokens of one explanation.

    number: of the explanation, for ids. highlighted: rank of each document whose tokens can be
    highlighted, by name and datastore.
    """

    def __init__(
        self,
        number: int,
        explanation: Explanation,
        details: Details,
        highlighted: Mapping[tuple[str | None, str], int],
    ) -> None:
        self._number = number
        self._explanation = explanation
        self._details = details
        self._highlighted = highlighted

    def write(self) -> Markup:
        """Write the prompt's end and all tokens."""
        group, none = f"t{self._number}", f"t{self._number}-none"
        hint = f"x{self._number}-hint"
        terms = (part for term, told in _TERMS for part in (tag("dt", term), tag("dd", told)))
        return tag(
            "div",
            tag("div", tag("p", _HINT, id=hint), tag("dl", *terms), class_="hint"),
            tag("input", type="radio", name=group, id=none, class_="none", checked="checked"),
            tag("label", "Close", hidden(": no token"), for_=none, class_="close"),
            *self._lines(),
            class_="text",
            role="radiogroup",
            aria_label="Tokens",
            aria_describedby=hint,
            lang="",
        )

    def folded_prompt(self) -> Markup:
        """Write all of a long prompt, nothing for a short one."""
        prompt = normal(self._explanation.prompt)
        if len(prompt) <= _PROMPT:
            return Markup()
        told = f"The prompt, {len(prompt):,} characters"
        return tag("details", tag("summary", told), tag("p", prompt, class_="plain", lang=""))

    def _prompt(self) -> Markup:
        prompt = normal(self._explanation.prompt)
        if not prompt:
            return Markup()
        end = prompt if len(prompt) <= _PROMPT else "\N{HORIZONTAL ELLIPSIS}" + prompt[-_PROMPT:]
        return tag("span", hidden("Prompt: "), end, hidden(" Text: "), class_="prompt")

    def _lines(self) -> Iterator[Markup]:
        """Write each line as a block: a browser lays out one anew, not all, for a detail in it."""
        line, ended = [self._prompt()], False
        for place, token in enumerate(self._explanation.tokens):
            if ended or (len(line) >= _LINE and token.text.startswith(" ")):
                yield tag("div", *line)
                line.clear()
            line.append(self._token(place, token))
            ended = normal(token.text).endswith("\n")
        yield tag("div", *line)

    def _token(self, place: int, token: TokenTrace) -> Markup:
        text = normal(token.text)
        id_, described = f"t{self._number}-{place}", f"p{self._number}-{place}"
        start, end = _core(text)
        inside = _labelled(text[start:end], len(text) - end, token)
        label = tag("label", *inside, for_=id_, class_=self._look(token))
        chosen = tag(
            "input", type="radio", name=f"t{self._number}", id=id_, aria_describedby=described
        )
        detail = self._details.write(place, token, described)
        return joined(chosen, text[:start], label, detail, text[end:])

    def _look(self, token: TokenTrace) -> str:
        """Give the classes: shade, change, a blank, ranks of documents that made it."""
        worth = (source for source in token.sources if is_worth(token, source))
        names = {(source.document, source.store) for source in worth}
        ranks = sorted(rank for name, rank in self._highlighted.items() if name in names)
        looks = ["w", shading.shade(token.knn_share), shading.change(token)]
        looks += ["blank"] if not token.text.strip(" \t") else []
        return " ".join([*filter(None, looks), *(f"r{rank}" for rank in ranks)])


def _core(text: str) -> tuple[int, int]:
    """Bound what is shaded: without spaces before it and line breaks behind it, if there is more.

    So words stand apart, and no shade runs to the edge.
    """
    start, end = len(text) - len(text.lstrip(" ")), len(text.rstrip("\n"))
    return (start, end) if start < end else (0, end)


def _labelled(core: str, breaks: int, token: TokenTrace) -> Iterator[object]:
    """Give a token's label: its text, signs for what has no form, words for those who listen."""
    first, *lines = core.split("\n")
    yield first
    for line in lines:
        yield joined(_sign(NEWLINE), "\n", line)
    if breaks or not token.text:
        yield _sign(breaks * NEWLINE or NOTHING)
    yield hidden(*_spoken(token))


def _sign(text: str) -> Markup:
    """Write what stands for something that is not seen; it is neither copied nor read out."""
    return tag("b", text, class_="g", aria_hidden="true")


def _spoken(token: TokenTrace) -> Iterator[str]:
    text = normal(token.text)
    if not text.strip():
        yield "line break" if "\n" in text else "space" if text else "part of a character"
    yield f", {percent(token.knn_share)}"
    change = shading.change(token)
    if change:
        yield f", {shading.in_words(change)}"
