"""Hidden states of text at both key points with what the model makes of each token, kept on disk.

One forward pass over a text is all that a model is needed for: stores, searches and fits are then
arrays. Files lie under .bench/states and are used again.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields, replace
from functools import cache
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.common import ROOT, language_model
from knnlm_store.corpus import Document
from knnlm_store.interpolation import Float64
from knnlm_store.keys import POINTS
from knnlm_store.mixing import entropy_and_top
from knnlm_store.models import LanguageModel, to_float64, to_numpy
from knnlm_store.tuning.draw import shares
from knnlm_store.values import Float32, Int64
from knnlm_store.windows import Window, batches, windows

FFN, HEAD = POINTS

Encoded: TypeAlias = tuple[str, Int64]
"""A document's id and tokens."""


@dataclass(frozen=True, slots=True)
class States:
    """n tokens in the order of their documents.

    last_ffn_input, lm_head_input: hidden states before each token, float32 `[n, d]`. targets: the
    tokens; documents: place of each one's document in `names`, both int64 `[n]`. log_lm: log p_LM
    of the targets; totals: logsumexp of the logits; entropy, top: see Evidence; all float64 `[n]`.
    """

    last_ffn_input: Float32
    lm_head_input: Float32
    targets: Int64
    documents: Int64
    log_lm: Float64
    totals: Float64
    entropy: Float64
    top: Float64
    names: NDArray[np.str_]

    def at(self, point: str) -> Float32:
        """Hidden states at a key point."""
        hidden: Float32 = getattr(self, point)
        return hidden

    def __len__(self) -> int:
        """Count the tokens."""
        return len(self.targets)

    def __getitem__(self, rows: slice | Int64) -> States:
        """Select tokens."""
        return replace(self, **{name: getattr(self, name)[rows] for name in _ROWS})


_ROWS = [field.name for field in fields(States) if field.name != "names"]


def spread(text: States, most: int) -> States:
    """Take tokens of all documents."""
    return text[np.arange(0, len(text), max(1, len(text) // most))[:most]]


def even(text: States, most: int) -> States:
    """Take of every document its share, as `tune` does."""
    _, first, owner = np.unique(text.documents, return_index=True, return_inverse=True)
    taken = shares(np.bincount(owner), most)
    return text[np.flatnonzero(np.arange(len(text)) - first[owner] < taken[owner])]


def kept(name: str, work: Callable[[], States]) -> States:
    """Give the states kept under a name, or make and keep them."""
    place = ROOT / "states" / f"{name}.npz"
    if not place.exists():
        made = work()
        place.parent.mkdir(parents=True, exist_ok=True)
        unfinished = place.with_suffix(".unfinished.npz")
        np.savez(unfinished, **{field.name: getattr(made, field.name) for field in fields(made)})
        unfinished.replace(place)
    with np.load(place) as arrays:
        return States(**arrays)


def states(
    where: str,
    corpus: Iterable[Any],
    most: int | None = None,
    *,
    for_store: bool = False,
    even: bool = False,
) -> States:
    """Read text, or what is kept of an earlier reading of it.

    where: names the text. most: tokens at which to stop, for_store: at the end of a document, and
    without what the model makes of the tokens, for which zeros stand. even: of every document its
    share, as `tune` does.
    """
    digest = hashlib.sha256(f"{where} {most} {for_store} {even}".encode()).hexdigest()[:16]

    def work() -> States:
        cut = _even(corpus, most) if even and most else _first(corpus, most, for_store)
        return read(model(), cut, for_store=for_store)

    return kept(digest, work)


@torch.inference_mode()
def read(lm: LanguageModel, texts: Iterable[Encoded], *, for_store: bool = False) -> States:
    """Run the model over text, a window a time."""
    parts: list[States] = []
    names: list[str] = []
    for batch in batches(_windows(lm, texts, names), lm.window):
        ids, mask = lm.tensors(batch)
        with lm.tap.private():
            head = lm.model.base_model(input_ids=ids, attention_mask=mask, use_cache=False)[0]
        ffn = lm.tap.take(len(ids))
        for row, window in enumerate(batch.windows):
            new = slice(window.new - window.begin, window.end - window.begin)
            view = _nothing(window) if for_store else _view(lm, window, head[row, new])
            parts.append(_part(window, ffn[row, new], head[row, new], view))
        print(f"\r{sum(map(len, parts)):>9,} tokens", end="", file=sys.stderr, flush=True)
    columns = {name: np.concatenate([getattr(part, name) for part in parts]) for name in _ROWS}
    joined = States(**columns, names=np.array(names))
    return joined[np.argsort(joined.documents, kind="stable")]


def _first(corpus: Iterable[Any], most: int | None, whole: bool) -> Iterator[Encoded]:
    """Take so many tokens; whole: to the end of a document."""
    left = float("inf") if most is None else most
    for name, tokens in _encoded(corpus):
        yield name, tokens if whole or left > len(tokens) else tokens[: int(left)]
        left -= len(tokens)
        if left <= 0:
            return


def _even(corpus: Iterable[Any], most: int) -> Iterator[Encoded]:
    documents = list(_encoded(corpus))
    lengths = np.array([len(tokens) for _, tokens in documents], np.int64)
    for (name, tokens), share in zip(documents, shares(lengths, most).tolist(), strict=True):
        if share:
            yield name, tokens[:share]


def _encoded(corpus: Iterable[Any]) -> Iterator[Encoded]:
    return ((d.id, model().encode(d.text)) for d in corpus if isinstance(d, Document))


def _windows(
    lm: LanguageModel, texts: Iterable[Encoded], names: list[str]
) -> Iterator[Window[int]]:
    """Cut documents; what they are called goes into `names`."""
    for name, tokens in texts:
        names.append(name)
        yield from windows(len(names) - 1, lm.document_start, tokens, lm.window)


def _view(lm: LanguageModel, window: Window[int], head: Any) -> Float64:
    """Log p_LM of the targets, logsumexp of the logits, entropy and top, float64 `[4, n]`."""
    logits = lm.model.get_output_embeddings()(head)
    totals = logits.logsumexp(-1, keepdim=True)
    at_targets = logits.gather(1, torch.from_numpy(window.targets)[:, None]) - totals
    return np.stack(
        [to_float64(at_targets)[:, 0], to_float64(totals)[:, 0], *entropy_and_top(logits, totals)]
    )


def _nothing(window: Window[int]) -> Float64:
    return np.zeros((4, len(window.targets)))


def _part(window: Window[int], ffn: Any, head: Any, view: Float64) -> States:
    owners = np.full(len(window.targets), window.owner)
    log_lm, totals, entropy, top = view
    nobody = np.empty(0, np.str_)
    keys = to_numpy(ffn), to_numpy(head)
    return States(*keys, window.targets, owners, log_lm, totals, entropy, top, nobody)


@cache
def model() -> LanguageModel:
    """SmolLM2-135M, loaded once."""
    return language_model()
