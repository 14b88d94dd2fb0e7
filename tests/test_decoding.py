"""The mixture under every decoding mode of `generate()`, against a cache-free dense reference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from knnlm_store.corpus import Document
from knnlm_store.datastore import Datastore
from knnlm_store.generation import KnnLM
from knnlm_store.ingest import ingest
from knnlm_store.mixture import Fixed, Mixture
from knnlm_store.models import LanguageModel
from tests.reference import reference_model
from tests.tiny import ARCHITECTURES, tiny_model

K, TEMPERATURE, LMBDA = 16, 2.0, 0.6
TEXTS = [
    "the creditor shall disclose the rate; the creditor shall disclose the fee.",
    "a consumer may cancel, and the consumer may ask again.",
]


@dataclass
class Case:
    architecture: str
    model: Any
    reference: Any
    lm: KnnLM

    def prompt(self, *texts: str) -> dict[str, Tensor]:
        tokenizer = self.lm.language_model.tokenizer
        tokenizer.padding_side = "left"
        encoded = tokenizer(list(texts), return_tensors="pt", padding=True)
        return {"input_ids": encoded.input_ids, "attention_mask": encoded.attention_mask}


@pytest.fixture(scope="module", params=ARCHITECTURES)
def case(request: pytest.FixtureRequest, tokenizer: Any) -> Case:
    model = tiny_model(request.param)
    lm = LanguageModel.wrap(model, tokenizer, window=64)
    store = Datastore.open_or_create("memory:", lm.manifest())
    ingest([Document("t", str(i), text, {}, 0) for i, text in enumerate(TEXTS)], lm, store)
    (entries,) = store.backend.scan(with_keys=True)
    plain = tiny_model(request.param)
    twin = reference_model(plain, lm.point.path, entries, K, TEMPERATURE, LMBDA)
    knn = KnnLM(lm).use(store, Mixture(K, TEMPERATURE, Fixed(LMBDA)))
    return Case(request.param, model, twin, knn)


def run(model: Any, prompt: dict[str, Tensor], **options: Any) -> tuple[Tensor, Tensor]:
    """Tokens and their log-probabilities at every step, `[steps, rows, v]`."""
    output = model.generate(
        **prompt,
        **{"max_new_tokens": 12, "do_sample": False, "eos_token_id": 1, **options},
        return_dict_in_generate=True,
        output_logits=True,
    )
    return output.sequences, torch.stack(output.logits).log_softmax(-1)


def compare(
    case: Case, prompt: dict[str, Tensor], mode: dict[str, Any], same: dict[str, Any]
) -> None:
    """Run `mode` on the model under test and `same` on the reference; tokens and scores agree."""
    torch.manual_seed(5)
    tokens, scores = run(case.model, prompt, **mode)
    torch.manual_seed(5)
    expected, expected_scores = run(case.reference, prompt, use_cache=False, **same)
    assert torch.equal(tokens, expected)
    torch.testing.assert_close(scores, expected_scores, atol=2e-4, rtol=1e-4)


def test_greedy_differs_from_the_plain_model(case: Case) -> None:
    prompt = case.prompt("the creditor shall")
    mixed, _ = run(case.model, prompt)
    case.lm.off()
    plain, _ = run(case.model, prompt)
    case.lm.on()
    assert not torch.equal(mixed, plain)


def test_greedy(case: Case) -> None:
    compare(case, case.prompt("the creditor shall"), {}, {})


def test_seeded_sampling(case: Case) -> None:
    options = {"do_sample": True, "temperature": 0.8, "top_k": 20, "top_p": 0.9}
    compare(case, case.prompt("a consumer"), options, options)


def test_repetition_penalty_acts_on_the_models_own_scale(case: Case) -> None:
    """Logits are log p + logsumexp(LM logits): they stay as large as the model's."""
    prompt = case.prompt("the creditor")
    output = case.model(**prompt, use_cache=False).logits[0, -1]
    case.lm.off()
    plain = case.model(**prompt, use_cache=False).logits[0, -1]
    case.lm.on()
    torch.testing.assert_close(output.logsumexp(0), plain.logsumexp(0), atol=1e-3, rtol=1e-4)


def test_beam_search(case: Case) -> None:
    options = {"num_beams": 3, "length_penalty": 0.5}
    compare(case, case.prompt("the fee"), options, options)


def test_left_padded_batch(case: Case) -> None:
    prompt = case.prompt("the creditor shall disclose", "may", "a consumer may ask")
    compare(case, prompt, {}, {})


def test_static_cache(case: Case) -> None:
    options: dict[str, Any] = {"cache_implementation": "static", "disable_compile": True}
    compare(case, case.prompt("the creditor shall"), options, {})


def test_chunked_prefill(case: Case) -> None:
    compare(case, case.prompt("the creditor shall disclose"), {"prefill_chunk_size": 5}, {})


def test_prompt_lookup(case: Case) -> None:
    prompt = case.prompt("the creditor shall disclose the rate; the creditor shall")
    compare(case, prompt, {"prompt_lookup_num_tokens": 4}, {})


def test_assisted_decoding(case: Case) -> None:
    assistant = tiny_model(case.architecture, seed=1)
    compare(case, case.prompt("the creditor shall"), {"assistant_model": assistant}, {})
