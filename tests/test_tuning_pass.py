"""The pass over held-out text: a row a token, and text that should be new but is not."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from knnlm_store.corpus import Document, Problem
from knnlm_store.datastore import Datastore
from knnlm_store.evaluation import evaluate
from knnlm_store.mixture import Mixture
from knnlm_store.models import LanguageModel
from knnlm_store.policies import Ratio
from knnlm_store.tuning.cache import Reading, cached
from knnlm_store.tuning.known import contamination
from knnlm_store.tuning.tune import tune
from knnlm_store.values import Float32
from tests.ingest_support import document, prose
from tests.tuning_support import (
    KNOWN,
    TEST,
    VALID,
    filled,
    little_foreign,
    one_thread,
    texts,
)

BRIEF = dict(list(KNOWN.items())[:8])


@pytest.fixture(scope="module", autouse=True)
def _quick() -> Iterator[None]:
    with one_thread(), little_foreign():
        yield


@pytest.fixture
def store(shared_model: LanguageModel) -> Datastore:
    return filled(shared_model, BRIEF)


# -- contamination --------------------------------------------------------------------------------


def warnings(shared_model: LanguageModel, store: Datastore, **of: Any) -> list[str]:
    chosen: Any = {"valid": texts(VALID), "test": None} | of
    valid = chosen.pop("valid")
    return tune(valid, shared_model, store, k=8, most=900, **chosen).warnings


def test_documents_that_are_in_the_datastore(shared_model: LanguageModel, store: Datastore) -> None:
    """By their text, whatever they are called; in the text to fit and in that to score."""
    copied = document("renamed", BRIEF["known3"])
    found = warnings(shared_model, store, valid=[*texts(VALID)[:6], copied, *texts(VALID)[6:]])
    assert found == [
        "1 of 9 validation documents are in the datastore (s/renamed); the figures flatter it."
    ]
    assert warnings(shared_model, store, test=[copied, *texts(TEST)]) == [
        "1 of 6 test documents are in the datastore (s/renamed); the figures flatter it."
    ]


def test_a_document_that_is_there_does_not_hide_copies_in_others(
    shared_model: LanguageModel, store: Datastore
) -> None:
    same = document("same", BRIEF["known3"])
    longer = document("longer", BRIEF["known5"] + " and then something else")

    def found(*documents: Document) -> list[str]:
        reading = Reading()
        sample = cached(documents, shared_model, store, 1, reading, most=900)
        return contamination(store, sample, reading, "test", 1e-3)

    first, second = found(same, longer)
    assert first == ("1 of 2 test documents are in the datastore (s/same); the figures flatter it.")
    assert second.endswith(
        "% of the other test tokens have an exact copy in the datastore; the figures flatter it."
    )
    assert found(same, *texts(TEST)) == [first.replace("of 2", "of 6")]


def test_copies_within_other_documents(shared_model: LanguageModel) -> None:
    """The same contexts by their keys, where digests tell nothing."""
    long = {"a": prose(77, 120)}
    store = filled(shared_model, long)
    longer = document("b", long["a"] + " and then something else")
    (found,) = warnings(shared_model, store, test=[longer])
    assert found.endswith(
        "% of the test tokens have an exact copy in the datastore; the figures flatter it."
    )
    assert 40 < int(found.split("%")[0]) < 100


def test_short_documents_that_begin_alike(shared_model: LanguageModel, store: Datastore) -> None:
    """Every document's first key is the same: that makes no copy."""
    lines = [document(f"l{i}", prose(500 + i, 22)) for i in range(40)]
    assert warnings(shared_model, store, valid=lines) == []


# -- the pass over text ---------------------------------------------------------------------------


