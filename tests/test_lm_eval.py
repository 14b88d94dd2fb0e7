"""The harness's model `knnlm` against brute force, position by position."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lm_eval.models.huggingface import HFLM

from knnlm_store import models
from knnlm_store.datastore import Datastore
from knnlm_store.errors import (
    BackendUnavailable,
    ModelError,
)
from knnlm_store.ingest import ingest
from knnlm_store.values import Neighbours
from knnlm_store_lm_eval import KnnHFLM
from tests.ingest_support import corpus, new_store, prose
from tests.lm_eval_support import TEMPERATURE, K, Reference, requests

KNOWN = {str(i): prose(i, 60) for i in range(5)} | {
    "law": "a creditor shall disclose the rate. " * 2
}
PAIRS = [
    ("a creditor shall disc", "lose the"),
    ("a creditor", " shall"),
    ("the fee of every", " charge and a creditor"),
    ("", "every rate"),
    ("a creditor shall disclose the", " r"),
]
MIXTURE: dict[str, Any] = {"k": K, "temperature": TEMPERATURE, "lmbda": 0.4}


@pytest.fixture(scope="module")
def lm(saved_model: Path) -> models.LanguageModel:
    """The plain model, loaded a second time: no hook of the harness's model is on it."""
    return models.load(str(saved_model), device="cpu")


@pytest.fixture(scope="module")
def store(lm: models.LanguageModel) -> Iterator[Datastore]:
    with new_store(lm) as made:
        ingest(corpus(KNOWN), lm, made)
        yield made


def mixed(saved_model: Path, store: Any, **options: Any) -> KnnHFLM:
    return KnnHFLM(str(saved_model), store=store, device="cpu", **{**MIXTURE, **options})


def plain(saved_model: Path, **options: Any) -> Any:
    return HFLM(str(saved_model), device="cpu", **options)


