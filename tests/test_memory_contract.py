import pytest

from knnlm_store.memory import MemoryBackend
from knnlm_store.testing import BackendSuite
from knnlm_store.values import Location
from tests.mutants.able import SuiteOfAble


class TestMemory(BackendSuite):
    adapter = MemoryBackend
    durable = False

    @pytest.fixture(scope="class")
    @classmethod
    def location(cls) -> Location:
        return Location("memory", "", "")


class TestAble(SuiteOfAble):
    """What memory lacks: several storages, optional abilities, names that can be listed."""


def test_two_connections_share_nothing() -> None:
    location = Location("memory", "", "same")
    assert MemoryBackend.connect(location) is not MemoryBackend.connect(location)
    assert MemoryBackend.names(location) == []


def test_gap_that_names_no_test_is_refused() -> None:
    with pytest.raises(TypeError, match="gaps names test_nothing, which is no test of the suite"):
        type("Wrong", (BackendSuite,), {"gaps": {"test_nothing": "never"}})
