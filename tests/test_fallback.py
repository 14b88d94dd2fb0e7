"""A datastore that fails while a model decodes: the plain model goes on, and it is counted."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch

from knnlm_store.corpus import Document
from knnlm_store.datastore import Datastore
from knnlm_store.errors import (
    BackendUnavailable,
    InvalidEntries,
    KnnlmError,
    StorageFull,
    StoreCorrupt,
    StoreNotFound,
    UsageError,
)
from knnlm_store.evaluation import evaluate
from knnlm_store.generation import KnnLM
from knnlm_store.ingest import ingest
from knnlm_store.memories import Opening
from knnlm_store.mixture import Fixed, Mixture
from knnlm_store.models import LanguageModel
from knnlm_store.values import Spec
from tests.faulty import PLACE, Clock, Faulty, FaultyRemote, after, down, healthy
from tests.several_support import in_use
from tests.tiny import tiny_model

TEXT = "the creditor shall disclose the rate; the creditor shall disclose the fee."
MIXTURE = Mixture(8, 2.0, Fixed(0.5))


def attached(
    model: Any, tokenizer: Any, backend: Faulty, clock: Clock | None = None, **options: Any
) -> KnnLM:
    """A model with a datastore that works so far."""
    language_model = LanguageModel.wrap(model, tokenizer, window=64)
    manifest = language_model.manifest()
    backend.create(Spec(manifest.dimension), manifest.records())
    store = Datastore(PLACE, backend, manifest)
    ingest([Document("t", "1", TEXT, {}, 0)], language_model, store)
    lm = KnnLM(language_model).use(store, MIXTURE, **options)
    if clock:
        opening = Opening(manifest, lm.counters, clock=clock, **options)
        lm._used.switch(opening.everywhere(store, MIXTURE))
    return lm


@pytest.fixture(params=[Faulty, FaultyRemote])
def backend(request: pytest.FixtureRequest) -> Faulty:
    made: Faulty = request.param(PLACE)
    return made


@torch.no_grad()
def steps(lm: KnnLM, tokens: Any, each: Callable[[int], object] = id) -> list[torch.Tensor]:
    """Logits after each token `[v]`, fed one by one through a cache, as decoding does."""
    cache, logits = None, []
    for i, token in enumerate(tokens[0]):
        each(i)
        out = lm.language_model.model(token[None, None], past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        logits.append(out.logits[0, -1])
    return logits


def prompt(tokenizer: Any, text: str = "the creditor shall disc") -> Any:
    return tokenizer(text, return_tensors="pt").input_ids


def mixed_and_plain(lm: KnnLM, tokens: Any) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Logits with the datastore and without it; they differ at every step."""
    mixed, plain = steps(lm.on(), tokens), steps(lm.off(), tokens)
    assert not any(torch.equal(a, b) for a, b in zip(mixed, plain, strict=True))
    lm.on()
    for name in ("steps", "searched", "mixed"):
        setattr(lm.counters, name, 0)
    return mixed, plain


def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return len(a) == len(b) and all(map(torch.equal, a, b))


def counted(lm: KnnLM) -> tuple[int, int, int]:
    """Fallbacks, failures, openings."""
    return lm.counters.fallbacks, lm.counters.failures, lm.counters.opened


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_steps_after_a_failure_are_the_plain_models(
    tokenizer: Any, backend: Faulty, dtype: torch.dtype
) -> None:
    lm = attached(tiny_model("llama").to(dtype), tokenizer, backend, Clock())
    tokens = prompt(tokenizer)
    mixed, plain = mixed_and_plain(lm, tokens)
    good, backend.calls = 5, 0
    backend.fault = after(good, down)
    found = steps(lm, tokens)
    assert same(found[:good], mixed[:good])
    assert same(found[good:], plain[good:])
    assert {each.dtype for each in found[good:]} == {dtype}
    n = tokens.shape[1]
    assert counted(lm) == (n - good, 3, 1)
    assert (lm.counters.steps, lm.counters.searched, lm.counters.mixed) == (n, good, good)
    assert lm.counters.last_error == "The server is down."
    assert backend.calls == good + 3  # then the breaker was open


def test_generate_goes_on_with_the_plain_models_tokens(
    model: Any, tokenizer: Any, backend: Faulty
) -> None:
    lm = attached(model, tokenizer, backend, Clock())
    options = {"do_sample": False, "eos_token_id": None}
    tokens = prompt(tokenizer)
    whole = model.generate(tokens, max_new_tokens=20, **options)
    good, backend.calls = 6, 0
    backend.fault = after(good, down)
    made = model.generate(tokens, max_new_tokens=20, **options)
    kept = tokens.shape[1] + good
    assert torch.equal(made[:, :kept], whole[:, :kept])
    assert not torch.equal(made, whole)
    lm.off()
    assert torch.equal(model.generate(made[:, :kept], max_new_tokens=14, **options), made)
    assert counted(lm) == (14, 3, 1)


