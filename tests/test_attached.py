"""A model that has a memory attached is still used for other things, by several threads, again."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from knnlm_store.corpus import Document
from knnlm_store.datastore import Datastore
from knnlm_store.errors import ModelError, StoreMismatch
from knnlm_store.evaluation import evaluate
from knnlm_store.generation import KnnLM
from knnlm_store.ingest import ingest
from knnlm_store.mixture import Fixed, Mixture
from knnlm_store.models import LanguageModel
from tests.several_support import in_use
from tests.test_generation import MIXTURE, attached, ids
from tests.tiny import tiny_model

OTHER_TEXT = [
    Document("t", "2", "the creditor shall discover a thing; the creditor shall disclaim.", {}, 0)
]


@pytest.fixture
def lm(model: Any, tokenizer: Any) -> KnnLM:
    return attached(model, tokenizer)


@torch.no_grad()
def test_a_refused_store_leaves_the_mixture_working(lm: KnnLM, tokenizer: Any) -> None:
    model, tokens = lm.language_model.model, ids(tokenizer)
    before = model(tokens).logits
    other = LanguageModel.wrap(tiny_model("llama", seed=9), tokenizer, window=64)
    with pytest.raises(StoreMismatch):
        lm.use(Datastore.open_or_create("memory:", other.manifest()))
    assert torch.equal(model(tokens).logits, before)


@torch.no_grad()
def test_ingest_and_evaluate_while_attached(lm: KnnLM, tokenizer: Any) -> None:
    """Both read the plain model, and the mixture goes on afterwards."""
    model, tokens, store = lm.language_model.model, ids(tokenizer), in_use(lm)
    first = model(tokens).logits
    attached_scores = evaluate(OTHER_TEXT, lm.language_model, store, MIXTURE).scores
    assert torch.equal(model(tokens).logits, first)
    ingest(OTHER_TEXT, lm.language_model, store)
    assert not torch.equal(model(tokens).logits, first)
    lm.off()
    plain = LanguageModel.wrap(tiny_model("llama"), tokenizer, window=64)
    fresh = Datastore.open_or_create("memory:", plain.manifest())
    ingest([Document("t", "1", "x" * 9, {}, 0)], plain, fresh)
    alone = evaluate(OTHER_TEXT, plain, fresh, MIXTURE).scores
    assert attached_scores.plain_nll == pytest.approx(alone.plain_nll, rel=1e-6)


@torch.no_grad()
def test_attaching_again_replaces(lm: KnnLM, tokenizer: Any) -> None:
    """Two hooks would mix twice: an effective lambda of 1 - (1 - lambda)^2."""
    model, tokens, store = lm.language_model.model, ids(tokenizer), in_use(lm)
    once = model(tokens).logits
    again = KnnLM.attach(model, tokenizer).use(store, MIXTURE)
    assert torch.equal(model(tokens).logits, once)
    with pytest.raises(ModelError, match="No datastore is in use"):
        lm.on()
    again.off()


def _off(before: KnnLM) -> None:
    before.off()


def _detach(before: KnnLM) -> None:
    before.detach()
    before.detach()


@pytest.mark.parametrize("touch", [lambda _: None, _off, _detach])
@torch.no_grad()
def test_attaching_the_same_model_object_again(
    lm: KnnLM, tokenizer: Any, touch: Callable[[KnnLM], None]
) -> None:
    """The new one has the keys that the one before had, whatever becomes of it, and mixes once."""
    model, tokens, store = lm.language_model.model, ids(tokenizer), in_use(lm)
    once = model(tokens).logits
    again = KnnLM(lm.language_model).use(store, MIXTURE)
    touch(lm)
    assert torch.equal(model(tokens).logits, once)
    plain = again.off().language_model.model(tokens).logits
    assert not torch.equal(plain, once)
    assert lm.counters.steps == again.counters.steps == 1


@torch.no_grad()
def test_attaching_again_within_a_block(lm: KnnLM, tokenizer: Any) -> None:
    model, tokens, store = lm.language_model.model, ids(tokenizer), in_use(lm)
    once = model(tokens).logits
    lm.off()
    with lm.using(store, MIXTURE):
        KnnLM(lm.language_model).use(store, MIXTURE)
    assert torch.equal(model(tokens).logits, once)


@torch.no_grad()
def test_attaching_after_detaching(lm: KnnLM, tokenizer: Any) -> None:
    model, tokens, store = lm.language_model.model, ids(tokenizer), in_use(lm)
    once = model(tokens).logits
    lm.detach()
    KnnLM(lm.language_model).use(store, MIXTURE)
    assert torch.equal(model(tokens).logits, once)


@torch.no_grad()
def test_threads_do_not_see_each_others_keys(lm: KnnLM, tokenizer: Any) -> None:
    model = lm.language_model.model
    texts = ["the creditor shall disc", "a fee; the rate", "shall", "zzz zzz"]
    expected = {t: model(ids(tokenizer, t)).logits for t in texts}
    wrong: list[str] = []

    @torch.no_grad()
    def work(text: str) -> None:
        for _ in range(40):
            if not torch.allclose(model(ids(tokenizer, text)).logits, expected[text], atol=1e-5):
                wrong.append(text)

    threads = [threading.Thread(target=work, args=(t,)) for t in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@torch.no_grad()
def test_rows_of_a_new_sequence_are_searched_whatever_ended_before(
    lm: KnnLM, tokenizer: Any
) -> None:
    """Padding seen at the end of one generation says nothing about the next one's first token."""
    model = lm.language_model.model
    prompt = torch.tensor([[2], [90]])  # 2 is the padding token
    options = {"max_new_tokens": 1, "do_sample": False, "output_logits": True}
    lm._thread.padded = torch.tensor([True, False])
    lm.counters.searched = 0
    model.generate(
        prompt, attention_mask=torch.ones_like(prompt), return_dict_in_generate=True, **options
    )
    assert lm.counters.searched == 2


