"""The traps of hooking a Hugging Face model, one test each."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest
import torch

from knnlm_store.corpus import Document
from knnlm_store.datastore import Datastore
from knnlm_store.errors import ModelError, StoreMismatch, UsageError
from knnlm_store.generation import KnnLM
from knnlm_store.ingest import ingest
from knnlm_store.keys import find_key_point
from knnlm_store.mixing import mix_rows
from knnlm_store.mixture import Fixed, Mixture
from knnlm_store.models import LanguageModel
from knnlm_store.values import Neighbours
from tests.reference import dense_mixture, reference_model
from tests.several_support import in_use
from tests.tiny import tiny_model

TEXT = "the creditor shall disclose the rate; the creditor shall disclose the fee."
MIXTURE = Mixture(8, 2.0, Fixed(0.5))


def attached(model: Any, tokenizer: Any, key: str = "last_ffn_input", text: str = TEXT) -> KnnLM:
    lm = LanguageModel.wrap(model, tokenizer, key=key, window=64)
    store = Datastore.open_or_create("memory:", lm.manifest())
    ingest([Document("t", "1", text, {}, 0)] if text else [], lm, store)
    return KnnLM(lm).use(store, MIXTURE)


@pytest.fixture
def lm(model: Any, tokenizer: Any) -> KnnLM:
    return attached(model, tokenizer)


def ids(tokenizer: Any, text: str = "the creditor shall disc") -> torch.Tensor:
    encoded: torch.Tensor = tokenizer(text, return_tensors="pt").input_ids
    return encoded


@torch.no_grad()
def test_full_logits_equal_the_dense_reference(lm: KnnLM, tokenizer: Any) -> None:
    """A plain forward pass mixes every position, searched as one batch."""
    tokens = ids(tokenizer)
    (entries,) = in_use(lm).backend.scan(with_keys=True)
    mixed = lm.language_model.model(tokens).logits[0]
    lm.off()
    plain = lm.language_model.model(tokens).logits[0]
    hidden = lm.language_model.tap.read(lm.language_model.model, tokens, None)[0]
    for position in range(tokens.shape[1]):
        expected = dense_mixture(
            plain[position].numpy(), hidden[position].numpy(), entries, 8, 2.0, 0.5
        )
        found = mixed[position].log_softmax(-1).double().numpy()
        np.testing.assert_allclose(found, expected, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lambda_zero_is_the_plain_model_bit_for_bit(tokenizer: Any, dtype: torch.dtype) -> None:
    model = tiny_model("llama").to(dtype)
    lm = attached(model, tokenizer)
    tokens = ids(tokenizer)
    lm.use(in_use(lm), Mixture(8, 2.0, Fixed(0.0)))
    mixed = model(tokens).logits
    plain = lm.off().language_model.model(tokens).logits
    assert mixed.dtype == plain.dtype
    assert torch.equal(mixed, plain)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_empty_datastore_is_the_plain_model_bit_for_bit(tokenizer: Any, dtype: torch.dtype) -> None:
    model = tiny_model("llama").to(dtype)
    lm = attached(model, tokenizer, text="")
    tokens = ids(tokenizer)
    mixed = model(tokens).logits
    assert lm.counters.searched == tokens.shape[1]
    assert torch.equal(mixed, lm.off().language_model.model(tokens).logits)


@torch.no_grad()
def test_bfloat16_logits_come_back_as_float32(tokenizer: Any) -> None:
    """In bfloat16 the mixture would lose 7e-4 and more."""
    model = tiny_model("llama").to(torch.bfloat16)
    attached(model, tokenizer)
    assert model(ids(tokenizer)).logits.dtype == torch.float32


@torch.no_grad()
def test_logits_to_keep_cuts_the_keys_alike(lm: KnnLM, tokenizer: Any) -> None:
    model, tokens = lm.language_model.model, ids(tokenizer)
    whole = model(tokens).logits
    searched = lm.counters.searched
    torch.testing.assert_close(model(tokens, logits_to_keep=3).logits, whole[:, -3:])
    assert lm.counters.searched == searched + 3
    chosen = torch.tensor([0, 4, 5])
    torch.testing.assert_close(model(tokens, logits_to_keep=chosen).logits, whole[:, chosen])


@torch.no_grad()
def test_loss_belongs_to_the_mixture(lm: KnnLM, tokenizer: Any) -> None:
    model, tokens = lm.language_model.model, ids(tokenizer)
    output = model(tokens, labels=tokens)
    log_p = output.logits.log_softmax(-1)[0, :-1]
    expected = -log_p.gather(1, tokens[0, 1:, None]).mean()
    torch.testing.assert_close(output.loss, expected)
    loss, logits = model(tokens, labels=tokens, return_dict=False)[:2]
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(logits, output.logits)
    lm.off()
    assert abs(float(model(tokens, labels=tokens).loss) - float(expected)) > 0.01


@torch.no_grad()
def test_return_dict_false(lm: KnnLM, tokenizer: Any) -> None:
    model, tokens = lm.language_model.model, ids(tokenizer)
    as_tuple = model(tokens, return_dict=False)
    assert isinstance(as_tuple, tuple)
    torch.testing.assert_close(as_tuple[0], model(tokens).logits)


def test_minus_infinity_of_the_model_stays() -> None:
    """A suppressed token cannot come back through the datastore; the rest sums to one."""
    logits = torch.tensor([[0.0, -torch.inf, 1.0]])
    found = Neighbours(
        np.array([[0.0, 1.0]], np.float32),
        np.array([[1, 2]]),
        np.array([[7, 7]]),
        np.array([[0, 1]]),
    )
    assert mix_rows(logits, found, Mixture(2, 1.0, Fixed(0.5))) == 1
    assert torch.isneginf(logits[0, 1])
    p = logits.softmax(-1)[0]
    model_p = torch.tensor([0.0, 1.0]).softmax(0)
    torch.testing.assert_close(p[2], 0.5 + 0.5 * model_p[1])


def test_all_neighbours_suppressed_leaves_the_model() -> None:
    logits = torch.tensor([[0.0, -torch.inf, 1.0]])
    found = Neighbours(
        np.array([[0.0]], np.float32), np.array([[1]]), np.array([[7]]), np.array([[0]])
    )
    before = logits.clone()
    assert mix_rows(logits, found, Mixture(1, 1.0, Fixed(0.5))) == 0
    assert torch.equal(logits, before)


def test_neighbours_beyond_the_vocabulary_are_left_out() -> None:
    logits = torch.tensor([[0.0, 0.5, 1.0]])
    found = Neighbours(
        np.array([[0.0, 1.0]], np.float32),
        np.array([[99_999, 2]]),
        np.array([[7, 7]]),
        np.array([[0, 1]]),
    )
    model_p = logits.softmax(-1)
    mix_rows(logits, found, Mixture(2, 1.0, Fixed(1.0)))
    torch.testing.assert_close(logits.softmax(-1)[0], torch.tensor([0.0, 0.0, 1.0]))
    assert not torch.allclose(model_p[0, 2], torch.tensor(1.0))


@torch.no_grad()
def test_finished_rows_and_padding_are_not_searched(lm: KnnLM, tokenizer: Any) -> None:
    model = lm.language_model.model
    tokenizer.padding_side = "left"
    batch = tokenizer(["the creditor", "a"], return_tensors="pt", padding=True)
    real = int(batch.attention_mask[:, -1].sum())
    model.generate(**batch, max_new_tokens=1, do_sample=False)
    assert lm.counters.searched == real
    first = [int(t) for t in model.generate(**batch, max_new_tokens=1, do_sample=False)[:, -1]]
    lm.counters.searched = 0
    # the token that row 0 begins with ends it at once; row 1 goes on alone
    if first[0] == first[1]:
        pytest.fail("the two rows must begin differently for this test")
    model.generate(**batch, max_new_tokens=20, do_sample=False, eos_token_id=first[0])
    assert lm.counters.searched <= 20 + 2


@torch.no_grad()
def test_compiled_after_attaching(lm: KnnLM, tokenizer: Any) -> None:
    model, tokens = lm.language_model.model, ids(tokenizer)
    expected = model(tokens).logits
    model.compile(backend="eager")
    torch.testing.assert_close(model(tokens).logits, expected)
    plain = lm.off().language_model.model(tokens).logits
    assert not torch.allclose(plain, expected)
    torch.testing.assert_close(lm.on().language_model.model(tokens).logits, expected)
    torch._dynamo.reset()


def test_attaching_to_a_compiled_model_is_refused(model: Any, tokenizer: Any) -> None:
    model.compile(backend="eager")
    with pytest.raises(ModelError, match="compiled already") as caught:
        KnnLM.attach(model, tokenizer)
    assert "Attach the datastore first" in caught.value.hint


@torch.no_grad()
def test_a_key_that_was_not_captured_is_loud(lm: KnnLM, tokenizer: Any) -> None:
    """What a compiled inner module does: the hook on it is ignored."""
    lm.language_model.tap.remove()
    with pytest.raises(ModelError, match="No key was captured at"):
        lm.language_model.model(ids(tokenizer))


@torch.no_grad()
def test_a_key_is_never_used_twice(lm: KnnLM, tokenizer: Any) -> None:
    lm.language_model.model(ids(tokenizer))
    with pytest.raises(ModelError, match="No key was captured"):
        lm.language_model.tap.take(1)


@torch.no_grad()
def test_generate_batch(lm: KnnLM, tokenizer: Any) -> None:
    """Continuous batching packs requests into one row; each still gets its own mixture."""
    model = lm.language_model.model
    prompts = [ids(tokenizer, t)[0].tolist() for t in ("the creditor", "the rate; the cred")]
    alone = [
        model.generate(torch.tensor([p]), max_new_tokens=8, do_sample=False)[0, len(p) :].tolist()
        for p in prompts
    ]
    config = model.generation_config
    config.max_new_tokens, config.do_sample = 8, False
    outputs = model.generate_batch(inputs=prompts, generation_config=config, progress_bar=False)
    found = sorted(tuple(o.generated_tokens) for o in outputs.values())
    assert found == sorted(map(tuple, alone))


@pytest.mark.parametrize("key", ["lm_head_input", "model.layers.0.mlp:output", "model.norm:input"])
def test_other_key_points(tokenizer: Any, key: str) -> None:
    model = tiny_model("gemma2")
    lm = attached(model, tokenizer, key)
    (entries,) = in_use(lm).backend.scan(with_keys=True)
    point = lm.language_model.point
    assert str(point) == key
    receiver = "model.layers.0.post_feedforward_layernorm"  # takes in the output of the mlp
    path = receiver if point.side == "output" else point.path
    twin = reference_model(tiny_model("gemma2"), path, entries, 8, 2.0, 0.5)
    options = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None}
    tokens = ids(tokenizer)
    expected = twin.generate(tokens, use_cache=False, **options)
    assert torch.equal(model.generate(tokens, **options), expected)


def test_mamba_falls_back_to_lm_head_input(caplog: pytest.LogCaptureFixture) -> None:
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "state_size": 4}
    model = tiny_model("mamba", **sizes)
    with caplog.at_level(logging.WARNING):
        point = find_key_point(model)
    assert point.name == "lm_head_input"
    assert "no feed-forward module" in caplog.text


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ("nowhere", "is no place to read keys"),
        ("model.layers.9.mlp:input", "has no module 'model.layers.9.mlp'"),
    ],
)
def test_bad_key_points(model: Any, choice: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        find_key_point(model, choice)


def test_wrong_model_is_refused_and_the_old_store_stays(lm: KnnLM, tokenizer: Any) -> None:
    other = LanguageModel.wrap(tiny_model("llama", seed=9), tokenizer, window=64)
    store = Datastore.open_or_create("memory:", other.manifest())
    before = in_use(lm)
    with pytest.raises(StoreMismatch, match="was written by another model") as caught:
        lm.use(store)
    assert caught.value.field == "model"
    assert in_use(lm) is before


def test_on_without_a_store(model: Any, tokenizer: Any) -> None:
    with pytest.raises(ModelError, match="No datastore is in use"):
        KnnLM.attach(model, tokenizer).on()


@torch.no_grad()
def test_switching_and_detaching(lm: KnnLM, tokenizer: Any) -> None:
    model, tokens = lm.language_model.model, ids(tokenizer)
    first = model(tokens).logits
    other = Datastore.open_or_create("memory:", lm.language_model.manifest())
    ingest([Document("t", "2", "zzzz" * 9, {}, 0)], lm.language_model, other)
    store = in_use(lm)
    second = lm.use(other, MIXTURE).language_model.model(tokens).logits
    assert not torch.allclose(first, second)
    assert torch.equal(lm.use(store, MIXTURE).language_model.model(tokens).logits, first)
    lm.detach()
    fresh = tiny_model("llama")(tokens).logits
    assert torch.equal(model(tokens).logits, fresh)