@pytest.mark.parametrize("error", [StoreNotFound, StoreCorrupt, StorageFull])
def test_every_error_of_the_datastore_falls_back(
    model: Any, tokenizer: Any, backend: Faulty, error: type[KnnlmError]
) -> None:
    def fault(call: int) -> None:
        raise error("It is gone.")

    lm = attached(model, tokenizer, backend)
    tokens = prompt(tokenizer)
    _, plain = mixed_and_plain(lm, tokens)
    backend.fault = fault
    assert same(steps(lm, tokens), plain)
    assert lm.counters.last_error == "It is gone."


def test_mixing_resumes_after_the_pause(
    model: Any, tokenizer: Any, backend: Faulty, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock()
    lm = attached(model, tokenizer, backend, clock)
    tokens = prompt(tokenizer)
    mixed, plain = mixed_and_plain(lm, tokens)

    def each(step: int) -> None:
        backend.fault = down if 2 <= step < 10 else healthy
        clock.now = {10: 4.9, 12: 5.0}.get(step, clock.now)

    with caplog.at_level(logging.INFO, "knnlm_store.fallback"):
        found = steps(lm, tokens, each)
    assert same(found, mixed[:2] + plain[2:12] + mixed[12:])
    assert counted(lm) == (10, 3, 1)
    assert [(r.levelname, r.getMessage()) for r in caplog.records] == [
        ("WARNING", "The server is down. Until it answers, the plain model goes on alone."),
        ("INFO", "memory: answers again and is mixed in."),
    ]


def test_without_fallback_every_failure_raises(model: Any, tokenizer: Any, backend: Faulty) -> None:
    lm = attached(model, tokenizer, backend, fallback=False)
    backend.fault = down
    for _ in range(5):  # no breaker stands between
        with pytest.raises(BackendUnavailable, match="server is down"):
            steps(lm, prompt(tokenizer))
    assert counted(lm) == (0, 5, 0)
    backend.fault = healthy
    steps(lm, prompt(tokenizer))
    assert lm.counters.mixed > 0


def test_use_takes_the_timeout(model: Any, tokenizer: Any, backend: Faulty) -> None:
    lm = attached(model, tokenizer, backend, timeout=7.0)
    steps(lm, prompt(tokenizer))
    assert set(backend.timeouts) == {7.0}
    before = lm._used.now
    with pytest.raises(UsageError, match="must be above 0 seconds"):
        lm.use(in_use(lm), MIXTURE, timeout=0)
    assert lm._used.now is before


def test_evaluation_raises(model: Any, tokenizer: Any, backend: Faulty) -> None:
    lm = attached(model, tokenizer, backend)
    backend.fault = down
    with pytest.raises(BackendUnavailable, match="server is down"):
        evaluate([Document("t", "2", TEXT, {}, 0)], lm.language_model, in_use(lm), MIXTURE)


def test_threads_share_one_breaker(model: Any, tokenizer: Any, backend: Faulty) -> None:
    lm = attached(model, tokenizer, backend, Clock())
    tokens = prompt(tokenizer)
    _, plain = mixed_and_plain(lm, tokens)
    backend.fault = down
    right: list[bool] = []
    work = [
        threading.Thread(target=lambda: right.append(same(steps(lm, tokens), plain)))
        for _ in range(4)
    ]
    for thread in work:
        thread.start()
    for thread in work:
        thread.join()
    assert right == [True] * 4
    assert lm.counters.fallbacks == lm.counters.steps == 4 * tokens.shape[1]
    assert lm.counters.opened == 1
    assert 3 <= lm.counters.failures <= 6  # each other thread may have been on its way


def test_a_server_that_never_answers(model: Any, tokenizer: Any) -> None:
    """One step waits for its deadline; the others do not wait at all."""
    backend, gate = FaultyRemote(PLACE), threading.Event()
    lm = attached(model, tokenizer, backend, Clock())
    tokens = prompt(tokenizer)
    mixed, plain = mixed_and_plain(lm, tokens)
    good, backend.calls = 5, 0
    backend.fault = after(good, lambda call: gate.wait(60))
    started = time.monotonic()
    try:
        found = steps(lm, tokens)
        seconds = time.monotonic() - started
    finally:
        gate.set()
    assert 2 <= seconds < 10
    assert same(found, mixed[:good] + plain[good:])
    assert backend.calls == good + 1
    assert counted(lm) == (tokens.shape[1] - good, 3, 1)
    assert lm.counters.last_error == "memory: did not answer an earlier search within 2 s."


def test_a_key_that_is_nan_raises(model: Any, tokenizer: Any, backend: Faulty) -> None:
    """A broken model is no outage of the datastore."""
    lm = attached(model, tokenizer, backend)
    with torch.no_grad():
        model.model.embed_tokens.weight.fill_(float("nan"))
    with pytest.raises(InvalidEntries, match="NaN"):
        steps(lm, prompt(tokenizer))
    assert counted(lm) == (0, 0, 0)
