"""What would be another probability if some documents were not there."""

from __future__ import annotations

import math

from knnlm_store.attribution import Explanation, TokenTrace
from knnlm_store.explained.shading import log, log_change
from knnlm_store.explained.written import document, listed, logarithm, probability, visible
from knnlm_store.html.markup import Markup, joined, table, tag
from knnlm_store.wording import counted

_SHOWN = 10
"""Tokens that are listed, and documents that are named."""


def total(explanation: Explanation) -> float:
    """Give the log-probability of all tokens together."""
    return math.fsum(log(token.p) for token in explanation.tokens)


def named(explanation: Explanation) -> Markup:
    """Name the documents, or the first of them."""
    names = explanation.without
    left = len(names) - _SHOWN
    shown = listed(document(name) for name in names[:_SHOWN])
    return joined(shown, f" and {counted(left, 'more document')}") if left > 0 else shown


def changes(number: int, explanation: Explanation) -> Markup:
    """Write the total change, and the tokens that change most. number: of the explanation."""
    before, after = total(explanation), _without(explanation)
    change = after - before if math.isfinite(before) else math.nan
    rows = [_row(number, place, token) for place, token in _largest(explanation)]
    head = ["token", "p", "p without", "change of log p"]
    return joined(
        tag(
            "p",
            f"The log-probability of all tokens would be {logarithm(after)} instead of "
            f"{logarithm(before)}: ",
            tag("strong", logarithm(change, "+")),
            f". {_turned(explanation)}",
        ),
        table("Tokens that change most", head, rows) if rows else "",
    )


def _without(explanation: Explanation) -> float:
    each = (token.p if token.p_without is None else token.p_without for token in explanation.tokens)
    return math.fsum(map(log, each))


def _turned(explanation: Explanation) -> str:
    """Say how many tokens change, which way."""
    values = [log_change(token) for token in explanation.tokens]
    less, more = sum(value < 0 for value in values), sum(value > 0 for value in values)
    return f"{counted(less, 'token')} would be less likely, {more:,} more likely."


def _largest(explanation: Explanation) -> list[tuple[int, TokenTrace]]:
    changed = [(i, t) for i, t in enumerate(explanation.tokens) if log_change(t) != 0]
    return sorted(changed, key=lambda each: -abs(log_change(each[1])))[:_SHOWN]


def _row(number: int, place: int, token: TokenTrace) -> list[object]:
    name = tag("a", tag("bdi", visible(token.text)), href=f"#t{number}-{place}")
    without = probability(token.p_without or 0.0)
    return [name, probability(token.p), without, logarithm(log_change(token), "+")]
