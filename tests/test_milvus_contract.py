import pytest

from knnlm_store import registry
from knnlm_store.testing import BackendSuite
from knnlm_store.values import Location
from knnlm_store_milvus import MilvusBackend
from tests.milvus_support import milvus_root, milvus_uri, own_server
from tests.servers import MILVUS, elsewhere

__all__ = ["milvus_root", "milvus_uri", "own_server"]


class TestMilvusLite(BackendSuite):
    adapter = MilvusBackend
    storages = ("float32",)

    @pytest.fixture(scope="class")
    @classmethod
    def location(cls, tmp_path_factory: pytest.TempPathFactory) -> Location:
        return Location("milvus", str(tmp_path_factory.mktemp("milvus") / "suite.db"), "")


class TestMilvus(BackendSuite):
    adapter = MilvusBackend
    # 2.3.5 is refused for float16; see test_milvus.py
    storages = () if elsewhere(MILVUS) else ("float32",)

    @pytest.fixture(scope="class")
    @classmethod
    def location(cls, milvus_uri: str) -> Location:
        return registry.parse_root(milvus_uri)
