"""Perplexities against a dense computation, token by token, in float64."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from knnlm_store.corpus import Problem
from knnlm_store.datastore import Datastore
from knnlm_store.errors import BackendUnavailable, CorpusError, UsageError
from knnlm_store.evaluation import Evaluation, PolicyScores, compare, evaluate
from knnlm_store.ingest import ingest
from knnlm_store.memory import MemoryBackend
from knnlm_store.mixture import Fixed, Mixture
from knnlm_store.models import LanguageModel
from knnlm_store.policies import Ratio
from knnlm_store.values import Entries, Location, Neighbours
from tests.ingest_support import corpus, document, held, new_store, prose, store_of
from tests.reference import dense_mixture
from tests.tiny import VOCABULARY, tiny_model

KNOWN = {str(i): prose(i, 60) for i in range(5)}
HELD_OUT = {"long": prose(50, 75), "short": prose(51, 3), "ä": prose(52, 33) + " über"}
# k is above the number of documents: their first keys are equal, and a cut among ties is arbitrary
MIXTURE = Mixture(k=25, temperature=3.0, policy=Fixed(0.4))


@pytest.fixture
def store(language_model: LanguageModel) -> Datastore:
    made = new_store(language_model)
    ingest(corpus(KNOWN), language_model, made)
    return made


@torch.no_grad()
def by_hand(lm: LanguageModel, entries: Entries, texts: Sequence[str]) -> tuple[float, float, int]:
    """Nll of the plain model and of the mixture, one forward pass a token, and the tokens."""
    plain = mixture = 0.0
    count, stride = 0, lm.window - lm.window // 2
    seen: list[torch.Tensor] = []
    handle = lm.model.model.layers[-1].mlp.register_forward_pre_hook(
        lambda _, args: seen.append(args[0][0, -1])
    )
    for text in texts:
        tokens = lm.tokenizer(text, add_special_tokens=False).input_ids
        inputs = [lm.document_start, *tokens]
        for position, token in enumerate(tokens):
            begin = 0
            while position - begin >= lm.window:
                begin += stride
            logits = lm.model(torch.tensor([inputs[begin : position + 1]])).logits[0, -1].numpy()
            query = seen.pop().numpy()
            settings = (entries, MIXTURE.k, MIXTURE.temperature)
            plain -= float(dense_mixture(logits, query, *settings, 0.0)[token])
            mixture -= float(dense_mixture(logits, query, *settings, 0.4)[token])
            count += 1
    handle.remove()
    return plain, mixture, count


def test_against_the_dense_computation(language_model: LanguageModel, store: Datastore) -> None:
    """Documents longer than the window; every token scored once, in batches of any size."""
    plain, mixture, tokens = by_hand(language_model, held(store), list(HELD_OUT.values()))
    for size in (1, 100, 4096):
        stream = corpus(HELD_OUT)
        result = evaluate(stream, language_model, store, MIXTURE, batch_tokens=size)
        assert result.scores.tokens == tokens
        assert result.documents == 3
        assert result.scores.plain_nll == pytest.approx(plain, rel=1e-5)
        assert result.scores.mixture_nll == pytest.approx(mixture, rel=1e-5)
    assert abs(plain - mixture) > 1


def test_perplexities_follow(language_model: LanguageModel, store: Datastore) -> None:
    result = evaluate(corpus(HELD_OUT), language_model, store, MIXTURE)
    figures = result.json()
    words = sum(len(t.split()) for t in HELD_OUT.values())
    size = sum(len(t.encode()) for t in HELD_OUT.values())
    assert (figures["words"], figures["bytes"]) == (words, size)
    for name, nll in (
        ("plain", result.scores.plain_nll),
        ("mixture", result.scores.mixture_nll),
    ):
        found = figures[name]
        assert found["nll"] == nll
        assert found["perplexity"] == pytest.approx(math.exp(nll / figures["tokens"]))
        assert found["perplexity_per_word"] == pytest.approx(math.exp(nll / words))
        assert found["perplexity_per_byte"] == pytest.approx(math.exp(nll / size))


def test_lambda_zero_is_the_plain_model(language_model: LanguageModel, store: Datastore) -> None:
    scores = evaluate(corpus(HELD_OUT), language_model, store, Mixture(9, 3.0, Fixed(0.0))).scores
    assert scores.mixture_nll == scores.plain_nll


def test_an_empty_datastore_is_the_plain_model(
    language_model: LanguageModel, memory_store: Datastore
) -> None:
    scores = evaluate(corpus(HELD_OUT), language_model, memory_store, MIXTURE).scores
    assert scores.mixture_nll == scores.plain_nll > 0


def test_lambda_one_without_the_token_is_infinite(
    language_model: LanguageModel, memory_store: Datastore
) -> None:
    ingest([document("a", "x" * 20)], language_model, memory_store)
    only = Mixture(4, 3.0, Fixed(1.0))
    figures = evaluate([document("b", "yy")], language_model, memory_store, only).json()
    assert figures["mixture"]["perplexity"] == math.inf
    assert figures["plain"]["perplexity"] < math.inf


@pytest.mark.parametrize("key", ["last_ffn_input", "lm_head_input"])
@pytest.mark.parametrize("architecture", ["gpt2", "gemma2", "opt"])
def test_batching_changes_nothing(tokenizer: Any, architecture: str, key: str) -> None:
    """Also where logits_to_keep cuts the keys as well, and where they come flattened."""
    found = []
    for batch_tokens in (1, 4096):
        lm = LanguageModel.wrap(tiny_model(architecture), tokenizer, key=key, window=32)
        made = new_store(lm)
        ingest(corpus(KNOWN), lm, made)
        texts = {str(n): prose(n, n) for n in (60, 3, 33)}
        scores = evaluate(corpus(texts), lm, made, MIXTURE, batch_tokens=batch_tokens).scores
        found.append((scores.plain_nll, scores.mixture_nll))
    assert found[0] == pytest.approx(found[1], rel=1e-5)


def test_known_text_gains(language_model: LanguageModel, store: Datastore) -> None:
    scores = evaluate(corpus(KNOWN), language_model, store, MIXTURE).scores
    assert scores.mixture_nll < 0.6 * scores.plain_nll


def test_logits_wider_than_the_tokenizer(tokenizer: Any) -> None:
    """Their surplus takes part in the sum, as in the model itself."""
    wide = tiny_model("llama", vocab_size=VOCABULARY + 212)
    lm = LanguageModel.wrap(wide, tokenizer, window=32)
    made = new_store(lm)
    ingest(corpus(KNOWN), lm, made)
    texts = {"a": prose(50, 40)}
    plain, mixture, _ = by_hand(lm, held(made), list(texts.values()))
    scores = evaluate(corpus(texts), lm, made, MIXTURE).scores
    assert scores.plain_nll == pytest.approx(plain, rel=1e-5)
    assert scores.mixture_nll == pytest.approx(mixture, rel=1e-5)


def test_tokens_that_the_model_does_not_have(
    language_model: LanguageModel, memory_store: Datastore
) -> None:
    """An entry whose token lies beyond the logits takes no part."""
    ingest(corpus(KNOWN), language_model, memory_store)
    every = Mixture(10_000, 3.0, Fixed(0.4))
    before = evaluate(corpus(HELD_OUT), language_model, memory_store, every).scores
    some = held(memory_store)[:20]
    beyond = Entries(some.keys, some.tokens + 100_000, some.documents * 0 + 5, some.positions)
    memory_store.backend.upsert(beyond)
    after = evaluate(corpus(HELD_OUT), language_model, memory_store, every).scores
    assert after.mixture_nll == pytest.approx(before.mixture_nll, rel=1e-6)


@pytest.mark.parametrize("stream", [[], [Problem("x", "It cannot be read.", True)]])
def test_nothing_to_score(
    language_model: LanguageModel, store: Datastore, stream: list[Problem]
) -> None:
    with pytest.raises(CorpusError, match=r"There was no text to score\.") as caught:
        evaluate([*stream, document("empty", "")], language_model, store, MIXTURE)
    assert caught.value.hint == "Name files that hold text."


def test_problems_are_reported(language_model: LanguageModel, store: Datastore) -> None:
    lost = Problem("x", "It cannot be read.", True)
    seen: list[Evaluation] = []
    result = evaluate(
        [lost, document("a", "text")], language_model, store, MIXTURE, progress=seen.append
    )
    assert result.problems == [lost]
    assert result.bytes_read == 4
    assert seen == [result]
    assert result.json()["problems"] == [
        {"where": "x", "what": "It cannot be read.", "failed": True, "document": None}
    ]


class Down(MemoryBackend):
    def _search(self, *_: Any) -> Neighbours:
        raise BackendUnavailable("The server is gone.")


def test_an_evaluation_never_falls_back(language_model: LanguageModel) -> None:
    store = store_of(Down(Location("memory", "", "memory")), language_model)
    with pytest.raises(BackendUnavailable, match="The server is gone"):
        evaluate(corpus(HELD_OUT), language_model, store, MIXTURE)


def test_targets_are_new_once(language_model: LanguageModel, store: Datastore) -> None:
    """A document's nll is the sum over its tokens, so that documents add up."""
    whole = evaluate(corpus(HELD_OUT), language_model, store, MIXTURE).scores
    parts = [evaluate([d], language_model, store, MIXTURE).scores for d in corpus(HELD_OUT)]
    assert whole.tokens == sum(p.tokens for p in parts)
    np.testing.assert_allclose(whole.mixture_nll, sum(p.mixture_nll for p in parts), rtol=1e-6)


