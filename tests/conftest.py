"""Models and tokenizers made in code, so that unit tests need no download and no GPU."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from knnlm_store.datastore import Datastore
from knnlm_store.models import LanguageModel
from tests.tiny import tiny_model, tiny_tokenizer


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Have a file's tests run in one process, and all that may need Milvus in the same one.

    A machine takes one Milvus server of ours, and starting it takes its time.
    """
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):  # type: ignore[misc]  # xdist has no types
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return "milvus" if _may_need_milvus(file) else file

    return ByFile(config, log)


@cache
def _may_need_milvus(file: str) -> bool:
    path = Path(__file__).parent.parent / file
    return "milvus" in path.name or "own_server" in path.read_text(encoding="utf-8")


@pytest.fixture(scope="session", autouse=True)
def _two_threads() -> None:
    """As many as there are cores, in all processes together."""
    torch.set_num_threads(max(1, 2 // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))))


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    return tiny_tokenizer()


@pytest.fixture
def model() -> Any:
    return tiny_model("llama")


@pytest.fixture
def language_model(model: Any, tokenizer: Any) -> LanguageModel:
    return LanguageModel.wrap(model, tokenizer, window=32)


@pytest.fixture(scope="session")
def shared_model(tokenizer: Any) -> LanguageModel:
    """The same model for many tests, none of which may change it."""
    return LanguageModel.wrap(tiny_model("llama"), tokenizer, window=32)


@pytest.fixture(scope="session")
def saved_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with its tokenizer, as a local folder."""
    folder = tmp_path_factory.mktemp("model")
    tiny_model("llama").save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def memory_store(language_model: LanguageModel) -> Iterator[Datastore]:
    with Datastore.open_or_create("memory:", language_model.manifest()) as store:
        yield store
