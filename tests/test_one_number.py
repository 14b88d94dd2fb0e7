"""One corpus, one model, the same settings: every backend gives the same perplexity."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from knnlm_store.backend import Indexed
from knnlm_store.datastore import Datastore
from knnlm_store.evaluation import evaluate
from knnlm_store.ingest import ingest
from knnlm_store.mixture import Fixed, Mixture
from knnlm_store.models import LanguageModel
from tests.ingest_support import corpus, prose
from tests.milvus_support import milvus_root, own_server

__all__ = ["milvus_root", "own_server"]

TEXTS = {f"{i:02}": prose(i, 150) for i in range(30)}
HELD_OUT = {f"{i:02}": prose(100 + i, 120) for i in range(6)}
SETTINGS = [Mixture(64, 2.0, Fixed(0.4)), Mixture(1024, 0.5, Fixed(0.9))]
OPTIONS = {
    "faiss": {},  # exact up to 65,536 entries
    "qdrant": {"index": "exact"},
    "milvus": {"index": "exact"},
    "lite": {"index": "exact"},
}


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
def roots(milvus_root: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    place = tmp_path_factory.mktemp("one_number")
    return {
        "faiss": f"faiss:{place}/faiss",
        "qdrant": f"qdrant:{place}/qdrant",
        "milvus": f"milvus://{milvus_root}",
        "lite": f"milvus:{place}/lite.db",
    }


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


@pytest.mark.parametrize("store", [("qdrant", {}), ("milvus", {})], indirect=True, ids=str)
def test_an_index_gives_nearly_that(
    store: Datastore, expected: list[float], shared_model: LanguageModel
) -> None:
    assert isinstance(store.backend, Indexed)
    store.backend.build_index()
    assert perplexities(store, shared_model) == pytest.approx(expected, rel=5e-3)
