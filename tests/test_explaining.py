"""Explanations add up: p of each token, and the shares of the documents that made it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from knnlm_store import explaining
from knnlm_store.attribution import Explanation
from knnlm_store.corpus import Document
from knnlm_store.datastore import Datastore
from knnlm_store.errors import StoreError, UsageError
from knnlm_store.evaluation import evaluate
from knnlm_store.explaining import explain
from knnlm_store.generation import KnnLM
from knnlm_store.memory import MemoryBackend
from knnlm_store.mixture import Fixed, Mixture
from knnlm_store.models import LanguageModel
from knnlm_store.policies import Ratio
from knnlm_store.several import Blend, Pool, Searchable
from tests.explaining_support import by_hand, letters, scattered, without
from tests.several_support import filled, scored_of
from tests.tiny import tiny_model
from tests.tuning_support import one_thread, random_gate

KINDS = ("datastore", "gate", "gate that reads queries", "pool", "blend")
PLAIN = Mixture(12, 20.0, Fixed(0.6))


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture(scope="module")
def lm(tokenizer: Any) -> LanguageModel:
    return LanguageModel.wrap(tiny_model("llama"), tokenizer, window=256)


def parts_of(lm: LanguageModel, kind: str, seed: int) -> list[tuple[Searchable, Mixture, float]]:
    """What is mixed in, from two datastores that hold tokens which the model rules out."""
    first, second = scattered(lm, 2 * seed + 1), scattered(lm, 2 * seed + 2)
    learned = Mixture(15, 9.0, random_gate(np.random.default_rng(seed)))
    size = first.manifest.dimension
    by_query = Mixture(15, 9.0, random_gate(np.random.default_rng(seed), dimension=size))
    kinds: dict[str, list[tuple[Searchable, Mixture, float]]] = {
        "datastore": [(first, Mixture(20, 7.0, Ratio()), 1.0)],
        "gate": [(first, learned, 1.0)],
        "pool": [(Pool([first, second]), PLAIN, 1.0)],
        "gate that reads queries": [(Pool([first, second]), by_query, 1.0)],
        "blend": [(first, PLAIN, 0.5), (second, learned, 0.3)],
    }
    return kinds[kind]


def source_of(parts: list[tuple[Searchable, Mixture, float]]) -> tuple[Any, Mixture | None]:
    if len(parts) == 1:
        return parts[0][:2]
    return Blend([part[:2] for part in parts], [part[2] for part in parts]), None


def assert_adds_up(explanation: Explanation) -> None:
    worth: dict[tuple[str | None, str], float] = {}
    for token in explanation.tokens:
        shares = [source.share for source in token.sources]
        assert sum(shares) + token.other_share == pytest.approx(token.p_knn, abs=1e-6)
        mixed = token.lmbda * token.p_knn + (1 - token.lmbda) * token.p_lm
        assert mixed == pytest.approx(token.p, abs=1e-6)
        assert shares == sorted(shares, reverse=True)
        for source in token.sources:
            told = sum(hit.share for hit in source.hits)
            assert told <= source.share + 1e-9
            if len(source.hits) < 3:
                assert told == pytest.approx(source.share, abs=1e-9)
            place = source.document, source.store
            worth[place] = worth.get(place, 0.0) + token.lmbda * source.share / token.p
    assert sum(d.contribution for d in explanation.documents) == pytest.approx(
        sum(token.knn_share for token in explanation.tokens)
    )
    assert {(d.document, d.store) for d in explanation.documents} >= worth.keys()


@pytest.mark.parametrize(("kind", "seed"), [*((kind, 0) for kind in KINDS), ("blend", 1)])
def test_against_the_definition(lm: LanguageModel, kind: str, seed: int) -> None:
    """Each document's share and each hit's place, also where the model rules neighbours out."""
    parts, text = parts_of(lm, kind, seed), letters(lm, seed, 30)
    explanation = explain(lm, *source_of(parts), text, top=100)
    assert_adds_up(explanation)
    expected = by_hand(scored_of(lm, text), parts)
    assert len(explanation.tokens) == len(expected) == 30
    found = 0
    for token, (lmbda, shares) in zip(explanation.tokens, expected, strict=True):
        assert token.lmbda == pytest.approx(lmbda, abs=1e-5)
        assert token.other_share == 0
        documents: dict[str, float] = {}
        for (name, _), share in shares.items():
            documents[name] = documents.get(name, 0.0) + share
        assert {s.document: s.share for s in token.sources} == pytest.approx(documents, abs=1e-4)
        for source in token.sources:
            for hit in source.hits:
                assert source.document is not None
                assert hit.share == pytest.approx(shares[source.document, hit.position], abs=1e-4)
                found += 1
    assert found > 40


@pytest.mark.parametrize("kind", KINDS)
def test_p_is_what_is_evaluated_and_generated(lm: LanguageModel, kind: str) -> None:
    source, mixture = source_of(parts_of(lm, kind, 5))
    text = letters(lm, 5, 40)
    explanation = explain(lm, source, mixture, text)
    assert_adds_up(explanation)
    p = np.array([token.p for token in explanation.tokens])
    nll = evaluate([Document("s", "d", text, {}, 0)], lm, source, mixture).scores.mixture_nll
    assert -np.log(p).sum() == pytest.approx(nll, rel=1e-9)
    ids = [lm.document_start, *lm.encode(text).tolist()]
    hooks = KnnLM.attach(lm.model, lm.tokenizer).use(source, mixture)
    with torch.no_grad():
        drawn = lm.model(torch.tensor([ids])).logits[0].double().softmax(-1)
    hooks.detach()
    generated = drawn[range(40), ids[1:]].numpy()
    np.testing.assert_allclose(p, generated, atol=1e-6)


def test_a_text_longer_than_a_window(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = LanguageModel.wrap(tiny_model("llama"), tokenizer, window=32)
    store, text = scattered(lm, 3), letters(lm, 3, 150)
    nll = evaluate([Document("s", "d", text, {}, 0)], lm, store, PLAIN).scores.mixture_nll
    calls: list[str] = []
    for name in ("_search", "scan_records", "_scan"):
        real: Any = getattr(MemoryBackend, name)

        def noting(*arguments: Any, _name: str = name, _real: Any = real) -> Any:
            calls.append(_name)
            return _real(*arguments)

        monkeypatch.setattr(MemoryBackend, name, noting)
    explanation = explain(lm, store, PLAIN, text)
    assert "".join(token.text for token in explanation.tokens) == text
    assert [token.token for token in explanation.tokens] == lm.encode(text).tolist()
    assert -math.fsum(math.log(t.p) for t in explanation.tokens) == pytest.approx(nll)
    # a window of 32 and eight more that each bring 16 new tokens: one search each
    assert calls == ["scan_records", *["_search"] * 9, "_scan"]


def test_ids_from_a_position_on(lm: LanguageModel, tokenizer: Any) -> None:
    """In one window, whatever the model's own is; beyond what it can read, in several."""
    store = scattered(lm, 4)
    ids = [lm.document_start, *lm.encode(letters(lm, 4, 60)).tolist()]
    whole = explain(lm, store, PLAIN, ids)
    narrow = LanguageModel.wrap(lm.model, tokenizer, window=8)
    rest = explain(narrow, store, PLAIN, ids, 20)
    narrow.tap.remove()
    assert whole.prompt == ""
    assert rest.prompt == "".join(token.text for token in whole.tokens[:19])
    assert [t.token for t in rest.tokens] == ids[20:]
    np.testing.assert_allclose(
        [t.p for t in rest.tokens], [t.p for t in whole.tokens[19:]], atol=1e-6
    )
    long = explain(lm, store, PLAIN, ids * 6, 20)
    assert [t.token for t in long.tokens] == (ids * 6)[20:]
    assert_adds_up(long)


