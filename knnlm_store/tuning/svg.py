"""Drawing: scales, axes and marks, as inline SVG."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

from knnlm_store.html.markup import Markup, joined, tag
from knnlm_store.tuning.written import tick

WIDTH = 720
"""Of every figure, in pixels."""

Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Scale:
    """Values low..high to pixels start..end."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """Pixel of a value."""
        span = self.high - self.low or 1.0
        return round(self.start + (value - self.low) / span * (self.end - self.start), 2)

    def ticks(self, about: int = 5) -> list[float]:
        """Round values within the scale, about that many."""
        step = nice((self.high - self.low) / max(about, 1))
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [round(n * step, 12) for n in range(first, last + 1)]


def nice(value: float) -> float:
    """Round up to 1, 2, 2.5 or 5 times a power of ten; 1 for nothing."""
    if not 0 < value < math.inf:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= value * (1 - 1e-9))


def figure(height: float, label: str, *parts: object) -> Markup:
    """Make a picture of WIDTH by `height` pixels. label: what it shows, for who cannot see it."""
    box = f"0 0 {WIDTH} {height:g}"
    return tag(
        "svg", *parts, viewBox=box, width=WIDTH, height=f"{height:g}", role="img", aria_label=label
    )


def label(x: float, y: float, text: object, class_: str = "tick", anchor: str = "start") -> Markup:
    """Write text at a place; anchor is start, middle or end."""
    return tag("text", text, x=round(x, 2), y=round(y, 2), class_=class_, text_anchor=anchor)


def rule(a: Point, b: Point, class_: str = "grid") -> Markup:
    """Draw a straight line."""
    (x1, y1), (x2, y2) = a, b
    return tag("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=class_)


def box(a: Point, b: Point, class_: str, title: str | None = None, **more: object) -> Markup:
    """Draw a rectangle between two corners; title is shown when it is pointed at."""
    x, y = min(a[0], b[0]), min(a[1], b[1])
    wide, high = round(abs(a[0] - b[0]), 2), round(abs(a[1] - b[1]), 2)
    told = [tag("title", title)] if title else []
    return tag("rect", *told, x=x, y=y, width=wide, height=high, class_=class_, **more)


def dot(at: Point, radius: float, class_: str, title: str, **more: object) -> Markup:
    """Draw a circle."""
    return tag("circle", tag("title", title), cx=at[0], cy=at[1], r=radius, class_=class_, **more)


def line(points: Iterable[Point], class_: str) -> Markup:
    """Join points; nan breaks the line."""
    parts = []
    for whole, run in groupby(points, key=lambda p: not (math.isnan(p[0]) or math.isnan(p[1]))):
        if whole:
            parts.append("M" + "L".join(f"{x:g} {y:g}" for x, y in run))
    return tag("path", d=" ".join(parts), class_=class_) if parts else Markup()


def x_axis(scale: Scale, top: float, bottom: float, title: str, about: int = 6) -> Markup:
    """Draw ticks below `bottom`, short grid lines from there up to `top`, and what it shows."""
    marks = [
        joined(
            rule((scale(v), top), (scale(v), bottom)),
            label(scale(v), bottom + 17, tick(v), anchor="middle"),
        )
        for v in scale.ticks(about)
    ]
    middle = (scale.start + scale.end) / 2
    return joined(*marks, label(middle, bottom + 38, title, "axis", "middle"))


def y_axis(scale: Scale, left: float, right: float, title: str, about: int = 4) -> Markup:
    """Draw ticks left of `left`, grid lines to `right`; the title stands above, to be read."""
    marks = [
        joined(
            rule((left, scale(v)), (right, scale(v)), "grid base" if v == 0 else "grid"),
            label(left - 8, scale(v) + 4, tick(v), anchor="end"),
        )
        for v in scale.ticks(about)
    ]
    return joined(*marks, label(left - 8, min(scale.start, scale.end) - 14, title, "axis"))


def legend(x: float, y: float, entries: Sequence[tuple[str, str]]) -> Markup:
    """Name what is drawn, side by side: class of the mark, name."""
    parts: list[Markup] = []
    for class_, name in entries:
        if class_.startswith("line"):
            parts.append(rule((x, y - 4), (x + 22, y - 4), class_))
        else:
            parts.append(box((x + 5, y - 10), (x + 17, y + 2), class_))
        parts.append(label(x + 28, y, name, "name"))
        x += 46 + 7.2 * len(name)
    return joined(*parts)
