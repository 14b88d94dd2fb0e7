"""The heat map: perplexity over lambda and temperature.

Marks carry their numbers in data attributes, unrounded, here and in the other figures.
"""

from __future__ import annotations

import math

import numpy as np

from knnlm_store.html.markup import Markup, joined
from knnlm_store.tuning.pictures import Landscape
from knnlm_store.tuning.svg import WIDTH, Point, Scale, box, dot, figure, label, line, rule
from knnlm_store.tuning.written import LAMBDA, change, percent

_LEAST = 0.02  # nats: the colours of a landscape that is flatter than this stay pale
_NOTHING = 1e-6  # share: less is rounding
_GOOD = 0.01  # share above the best perplexity that is as good
_LEFT, _RIGHT, _TOP, _ROW = 84, 548, 70, 24  # pixels
_BEST, _PERPLEXITY = 612, WIDTH - 10  # where columns of numbers end


def landscape(numbers: Landscape) -> Markup:
    """Draw how perplexity compares with the plain model's: the highest temperature on top."""
    bottom = _TOP + _ROW * len(numbers.temperatures)
    half = _half(numbers)
    x = Scale(numbers.lambdas[0] - half, numbers.lambdas[-1] + half, _LEFT, _RIGHT)
    deepest = max(-_nats(float(numbers.at_best.min()), numbers.plain), _LEAST)
    told = (
        f"Heat map of perplexity over lambda and temperature. The plain model has "
        f"{numbers.plain:,.3f}; the best lambda and temperature {numbers.at_best.min():,.3f}."
    )
    return figure(
        bottom + 92,
        told,
        _names(),
        box((_LEFT, _TOP), (_RIGHT, bottom), "frame"),
        *(_row(numbers, i, x, deepest) for i in range(len(numbers.temperatures))),
        _good(numbers, x),
        _marks(numbers, x),
        *(label(x(v), bottom + 17, f"{v:g}", anchor="middle") for v in numbers.lambdas[::4]),
        label((_LEFT + _RIGHT) / 2, bottom + 38, f"{LAMBDA} of every token", "axis", "middle"),
        _colours(deepest, bottom + 72),
    )


def _half(numbers: Landscape) -> float:
    return float(numbers.lambdas[1] - numbers.lambdas[0]) / 2


def _nats(perplexity: float, plain: float) -> float:
    return math.log(perplexity) - math.log(plain) if perplexity != plain else 0.0


def _middle(numbers: Landscape, i: int) -> float:
    """Where the row of a temperature has its middle."""
    return _TOP + _ROW * (len(numbers.temperatures) - i - 0.5)


def _names() -> Markup:
    """Name the marks and the columns."""
    return joined(
        line([(_LEFT, 14), (_LEFT + 24, 14)], "ridge"),
        dot((_LEFT + 12, 14), 2.5, "ridge-dot", "best"),
        label(_LEFT + 32, 18, f"best {LAMBDA} of a temperature", "name"),
        box((_LEFT + 208, 8), (_LEFT + 226, 20), "good"),
        label(_LEFT + 234, 18, "within 1 % of the best", "name"),
        dot((_LEFT + 402, 14), 7, "ring", "fixed policy"),
        label(_LEFT + 416, 18, "the fixed policy, as fitted", "name"),
        label(0, _TOP - 12, "temperature", "axis"),
        label(_BEST, _TOP - 12, f"best {LAMBDA}", "axis", "end"),
        label(_PERPLEXITY, _TOP - 12, "perplexity", "axis", "end"),
    )


def _row(numbers: Landscape, i: int, x: Scale, deepest: float) -> Markup:
    """Draw the cells of a temperature, and write its best beside them."""
    y = _middle(numbers, i)
    strong = " strong" if i == int(numbers.at_best.argmin()) else ""
    return joined(
        label(_LEFT - 10, y + 4, f"{numbers.temperatures[i]:,.4g}", anchor="end"),
        *(_cell(numbers, i, j, x, deepest) for j in range(len(numbers.lambdas))),
        label(_BEST, y + 4, f"{numbers.best[i]:.2f}", f"value{strong}", "end"),
        label(_PERPLEXITY, y + 4, f"{numbers.at_best[i]:,.3f}", f"value{strong}", "end"),
    )


