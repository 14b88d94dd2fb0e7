"""What is repeated, and what happens to an index that cannot be built."""

from __future__ import annotations

import pytest

from knnlm_store import retry
from knnlm_store.datastore import Datastore
from knnlm_store.errors import BackendUnavailable, KnnlmError, StorageFull
from knnlm_store.ingest import ingest
from knnlm_store.models import LanguageModel
from knnlm_store.retry import build_index
from knnlm_store.values import Location, Spec
from tests.ingest_support import assert_whole, corpus, prose, store_of
from tests.mutants.able import Able


class Building(Able):
    """Fails to build its index, as often as it is told to."""

    errors: list[KnnlmError]

    def build_index(self) -> str | None:
        if self.errors:
            raise self.errors.pop(0)
        return "built"


def building(*errors: KnnlmError) -> Building:
    backend = Building(Location("able", "", ""))
    backend.errors = list(errors)
    return backend


def test_a_passing_error_is_repeated() -> None:
    backend = building(BackendUnavailable("busy"), BackendUnavailable("busy"))
    backend.create(Spec(4), {})
    assert build_index(backend) == "built"


@pytest.mark.parametrize("error", [StorageFull("No space."), BackendUnavailable("down")])
def test_an_index_that_cannot_be_built_does_not_hide_the_ingest(
    language_model: LanguageModel,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: KnnlmError,
) -> None:
    """What was committed is reported, and the command that builds it is named."""
    monkeypatch.setattr(retry, "GIVE_UP_AFTER", 0.2)
    backend = building(*[error] * 100)
    store: Datastore = store_of(backend, language_model)
    report = ingest(corpus({"a": prose(1, 50)}), language_model, store)
    assert report.added == 1
    assert report.index == "not built; try again with: knnlm-store compact STORE"
    assert str(error) in caplog.text
    assert_whole(store)
