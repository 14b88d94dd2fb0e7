"""The keys that an ingest writes, and the memory it needs for them."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from knnlm_store import writer
from knnlm_store.corpus import Document
from knnlm_store.ingest import ingest
from knnlm_store.models import LanguageModel
from knnlm_store.values import Float32
from tests.ingest_support import corpus, counted, document, held, new_store, prose
from tests.tiny import tiny_model

LENGTHS = (1, 9, 31, 32, 33, 50)
TEXTS = {f"{n:02}": prose(n, n) for n in LENGTHS}


@torch.no_grad()
def keys_by_hand(lm: LanguageModel, text: str, size: int) -> Float32:
    """One plain forward pass for every token, over the context that its window gives it.

    The document start stands first; the first window has `size` inputs, and each later one
    begins half a window behind the one before it.
    """
    inputs = [lm.document_start, *lm.tokenizer(text, add_special_tokens=False).input_ids]
    stride = size - size // 2
    seen: list[torch.Tensor] = []
    block = lm.model.model.layers[-1].mlp
    handle = block.register_forward_pre_hook(lambda _, args: seen.append(args[0][0, -1]))
    for position in range(len(inputs) - 1):
        begin = 0
        while position - begin >= size:
            begin += stride
        lm.model(torch.tensor([inputs[begin : position + 1]]))
    handle.remove()
    return torch.stack(seen).numpy()


@pytest.mark.parametrize("size", [32, 7])
def test_keys_are_those_of_a_plain_forward_pass(model: Any, tokenizer: Any, size: int) -> None:
    """Whatever the batches and their padding, and for documents that fill many windows."""
    lm = LanguageModel.wrap(model, tokenizer, window=size)
    expected = {name: keys_by_hand(lm, text, size) for name, text in TEXTS.items()}
    passes = counted(lm)
    for batch_tokens, most in ((1, 99), (64, 99), (4096, 1)):
        store, before = new_store(lm), passes()
        ingest(corpus(TEXTS), lm, store, batch_tokens=batch_tokens)
        assert passes() - before - 1 <= most  # one for the probe of the manifest
        entries = held(store)
        for record in store.documents():
            assert record.version is not None
            mine = entries[entries.documents == record.version.number]
            np.testing.assert_allclose(mine.keys, expected[record.name], atol=2e-5)


def test_a_later_window_does_not_see_the_whole_document(
    language_model: LanguageModel,
) -> None:
    """So that the test above can tell windows from whole documents."""
    text = TEXTS["50"]
    short, whole = keys_by_hand(language_model, text, 32), keys_by_hand(language_model, text, 256)
    np.testing.assert_array_equal(short[:32], whole[:32])
    assert np.abs(short[32:] - whole[32:]).max(axis=1).min() > 1e-3


@pytest.mark.parametrize("architecture", ["gpt2", "opt", "mixtral"])
def test_batching_changes_rounding_only(tokenizer: Any, architecture: str) -> None:
    found = []
    for batch_tokens in (1, 2048):
        lm = LanguageModel.wrap(tiny_model(architecture), tokenizer, window=32)
        store = new_store(lm)
        ingest(corpus(TEXTS), lm, store, batch_tokens=batch_tokens)
        found.append(held(store))
    np.testing.assert_array_equal(found[0].ids, found[1].ids)
    np.testing.assert_allclose(found[0].keys, found[1].keys, atol=5e-5)


def test_bfloat16_models_give_float32_keys(tokenizer: Any) -> None:
    lm = LanguageModel.wrap(tiny_model("llama").to(torch.bfloat16), tokenizer, window=32)
    store = new_store(lm)
    ingest(corpus({"a": TEXTS["33"]}), lm, store)
    keys = held(store).keys
    assert keys.dtype == np.float32
    exact = keys_by_hand(LanguageModel.wrap(tiny_model("llama"), tokenizer), TEXTS["33"], 32)
    assert np.linalg.norm(keys - exact) < 0.1 * np.linalg.norm(exact)


def test_memory_does_not_grow_with_the_corpus(
    model: Any, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Documents pass through and keys lie on disk; what stays is a record of each document."""
    monkeypatch.setattr(
        writer, "_BATCH", 128 * 32 * 4
    )  # full soon, so that short runs are like long ones
    monkeypatch.setattr(writer, "_DEPTH", 2)
    lm = LanguageModel.wrap(model, tokenizer, window=256)

    def stream(count: int) -> Iterator[Document]:
        for i in range(count):
            yield document(str(i), prose(i, 400))

    def peak(name: str, count: int) -> int:
        with new_store(lm, f"faiss:{tmp_path}/{name}") as store:
            tracemalloc.start()
            report = ingest(stream(count), lm, store)
            reached = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        assert report.tokens == 400 * count
        return reached

    peak("warm", 2)
    short, long = peak("short", 4), peak("long", 20)
    keys = 400 * 32 * 4  # bytes of the keys of one document
    assert (long - short) / 16 < 4096 < keys / 10