def _cell(numbers: Landscape, i: int, j: int, x: Scale, deepest: float) -> Markup:
    lmbda, temperature = float(numbers.lambdas[j]), float(numbers.temperatures[i])
    perplexity = float(numbers.perplexity[i, j])
    worse = _nats(perplexity, numbers.plain)
    told = f"lambda {lmbda:g}, temperature {temperature:,.4g}: {perplexity:,.3f}"
    return box(
        *_corners(numbers, i, j, x),
        "cell worse" if worse > 0 else "cell better",
        f"{told} ({change(perplexity, numbers.plain)})",
        fill_opacity=round(min(abs(worse) / deepest, 1.0), 3),
        data_lambda=lmbda,
        data_temperature=temperature,
        data_perplexity=perplexity,
    )


def _corners(numbers: Landscape, i: int, j: int, x: Scale) -> tuple[Point, Point]:
    lmbda, y, half = numbers.lambdas[j], _middle(numbers, i), _half(numbers)
    return (x(lmbda - half), y - _ROW / 2), (x(lmbda + half), y + _ROW / 2)


def _good(numbers: Landscape, x: Scale) -> Markup:
    """Draw a line round the cells that are about as good as the best, if any is better."""
    best = float(numbers.at_best.min())
    if numbers.plain <= best * (1 + _NOTHING):
        return Markup()
    inside = np.pad(numbers.perplexity <= (1 + _GOOD) * best, 1)
    parts = []
    for i, j in np.argwhere(inside[1:-1, 1:-1]).tolist():
        (left, top), (right, bottom) = _corners(numbers, i, j, x)
        sides = {
            (i, j + 1): ((left, bottom), (right, bottom)),
            (i + 2, j + 1): ((left, top), (right, top)),  # higher temperatures lie above
            (i + 1, j): ((left, top), (left, bottom)),
            (i + 1, j + 2): ((right, top), (right, bottom)),
        }
        parts += [rule(*side, "good") for place, side in sides.items() if not inside[place]]
    return joined(*parts)


def _marks(numbers: Landscape, x: Scale) -> Markup:
    """Draw the ridge of best lambdas, and where the fixed policy stands."""
    heights = [_middle(numbers, i) for i in range(len(numbers.temperatures))]
    ridge = [(x(lmbda), y) for lmbda, y in zip(numbers.best, heights, strict=True)]
    parts = [line(ridge, "ridge")]
    for at, lmbda, perplexity in zip(ridge, numbers.best, numbers.at_best, strict=True):
        parts.append(dot(at, 2.5, "ridge-dot", f"best lambda {lmbda:.3f}: {perplexity:,.3f}"))
    if numbers.chosen:
        lmbda, temperature, perplexity = numbers.chosen
        data = {"lambda": lmbda, "temperature": temperature, "perplexity": perplexity}
        at = x(lmbda), heights[int(np.searchsorted(numbers.temperatures, temperature))]
        told = f"fixed: lambda {lmbda:.3f}, temperature {temperature:,.4g}: {perplexity:,.3f}"
        parts.append(dot(at, 7, "ring", told, **{f"data_{k}": v for k, v in data.items()}))
    return joined(*parts)


def _colours(deepest: float, y: float) -> Markup:
    """Name the colours; those of what is worse end where those of what is better do."""
    wide, steps, left = 10, 8, _LEFT + 90
    parts = []
    for n in range(-steps, steps + 1):
        start = left + (n + steps) * wide
        kind = "cell worse" if n > 0 else "cell better"
        shade = round(abs(n) / steps, 3)
        parts.append(box((start, y - 11), (start + wide, y + 1), kind, fill_opacity=shade))
    end = left + (2 * steps + 1) * wide
    return joined(
        *parts,
        label(left - 8, y, percent(math.expm1(-deepest)), anchor="end"),
        label((left + end) / 2, y + 16, "as the plain model", anchor="middle"),
        label(end + 8, y, f"{percent(math.expm1(deepest))} or more"),
    )
