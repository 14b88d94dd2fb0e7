"""How counts are written for people."""

from __future__ import annotations


def counted(number: int, what: str) -> str:
    """Write how many there are: `1 entry`, `2,000 entries`; what: one of them."""
    if number != 1:
        what = f"{what[:-1]}ies" if what.endswith("ry") else f"{what}s"
    return f"{number:,} {what}"
