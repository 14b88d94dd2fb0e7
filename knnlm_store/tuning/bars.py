"""Bars: gains by group."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from knnlm_store.html.markup import Markup, joined
from knnlm_store.tuning.svg import WIDTH, Scale, box, figure, label, nice, rule, x_axis
from knnlm_store.tuning.written import signed


def gains(name: str, groups: Mapping[str, Mapping[str, Any]], every: list[float]) -> Markup:
    """Draw mean gains of groups as bars, in the order given.

    every: gains of all such figures of a page, which share a scale.
    """
    left, right, top, row = 232, 610, 40, 30
    bottom = top + row * len(groups)
    step = nice((max(*every, 0.0, 0.01) - min(*every, 0.0)) / 4)
    low, high = (
        step * f(v / step - 1e-9 * s)
        for f, v, s in ((math.floor, min(*every, 0.0), -1), (math.ceil, max(*every, 0.0, 0.01), 1))
    )
    x = Scale(low, high, left, right - 56)
    parts = [x_axis(x, top, bottom + 4, "mean gain, nats a token", 5)]
    for place, (group, values) in enumerate(groups.items()):
        parts.append(_gain(group, values, x, top + row * (place + 0.5)))
    parts.append(rule((x(0), top), (x(0), bottom + 4), "grid base"))
    parts.append(label(WIDTH - 10, top - 12, "tokens", "axis", "end"))
    there = {group: values["gain"] for group, values in groups.items() if values["tokens"]}
    told = f"Mean gain in nats a token by {name}."
    if there:
        told += f" It is largest for the group {max(there, key=lambda group: there[group])}."
    return figure(bottom + 48, told, *parts)


def _gain(group: str, values: Mapping[str, Any], x: Scale, y: float) -> Markup:
    gain, tokens = float(values["gain"]), int(values["tokens"])
    short = group if len(group) <= 28 else group[:27] + "\N{HORIZONTAL ELLIPSIS}"
    name = label(x.start - 14, y + 4, short, "name", "end")
    count = label(WIDTH - 10, y + 4, f"{tokens:,}", "value", "end")
    if not tokens:
        return joined(name, count, label(x(0) + 8, y + 4, "no such token", "note"))
    kind = "bar better" if gain >= 0 else "bar worse"
    bar = box(
        (x(0), y - 9),
        (x(gain), y + 9),
        kind,
        f"{group}: {gain:+.3f}, {tokens:,} tokens",
        data_group=group,
        data_gain=gain,
        data_tokens=tokens,
    )
    at = x(max(gain, 0.0)) + 6
    return joined(name, bar, label(at, y + 4, signed(gain), "value"), count)
