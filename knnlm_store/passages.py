"""Text round entries, decoded from the entries themselves.

Consecutive positions are consecutive tokens, so no source file is needed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from itertools import takewhile
from typing import Any

import numpy as np

from knnlm_store.attribution import Passage
from knnlm_store.datastore import Datastore
from knnlm_store.pieces import INCOMPLETE, texts_of

AROUND = 24
"""Tokens of a passage before its token, and after it."""


def read_passages(
    store: Datastore, tokenizer: Any, wanted: Mapping[int, Collection[int]]
) -> dict[tuple[int, int], Passage]:
    """Read passages of a datastore; gives them by document number and position.

    wanted: positions by document number. Every entry of these documents is read once, without its
    key, in one scan; memory holds what is near the positions. Entries that are gone have none.
    """
    if not wanted:
        return {}
    around = {number: _around(positions) for number, positions in wanted.items()}
    tokens: dict[int, dict[int, int]] = {number: {} for number in wanted}
    for batch in store.backend.scan(documents=list(wanted)):
        for number in np.unique(batch.documents).tolist():
            mine = batch[batch.documents == number]
            mine = mine[np.isin(mine.positions, around[number])]
            tokens[number].update(zip(mine.positions.tolist(), mine.tokens.tolist(), strict=True))
    return {
        (number, position): _passage(tokenizer, tokens[number], position)
        for number, positions in wanted.items()
        for position in positions
        if position in tokens[number]
    }


def _around(positions: Collection[int]) -> Any:
    near = np.arange(-AROUND, AROUND + 1)
    return np.unique(np.array(list(positions), np.int64)[:, None] + near)


def _passage(tokenizer: Any, tokens: Mapping[int, int], position: int) -> Passage:
    def run(positions: Iterable[int]) -> list[int]:
        return [tokens[p] for p in takewhile(tokens.__contains__, positions)]

    before = run(range(position - 1, position - AROUND - 1, -1))[::-1]
    after = run(range(position + 1, position + AROUND + 1))
    texts = texts_of(tokenizer, [before, [tokens[position]], after])
    # a passage is cut where it is cut, also inside a character
    return Passage(texts[0].lstrip(INCOMPLETE), texts[1], texts[2].rstrip(INCOMPLETE))
