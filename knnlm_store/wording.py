"""How counts and names are written for people."""

from __future__ import annotations

from collections.abc import Iterable

_LISTED, _LENGTH = 8, 60


def counted(number: int, what: str) -> str:
    """Write how many there are: `1 entry`, `2,000 entries`; what: one of them."""
    if number != 1:
        what = f"{what[:-1]}ies" if what.endswith("ry") else f"{what}s"
    return f"{number:,} {what}"


def listed(names: Iterable[str]) -> str:
    """Write names in quotes, sorted, on one line: some of them, where they are many."""
    ordered = sorted(names)
    shown = (n if len(n) <= _LENGTH else f"{n[:_LENGTH]}..." for n in ordered[:_LISTED])
    more = f" and {len(ordered) - _LISTED} more" if len(ordered) > _LISTED else ""
    return (", ".join(map(repr, shown)) or "none") + more
