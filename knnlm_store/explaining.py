"""(torch) Explanations: for each token its probabilities, and the documents that made p_kNN.

One plain forward pass over the text and one search a pass give the mixture that `evaluate` scores
with and `generate` draws from, before sampling settings and other processors. For text that was
generated all is computed anew, afterwards: the figures are those of the datastore as it is now,
whatever the way of decoding, also for steps that had to do without it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np

from knnlm_store.attribution import Explanation, Passage, Source, TokenTrace
from knnlm_store.blending import as_blend, score_parts
from knnlm_store.datastore import Datastore
from knnlm_store.errors import UsageError
from knnlm_store.mixture import Evidence, Mixture, usable_first
from knnlm_store.models import LanguageModel
from knnlm_store.passages import read_passages
from knnlm_store.pieces import texts_of
from knnlm_store.scoring import Scored, score_batch
from knnlm_store.several import (
    Answered,
    Blend,
    Part,
    Searchable,
    is_remote,
    merged,
    nearest_columns,
    together,
    weigh,
)
from knnlm_store.tracing import Library, Seen, Share, Traced, Tracer
from knnlm_store.values import DocumentFilter, Float32, Int64, Neighbours
from knnlm_store.windows import Window, batches, windows

TOP = 5
"""Documents that are told of for one token, at most, unless said otherwise."""
READ = 32
"""Documents whose passages are read for one explanation, at most."""


def explain(
    model: LanguageModel,
    source: Searchable | Blend,
    mixture: Mixture | None,
    what: str | Sequence[int] | Int64,
    start: int = 1,
    *,
    top: int = TOP,
    without: Iterable[str] = (),
) -> Explanation:
    """Explain each token of a text, or of token ids from position `start` on.

    what: a text is read as `evaluate` reads a document: after the document start, in the model's
    windows. Ids, `[n]`, such as a prompt and what was generated after it, are read in one window,
    or in several where they exceed what the model can read. mixture: of a datastore or a pool; a
    blend has its own. top: documents told of for one token. without: ids of documents, for p of
    each token as if they were not there: exact where the backend is.

    Reads the catalogs once, and all tokens of the 32 documents that contribute most once, for
    passages. Raises UsageError for a `start` that is not in 1..n, StoreError for unknown
    documents, and what the backend raises.
    """
    blend, without = as_blend(source, mixture), tuple(without)
    ids, size = _inputs(model, what, start)
    search = _Search(blend)
    tracer = Tracer(search.library, top)
    found = sorted(_trace(model, ids, start, size, search, tracer, without), key=itemgetter(0))
    traced = [token for _, token, _ in found]
    passages = _passages(search.library, model.tokenizer, tracer, traced)
    prompt, *texts = texts_of(model.tokenizer, _parts(model, ids, start))
    tokens = [
        _told(token, text, p_without, search.library, passages)
        for (_, token, p_without), text in zip(found, texts, strict=True)
    ]
    documents = [document for _, document in tracer.ranked()]
    return Explanation(prompt, tokens, documents, _settings(blend), without)


# -- the model's side ------------------------------------------------------------------------------


def _inputs(
    model: LanguageModel, what: str | Sequence[int] | Int64, start: int
) -> tuple[Int64, int]:
    """Give the ids, int64 `[n]`, the first of which is not explained, and the window's size."""
    if isinstance(what, str):
        ids, size = np.append(model.document_start, model.encode(what)), model.window
    else:
        ids = np.asarray(what, np.int64)
        size = min(ids.size, model.limit or ids.size)
    if ids.ndim != 1 or not 1 <= start <= len(ids):
        raise UsageError(
            f"Tokens of shape {ids.shape} cannot be explained from position {start} on.",
            hint="Give one sequence, and the position of the first token after its prompt.",
        )
    return ids, size


def _windows(ids: Int64, start: int, size: int) -> Iterator[Window[None]]:
    """Cut ids into windows in which tokens from position `start` on are new."""
    for window in windows(None, int(ids[0]), ids[1:], size):
        new = max(window.new, start - 1)
        if new < window.end:
            yield replace(window, new=new, targets=ids[new + 1 : window.end + 1])


def _trace(
    model: LanguageModel,
    ids: Int64,
    start: int,
    size: int,
    search: _Search,
    tracer: Tracer,
    without: Sequence[str],
) -> Iterator[tuple[int, Traced, float | None]]:
    """Yield each token's place, its probabilities and shares, and p without the documents."""
    filters = search.library.leaving_out(without) if without else None
    for batch in batches(_windows(ids, start, size), size):
        scored = score_batch(model, batch)
        traced = tracer.trace(search.seen(scored), scored.targets, np.exp(scored.log_probs))
        p_without: list[float | None] = [None] * len(traced)
        if filters is not None:
            p_without = np.exp(score_parts(scored, search.answers(scored, filters))).tolist()
        places = np.concatenate([np.arange(window.new, window.end) for window in batch.windows])
        yield from zip(places.tolist(), traced, p_without, strict=True)


def _parts(model: LanguageModel, ids: Int64, start: int) -> list[list[int]]:
    """Give the prompt and each token after it, to be decoded; the document start is no text."""
    begin = int(ids[0] == model.document_start)
    return [ids[begin:start].tolist(), *ids[start:, None].tolist()]


