"""Curves: lambda over distance, and reliability."""

from __future__ import annotations

import math

import numpy as np

from knnlm_store.html.markup import Markup, joined
from knnlm_store.tuning.pictures import Buckets, Reliability
from knnlm_store.tuning.svg import (
    WIDTH,
    Scale,
    box,
    dot,
    figure,
    label,
    legend,
    line,
    nice,
    rule,
    x_axis,
    y_axis,
)
from knnlm_store.tuning.written import LAMBDA, span


def buckets(numbers: Buckets) -> Markup:
    """Draw lambda over nearest distance, and how many tokens lie there."""
    left, right, top, middle, under, bottom = 56, WIDTH - 12, 70, 280, 330, 414
    x = Scale(numbers.bounds[0], numbers.bounds[-1], left, right)
    tops = [*numbers.lambdas, *(v for each in numbers.means.values() for v in each)]
    highest = float(np.nanmax([*tops, numbers.fixed or 0.0, 0.1]))
    y = Scale(0, min(1.0, nice(highest / 4) * math.ceil(highest / nice(highest / 4))), middle, top)
    parts = [y_axis(y, left, right, LAMBDA)]
    names = [("line series-1", "bucketed")]
    if numbers.fixed is not None:
        parts.append(rule((left, y(numbers.fixed)), (right, y(numbers.fixed)), "line fixed"))
        names.append(("line fixed", "fixed"))
    parts.append(_steps(numbers, x, y))
    for family, series in (("learned", "series-2"), ("ratio", "series-3")):
        if family in numbers.means:
            parts.append(_means(numbers, family, series, x, y))
            names.append((f"line {series}", family))
    parts += [
        legend(left, 18, names),
        _counts(numbers, x, under, bottom),
        x_axis(x, bottom, bottom + 4, "squared distance of the nearest neighbour"),
    ]
    told = (
        f"Lambda over the squared distance of the nearest neighbour: bucketed as "
        f"{len(numbers.lambdas)} steps from {numbers.lambdas[0]:.2f} at the nearest to "
        f"{numbers.lambdas[-1]:.2f} at the farthest. Below, how many tokens lie in each bucket."
    )
    return figure(bottom + 48, told, *parts)


def _steps(numbers: Buckets, x: Scale, y: Scale) -> Markup:
    points, areas = [], []
    for b, lmbda in enumerate(numbers.lambdas):
        low, high = x(numbers.bounds[b]), x(numbers.bounds[b + 1])
        points += [(low, y(lmbda)), (high, y(lmbda))]
        told = f"{span(numbers, b)}: lambda {lmbda:.3f}, {numbers.counts[b]:,} tokens"
        areas.append(
            box(
                (low, y(y.high)), (high, y(0)), "hot", told, data_bucket=b, data_lambda=float(lmbda)
            )
        )
    return joined(*areas, line(points, "line series-1"))


def _means(numbers: Buckets, family: str, series: str, x: Scale, y: Scale) -> Markup:
    dots, points = [], []
    centres = np.minimum(numbers.centres, numbers.bounds[-1])
    for b, (centre, mean) in enumerate(zip(centres, numbers.means[family], strict=True)):
        points.append((x(centre), y(mean)))
        if math.isfinite(mean):
            told = f"{family}, {span(numbers, b)}: mean lambda {mean:.3f}"
            dots.append(
                dot(
                    points[-1],
                    3,
                    f"dot {series}",
                    told,
                    data_family=family,
                    data_bucket=b,
                    data_lambda=float(mean),
                )
            )
    return joined(line(points, f"line {series}"), *dots)