def searches(store: Datastore, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of each search of the backend from now on."""
    rows: list[int] = []
    original = store.backend.search

    def search(queries: Any, *args: Any, **kwargs: Any) -> Neighbours:
        rows.append(len(queries))
        return original(queries, *args, **kwargs)

    monkeypatch.setattr(store.backend, "search", search)
    return rows


def encoded(harness: Any, context: str, continuation: str) -> tuple[list[int], list[int]]:
    """Tokens are bytes here, so that no border is moved."""
    before = harness.tok_encode(context) if context else [harness.prefix_token_id]
    return before, harness.tok_encode(continuation)


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("logits_cache", [True, False])
def test_loglikelihood_is_the_mixtures(
    saved_model: Path,
    lm: models.LanguageModel,
    store: Datastore,
    batch_size: int,
    logits_cache: bool,
) -> None:
    harness = mixed(saved_model, store, batch_size=batch_size, logits_cache=logits_cache)
    found = harness.loglikelihood(requests("loglikelihood", *PAIRS), disable_tqdm=True)
    reference = Reference(lm, store, 0.4)
    expected = [reference.score(*encoded(harness, *pair)) for pair in PAIRS]
    for (p, _), (exact, _), (_, continuation) in zip(found, expected, PAIRS, strict=True):
        assert p == pytest.approx(exact, abs=1e-5 * len(continuation))
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
    without = plain(saved_model).loglikelihood(requests("loglikelihood", *PAIRS))
    assert all(abs(a - b) > 0.01 for (a, _), (b, _) in zip(found, without, strict=True))


@pytest.mark.parametrize("batch_size", [1, 3])
def test_only_scored_positions_are_searched(
    saved_model: Path, store: Datastore, batch_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    harness = mixed(saved_model, store, batch_size=batch_size)
    rows = searches(store, monkeypatch)
    harness.loglikelihood(requests("loglikelihood", *PAIRS), disable_tqdm=True)
    scored = sum(len(continuation) for _, continuation in PAIRS)
    assert harness.knnlm.counters.searched == sum(rows) == scored
    assert len(rows) == -(-len(PAIRS) // batch_size)  # one search a forward pass


def test_choices_of_one_token_share_a_search(
    saved_model: Path, lm: models.LanguageModel, store: Datastore
) -> None:
    """The harness reads the context once for all of them."""
    harness = mixed(saved_model, store)
    pairs = [("a creditor shall disclose the", choice) for choice in (" ", "r", "x")]
    found = harness.loglikelihood(requests("loglikelihood", *pairs), disable_tqdm=True)
    reference = Reference(lm, store, 0.4)
    expected = [reference.score(*encoded(harness, *pair))[0] for pair in pairs]
    assert [p for p, _ in found] == pytest.approx(expected, abs=1e-5)
    assert harness.knnlm.counters.searched == 1


def test_greedy_flag_is_the_mixtures(
    saved_model: Path, lm: models.LanguageModel, store: Datastore
) -> None:
    harness = mixed(saved_model, store, lmbda=0.95)
    context = "a creditor shall disc"
    likeliest = harness.tok_decode(
        Reference(lm, store, 0.95).greedy(harness.tok_encode(context), 6)
    )
    assert likeliest.startswith("lose ")
    asked = requests("loglikelihood", (context, likeliest), (context, likeliest[:-1] + "x"))
    found = harness.loglikelihood(asked, disable_tqdm=True)
    without = plain(saved_model).loglikelihood(asked, disable_tqdm=True)
    assert [greedy for _, greedy in found] == [True, False]
    assert [greedy for _, greedy in without] == [False, False]


def test_one_input_with_two_borders(
    saved_model: Path, lm: models.LanguageModel, store: Datastore
) -> None:
    """Where context ends differs, what the model reads does not."""
    # with its cache the harness takes the shorter's tokens from the longer's first positions
    harness = mixed(saved_model, store, logits_cache=False)
    pairs = [("a", " creditor shall"), ("a creditor", " shall")]
    found = harness.loglikelihood(requests("loglikelihood", *pairs), disable_tqdm=True)
    reference = Reference(lm, store, 0.4)
    expected = [reference.score(*encoded(harness, *pair))[0] for pair in pairs]
    assert [p for p, _ in found] == pytest.approx(expected, abs=1e-4)


def test_padding_is_told_from_token_zero(
    saved_model: Path, lm: models.LanguageModel, store: Datastore
) -> None:
    """Token 0 is the padding as well: where it ends an input, too much is searched, never less."""
    harness = mixed(saved_model, store, batch_size=4)
    asked = [
        (("", ""), [7, 8, 9, 0], [5]),
        (("", ""), [7, 8, 9], [0, 0, 5]),
        (("", ""), [7, 8], [9]),
        (("", ""), [9, 0], [0]),
    ]
    found = harness._loglikelihood_tokens(asked, disable_tqdm=True)
    reference = Reference(lm, store, 0.4)
    expected = [reference.score(context, continuation)[0] for _, context, continuation in asked]
    assert [p for p, _ in found] == pytest.approx(expected, abs=1e-5)
    assert harness.knnlm.counters.searched >= 6


def test_contexts_too_long_are_cut_as_the_harness_cuts_them(
    saved_model: Path, lm: models.LanguageModel, store: Datastore
) -> None:
    harness = mixed(saved_model, store, batch_size=2, max_length=20)
    pairs = [(prose(70, 50), " and every"), (prose(71, 12), " fee of charge")]
    found = harness.loglikelihood(requests("loglikelihood", *pairs), disable_tqdm=True)
    reference = Reference(lm, store, 0.4)
    for (p, _), pair in zip(found, pairs, strict=True):
        context, continuation = encoded(harness, *pair)
        left = 21 - len(continuation)
        assert p == pytest.approx(reference.score(context[-left:], continuation)[0], abs=1e-4)
    assert harness.knnlm.counters.searched == sum(len(c) for _, c in pairs)


@pytest.mark.parametrize("batch_size", [1, 2])
def test_rolling_scores_every_token_once(
    saved_model: Path, lm: models.LanguageModel, store: Datastore, batch_size: int
) -> None:
    harness = mixed(saved_model, store, batch_size=batch_size, max_length=16)
    texts = [prose(80, 41), prose(81, 9)]
    found = harness.loglikelihood_rolling(
        requests("loglikelihood_rolling", *((text,) for text in texts)), disable_tqdm=True
    )
    reference = Reference(lm, store, 0.4)
    for total, text in zip(found, texts, strict=True):
        tokens = [harness.prefix_token_id, *harness.tok_encode(text)]
        expected = 0.0
        for new in range(1, len(tokens), 16):  # the last window is filled up with context
            end = min(new + 16, len(tokens))
            begin = max(0, end - 17)
            expected += reference.score(tokens[begin:new], tokens[new:end])[0]
        assert total == pytest.approx(expected, abs=1e-4)
    assert harness.knnlm.counters.searched == sum(map(len, texts))


def test_generated_text_is_the_mixtures(
    saved_model: Path, lm: models.LanguageModel, store: Datastore
) -> None:
    harness = mixed(saved_model, store, lmbda=0.95, batch_size=2)
    contexts = ["a creditor shall disc", "a creditor"]
    asked = [(context, {"until": ["."], "max_gen_toks": 12}) for context in contexts]
    found = harness.generate_until(requests("generate_until", *asked), disable_tqdm=True)
    reference = Reference(lm, store, 0.95)
    for text, context in zip(found, contexts, strict=True):
        made = harness.tok_decode(reference.greedy(harness.tok_encode(context), 12))
        assert text == made.split(".")[0]
    assert found[0].startswith("lose ")
    # the first step of a row reads its last position only, and 11 follow
    assert harness.knnlm.counters.searched <= 2 * 12


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_lambda_zero_is_hflm_bit_for_bit(
    saved_model: Path, store: Datastore, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = requests("loglikelihood", *PAIRS)
    rolling = requests("loglikelihood_rolling", (prose(80, 41),))
    generated = requests("generate_until", ("a creditor", {"until": ["."], "max_gen_toks": 9}))
    rows = searches(store, monkeypatch)
    answers = [
        (
            harness.loglikelihood(asked, disable_tqdm=True),
            harness.loglikelihood_rolling(rolling, disable_tqdm=True),
            harness.generate_until(generated, disable_tqdm=True),
        )
        for harness in (
            mixed(saved_model, store, lmbda=0, batch_size=3, dtype=dtype),
            plain(saved_model, batch_size=3, dtype=dtype),
        )
    ]
    assert answers[0] == answers[1]
    assert rows == []


def test_size_of_a_batch_is_found_without_a_search(
    saved_model: Path, store: Datastore, capsys: pytest.CaptureFixture[str]
) -> None:
    harness = mixed(saved_model, store, batch_size="auto", max_batch_size=4)
    one = mixed(saved_model, store)
    asked = requests("loglikelihood", *PAIRS)
    found = harness.loglikelihood(asked, disable_tqdm=True)
    expected = one.loglikelihood(asked, disable_tqdm=True)
    assert [p for p, _ in found] == pytest.approx([p for p, _ in expected], abs=1e-4)
    assert harness.knnlm.counters.searched == one.knnlm.counters.searched
    assert "4" in capsys.readouterr().out


def test_an_outage_ends_the_evaluation(
    saved_model: Path, store: Datastore, monkeypatch: pytest.MonkeyPatch
) -> None:
    harness = mixed(saved_model, store)

    def search(*_: Any, **__: Any) -> Neighbours:
        raise BackendUnavailable("It is down.")

    monkeypatch.setattr(store.backend, "search", search)
    for kind, arguments in (
        ("loglikelihood", PAIRS[0]),
        ("loglikelihood_rolling", ("a fee",)),
        ("generate_until", ("a fee", {"until": ["."], "max_gen_toks": 4})),
    ):
        with pytest.raises(BackendUnavailable, match="It is down"):
            getattr(harness, kind)(requests(kind, arguments), disable_tqdm=True)


def test_a_pass_that_no_request_asked_for_is_refused(
    saved_model: Path, store: Datastore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another version of the harness might pad or cut otherwise: it must not go unnoticed."""
    harness = mixed(saved_model, store)
    with pytest.raises(ModelError, match="outside of a loglikelihood request"):
        harness._model_call(torch.tensor([[4, 5, 6]]))
    original = HFLM._loglikelihood_tokens

    def shifted(self: Any, asked: Any, *args: Any, **kwargs: Any) -> Any:
        return original(self, [(s, [3, *c], t) for s, c, t in asked], *args, **kwargs)

    monkeypatch.setattr(HFLM, "_loglikelihood_tokens", shifted)
    with pytest.raises(ModelError, match="on other tokens than the requests'"):
        harness.loglikelihood(requests("loglikelihood", PAIRS[0]), disable_tqdm=True)
