"""The contract suite that ships: every test a backend must pass. Needs pytest.

    class TestMine(BackendSuite):
        adapter = MineBackend

        @pytest.fixture(scope="class")
        @classmethod
        def location(cls, tmp_path_factory: pytest.TempPathFactory) -> Location:
            return Location("mine", str(tmp_path_factory.mktemp("mine")), "")

is all it takes; `base.Base` says what else a subclass may declare. Truth is brute-force NumPy in
float64 over what the tests wrote, never asked of the backend.
"""

import pkgutil

import pytest

# Before the modules are imported, or their asserts would fail without saying what they compared.
pytest.register_assert_rewrite(*(f"{__name__}.{m.name}" for m in pkgutil.iter_modules(__path__)))

from knnlm_store.testing.suite import BackendSuite  # noqa: E402

__all__ = ["BackendSuite"]
