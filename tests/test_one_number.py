"""One corpus, one model, the same settings: every backend gives the same perplexity."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from knnlm_store.backend import Indexed
from knnlm_store.copying import copy
from knnlm_store.datastore import Datastore
from knnlm_store.evaluation import evaluate
from knnlm_store.ingest import ingest
from knnlm_store.mixture import Fixed, Mixture
from knnlm_store.models import LanguageModel
from knnlm_store_faiss import FaissBackend
from knnlm_store_milvus import MilvusBackend
from knnlm_store_qdrant import QdrantBackend
from tests.cli_support import run
from tests.ingest_support import assert_same, assert_whole, corpus, held, prose
from tests.milvus_support import milvus_root, milvus_uri, own_server

__all__ = ["milvus_root", "milvus_uri", "own_server"]

TEXTS = {f"{i:02}": prose(i, 150) for i in range(30)}
HELD_OUT = {f"{i:02}": prose(100 + i, 120) for i in range(6)}
SETTINGS = [Mixture(64, 2.0, Fixed(0.4)), Mixture(1024, 0.5, Fixed(0.9))]
OPTIONS = {
    "faiss": {},  # exact up to 65,536 entries
    "qdrant": {"index": "exact"},
    "milvus": {"index": "exact"},
    "lite": {"index": "exact"},
}
INDEXES = {"faiss": "IVF64", "qdrant": "HNSW16", "milvus": ".*"}
"""Pattern of what a backend says of an index over all entries here."""


def perplexities(store: Datastore, model: LanguageModel) -> list[float]:
    found = []
    for mixture in SETTINGS:
        result = evaluate(corpus(HELD_OUT), model, store, mixture).json()
        found.append(result["mixture"]["perplexity"])
    return found


@pytest.fixture(scope="module")
def expected(shared_model: LanguageModel) -> list[float]:
    """What the in-memory backend gives, which compares every key."""
    with Datastore.open_or_create("memory:", shared_model.manifest()) as store:
        ingest(corpus(TEXTS), shared_model, store)
        plain = evaluate(corpus(HELD_OUT), shared_model, store, SETTINGS[0]).json()["plain"]
        found = perplexities(store, shared_model)
    assert all(abs(value / plain["perplexity"] - 1) > 0.05 for value in found)
    return found


@pytest.fixture(scope="module")
def roots(milvus_uri: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    place = tmp_path_factory.mktemp("one_number")
    return {
        "faiss": f"faiss:{place}/faiss",
        "qdrant": f"qdrant:{place}/qdrant",
        "milvus": milvus_uri,
        "lite": f"milvus:{place}/lite.db",
    }


@pytest.fixture
def early(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have indexes built over as few entries as there are here."""
    monkeypatch.setattr(FaissBackend, "exact_rows", 1000)
    monkeypatch.setattr(QdrantBackend, "indexed_kilobytes", 1)


@pytest.fixture
def store(
    request: pytest.FixtureRequest, roots: dict[str, str], shared_model: LanguageModel
) -> Iterator[Datastore]:
    backend, options = request.param
    uri = f"{roots[backend]}/one_number_{'exact' if options else 'index'}"
    store = Datastore.open_or_create(uri, shared_model.manifest(), "float32", options=options)
    try:
        ingest(corpus(TEXTS), shared_model, store)
        yield store
        store.backend.drop()
    finally:
        store.close()


@pytest.mark.parametrize("store", OPTIONS.items(), indirect=True, ids=OPTIONS)
def test_exact_search_gives_one_number(
    store: Datastore, expected: list[float], shared_model: LanguageModel
) -> None:
    assert perplexities(store, shared_model) == pytest.approx(expected, rel=1e-4)


@pytest.mark.usefixtures("early")
@pytest.mark.parametrize("store", [(name, {}) for name in INDEXES], indirect=True, ids=INDEXES)
def test_an_index_gives_nearly_that(
    store: Datastore, expected: list[float], shared_model: LanguageModel
) -> None:
    assert isinstance(store.backend, Indexed)
    store.backend.build_index()
    if isinstance(store.backend, MilvusBackend):  # which describes what was asked for
        assert indexed_rows(store) == store.backend.count()
    assert re.fullmatch(INDEXES[store.location.scheme], store.backend.describe_index())
    assert perplexities(store, shared_model) == pytest.approx(expected, rel=5e-3)


def indexed_rows(store: Datastore) -> int:
    """Rows in the index of a datastore on a Milvus server, as that tells."""
    assert isinstance(store.backend, MilvusBackend)
    index = store.backend._connected().index(store.location.name, "key")
    assert index is not None
    return int(index["indexed_rows"])


# -- from one to the next --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def chain(roots: dict[str, str], shared_model: LanguageModel) -> Iterator[dict[str, Datastore]]:
    """One datastore in every backend, each the copy of the one before it; the first is ingested."""
    with ExitStack() as closing:
        stores: dict[str, Datastore] = {}
        for name, root in [*roots.items(), ("memory", "memory:")]:
            uri = root if name == "memory" else f"{root}/chain"
            store = Datastore.open_or_create(uri, shared_model.manifest(), "float32")
            closing.callback(store.close)
            closing.callback(store.backend.drop)
            if stores:
                copy([*stores.values()][-1], store)
            else:
                ingest(corpus(TEXTS), shared_model, store)
            stores[name] = store
        yield stores


def test_copies_through_every_backend(chain: dict[str, Datastore]) -> None:
    """Ids, tokens, keys and documents are those of the first, however many there are between."""
    assert list(chain) == ["faiss", "qdrant", "milvus", "lite", "memory"]
    assert len(held(chain["faiss"])) == sum(map(len, TEXTS.values()))
    for store in chain.values():
        assert_whole(store)
        assert_same(store, chain["faiss"])


def test_doctor_of_a_server(chain: dict[str, Datastore]) -> None:
    """Through an index that Milvus has built."""
    store = chain["milvus"]
    assert indexed_rows(store) == store.backend.count()
    report = run("doctor", store.location, "--json").json()
    assert (report["status"], report["store"]) == ("ok", str(store.location))
    assert (report["distance_unit"], report["self_retrieval"]) == ("squared_l2", 1.0)
    assert report["k"] == 1024
    assert report["recall"] > 0.99
    assert report["recall_at"]["32"] > 0.99
    assert 0 < report["latency_ms"]["p50"] <= report["latency_ms"]["p95"] < 1000
