"""After a document was forgotten, all is as if it had never been there; on every backend."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from knnlm_store.catalog import Catalog
from knnlm_store.datastore import Datastore
from knnlm_store.documents import Change
from knnlm_store.evaluation import score
from knnlm_store.forgetting import forget
from knnlm_store.generation import KnnLM
from knnlm_store.ingest import ingest
from knnlm_store.mixture import Fixed, Mixture
from knnlm_store.models import LanguageModel
from knnlm_store.scoring import score_batch
from knnlm_store.values import Neighbours
from knnlm_store.windows import batches, windows
from knnlm_store.writer import DocumentWriter
from tests.ingest_support import assert_same, corpus, held, prose
from tests.milvus_support import milvus_root, own_server
from tests.tiny import tiny_model

__all__ = ["milvus_root", "own_server"]

KEPT = {f"a{i}": prose(i, 90) for i in range(6)}
GONE = {f"b{i}": prose(50 + i, 90) for i in range(6)}
HELD_OUT = prose(99, 60)
MIXTURE = Mixture(64, 2.0, Fixed(0.5))
BACKENDS = ("memory", "faiss", "qdrant", "lite", "milvus")


def without(store: Datastore, uri: str) -> Datastore:
    """A datastore of the kept documents alone, with the keys that are stored here."""
    other = Datastore.open_or_create(uri, store.manifest, "float32", options=_exact(uri))
    catalog = Catalog(other.backend)
    with DocumentWriter(other.backend, catalog) as writer:
        for record in store.documents():
            if record.name in KEPT:
                change = Change(record)
                writer.begin(change)
                number = record.version.number
                for entries in store.backend.scan(with_keys=True, documents=[number]):
                    writer.put(entries)
                writer.done(change)
    return other


def _exact(uri: str) -> dict[str, str]:
    return {"index": "exact"} if uri.startswith(("qdrant", "milvus")) else {}


@pytest.fixture
def pair(
    request: pytest.FixtureRequest, tmp_path: Path, shared_model: LanguageModel
) -> Iterator[tuple[Datastore, Datastore]]:
    """A datastore from which documents were forgotten, and one that never had them."""
    place: dict[str, Callable[[], str]] = {
        "memory": lambda: "memory:",
        "faiss": lambda: f"faiss:{tmp_path}/exact",
        "qdrant": lambda: f"qdrant:{tmp_path}/exact",
        "lite": lambda: f"milvus:{tmp_path}/lite.db/exact",
        "milvus": lambda: f"milvus://{request.getfixturevalue('milvus_root')}/exact",
    }
    uri = place[request.param]()
    names = [uri, uri] if uri == "memory:" else [f"{uri}_both", f"{uri}_alone"]
    if request.param != "milvus" and uri != "memory:":
        names = [f"{uri}/both", f"{uri}/alone"] if request.param == "faiss" else names
    both = Datastore.open_or_create(
        names[0], shared_model.manifest(), "float32", options=_exact(uri)
    )
    try:
        ingest(corpus(KEPT | GONE), shared_model, both)
        alone = without(both, names[1])
        try:
            before = observed(both, shared_model)
            report = forget(both, [f"s/{name}" for name in GONE], verify=True)
            assert report.proof is not None
            assert report.proof.holds
            assert not np.allclose(before, observed(both, shared_model), atol=1e-3)
            yield both, alone
        finally:
            alone.backend.drop()
            alone.close()
    finally:
        both.backend.drop()
        both.close()


def observed(store: Datastore, model: LanguageModel) -> Any:
    """Log p of each held-out token, float64 `[q]`."""
    (window,) = windows(None, model.document_start, model.encode(HELD_OUT)[:32], 32)
    (batch,) = batches([window], 32)
    scored = score_batch(model, batch)
    evidence = scored.evidence(store.search(scored.keys, MIXTURE.k))
    return score(evidence, scored.targets, scored.log_probs, MIXTURE)


def neighbours(store: Datastore, model: LanguageModel) -> Neighbours:
    rng = np.random.default_rng(3)
    keys = held(store).keys
    queries = keys[:20] + rng.normal(size=(20, keys.shape[1])).astype(np.float32)
    return store.backend.search(queries, 40)


def nearer_than_the_last(found: Neighbours) -> list[set[int]]:
    """Ids of each row, but for those that tie with the last, of which any may be there."""
    nearer = found.distances < found.distances[:, -1:] * (1 - 1e-5)
    return [set(ids[row].tolist()) for ids, row in zip(found.ids, nearer, strict=True)]


@pytest.mark.parametrize("pair", BACKENDS, indirect=True)
def test_as_if_it_had_never_been_there(
    pair: tuple[Datastore, Datastore], shared_model: LanguageModel, tokenizer: Any
) -> None:
    both, alone = pair
    assert_same(both, alone)
    found, expected = (neighbours(store, shared_model) for store in pair)
    np.testing.assert_allclose(found.distances, expected.distances, rtol=1e-5, atol=1e-5)
    assert nearer_than_the_last(found) == nearer_than_the_last(expected)
    np.testing.assert_allclose(
        observed(both, shared_model), observed(alone, shared_model), atol=1e-5
    )
    lm = KnnLM.attach(tiny_model("llama"), tokenizer)
    ids = torch.tensor([[0, *lm.language_model.encode("the creditor shall").tolist()]])
    made = []
    for store in pair:
        lm.use(store, Mixture(64, 2.0, Fixed(0.9)), fallback=False, timeout=None)
        model: Any = lm.language_model.model
        made.append(
            model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=24, do_sample=False
            ).tolist()
        )
    assert made[0] == made[1]
