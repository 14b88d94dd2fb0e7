"""What `tune` must not hide: that nothing pays, what text was used, what it could not measure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from knnlm_store.calibrated import PLAIN, Calibration
from knnlm_store.calibration import settle
from knnlm_store.corpus import Document
from knnlm_store.datastore import Datastore
from knnlm_store.errors import BackendUnavailable, CorpusError, StoreNotWritable
from knnlm_store.generation import KnnLM
from knnlm_store.ingest import ingest
from knnlm_store.mixture import Fixed, Mixture
from knnlm_store.models import LanguageModel
from knnlm_store.policies import Ratio
from knnlm_store.tuning import tune as module
from knnlm_store.tuning.tune import tune
from tests.ingest_support import document, prose
from tests.tuning_support import (
    KNOWN,
    STRANGE,
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


# -- what does not pay ----------------------------------------------------------------------------


def test_a_useless_datastore(
    language_model: LanguageModel, caplog: pytest.LogCaptureFixture
) -> None:
    """The plain model is kept, in the place of what was before; the figures are given as ever."""
    store = filled(language_model, STRANGE)
    Calibration.of(store, {"fixed": Mixture(8, 1.0, Fixed(0.9))}, "fixed", "", {}).write(store)
    result = tune(texts(VALID), language_model, store, test=texts(TEST), k=32)
    assert not result.pays
    told = result.json()
    assert (told["chosen"], told["pays"], told["k"], told["temperature"]) == (
        PLAIN, False, None, None,
    )  # fmt: skip
    assert result.groups == {}
    plain = result.rows["plain"]
    for name in ("fixed", "bucketed", "ratio"):
        assert result.rows[name]["valid"]["perplexity"] >= plain["valid"]["perplexity"] - 1e-9
        assert result.rows[name]["test"]["helped"] == 0.0
    settled = settle(store)
    assert settled.calibrated
    assert settled.mixture.is_plain
    said = "as tuned: the plain model; this datastore did not pay on held-out text"
    assert settled.as_tuned == said
    KnnLM(language_model).use(store)
    assert f"memory:: {said}" in [
        r.getMessage() for r in caplog.records if r.levelname == "WARNING"
    ]


def test_who_insists_gets_a_policy_all_the_same(shared_model: LanguageModel) -> None:
    store = filled(shared_model, STRANGE)
    tune(texts(VALID), shared_model, store, k=8, most=600)
    assert isinstance(settle(store, policy="ratio").mixture.policy, Ratio)
    assert not settle(store, policy="ratio").mixture.is_plain
    assert settle(store, lmbda=0.2).mixture.policy == Fixed(0.2)
    read = Calibration.read(store)
    assert read is not None
    assert set(read.mixtures) == {"fixed", "bucketed", "ratio", PLAIN}
    assert read.describe().startswith("the plain model, of 20")


# -- foreign text that is not foreign -------------------------------------------------------------


def of_kind(kind: str, number: int) -> list[Document]:
    """Three documents of a source of foreign text."""
    named = [(f"{kind}/{i}", prose(number + i, 60)) for i in range(3)]
    return [Document("knnlm-store", name, text, {}, len(text)) for name, text in named]


def test_foreign_text_in_the_datastore_is_left_out(
    shared_model: LanguageModel, store: Datastore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There it would gain, and hide what other text suffers."""
    novel, python = of_kind("novel", 900), of_kind("python", 950)
    monkeypatch.setattr(module, "foreign_text", lambda: iter([*novel, *python]))
    ingest([document(d.name, d.text) for d in python], shared_model, store)
    result = tune(texts(VALID), shared_model, store, k=8, most=600)
    assert (
        "3 of 6 documents of foreign text are in the datastore and were left out: python (3)."
        in result.notes
    )
    assert result.tokens["foreign"] == 180
    for name in ("fixed", "bucketed", "ratio"):
        assert set(result.rows[name]["foreign"]) == {"novel"}
    ingest([document(d.name, d.text) for d in novel], shared_model, store)
    nothing = tune(texts(VALID), shared_model, store, k=8, most=600)
    assert nothing.tokens["foreign"] == 0
    assert nothing.warnings == [
        "All foreign text is in the datastore; what other text suffers was not measured."
    ]


# -- which text -----------------------------------------------------------------------------------


