"""How a token looks: its kNN share as shade and underline, what changed as a sign."""

from __future__ import annotations

import math
from bisect import bisect_right
from itertools import pairwise

from knnlm_store.attribution import TokenTrace
from knnlm_store.html.markup import Markup, joined, tag

BOUNDS = (0.05, 0.2, 0.4, 0.6, 0.8)
"""Shares at which the next shade begins; the classes are s0 to s5."""
_SLIGHT, _STRONG = math.log(1.01), math.log(2)
_CHANGES = {
    "c1": ("\N{WHITE DOWN-POINTING TRIANGLE}", "less likely without, by over 1 %"),
    "c2": ("\N{BLACK DOWN-POINTING TRIANGLE}", "at most half as likely without"),
    "c3": ("\N{WHITE UP-POINTING TRIANGLE}", "more likely without, by over 1 %"),
    "c4": ("\N{BLACK UP-POINTING TRIANGLE}", "at least twice as likely without"),
}
"""Sign and meaning of the classes of a change."""


def shade(share: float) -> str:
    """Give the class of a kNN share."""
    return f"s{bisect_right(BOUNDS, share)}"


def log_change(token: TokenTrace) -> float:
    """Give what log p becomes more without the documents: negative where they helped."""
    if token.p_without is None or token.p == token.p_without:
        return 0.0
    return log(token.p_without) - log(token.p)


def log(p: float) -> float:
    """Take a logarithm, of 0 too."""
    return math.log(p) if p > 0 else -math.inf


def change(token: TokenTrace) -> str | None:
    """Give the class of a change, None if there is as good as none."""
    value = log_change(token)
    if abs(value) < _SLIGHT:
        return None
    return f"c{1 + (value > 0) * 2 + (abs(value) >= _STRONG)}"


def in_words(change: str) -> str:
    """Say what the class of a change means."""
    return _CHANGES[change][1]


def legend(*, compared: bool) -> Markup:
    """Say what the looks mean. compared: with the signs of changes."""
    shares = [0, *(round(100 * bound) for bound in BOUNDS), 100]
    shades = [
        tag("li", tag("span", f"{low}\N{EN DASH}{high} %", class_=f"w s{n}"))
        for n, (low, high) in enumerate(pairwise(shares))
    ]
    signs = [
        tag("li", tag("span", sign, class_=f"sign {class_}", aria_hidden="true"), " ", meaning)
        for class_, (sign, meaning) in _CHANGES.items()
    ]
    return joined(
        tag("p", "Part of a token's probability that the datastore made:"),
        tag("ul", *shades, class_="legend"),
        tag("ul", *signs, class_="legend") if compared else "",
    )