@torch.no_grad()
def test_an_output_that_is_added_to_in_place(tokenizer: Any) -> None:
    """Falcon adds attention to its MLP's output in place; ingest stops before, decoding after."""
    model = tiny_model("falcon", parallel_attn=True)
    lm = attached(model, tokenizer, "transformer.h.1.mlp:output")
    lm.use(in_use(lm), Mixture(1, 1e-3, Fixed(1.0)))
    (entries,) = in_use(lm).backend.scan(with_keys=True)
    text = torch.tensor([[lm.language_model.document_start, *entries.tokens[:20].tolist()]])
    # with lambda 1 and k 1 the store repeats its document only if its keys are found again
    assert model(text).logits[0, :-1].argmax(-1).tolist() == entries.tokens[:20].tolist()


@torch.no_grad()
def test_loss_arguments_reach_the_loss(lm: KnnLM, tokenizer: Any) -> None:
    model, tokens = lm.language_model.model, ids(tokenizer)
    mean = model(tokens, labels=tokens).loss
    summed = model(tokens, labels=tokens, num_items_in_batch=1).loss
    torch.testing.assert_close(summed, mean * (tokens.shape[1] - 1))


def test_training_with_the_mixture_on_is_refused(lm: KnnLM, tokenizer: Any) -> None:
    model = lm.language_model.model.train()
    with pytest.raises(ModelError, match="has no gradient") as caught:
        model(ids(tokenizer))
    assert "off()" in caught.value.hint
    lm.off()
    model(ids(tokenizer), labels=ids(tokenizer)).loss.backward()


@torch.no_grad()
def test_drafts_by_the_first_layers_are_plain(tokenizer: Any) -> None:
    """Early-exit drafts never reach the last block, where the key is read."""
    model = tiny_model("llama", num_hidden_layers=3)
    lm = attached(model, tokenizer)
    options = {"max_new_tokens": 10, "do_sample": False}
    tokens = ids(tokenizer)
    expected = model.generate(tokens, **options)
    assert torch.equal(model.generate(tokens, assistant_early_exit=1, **options), expected)
    assert lm.counters.mixed > 0


def test_the_window_does_not_change_the_fingerprint(tokenizer: Any) -> None:
    model = tiny_model("llama")
    short = LanguageModel.wrap(model, tokenizer, window=16).manifest()
    long = LanguageModel.wrap(model, tokenizer, window=128).manifest()
    assert short.probe_distance(long) == 0


def test_a_refused_uri_is_closed_again(
    lm: KnnLM, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What `use` opened itself it closes; a datastore that it was given stays the caller's."""
    other = LanguageModel.wrap(tiny_model("llama", seed=9), tokenizer, window=64)
    uri = f"faiss:{tmp_path}/other"
    Datastore.open_or_create(uri, other.manifest()).close()
    closed: list[str] = []
    close = Datastore.close

    def noting(self: Datastore) -> None:
        closed.append(str(self.location))
        close(self)

    monkeypatch.setattr(Datastore, "close", noting)
    with pytest.raises(StoreMismatch):
        lm.use(uri)
    assert closed == [uri]
    with Datastore.open(uri) as given:
        with pytest.raises(StoreMismatch):
            lm.use(given)
        assert closed == [uri]


def test_a_rounded_model_is_told_of_once(
    tokenizer: Any, lm: KnnLM, caplog: pytest.LogCaptureFixture
) -> None:
    store = in_use(lm)
    half = KnnLM.attach(tiny_model("llama").to(torch.bfloat16), tokenizer)
    half.use(store, MIXTURE).use(store, MIXTURE)
    assert caplog.text.count("find its neighbours better") == 1