def test_what_cannot_be_explained(lm: LanguageModel) -> None:
    store = scattered(lm, 4)
    for start in (0, 4):
        with pytest.raises(UsageError, match=f"cannot be explained from position {start} on"):
            explain(lm, store, PLAIN, [0, 5, 6], start)
    with pytest.raises(UsageError, match="needs a mixture"):
        explain(lm, store, None, "a")


@pytest.mark.parametrize("what", ["", [0], [5, 6, 7]])
def test_nothing_to_explain(lm: LanguageModel, what: Any) -> None:
    explanation = explain(lm, scattered(lm, 4), PLAIN, what, max(1, len(what)))
    assert (list(explanation.tokens), list(explanation.documents)) == ([], [])


@pytest.mark.parametrize("mixture", [Mixture(500, 7.0, Fixed(0.6)), Mixture(5, 7.0, Fixed(0.0))])
def test_few_neighbours_and_none(lm: LanguageModel, mixture: Mixture) -> None:
    text = letters(lm, 0, 10)
    empty = explain(lm, Datastore.open_or_create("memory:", lm.manifest()), mixture, text)
    for token in empty.tokens:
        assert (token.p_knn, token.lmbda, token.sources, token.p) == (0, 0, (), token.p_lm)
    explanation = explain(lm, scattered(lm, 1), mixture, text)
    assert_adds_up(explanation)
    assert all(token.sources for token in explanation.tokens) == (mixture.k == 500)


