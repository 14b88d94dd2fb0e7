"""The text of each token in a run, although a token may end inside a character."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, pairwise
from typing import Any

INCOMPLETE = "\N{REPLACEMENT CHARACTER}"
"""What decoders write for bytes that make no character, or none yet."""

_HELD = 64  # parts: what makes no character after so many makes none at all


def texts_of(tokenizer: Any, parts: Sequence[Sequence[int]]) -> list[str]:
    """Decode parts of one run of token ids, each with its own text; joined they are the whole.

    A character that takes several tokens is the text of the one that completes it.
    """
    whole = _decode(tokenizer, parts)
    ends = [0]
    begin = read = known = 0  # parts[begin:read] have `known` characters and end at ends[read]
    for i in range(len(parts)):
        text = _decode(tokenizer, parts[begin : i + 1])
        whole_characters = text.rstrip(INCOMPLETE)
        end = ends[read] + len(whole_characters) - known
        ends.append(min(max(end, ends[-1]), len(whole)))
        if whole_characters == text or i - read >= _HELD:
            begin, read = read, i + 1
            known = len(_decode(tokenizer, parts[begin:read]))
    ends[-1] = len(whole) if parts else 0
    return [whole[start:end] for start, end in pairwise(ends)]


def _decode(tokenizer: Any, parts: Sequence[Sequence[int]]) -> str:
    # special tokens are tokens like others here, and spaces stay where they stood
    return str(
        tokenizer.decode(
            list(chain.from_iterable(parts)),
            skip_special_tokens=False,
            clean_up_tokenization_spaces=False,
        )
    )