SEVERAL = {
    "wide": MIXTURE,
    "narrow": Mixture(8, 5.0, Fixed(0.7)),
    "ratio": Mixture(11, 2.0, Ratio()),
    "plain": Mixture(7, 1.0, Fixed(0.0)),
}


def test_several_mixtures_in_one_pass(
    language_model: LanguageModel, store: Datastore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Entries that the model rules out count among the k of each, as when it is alone."""
    some = held(store)[1::4]
    keys = some.keys * np.float32(1.001)  # no ties: a cut among them is arbitrary
    number = some.documents * 0 + 5
    beyond = Entries(keys, some.tokens + 100_000, number, np.arange(len(some)))
    store.backend.upsert(beyond)
    alone = {
        name: evaluate(corpus(HELD_OUT), language_model, store, mixture).scores
        for name, mixture in SEVERAL.items()
    }
    asked: list[int] = []
    search = Datastore.search

    def counting(self: Datastore, queries: Any, k: int, **options: Any) -> Neighbours:
        asked.append(k)
        return search(self, queries, k, **options)

    monkeypatch.setattr(Datastore, "search", counting)
    result = compare(corpus(HELD_OUT), language_model, store, SEVERAL, batch_tokens=100)
    assert set(asked) == {25}
    passes: list[Evaluation] = []
    evaluate(
        corpus(HELD_OUT), language_model, store, MIXTURE, batch_tokens=100, progress=passes.append
    )
    assert len(asked) == 2 * len(passes)
    report = result.json()
    assert "mixture" not in report
    for name, scores in alone.items():
        assert result.scores.policies[name].nll == pytest.approx(scores.mixture_nll, rel=1e-6)
        assert report["policies"][name]["perplexity"] == pytest.approx(
            math.exp(scores.mixture_nll / scores.tokens), rel=1e-6
        )
        assert result.scores.plain_nll == pytest.approx(scores.plain_nll, rel=1e-6)
    assert len({round(each.nll, 3) for each in result.scores.policies.values()}) == 4


def test_shares_of_tokens_helped_and_hurt(language_model: LanguageModel, store: Datastore) -> None:
    """Counted token by token: in documents of one token a document's nll is the token's."""
    texts = {str(i): text for i, text in enumerate("abcdefgh tuvwxyz.,;")}
    weak = Mixture(25, 3.0, Fixed(0.02))  # some of its changes are under 1 %
    result = compare(corpus(texts), language_model, store, {"weak": weak, "much": MIXTURE})
    for name, mixture in (("weak", weak), ("much", MIXTURE)):
        helped = hurt = 0
        for item in corpus(texts):
            scores = evaluate([item], language_model, store, mixture).scores
            assert scores.tokens == 1
            gain = scores.plain_nll - scores.mixture_nll
            helped, hurt = helped + (gain > 0.01), hurt + (gain < -0.01)
        values = result.json()["policies"][name]
        assert (values["helped"], values["hurt"]) == (helped / len(texts), hurt / len(texts))
        assert helped > 0
        assert hurt > 0
    plain = compare(corpus(texts), language_model, store, {"plain": SEVERAL["plain"]}).json()
    assert [plain["policies"]["plain"][which] for which in ("helped", "hurt")] == [0, 0]


def test_a_change_under_one_percent_is_neither() -> None:
    scores = PolicyScores()
    gains = np.array([0.009, 0.011, 0.5, -0.009, -0.011, -np.inf, 0.0])
    scores.add(gains - 2.0, np.full(7, -2.0))
    scores.add(np.array([-np.inf]), np.array([-np.inf]))
    assert (scores.helped, scores.hurt) == (2, 2)


def test_nothing_to_compare(language_model: LanguageModel, store: Datastore) -> None:
    with pytest.raises(UsageError, match="There is no mixture to compare"):
        compare(corpus(HELD_OUT), language_model, store, {})
    with pytest.raises(CorpusError, match=r"There was no text to score\."):
        compare([document("empty", "")], language_model, store, SEVERAL)