def test_one_row_a_token_in_the_order_of_the_text(
    shared_model: LanguageModel, store: Datastore
) -> None:
    """However they were batched; and cut where it is enough."""
    some = texts(VALID)[:3] + texts(KNOWN)[:1]
    found = []
    for batch_tokens in (1, 100, 4096):
        reading = Reading()
        sample = cached(some, shared_model, store, 9, reading, most=390, batch_tokens=batch_tokens)
        found.append(sample)
        encoded = [shared_model.encode(d.text) for d in some]
        assert sample.targets.tolist() == np.concatenate(encoded)[:390].tolist()
        assert np.bincount(sample.documents).tolist() == [110, 110, 110, 60]
        assert sample.names == tuple(d.id for d in some)
        assert (reading.tokens, len(reading.digests)) == (390, 4)
        assert sample.evidence.distances.shape == (390, 9)
    for other in found[1:]:
        np.testing.assert_allclose(other.log_lm, found[0].log_lm, atol=1e-4)
    mixture = Mixture(9, 3.0, Ratio())
    scores = evaluate(some[:3], shared_model, store, mixture).scores
    three = found[0][found[0].documents < 3]
    assert -three.log_p(mixture).sum() == pytest.approx(scores.mixture_nll, rel=1e-4)


def test_a_long_document_leaves_room_for_the_others(
    shared_model: LanguageModel, store: Datastore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And where there is no end of text, it is not read to the end."""
    some, reading = [document("long", prose(5, 2000)), *texts(VALID)[:3]], Reading()
    sample = cached(some, shared_model, store, 2, reading, most=600)
    assert np.bincount(sample.documents).tolist() == [270, 110, 110, 110]
    assert (reading.documents, reading.available, reading.is_cut) == (4, 2330, False)
    expected = [*shared_model.encode(some[0].text)[:270], *shared_model.encode(some[1].text)]
    assert sample.targets[:380].tolist() == expected
    monkeypatch.setattr("knnlm_store.tuning.cache._READ", 3)
    unread, first = iter([*some, *texts(TEST)]), Reading()
    cached(unread, shared_model, store, 2, first, most=600)
    assert (first.documents, first.available, first.is_cut) == (1, 2000, True)
    assert [d.id for d in unread] == ["s/valid1", "s/valid2", *(d.id for d in texts(TEST))]


def test_a_document_that_comes_twice(shared_model: LanguageModel, store: Datastore) -> None:
    """Each time it is a document of its own, not a part of its neighbour."""
    one, two = document("a", prose(1, 40)), document("b", prose(2, 50))
    sample = cached([one, two, one, one], shared_model, store, 4, Reading(), most=999)
    assert np.bincount(sample.documents).tolist() == [40, 50, 40, 40]
    assert sample.names == (one.id, two.id, one.id, one.id)
    expected = [shared_model.encode(d.text) for d in (one, two, one, one)]
    assert sample.targets.tolist() == np.concatenate(expected).tolist()


def test_queries_are_kept_unless_they_are_large(
    shared_model: LanguageModel, store: Datastore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def queries() -> Float32 | None:
        sample = cached(texts(VALID), shared_model, store, 4, Reading(), most=100)
        return sample.evidence.queries

    kept = queries()
    assert kept is not None
    assert kept.shape == (100, 32)
    monkeypatch.setattr("knnlm_store.tuning.cache.LARGEST", 31)
    assert queries() is None


def test_problems_and_progress_are_told(shared_model: LanguageModel, store: Datastore) -> None:
    lost, lost_too = (Problem(name, "It cannot be read.", True) for name in "xy")
    seen: list[tuple[str, int]] = []
    result = tune(
        [lost, *texts(VALID)],
        shared_model,
        store,
        test=[*texts(TEST), lost_too],
        k=8,
        most=900,
        progress=lambda what, reading: seen.append((what, reading.tokens)),
    )
    assert result.problems == [lost, lost_too]
    assert [what for what, _ in seen] == sorted(
        (what for what, _ in seen), key=["valid", "foreign", "fit", "test"].index
    )
    assert dict(seen) == {"valid": 900, "foreign": 400, "fit": 0, "test": 550}
    assert set(dict(reversed(seen)).values()) == {0}
