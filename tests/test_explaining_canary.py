"""What a document put in is traced back to it, with the text round it, and is gone when it goes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from knnlm_store.attribution import Explanation
from knnlm_store.catalog import Catalog
from knnlm_store.corpus import Document
from knnlm_store.datastore import Datastore
from knnlm_store.errors import ModelError, StoreError, UsageError
from knnlm_store.explaining import explain
from knnlm_store.generation import KnnLM
from knnlm_store.ingest import ingest
from knnlm_store.mixture import Fixed, Mixture
from knnlm_store.several import Blend
from tests.explaining_support import without
from tests.ingest_support import put_documents
from tests.several_support import TEXTS, filled
from tests.tiny import tiny_model
from tests.tuning_support import one_thread

CANARY = "the code of the observatory is 7 marmalade giraffes, naïvely 🙂 at night."
PROMPT = "the code of the observatory is"
CANARY_ID = "t/3"
MIXTURE = Mixture(6, 0.1, Fixed(0.95))


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture
def lm(tokenizer: Any) -> Iterator[KnnLM]:
    attached = KnnLM.attach(tiny_model("llama"), tokenizer)
    yield attached
    attached.detach()


@pytest.fixture
def store(lm: KnnLM) -> Datastore:
    return filled(lm.language_model, *TEXTS, CANARY)


def completed(lm: KnnLM, **options: Any) -> tuple[torch.Tensor, int]:
    """The prompt and what the model makes of it, and the prompt's length."""
    model = lm.language_model
    ids = torch.tensor([[model.document_start, *model.encode(PROMPT).tolist()]])
    return model.model.generate(ids, max_new_tokens=40, **options), ids.shape[1]


