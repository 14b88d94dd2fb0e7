"""Rows of a batch with datastores of their own: each gets what it would get alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from knnlm_store.datastore import Datastore
from knnlm_store.errors import StoreMismatch, UsageError
from knnlm_store.generation import KnnLM
from knnlm_store.memories import Row
from knnlm_store.mixture import Fixed, Mixture
from knnlm_store.models import LanguageModel
from knnlm_store.several import Blend, Pool
from knnlm_store.values import Spec
from tests.faulty import PLACE, Faulty, FaultyRemote, down
from tests.several_support import TEXTS, entries_of, filled
from tests.tiny import tiny_model

MIXTURE = Mixture(8, 2.0, Fixed(0.6))
OTHER = Mixture(3, 5.0, Fixed(0.3))
PROMPTS = ["the creditor shall", "a consumer may ask", "may"]
SAME_LENGTH = ["the creditor", "a consumer, ", "shall we dis", "the creditor"]


@pytest.fixture
def lm(model: Any, tokenizer: Any) -> KnnLM:
    return KnnLM(LanguageModel.wrap(model, tokenizer, window=64))


@pytest.fixture
def stores(lm: KnnLM) -> list[Datastore]:
    return [filled(lm.language_model, text) for text in TEXTS]


def batch(lm: KnnLM, texts: Sequence[str]) -> dict[str, Tensor]:
    tokenizer = lm.language_model.tokenizer
    tokenizer.padding_side = "left"
    encoded = tokenizer(list(texts), return_tensors="pt", padding=True)
    return {"input_ids": encoded.input_ids, "attention_mask": encoded.attention_mask}


def alone(lm: KnnLM, row: Row) -> KnnLM:
    """What a row names, in use for all rows."""
    if row is None:
        return lm.off()
    return lm.use(*row) if isinstance(row, tuple) else lm.use(row, MIXTURE)


@torch.no_grad()
def check_rows(lm: KnnLM, rows: Sequence[Any], texts: Sequence[str] = SAME_LENGTH) -> None:
    """Logits of each row are those of the same batch with that row's datastore for all."""
    model, inputs = lm.language_model.model, batch(lm, texts)
    named = [row if row is None or isinstance(row, tuple) else (row, MIXTURE) for row in rows]
    together = lm.use_rows(named).language_model.model(**inputs).logits
    for i, row in enumerate(rows):
        alone(lm, row)
        torch.testing.assert_close(
            together[i], model(**inputs).logits[i], atol=1e-5, rtol=1e-5, msg=f"row {i}"
        )
    lm.on()


def test_each_row_is_as_with_its_own(lm: KnnLM, stores: list[Datastore]) -> None:
    a, b, _ = stores
    check_rows(lm, [a, b, None, a])
    check_rows(lm, [None, None, b, a])


def test_rows_differ(lm: KnnLM, stores: list[Datastore]) -> None:
    """The same prompt in every row: what differs is the datastore."""
    model, inputs = lm.language_model.model, batch(lm, ["the creditor"] * 4)
    with torch.no_grad():
        rows = lm.use_rows([*((s, MIXTURE) for s in stores), None]).language_model
        logits = rows.model(**inputs).logits[:, -1]
        plain = lm.off().language_model.model(**inputs).logits[:, -1]
    assert torch.equal(logits[3], plain[3])
    for i in range(4):
        for j in range(i):
            assert not torch.allclose(logits[i], logits[j], atol=1e-2)
    assert model is lm.language_model.model


def test_rows_with_mixtures_pools_and_blends(lm: KnnLM, stores: list[Datastore]) -> None:
    a, b, c = stores
    blend = Blend([(a, MIXTURE), (c, OTHER)], [0.4, 0.4])
    check_rows(lm, [(a, OTHER), a, (Pool([b, c]), OTHER), (blend, None)])
    check_rows(lm, [([a, b], OTHER), b, (b, Mixture(4, 1.0, Fixed(0.0))), None])


@torch.no_grad()
def test_all_plain_searches_nothing(lm: KnnLM, stores: list[Datastore]) -> None:
    model, inputs = lm.language_model.model, batch(lm, SAME_LENGTH)
    plain = model(**inputs).logits
    lm.use_rows([None, (stores[0], Mixture(4, 1.0, Fixed(0.0)))])
    assert torch.equal(model(**inputs).logits, plain)
    assert lm.counters.searched == 0


