import pytest

from knnlm_store.testing import BackendSuite
from knnlm_store.values import Location
from knnlm_store_faiss import FaissBackend


class IndexedEarly(FaissBackend):
    """Searches through the index from the 301st entry on, so that the suite meets it."""

    exact_rows = 300


class TestFaiss(BackendSuite):
    adapter = FaissBackend

    @pytest.fixture(scope="class")
    @classmethod
    def location(cls, tmp_path_factory: pytest.TempPathFactory) -> Location:
        return Location("faiss", str(tmp_path_factory.mktemp("faiss")), "")


class TestFaissIndexed(TestFaiss):
    adapter = IndexedEarly
    recall = 0.97
