"""The contract over the wire, through local mode, and on a server elsewhere if there is one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from knnlm_store import registry
from knnlm_store.testing import BackendSuite
from knnlm_store.testing.abilities import Abilities
from knnlm_store.testing.base import Place, Scratch
from knnlm_store.testing.truth import DIMENSION
from knnlm_store.values import Location, Spec
from knnlm_store_qdrant import EmbeddedBackend, QdrantBackend
from tests.qdrant_support import LocalBackend, LocalMode
from tests.servers import QDRANT, elsewhere


class IndexedEarly(EmbeddedBackend):
    """Has segments of one kilobyte indexed, so that the suite meets an index."""

    indexed_kilobytes = 1


class TestEmbedded(BackendSuite):
    adapter = QdrantBackend

    @pytest.fixture(scope="class")
    @classmethod
    def location(cls, tmp_path_factory: pytest.TempPathFactory) -> Location:
        return Location("qdrant", str(tmp_path_factory.mktemp("qdrant")), "")


class TestEmbeddedIndexed(Abilities):
    adapter = IndexedEarly
    recall = 0.97

    @pytest.fixture(scope="class")
    @classmethod
    def location(cls, tmp_path_factory: pytest.TempPathFactory) -> Location:
        return Location("qdrant", str(tmp_path_factory.mktemp("qdrant")), "")


@pytest.mark.filterwarnings("ignore:Local mode performs exact", "ignore:Payload indexes have no")
class TestLocalMode(BackendSuite):
    adapter = LocalBackend
    storages = ("float32",)  # it keeps no other, whatever it is asked for

    @pytest.fixture(scope="class")
    @classmethod
    def location(cls) -> Iterator[Location]:
        LocalBackend.server = LocalMode()
        yield Location("qdrant", "memory", "", network=True)
        del LocalBackend.server

    @pytest.fixture
    @classmethod
    def shared(cls, place: Place, storage: str) -> Scratch:
        """A datastore for each test: in local mode deleted points slow all that follows."""
        return Scratch(place, Spec(DIMENSION, storage))


if elsewhere(QDRANT):

    class TestElsewhere(BackendSuite):
        adapter = QdrantBackend
        recall = 0.97

        @pytest.fixture(scope="class")
        @classmethod
        def location(cls) -> Location:
            return registry.parse_root(elsewhere(QDRANT))
