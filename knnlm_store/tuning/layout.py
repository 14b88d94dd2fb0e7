"""The same prose as different hands would set it.

What a datastore says of foreign text is wrong for the most part where lines break, lists begin and
documents open: there it repeats the habits of its own documents, and is sure of itself. A policy
learns to doubt that only from text of other habits.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping

_WIDTH = 74


def laid_out(number: int, heading: str, front: Mapping[str, str], body: str) -> str:
    """Set a body in one of four ways, in turns: lines wrapped or not, a heading or front matter."""
    if number % 4 in (0, 1):
        body = "\n\n".join(textwrap.fill(paragraph, _WIDTH) for paragraph in body.split("\n\n"))
    if number % 4 in (1, 2):
        heading = "\n".join(f"{name}: {value}" for name, value in front.items())
    return f"{heading}\n\n{body}"
