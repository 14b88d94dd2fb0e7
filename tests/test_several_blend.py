"""Blends: their equation, their weights, and what happens where one part does not answer."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from knnlm_store.blending import score_blend
from knnlm_store.datastore import Datastore
from knnlm_store.errors import UsageError
from knnlm_store.generation import KnnLM
from knnlm_store.mixing import mix_parts, mix_rows
from knnlm_store.mixture import Fixed, Mixture
from knnlm_store.models import LanguageModel
from knnlm_store.several import Answered, Blend, Pool
from knnlm_store.values import Neighbours, Spec
from tests.faulty import PLACE, FaultyRemote, down, healthy
from tests.several_support import HELD_OUT, TEXTS, blended, entries_of, filled, scored_of

V = 12
MIXTURES = [Mixture(8, 2.0, Fixed(0.5)), Mixture(5, 3.0, Fixed(0.3))]


def neighbours(distances: list[list[float]], tokens: list[list[int]]) -> Neighbours:
    d = np.array(distances, np.float32)
    t = np.where(np.isfinite(d), np.array(tokens), -1)
    return Neighbours(d, t, t, t).sorted()


@st.composite
def answers(draw: st.DrawFn) -> tuple[NDArray[np.float32], list[Answered]]:
    """Logits `[3, V]`, some -inf, and parts with rows of any number of neighbours."""
    logit = st.one_of(st.floats(-20, 20, width=32), st.just(-np.inf))
    line = st.lists(logit, min_size=V, max_size=V).map(lambda row: [0.5, *row[1:]])
    logits = np.array([draw(line) for _ in range(3)], np.float32)
    distance = st.one_of(st.floats(0, 50, width=32), st.just(np.inf))
    share = st.lists(st.floats(0, 1), min_size=3, max_size=3)
    shares = np.array(draw(share))
    shares /= max(1.0, shares.sum())
    parts = []
    for weight in shares[: draw(st.integers(1, 3))]:
        k = draw(st.integers(1, 6))
        d = [sorted(draw(st.lists(distance, min_size=k, max_size=k))) for _ in range(3)]
        # two of these tokens lie beyond the vocabulary
        t = [draw(st.lists(st.integers(0, V + 1), min_size=k, max_size=k)) for _ in range(3)]
        temperature, lmbda = draw(st.floats(0.1, 100)), draw(st.sampled_from([0.0, 0.2, 0.9, 1.0]))
        parts.append(
            Answered(neighbours(d, t), Mixture(k, temperature, Fixed(lmbda)), float(weight))
        )
    return logits, parts


def dense(logits: NDArray[np.float32], parts: list[Answered]) -> NDArray[np.float64]:
    """p of each row `[q, V]` by the definition: the parts' own mixtures, then the weights."""
    wide = logits.astype(np.float64)
    lm = np.exp(wide - np.logaddexp.reduce(wide, axis=1, keepdims=True))
    p = lm * (1 - sum(part.weight for part in parts))
    for found, mixture, weight in parts:
        assert isinstance(mixture.policy, Fixed)
        for row in range(len(logits)):
            knn = np.zeros(V)
            pairs = zip(found.distances[row].astype(np.float64), found.tokens[row], strict=True)
            known = [(d, t) for d, t in pairs if np.isfinite(d) and t < V and lm[row, t] > 0]
            for d, t in known:
                knn[t] += np.exp(-(d - known[0][0]) / mixture.temperature)
            lmbda = mixture.policy.lmbda if known else 0.0
            p[row] += weight * (lmbda * knn / max(knn.sum(), 1e-300) + (1 - lmbda) * lm[row])
    return p


@settings(deadline=None, max_examples=200)
@given(answers())
def test_logits_against_the_definition(case: tuple[NDArray[np.float32], list[Answered]]) -> None:
    logits, parts = case
    mixed = torch.from_numpy(logits.copy())
    changed = mix_parts(mixed, parts)
    p = dense(logits, parts)
    # log p + logsumexp(logits) are the new logits: their scale is the model's
    scale = np.logaddexp.reduce(logits.astype(np.float64), axis=1, keepdims=True)
    found = np.exp(mixed.double().numpy() - scale)
    np.testing.assert_allclose(found, p, rtol=2e-4, atol=1e-7)
    untouched = [np.array_equal(a, b) for a, b in zip(mixed.numpy(), logits, strict=True)]
    assert changed >= len(logits) - sum(untouched)
    assert np.isneginf(mixed.numpy()[np.isneginf(logits)]).all()


@settings(deadline=None, max_examples=50)
@given(answers())
def test_a_part_alone_is_the_plain_mixture(
    case: tuple[NDArray[np.float32], list[Answered]],
) -> None:
    logits, parts = case
    mine, theirs = torch.from_numpy(logits.copy()), torch.from_numpy(logits.copy())
    part = parts[0]._replace(weight=1.0)
    assert mix_parts(mine, [part]) == mix_rows(theirs, part.found, part.mixture)
    assert torch.equal(mine, theirs)


@pytest.fixture
def stores(language_model: LanguageModel) -> list[Datastore]:
    return [filled(language_model, text) for text in TEXTS[:2]]


def prompt(tokenizer: Any, text: str = "the creditor shall disc") -> Any:
    return tokenizer(text, return_tensors="pt").input_ids