# -- the datastores' side --------------------------------------------------------------------------


class _Found(NamedTuple):
    """What a part found, and the datastore of each neighbour by its index, int64 `[q, k]`."""

    neighbours: Neighbours
    stores: Int64


class _Search:
    """Searches the parts of a blend, and keeps where each neighbour comes from."""

    def __init__(self, blend: Blend) -> None:
        stores = [store for part in blend.parts for store in _stores(part)]
        self.library = Library(dict.fromkeys(stores))
        self._blend = blend
        self._places = [
            [self.library.stores.index(store) for store in _stores(part)] for part in blend.parts
        ]

    def answers(self, scored: Scored, filters: Sequence[DocumentFilter | None]) -> list[Answered]:
        """Search with a filter for each datastore."""
        found = self._search(scored.keys, filters)
        parts = zip(found, self._blend.parts, self._blend.weights.tolist(), strict=True)
        return [Answered(each.neighbours, part.mixture, weight) for each, part, weight in parts]

    def seen(self, scored: Scored) -> Seen:
        """Search, and weigh the neighbours of all parts side by side."""
        evidences, ordered = [], []
        for neighbours, stores in self._search(scored.keys, [None] * len(self.library.stores)):
            log_lm = scored.log_lm(neighbours)
            evidences.append(Evidence.of(neighbours, log_lm, scored.entropy, scored.top))
            order = usable_first(neighbours, log_lm)
            if order is not None:
                neighbours = neighbours.taken(order)
                stores = np.take_along_axis(stores, order, axis=1)
            ordered.append(
                (stores, neighbours.documents, neighbours.positions, neighbours.distances)
            )
        mixtures = [part.mixture for part in self._blend.parts]
        parts = list(zip(mixtures, self._blend.weights.tolist(), strict=True))
        arrays = (np.concatenate(each, axis=1) for each in zip(*ordered, strict=True))
        return Seen(weigh(parts, evidences), *arrays)

    def _search(self, queries: Float32, filters: Sequence[DocumentFilter | None]) -> list[_Found]:
        calls = [
            partial(_search_part, part, queries, places, filters)
            for part, places in zip(self._blend.parts, self._places, strict=True)
        ]
        return together(calls, [is_remote(part.store) for part in self._blend.parts])


def _stores(part: Part) -> tuple[Datastore, ...]:
    return (part.store,) if isinstance(part.store, Datastore) else part.store.stores


def _search_part(
    part: Part,
    queries: Float32,
    places: Sequence[int],
    filters: Sequence[DocumentFilter | None],
) -> _Found:
    """Search a part whose datastores have these places in the library."""
    k, within = part.mixture.k, [filters[place] for place in places]
    if isinstance(part.store, Datastore):
        found = part.store.search(queries, k, within=within[0])
        return _Found(found, np.full(found.tokens.shape, places[0]))
    apart = part.store.search_each(queries, k, within=within)
    # each has k columns
    return _Found(merged(apart, k), np.array(places)[nearest_columns(apart, k) // k])


# -- what is told ----------------------------------------------------------------------------------


def _passages(
    library: Library, tokenizer: Any, tracer: Tracer, traced: Sequence[Traced]
) -> list[dict[tuple[int, int], Passage]]:
    """Read passages for the documents that contribute most, of each datastore."""
    chosen = {place for place, _ in tracer.ranked()[:READ]}
    wanted: list[dict[int, set[int]]] = [defaultdict(set) for _ in library.stores]
    for share in (share for token in traced for share in token.shares):
        if share.document in chosen:
            store, _ = library.documents[share.document]
            wanted[store][share.number].add(share.hits[0].position)
    pairs = zip(library.stores, wanted, strict=True)
    return [read_passages(store, tokenizer, mine) for store, mine in pairs]


def _told(
    token: Traced,
    text: str,
    p_without: float | None,
    library: Library,
    passages: Sequence[dict[tuple[int, int], Passage]],
) -> TokenTrace:
    def source(share: Share) -> Source:
        store, document = library.documents[share.document]
        passage = passages[store].get((share.number, share.hits[0].position))
        where = str(library.stores[store].location)
        return Source(document, where, share.share, share.hits, passage)

    sources = tuple(map(source, token.shares))
    return TokenTrace(
        token.token,
        text,
        token.p_lm,
        token.p_knn,
        token.lmbda,
        token.p,
        sources,
        token.other,
        p_without,
    )


def _settings(blend: Blend) -> dict[str, Any]:
    """Say how the datastores are mixed in; a datastore or pool alone has no weight."""
    parts = [
        {
            "store": str(part.store.location),
            "weight": weight,
            "k": part.mixture.k,
            "temperature": part.mixture.temperature,
            "policy": part.mixture.policy.name,
            "lmbda": getattr(part.mixture.policy, "lmbda", None),
        }
        for part, weight in zip(blend.parts, blend.weights.tolist(), strict=True)
    ]
    if len(parts) > 1 or parts[0]["weight"] != 1:
        return {"parts": parts}
    return {name: value for name, value in parts[0].items() if name != "weight"}
