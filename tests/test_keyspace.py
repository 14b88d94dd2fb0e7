"""A model's key space: fitted once, kept in the user's cache, and used again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from knnlm_store import keyspace, transform
from knnlm_store.corpus import Document
from knnlm_store.keyspace import transform_of
from knnlm_store.models import LanguageModel
from tests.ingest_support import document, prose
from tests.tuning_support import one_thread


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A cache folder of the test's own, and less text to fit on."""

    def background() -> Iterator[Document]:
        return iter([document(f"b{i}", prose(i, 90)) for i in range(4)])

    monkeypatch.setattr(keyspace, "background_text", background)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with one_thread():
        yield tmp_path / "knnlm-store" / "transforms"


@pytest.fixture
def fits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many hidden states each fit from now on was given."""
    counts: list[int] = []
    original = transform.fit

    def fit(sample: Any) -> Any:
        counts.append(len(sample))
        return original(sample)

    monkeypatch.setattr(transform, "fit", fit)
    return counts


def test_it_is_fitted_once(shared_model: LanguageModel, cache: Path, fits: list[int]) -> None:
    """On ten tokens a dimension, as many of each section."""
    first = transform_of(shared_model)
    assert fits == [320]
    (kept,) = cache.iterdir()
    again = transform_of(shared_model, batch_tokens=999)
    assert fits == [320]
    assert again.name == first.name
    assert first.dimension == 32
    assert list(cache.iterdir()) == [kept]


@pytest.mark.parametrize("content", [b"", b"no archive", None], ids=["empty", "other", "cut"])
def test_a_file_that_cannot_be_read_is_replaced(
    shared_model: LanguageModel, cache: Path, fits: list[int], content: bytes | None
) -> None:
    first = transform_of(shared_model)
    (kept,) = cache.iterdir()
    whole = kept.read_bytes()
    kept.write_bytes(whole[: len(whole) // 2] if content is None else content)
    assert transform_of(shared_model).name == first.name
    assert len(fits) == 2
    assert kept.read_bytes() == whole


def test_a_folder_that_cannot_be_written(
    shared_model: LanguageModel, cache: Path, fits: list[int]
) -> None:
    """A file lies in its place: it is fitted each time then, and nothing fails."""
    cache.parent.parent.mkdir(exist_ok=True)
    cache.parent.write_text("")
    assert transform_of(shared_model).name == transform_of(shared_model).name
    assert len(fits) == 2


def test_another_key_point_has_another(
    shared_model: LanguageModel, model: Any, tokenizer: Any, cache: Path
) -> None:
    head = LanguageModel.wrap(model, tokenizer, key="lm_head_input", window=32)
    assert transform_of(shared_model).name != transform_of(head).name
    assert len(list(cache.iterdir())) == 2