def generated(lm: KnnLM, texts: Sequence[str], **options: Any) -> list[list[int]]:
    """The new tokens of each sequence, without what ends or pads it."""
    inputs = batch(lm, texts)
    whole = lm.language_model.model.generate(
        **inputs, **{"max_new_tokens": 10, "do_sample": False, **options}
    )
    return [
        [t for t in row if t not in (1, 2)]
        for row in whole[:, inputs["input_ids"].shape[1] :].tolist()
    ]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_beams": 3},
        {"num_beams": 4, "num_return_sequences": 2},
        {"prefill_chunk_size": 4},
    ],
    ids=["greedy", "beams", "returned", "chunked"],
)
def test_generate(lm: KnnLM, stores: list[Datastore], options: dict[str, Any]) -> None:
    a, b, _ = stores
    rows = [a, b, None]
    n = options.get("num_return_sequences", 1)
    lm.use_rows([(r, MIXTURE) if r else None for r in rows])
    found = generated(lm, PROMPTS, **options)
    lm.use_rows([(r, MIXTURE) if r else None for r in reversed(rows)])
    turned = generated(lm, PROMPTS, **options)
    assert found[:n] != turned[:n]
    for i, row in enumerate(rows):
        alone(lm, row)
        # alone there is no padding: left padding must not matter either
        assert found[n * i : n * (i + 1)] == generated(lm, PROMPTS[i : i + 1], **options)


def on(lm: KnnLM, store: Datastore, kind: type[Faulty] = Faulty) -> tuple[Datastore, Faulty]:
    backend, manifest = kind(PLACE), lm.language_model.manifest()
    backend.create(Spec(manifest.dimension), manifest.records())
    backend.upsert(entries_of(store))
    return Datastore(PLACE, backend, manifest), backend


@pytest.mark.parametrize("kind", [Faulty, FaultyRemote])
@torch.no_grad()
def test_a_datastore_is_searched_once_a_step(
    lm: KnnLM, stores: list[Datastore], kind: type[Faulty]
) -> None:
    """However many rows name it, with whatever mixtures."""
    (a, counted), (b, other) = (on(lm, store, kind) for store in stores[:2])
    lm.use_rows([(a, MIXTURE), (b, OTHER), (a, OTHER), (a, MIXTURE)])
    model, inputs = lm.language_model.model, batch(lm, SAME_LENGTH)
    model(**inputs)
    assert (counted.calls, other.calls) == (1, 1)
    assert lm.counters.searched == inputs["attention_mask"].sum()
    check_rows(lm, [(a, MIXTURE), (b, OTHER), (a, OTHER), (a, MIXTURE)])


@torch.no_grad()
def test_where_one_falls_back_its_rows_are_plain(lm: KnnLM, stores: list[Datastore]) -> None:
    (a, fails), b = on(lm, stores[0], FaultyRemote), stores[1]
    model, inputs = lm.language_model.model, batch(lm, SAME_LENGTH[:3])
    plain = model(**inputs).logits
    whole = lm.use_rows([(a, MIXTURE), (b, MIXTURE), (a, MIXTURE)]).language_model
    before = whole.model(**inputs).logits
    fails.fault = down
    after = model(**inputs).logits
    assert torch.equal(after[0], plain[0])
    assert torch.equal(after[2], plain[2])
    assert torch.equal(after[1], before[1])
    assert not torch.allclose(after[1], plain[1], atol=1e-2)
    assert lm.counters.fallbacks == 1


@torch.no_grad()
def test_another_batch_is_refused(lm: KnnLM, stores: list[Datastore]) -> None:
    a, b, _ = stores
    lm.use_rows([a, b])
    model = lm.language_model.model
    for rows in (1, 3):
        with pytest.raises(UsageError) as caught:
            model(**batch(lm, SAME_LENGTH[:rows]))
        assert str(caught.value) == f"Datastores are in use for 2 rows, and the batch has {rows}."
        assert "use_rows with one for each prompt" in caught.value.hint
    model(**batch(lm, SAME_LENGTH))


def test_no_rows_are_refused(lm: KnnLM) -> None:
    with pytest.raises(UsageError, match="There are no rows"):
        lm.use_rows([])


def test_a_uri_is_opened_once(lm: KnnLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And closed again where another row is refused; what was in use stays."""
    uri = f"faiss:{tmp_path}/a"
    filled(lm.language_model, TEXTS[0], uri=uri).close()
    calls: list[str] = []
    opening, closing = Datastore.open, Datastore.close

    def opens(place: str) -> Datastore:
        calls.append("open")
        return opening(place)

    def closes(store: Datastore) -> None:
        calls.append("close")
        closing(store)

    monkeypatch.setattr(Datastore, "open", opens)
    monkeypatch.setattr(Datastore, "close", closes)
    lm.use_rows([uri, (uri, OTHER), None])
    assert calls == ["open"]
    before = lm._used.now
    other = LanguageModel.wrap(tiny_model("llama", seed=9), lm.language_model.tokenizer, window=64)
    with pytest.raises(StoreMismatch, match="was written by another model"):
        lm.use_rows([uri, filled(other, TEXTS[0])])
    assert calls == ["open", "open", "close"]
    assert lm._used.now is before
