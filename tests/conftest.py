"""Models and tokenizers made in code, so that unit tests need no download and no GPU."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from knnlm_store.datastore import Datastore
from knnlm_store.models import LanguageModel
from tests.tiny import tiny_model, tiny_tokenizer


@pytest.fixture(scope="session", autouse=True)
def _two_threads() -> None:
    torch.set_num_threads(2)


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