@torch.no_grad()
def test_in_a_forward_pass(
    language_model: LanguageModel, tokenizer: Any, stores: list[Datastore]
) -> None:
    weights = [0.6, 0.3]
    blend = Blend(list(zip(stores, MIXTURES, strict=True)), weights)
    tokens, model = prompt(tokenizer), language_model.model
    lm = KnnLM(language_model).use(blend)
    mixed = model(tokens).logits[0]
    plain = lm.off().language_model.model(tokens).logits[0]
    hidden = language_model.tap.read(model, tokens, None)[0]
    parts = list(zip(stores, MIXTURES, (0.5, 0.3), strict=True))
    for i in range(tokens.shape[1]):
        expected = blended(plain[i], hidden[i], parts, weights)
        np.testing.assert_allclose(mixed[i].softmax(-1).numpy(), expected, atol=1e-5)
    torch.testing.assert_close(mixed.logsumexp(-1), plain.logsumexp(-1), atol=1e-4, rtol=1e-5)


@torch.no_grad()
def test_weights_of_zero_and_one(
    language_model: LanguageModel, tokenizer: Any, stores: list[Datastore]
) -> None:
    tokens, model = prompt(tokenizer), language_model.model
    parts = list(zip(stores, MIXTURES, strict=True))
    lm = KnnLM(language_model).use(stores[1], MIXTURES[1])
    alone = model(tokens).logits
    assert torch.equal(lm.use(Blend(parts, [0, 1])).language_model.model(tokens).logits, alone)
    searched = lm.counters.searched
    mixed = lm.use(Blend(parts, [0, 0])).language_model.model(tokens).logits
    assert torch.equal(mixed, lm.off().language_model.model(tokens).logits)
    assert lm.counters.searched == searched


@torch.no_grad()
def test_scores_against_the_definition(
    language_model: LanguageModel, stores: list[Datastore]
) -> None:
    weights = [0.2, 0.7]
    scored = scored_of(language_model, HELD_OUT)
    found = score_blend(scored, Blend(list(zip(stores, MIXTURES, strict=True)), weights))
    parts = list(zip(stores, MIXTURES, (0.5, 0.3), strict=True))
    expected = [
        np.log(blended(logits, torch.from_numpy(key), parts, weights)[target])
        for logits, key, target in zip(scored._logits, scored.keys, scored.targets, strict=True)
    ]
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([0.5], "A blend of 2 needs as many weights, not 1"),
        ([0.5, 0.6], "at most 1 in sum, not 1.1"),
        ([-0.1, 0.5], "must be 0 or more"),
        ([float("nan"), 0.5], "not nan"),
    ],
)
def test_bad_weights(stores: list[Datastore], weights: list[float], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Blend(list(zip(stores, MIXTURES, strict=True)), weights)


def test_a_blend_has_its_own_mixtures(
    language_model: LanguageModel, stores: list[Datastore]
) -> None:
    with pytest.raises(UsageError, match="a mixture for each part already"):
        KnnLM(language_model).use(Blend([(stores[0], MIXTURES[0])], [1.0]), MIXTURES[0])


def on_faulty(lm: LanguageModel, text: str) -> tuple[Datastore, FaultyRemote]:
    backend = FaultyRemote(PLACE)
    backend.create(Spec(lm.manifest().dimension), lm.manifest().records())
    backend.upsert(entries_of(filled(lm, text)))
    return Datastore(PLACE, backend, lm.manifest()), backend


@torch.no_grad()
def test_where_one_part_falls_back_the_others_go_on(
    language_model: LanguageModel, tokenizer: Any, stores: list[Datastore]
) -> None:
    """Its component is the plain model for that step, bit for bit what weight 0 gives."""
    far, backend = on_faulty(language_model, TEXTS[1])
    tokens, model = prompt(tokenizer), language_model.model
    parts = [(stores[0], MIXTURES[0]), (far, MIXTURES[1])]
    lm = KnnLM(language_model)
    without = lm.use(Blend(parts, [0.6, 0.0])).language_model.model(tokens).logits
    whole = lm.use(Blend(parts, [0.6, 0.4])).language_model.model(tokens).logits
    assert lm.counters.fallbacks == 0
    backend.fault = down
    assert torch.equal(model(tokens).logits, without)
    assert lm.counters.fallbacks == 1
    assert lm.counters.last_error == "The server is down."
    backend.fault = healthy
    assert torch.equal(model(tokens).logits, whole)
    assert not torch.allclose(whole, without)


@torch.no_grad()
def test_where_all_parts_fall_back_it_is_the_plain_model(
    language_model: LanguageModel, tokenizer: Any
) -> None:
    made = [on_faulty(language_model, text) for text in TEXTS[:2]]
    tokens, model = prompt(tokenizer), language_model.model
    plain = model(tokens).logits
    parts = [(store, m) for (store, _), m in zip(made, MIXTURES, strict=True)]
    lm = KnnLM(language_model).use(Blend(parts, [0.5, 0.5]))
    assert not torch.equal(model(tokens).logits, plain)
    for _, backend in made:
        backend.fault = down
    mixed, searched = lm.counters.mixed, lm.counters.searched
    assert torch.equal(model(tokens).logits, plain)
    assert (lm.counters.mixed, lm.counters.searched) == (mixed, searched)
    assert lm.counters.fallbacks == 2


@torch.no_grad()
def test_a_pool_is_a_part_like_any_other(
    language_model: LanguageModel, tokenizer: Any, stores: list[Datastore]
) -> None:
    tokens, model = prompt(tokenizer), language_model.model
    lm = KnnLM(language_model).use(stores, MIXTURES[0])
    pooled = model(tokens).logits
    lm.use(Blend([(Pool(stores), MIXTURES[0])], [1.0]))
    assert torch.equal(model(tokens).logits, pooled)
