"""Numbers as a report writes them."""

from __future__ import annotations

import math

from knnlm_store.tuning.pictures import Buckets

LAMBDA = "\N{GREEK SMALL LETTER LAMDA}"


def tick(value: float) -> str:
    """Write a number on an axis."""
    return _minus(f"{value:,.10g}")


def signed(value: float, digits: int = 3) -> str:
    """Write a number with its sign."""
    return _minus(f"{value:+,.{digits}f}")


def percent(share: float, digits: int = 0) -> str:
    """Write a share that is a change."""
    return f"{signed(100 * share, digits)} %"


def change(perplexity: float, plain: float) -> str:
    """Write how a perplexity compares."""
    times = perplexity / plain
    if not math.isfinite(times):
        return "infinite"
    return f"{times:,.0f} times" if times >= 10 else percent(times - 1, 1)


def or_none(value: float) -> str:
    """Write the mean over some tokens, of which there may be none."""
    return f"{value:.3f}" if math.isfinite(value) else "no token"


def span(buckets: Buckets, b: int) -> str:
    """Name a bucket by its bounds; the outer two are open."""
    low, high = (f"{v:,.4g}" for v in buckets.bounds[b : b + 2])
    if b == len(buckets.lambdas) - 1:
        return f"from {low}" if b else "all"
    return f"{low} to {high}" if b else f"below {high}"


def _minus(text: str) -> str:
    return text.replace("-", "\N{MINUS SIGN}")
