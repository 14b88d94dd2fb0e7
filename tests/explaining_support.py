"""Datastores to explain from, and their shares of p_kNN by the definition."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np

from knnlm_store.datastore import Datastore
from knnlm_store.interpolation import Float64
from knnlm_store.mixture import Mixture
from knnlm_store.models import LanguageModel
from knnlm_store.scoring import Scored
from knnlm_store.several import Searchable
from knnlm_store.values import Entries
from tests.ingest_support import put_documents, record
from tests.tiny import VOCABULARY

LETTERS = list(range(70, 76))
"""Tokens of the datastores and texts here: few, so that many neighbours agree."""
Place: TypeAlias = tuple[str, int]
"""Document and position."""


def scattered(lm: LanguageModel, seed: int, documents: int = 5, tokens: int = 30) -> Datastore:
    """Documents of entries at random; one token in six is none of the model's vocabulary."""
    store = Datastore.open_or_create("memory:", lm.manifest())
    rng = np.random.default_rng(seed)
    n = documents * tokens
    keys = rng.standard_normal((n, store.manifest.key_dimension)).astype(np.float32)
    chosen = np.where(rng.random(n) < 1 / 6, VOCABULARY + 5, rng.choice(LETTERS, n))
    numbers = [1000 * i + 100_000 * seed for i in range(1, documents + 1)]
    positions = np.tile(np.arange(tokens), documents)
    store.backend.upsert(Entries(keys, chosen, np.repeat(numbers, tokens), positions))
    put_documents(store.backend, [record(f"{number}", number, tokens) for number in numbers])
    return store


def letters(lm: LanguageModel, seed: int, tokens: int) -> str:
    """Text of so many of the tokens that the datastores hold."""
    text: str = lm.tokenizer.decode(np.random.default_rng(seed).choice(LETTERS, tokens))
    return text


def by_hand(
    scored: Scored, parts: Sequence[tuple[Searchable, Mixture, float]]
) -> list[tuple[float, dict[Place, float]]]:
    """For each token lambda, and what each entry that holds it has of p_kNN."""
    each = [_part(scored, source, mixture) for source, mixture, _ in parts]
    told = []
    for row, target in enumerate(scored.targets.tolist()):
        lmbda = sum(weight * each[i][row][0] for i, (_, _, weight) in enumerate(parts))
        shares: dict[Place, float] = {}
        for i, (_, _, weight) in enumerate(parts):
            trust, mine = each[i][row]
            for place, (token, share) in mine.items():
                if token == target:
                    shares[place] = shares.get(place, 0.0) + weight * trust * share / lmbda
        told.append((lmbda, shares))
    return told


def _part(
    scored: Scored, source: Searchable, mixture: Mixture
) -> list[tuple[float, dict[Place, tuple[int, float]]]]:
    """For each row the part's lambda, and token and share of the entries that are let in."""
    entries = _entries(source)
    weights = mixture.policy(scored.evidence(source.search(scored.keys, mixture.k)))
    told = []
    for key, mine in zip(scored.keys, weights, strict=True):
        near = sorted((float(((k - key) ** 2).sum()), token, place) for k, token, place in entries)[
            : mixture.k
        ]
        near = [each for each in near if each[1] < VOCABULARY]
        shares = sum(
            weight * _softmax([-d / (scale * mixture.temperature) for d, _, _ in near])
            for weight, scale in zip(mine, mixture.policy.scales, strict=True)
        )
        pairs = zip(near, shares / mine.sum(), strict=True)
        told.append(
            (float(mine.sum()), {place: (token, float(s)) for (_, token, place), s in pairs})
        )
    return told


def _softmax(values: list[float]) -> Float64:
    each = np.exp(np.array(values) - max(values))
    softmax: Float64 = each / each.sum()
    return softmax


def _entries(source: Searchable) -> list[tuple[Float64, int, Place]]:
    """Key, token and place of every entry."""
    found = []
    for store in (source,) if isinstance(source, Datastore) else source.stores:
        names = {document.version.number: document.id for document in store.documents()}
        for batch in store.backend.scan(with_keys=True):
            places = zip(batch.documents.tolist(), batch.positions.tolist(), strict=True)
            named = [(names[number], position) for number, position in places]
            keys = batch.keys.astype(np.float64)
            found += list(zip(keys, batch.tokens.tolist(), named, strict=True))
    return found


def without(lm: LanguageModel, store: Datastore, *documents: str) -> Datastore:
    """The same entries, to the bit, but for those of some documents."""
    left = Datastore.open_or_create("memory:", lm.manifest())
    kept = [d for d in store.documents() if d.id not in documents]
    put_documents(left.backend, kept)
    for batch in store.backend.scan(with_keys=True, documents=[d.version.number for d in kept]):
        left.backend.upsert(batch)
    return left