def _counts(numbers: Buckets, x: Scale, top: float, bottom: float) -> Markup:
    """Draw how many tokens lie in each bucket: of the text's own, and of foreign ones.

    By height, not by area: where tokens lie at distance 0, a bucket has next to no width.
    """
    y = Scale(0, float(max(numbers.counts.max(), numbers.foreign.max(), 1)), bottom, top)
    parts = [y_axis(y, x.start, x.end, "tokens in each bucket", 2)]
    for kind, counts in (("own", numbers.counts), ("foreign", numbers.foreign)):
        for b, count in enumerate(counts):
            a, c = x(numbers.bounds[b]), x(numbers.bounds[b + 1])
            gap = 0.5 if c - a > 3 else 0
            told = f"{span(numbers, b)}: {count:,} {_KINDS[kind]} tokens"
            right = max(c - gap, a + 1)  # a hairline at least
            bar = box(
                (a + gap, y(count)),
                (right, bottom),
                f"bar {kind}",
                told,
                data_bucket=b,
                data_count=int(count),
            )
            parts.append(bar)
    shown = [("bar own", "of the validation text")]
    if numbers.foreign.any():
        shown.append(("bar foreign", "of foreign text"))
    return joined(*parts, legend(210, top - 14, shown))


_KINDS = {"own": "validation", "foreign": "foreign"}


def reliability(numbers: tuple[Reliability, ...]) -> Markup:
    """Draw how often the likeliest token came over how likely it was said to be."""
    left, right, top, bottom, under, floor = 56, 476, 64, 424, 470, 540
    x, y = Scale(0, 1, left, right), Scale(0, 1, bottom, top)
    parts = [
        y_axis(y, left, right, "share that came", 5),
        rule((x(0), y(0)), (x(1), y(1)), "diagonal"),
        label(x(0.04), y(0.93), "came more often", "note"),
        label(x(0.04), y(0.93) + 16, "than predicted", "note"),
        label(x(0.96), y(0.09), "came less often", "note", "end"),
        label(x(0.96), y(0.09) + 16, "than predicted", "note", "end"),
    ]
    highest = max(max(each.counts.max() for each in numbers), 1)
    dense = Scale(0, float(highest), floor, under)
    side = label(left - 8, under - 12, f"tokens; the highest bar is {highest:,}", "axis")
    names = []
    for place, each in enumerate(numbers):
        series = "plain" if place == 0 else "series-1"
        parts += [_curve(each, series, x, y), _histogram(each, place, len(numbers), x, dense)]
        names.append((f"line {series}", f"{each.name}, off by {100 * each.error:.1f} points"))
    axis = x_axis(x, floor, floor + 4, "predicted probability of the likeliest token", 5)
    told = "Reliability: share of tokens that came over predicted probability. " + " ".join(
        f"{each.name}: off by {100 * each.error:.1f} points on average." for each in numbers
    )
    return figure(
        floor + 48,
        told,
        legend(left, 18, names),
        *parts,
        side,
        rule((left, floor), (right, floor), "grid base"),
        axis,
    )


def _curve(each: Reliability, series: str, x: Scale, y: Scale) -> Markup:
    points = [(x(p), y(s)) for p, s in zip(each.predicted, each.observed, strict=True)]
    marks = []
    for b in np.flatnonzero(each.counts):
        told = (
            f"{each.name}: predicted {each.predicted[b]:.3f}, came {each.observed[b]:.3f}, "
            f"{each.counts[b]:,} tokens"
        )
        at = points[b][0]
        marks.append(rule((at, y(each.low[b])), (at, y(each.high[b])), f"whisker {series}"))
        marks.append(
            dot(
                points[b],
                4,
                f"dot {series}",
                told,
                data_name=each.name,
                data_predicted=float(each.predicted[b]),
                data_observed=float(each.observed[b]),
                data_count=int(each.counts[b]),
            )
        )
    return joined(line(points, f"line {series}"), *marks)


def _histogram(each: Reliability, place: int, of: int, x: Scale, y: Scale) -> Markup:
    kind = "bar plain" if place == 0 else "bar chosen"
    wide = (x(1) - x(0)) / len(each.counts)
    bars = []
    for b, count in enumerate(each.counts):
        start = x(0) + b * wide + 3 + place * (wide - 6) / of
        told = f"{each.name}: {count:,} tokens"
        bars.append(box((start, y(count)), (start + (wide - 6) / of - 1, y(0)), kind, told))
    return joined(*bars)