def test_text_to_score_is_scored_whole(shared_model: LanguageModel, store: Datastore) -> None:
    """However little is fitted to; and what was used of each is said."""
    test = texts(TEST | {f"more{i}": prose(600 + i, 60) for i in range(5)})
    result = tune(texts(VALID), shared_model, store, test=test, k=8, most=600)
    assert result.tokens == {"valid": 600, "foreign": 400, "test": 850}
    assert (result.available["valid"], result.available["test"]) == (1100, 850)
    assert result.notes[:2] == [
        "600 of 1,100 tokens of the validation text were used, from 6 of 10 documents.",
        "The learned policy was not tried: it needs 2,000 tokens of validation text.",
    ]
    less = tune(texts(VALID), shared_model, store, test=test, k=8, most=600, most_test=700)
    assert less.tokens["test"] == 700
    assert less.notes[-1].startswith("700 of 850 tokens of the test text were used, from ")
    assert less.rows["fixed"]["valid"] == result.rows["fixed"]["valid"]


def test_gains_are_of_text_that_was_not_fitted_to(
    shared_model: LanguageModel, store: Datastore
) -> None:
    """Without text to score, of the held-out folds, as are the perplexities."""
    result = tune(texts(VALID), shared_model, store, k=8, most=900)
    assert result.measured == "valid"
    assert result.calibration is not None
    chosen = result.rows[result.calibration.chosen]["valid"]
    assert 0 < chosen["helped"] <= 1
    gain = np.log(result.rows["plain"]["valid"]["perplexity"] / chosen["perplexity"])
    for groups in result.groups.values():
        total = sum(each["tokens"] * each["gain"] for each in groups.values())
        assert total / 900 == pytest.approx(gain, rel=1e-9)


# -- the datastore --------------------------------------------------------------------------------


def test_one_that_cannot_be_written_is_told_before_the_work(
    shared_model: LanguageModel, store: Datastore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: object) -> None:
        raise StoreNotWritable("Read-only file system.")

    def unread() -> Iterator[Document]:
        raise AssertionError("text was read")
        yield

    before = dict(store.backend.scan_records(""))
    with monkeypatch.context() as patch:
        patch.setattr(store.backend, "put_records", refuse)
        with pytest.raises(StoreNotWritable):
            tune(unread(), shared_model, store)
    with pytest.raises(CorpusError):
        tune([], shared_model, store)
    assert dict(store.backend.scan_records("")) == before  # trying to write leaves nothing


def failing(*_: Any, **__: Any) -> Iterator[Any]:
    raise BackendUnavailable("It is down.")
    yield


def test_an_error_while_gains_are_counted_comes_after_the_calibration(
    shared_model: LanguageModel, store: Datastore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a datastore that is too large for that nothing is scanned, and it is said."""
    tune(texts(VALID), shared_model, store, k=8, most=600)  # takes its temperature by a scan
    store.backend.delete_records(["calibration"])
    monkeypatch.setattr(store.backend, "scan", failing)
    monkeypatch.setattr(store.backend, "count", lambda: 800)
    with pytest.raises(BackendUnavailable):
        tune(texts(VALID), shared_model, store, k=8, most=600)
    assert Calibration.read(store) is not None
    monkeypatch.setattr("knnlm_store.tuning.figures.LARGEST", 799)
    result = tune(texts(VALID), shared_model, store, k=8, most=600)
    assert result.pays
    assert result.groups == {}
    assert result.notes[-1].startswith("Gains by frequency and by overlap were not measured: ")


def test_a_thousand_exact_duplicates(shared_model: LanguageModel) -> None:
    """One context a thousand times: all neighbours of a token are as near, also at distance 0."""
    copies = [document(f"copy{i}", "t") for i in range(1024)]
    store = filled(shared_model, {})
    ingest(copies, shared_model, store, batch_tokens=1024)
    assert store.backend.count() == 1024
    result = tune(texts(VALID), shared_model, store, k=1024, most=600)
    assert list(result.k) == [8, 16, 32, 64, 128, 256, 512, 1024]
    for row in result.rows.values():
        assert all(np.isfinite(value) for value in row["valid"].values())
    mixture = settle(store).mixture
    assert np.isfinite(mixture.temperature)
    assert settle(store).calibrated