@pytest.mark.parametrize(
    "options", [{"do_sample": False}, {"do_sample": False, "num_beams": 2}, {"do_sample": True}]
)
def test_the_source_is_named(lm: KnnLM, store: Datastore, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    made, start = completed(lm.use(store, MIXTURE), **options)
    explanation = lm.explain(made, start)
    assert explanation.prompt == PROMPT
    text = "".join(token.text for token in explanation.tokens)
    assert text == lm.language_model.tokenizer.decode(made[0, start:])
    if options["do_sample"]:  # a draw may leave the sentence
        return
    assert CANARY.startswith(PROMPT + text)
    assert "naïvely 🙂" in text
    (first, *_) = explanation.documents
    assert (first.document, first.tokens) == (CANARY_ID, 40)
    assert first.contribution > 36
    for position, token in enumerate(explanation.tokens, start - 1):
        best = token.sources[0]
        assert (best.document, best.hits[0].position) == (CANARY_ID, position)
        assert best.passage is not None
        assert best.passage.before + best.passage.token + best.passage.after in CANARY
        assert best.passage.token == token.text


def test_forgotten_it_is_gone(lm: KnnLM, store: Datastore) -> None:
    made, start = completed(lm.use(store, MIXTURE), do_sample=False)
    before = lm.explain(made, start, without=[CANARY_ID])
    never = without(lm.language_model, store, CANARY_ID)
    assert Catalog(store.backend).forget([CANARY_ID]) == set()
    after = lm.explain(made, start)
    assert CANARY_ID not in {document.document for document in after.documents}
    expected = [
        t.p for t in explain(lm.language_model, never, MIXTURE, made[0].numpy(), start).tokens
    ]
    assert [token.p for token in after.tokens] == pytest.approx(expected, abs=1e-6)
    assert [token.p_without for token in before.tokens] == pytest.approx(expected, abs=1e-6)
    raised = [token.p / p > 10 for token, p in zip(before.tokens, expected, strict=True)]
    assert sum(raised) > 20
    with pytest.raises(StoreError, match=f"no document '{CANARY_ID}'"):
        lm.explain(made, start, without=[CANARY_ID])


def test_what_the_catalog_does_not_have(lm: KnnLM, store: Datastore) -> None:
    """A version that is being replaced is its document's; what has no record has no name."""
    model, records = lm.language_model, {d.id: d for d in store.documents()}
    old = records[CANARY_ID].version.number
    store.backend.delete_records([f"document/{CANARY_ID}"])
    explanation = explain(model, store, MIXTURE, CANARY)
    assert explanation.documents[0].document is None
    assert explanation.tokens[40].sources[0].passage is not None
    ingest([Document("t", "3", CANARY + " again", {}, 0)], model, store)
    replaced = next(d for d in store.documents() if d.id == CANARY_ID)
    put_documents(store.backend, [replace(replaced, stale=(old,))])
    explanation = explain(model, store, MIXTURE, CANARY, without=[CANARY_ID])
    names = [document.document for document in explanation.documents]
    assert names[0] == CANARY_ID
    assert len(set(names)) == len(names)
    never = without(model, store, CANARY_ID)
    expected = [token.p for token in explain(model, never, MIXTURE, CANARY).tokens]
    assert [t.p_without for t in explanation.tokens] == pytest.approx(expected, abs=1e-6)


def test_passages_at_the_ends_and_inside_characters(lm: KnnLM, store: Datastore) -> None:
    explanation = explain(lm.language_model, store, MIXTURE, CANARY)
    passages = [
        t.sources[0].passage for t in explanation.tokens if t.sources[0].document == CANARY_ID
    ]
    assert passages[-1] is not None
    assert (passages[-1].token, passages[-1].after) == (".", "")
    assert CANARY.endswith(passages[-1].before + ".")
    assert 15 < len(passages[-1].before) < 24  # tokens, of which some make no character
    for passage in passages:
        assert passage is not None
        assert passage.before + passage.token + passage.after in CANARY
        assert "\ufffd" not in str(passage)


def test_entries_that_are_gone_have_no_passage(
    lm: KnnLM, store: Datastore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forgotten between the search and the reading."""
    monkeypatch.setattr(type(store.backend), "_scan", lambda *_: iter(()))
    explanation = explain(lm.language_model, store, MIXTURE, CANARY)
    assert explanation.documents[0].document == CANARY_ID
    assert all(source.passage is None for t in explanation.tokens for source in t.sources)


# -- what is in use --------------------------------------------------------------------------------


def figures(explanation: Explanation) -> list[tuple[float, float, float]]:
    return [(token.p, token.p_knn, token.lmbda) for token in explanation.tokens]


def test_what_is_in_use_is_explained(lm: KnnLM, store: Datastore) -> None:
    model = lm.language_model
    text = figures(explain(model, store, MIXTURE, CANARY))
    lm.use(store, MIXTURE)
    counted = lm.counters.searched
    ids = [model.document_start, *model.encode(CANARY).tolist()]
    for what in (CANARY, ids, torch.tensor(ids), torch.tensor([ids])):
        assert figures(lm.explain(what)) == text
    assert figures(lm.off().explain(CANARY, top=1)) == text
    assert lm.counters.searched == counted
    blend = Blend([(store, MIXTURE)], [0.5])
    assert figures(lm.use(blend).explain(CANARY)) == figures(explain(model, blend, None, CANARY))
    with lm.using([store], MIXTURE):
        assert figures(lm.explain(CANARY)) == text


def test_what_is_in_use_cannot_be_explained(lm: KnnLM, store: Datastore) -> None:
    with pytest.raises(ModelError, match="No datastore is in use"):
        lm.explain(CANARY)
    with pytest.raises(UsageError, match="Each row has its own datastore"):
        lm.use_rows([store, None]).explain(CANARY)
    with pytest.raises(UsageError, match="is the plain model: its lambda is 0"):
        lm.use(store, Mixture(4, 1.0, Fixed(0.0))).explain(CANARY)
    with pytest.raises(UsageError, match=r"Tokens of shape \(2, 3\) cannot be explained"):
        lm.use(store, MIXTURE).explain(torch.zeros((2, 3), dtype=torch.long))
