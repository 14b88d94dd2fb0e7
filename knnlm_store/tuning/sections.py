"""A report's sections with figures: what is shown, how to read it, and the numbers as a table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from knnlm_store.html.markup import Markup, joined, table, tag
from knnlm_store.html.page import folded
from knnlm_store.tuning import bars, curves, heatmap
from knnlm_store.tuning.pictures import Buckets, Landscape, Reliability
from knnlm_store.tuning.written import LAMBDA, or_none, signed, span


def _figure(picture: Markup, numbers: Markup) -> Markup:
    return joined(tag("figure", picture), folded("The numbers", numbers))


def landscape(numbers: Landscape) -> Markup:
    """Show perplexity over lambda and temperature."""
    head = ["temperature", f"best {LAMBDA}", "its perplexity"]
    head += [f"{LAMBDA} {value:g}" for value in numbers.lambdas]
    rows: list[list[object]] = [
        [
            f"{temperature:,.4g}",
            f"{numbers.best[i]:.3f}",
            f"{numbers.at_best[i]:,.3f}",
            *(f"{value:,.3f}" for value in numbers.perplexity[i]),
        ]
        for i, temperature in enumerate(numbers.temperatures)
    ]
    return joined(
        tag("h2", "Perplexity over lambda and temperature"),
        tag(
            "p",
            "Under one lambda for all tokens of the validation text; blue is better than the "
            f"plain model's {numbers.plain:,.3f}, orange is worse. The fit saw this text, so the "
            "table above is the one to quote.",
        ),
        _figure(heatmap.landscape(numbers), table("Perplexity", head, rows)),
    )


def buckets(numbers: Buckets) -> Markup:
    """Show lambda over the nearest distance."""
    head = ["nearest distance", "tokens", "foreign tokens", "bucketed"]
    head += [f"{name}, mean" for name in numbers.means]
    rows: list[list[object]] = [
        [
            span(numbers, b),
            f"{numbers.counts[b]:,}",
            f"{numbers.foreign[b]:,}",
            f"{lmbda:.3f}",
            *(or_none(values[b]) for values in numbers.means.values()),
        ]
        for b, lmbda in enumerate(numbers.lambdas)
    ]
    return joined(
        tag("h2", "Lambda over the nearest distance"),
        tag(
            "p",
            "How far each policy trusts the neighbours, by how near the nearest is. Bucketed "
            "goes by that alone. Learned and ratio go by more: what is shown is their mean over "
            "the validation tokens of a bucket. Bucketed and learned are fitted to foreign text as "
            "well, so that they fall silent where it lies.",
        ),
        _figure(curves.buckets(numbers), table("Lambda by bucket", head, rows)),
    )


def reliability(numbers: tuple[Reliability, ...], measured: str) -> Markup:
    """Show whether probabilities mean what they say. measured: on what."""
    head = ["predicted", *(f"{each.name}: {what}" for each in numbers for what in _COLUMNS)]
    bins = len(numbers[0].counts)
    rows: list[list[object]] = [
        [f"{b / bins:g} to {(b + 1) / bins:g}", *(v for each in numbers for v in _bin(each, b))]
        for b in range(bins)
    ]
    return joined(
        tag("h2", "Reliability"),
        tag(
            "p",
            "The probability that was given to the likeliest token, and how often that token "
            f"came, on {measured}. On the dashed line a probability means what it says. Bars: "
            "95 % intervals. Off by: mean distance from the line, over tokens (expected "
            "calibration error).",
        ),
        _figure(curves.reliability(numbers), table("Reliability", head, rows)),
    )


_COLUMNS = ("tokens", "said", "came")


def _bin(each: Reliability, b: int) -> list[str]:
    return [f"{each.counts[b]:,}", or_none(each.predicted[b]), or_none(each.observed[b])]


def gains(every_group: Mapping[str, Mapping[str, Any]], measured: str) -> Markup:
    """Show gains; nothing where there are none."""
    groups = {name: each for name, each in every_group.items() if each}
    if not groups:
        return Markup()
    every = [float(values["gain"]) for each in groups.values() for values in each.values()]
    parts = [
        tag("h2", "Where it gains"),
        tag(
            "p",
            f"Mean gain over the plain model in nats a token, on {measured}: by how "
            "often the token stands in the datastore, and by the longest run of tokens up to it "
            "that stands there too.",
        ),
    ]
    for name, each in groups.items():
        parts.append(tag("h3", f"By {name}"))
        parts.append(_figure(bars.gains(name, each, every), _gain_table(name, each)))
    return joined(*parts)


def _gain_table(name: str, groups: Mapping[str, Any]) -> Markup:
    total = max(sum(values["tokens"] for values in groups.values()), 1)
    rows: list[list[object]] = [
        [
            group,
            f"{values['tokens']:,}",
            f"{100 * values['tokens'] / total:.1f} %",
            signed(values["gain"]) if values["tokens"] else "no token",
            signed(values["gain"] * values["tokens"] / total, 4),
        ]
        for group, values in groups.items()
    ]
    head = ["group", "tokens", "share", "gain", "share \N{MULTIPLICATION SIGN} gain"]
    return table(f"Gain by {name}", head, rows)