def test_the_rest_is_told_as_a_sum(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    store, text = scattered(lm, 1), letters(lm, 1, 20)
    whole = explain(lm, store, PLAIN, text, top=100)
    monkeypatch.setattr(explaining, "READ", 1)
    some = explain(lm, store, PLAIN, text, top=2)
    assert_adds_up(some)
    assert some.documents == whole.documents
    first = whole.documents[0].document
    for token, all_of_it in zip(some.tokens, whole.tokens, strict=True):
        assert len(token.sources) <= 2
        rest = math.fsum(source.share for source in all_of_it.sources[2:])
        assert token.other_share == pytest.approx(rest, abs=1e-9)
        for source in token.sources:
            assert (source.passage is not None) == (source.document == first)
    assert any(token.other_share for token in some.tokens)


# -- without ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "k"), [*((kind, 12) for kind in KINDS), ("datastore", 1000), ("pool", 1000)]
)
def test_without_a_document_is_as_if_it_were_not_there(
    lm: LanguageModel, kind: str, k: int
) -> None:
    parts = [(s, Mixture(k, m.temperature, m.policy), w) for s, m, w in parts_of(lm, kind, 3)]
    text = letters(lm, 6, 25)
    whole = explain(lm, *source_of(parts), text)
    gone = [d.document or "" for d in whole.documents[:2]]
    seen = explain(lm, *source_of(parts), text, without=gone)
    left: list[tuple[Searchable, Mixture, float]] = []
    for source, mixture, weight in parts:
        stores = (source,) if isinstance(source, Datastore) else source.stores
        rest = [without(lm, store, *gone) for store in stores]
        left.append((rest[0] if len(rest) == 1 else Pool(rest), mixture, weight))
    never = explain(lm, *source_of(left), text)
    assert seen.without == tuple(gone)
    p_without = [token.p_without for token in seen.tokens]
    assert p_without == pytest.approx([token.p for token in never.tokens], abs=1e-6)
    assert [t.p for t in seen.tokens] == [t.p for t in whole.tokens]
    assert max(abs(t.p - (t.p_without or 0)) for t in seen.tokens) > 0.001


def test_without_every_document_is_the_plain_model(lm: LanguageModel) -> None:
    store = scattered(lm, 1)
    explanation = explain(
        lm, store, PLAIN, letters(lm, 1, 9), without=[d.id for d in store.documents()]
    )
    assert [t.p_without for t in explanation.tokens] == [t.p_lm for t in explanation.tokens]


def test_a_document_that_is_unknown(lm: LanguageModel) -> None:
    store = filled(lm, "abc", "abd")
    with pytest.raises(StoreError, match="no document 't/10' in memory:") as told:
        explain(lm, store, PLAIN, "abc", without=["t/0", "t/10"])
    assert told.value.hint.startswith("Did you mean t/1")
    assert told.value.hint.endswith("knnlm-store documents memory:")
