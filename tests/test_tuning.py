"""From held-out text to a calibration, with a tiny model from end to end."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from knnlm_store.background import background_text
from knnlm_store.calibrated import Calibration
from knnlm_store.calibration import settle, stored_temperature
from knnlm_store.corpus import Document, Problem
from knnlm_store.datastore import Datastore
from knnlm_store.errors import CorpusError, UsageError
from knnlm_store.evaluation import evaluate
from knnlm_store.generation import KnnLM
from knnlm_store.ingest import ingest
from knnlm_store.models import LanguageModel
from knnlm_store.tuning import tune as module
from knnlm_store.tuning.tune import Tuned, tune
from tests.ingest_support import document, prose
from tests.several_support import in_use
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


@pytest.fixture(scope="module")
def tuned(shared_model: LanguageModel) -> tuple[Datastore, Tuned]:
    """A datastore that was tuned with text to score; nobody changes it."""
    store = filled(shared_model, KNOWN)
    return store, tune(texts(VALID), shared_model, store, test=texts(TEST), k=64)


@pytest.fixture
def store(shared_model: LanguageModel) -> Datastore:
    return filled(shared_model, BRIEF)


def record(store: Datastore) -> dict[str, Any]:
    """The calibration as it is kept, without its date and its digest."""
    values: dict[str, Any] = json.loads(store.backend.get_records(["calibration"])["calibration"])
    del values["created"], values["digest"]
    return values


def without_test(record: dict[str, Any]) -> dict[str, Any]:
    """A record less the figures of text that was only scored."""
    figures = record["figures"]
    figures["tokens"].pop("test", None)
    for row in figures["policies"].values():
        row.pop("test", None)
    return record


def untuned(store: Datastore) -> None:
    """Nothing was kept."""
    assert set(dict(store.backend.scan_records(""))) & {"calibration", "temperature"} == set()


# -- what is kept ---------------------------------------------------------------------------------


def test_the_calibration_is_kept_and_used(
    language_model: LanguageModel, tuned: tuple[Datastore, Tuned]
) -> None:
    store, result = tuned
    read = Calibration.read(store)
    assert read is not None
    assert result.calibration is not None
    assert read.chosen == result.calibration.chosen
    assert set(read.mixtures) == {"fixed", "bucketed", "ratio"}
    assert read.entries == 2000
    settled = settle(store)
    assert settled.calibrated
    assert settled.mixture.policy.name == read.chosen
    used = KnnLM(language_model).use(store)
    assert in_use(used) is store
    assert used._used.now is not None
    mixture = used._used.now.memories[0][0].mixture
    assert (mixture.k, mixture.temperature) == (read.mixture.k, read.mixture.temperature)
    assert mixture.policy.name == read.chosen


def test_figures_are_those_of_an_evaluation(
    shared_model: LanguageModel, tuned: tuple[Datastore, Tuned]
) -> None:
    """On test text, policy by policy, to the precision of what was kept of it."""
    store, result = tuned
    read = Calibration.read(store)
    assert read is not None
    for name, mixture in read.mixtures.items():
        scores = evaluate(texts(TEST), shared_model, store, mixture).json()
        figures = result.rows[name]["test"]
        assert figures["perplexity"] == pytest.approx(scores["mixture"]["perplexity"], rel=1e-4)
        plain = result.rows["plain"]["test"]
        assert plain["perplexity"] == pytest.approx(scores["plain"]["perplexity"], rel=1e-5)
        assert 0 <= figures["helped"] + figures["hurt"] <= 1
        assert figures["perplexity"] < plain["perplexity"] / 10
    assert (plain["helped"], plain["hurt"]) == (0.0, 0.0)
    whole = result.rows[read.chosen]["test"]["perplexity"]
    gain = np.log(plain["perplexity"] / whole)
    assert set(result.groups) == {"frequency", "overlap"}
    for groups in result.groups.values():
        assert sum(each["tokens"] for each in groups.values()) == result.tokens["test"] == 550
        total = sum(each["tokens"] * each["gain"] for each in groups.values())
        assert total / 550 == pytest.approx(gain, rel=1e-6)


def test_the_pick_follows_the_table(tuned: tuple[Datastore, Tuned]) -> None:
    """The best on held-out folds among those that do no harm elsewhere."""
    _, result = tuned
    policies = dict(result.json()["policies"])
    assert list(policies) == ["plain", "fixed", "bucketed", "ratio"]
    plain = policies.pop("plain")["valid"]["perplexity"]
    harmless = {
        name: row["valid"]["perplexity"]
        for name, row in policies.items()
        if row["foreign_over_plain"] <= 1.005
    }
    chosen = result.json()["chosen"]
    assert harmless[chosen] == min(harmless.values()) < plain
    assert policies["fixed"]["foreign_over_plain"] > 1.005  # which is why others are there
    assert result.json()["k"] == policies[chosen]["k"] in (8, 16, 32, 64)
    assert result.json()["temperature"] == policies[chosen]["temperature"]
    by_k = result.json()["perplexity_by_k"]
    assert list(by_k) == ["8", "16", "32", "64"]
    assert by_k[str(result.json()["k"])] <= 1.005 * min(by_k.values())
    assert result.json()["tokens"] == {"valid": 1100, "foreign": 400, "test": 550}
    assert result.json()["warnings"] == []


def test_test_text_never_touches_the_fit(
    shared_model: LanguageModel, tuned: tuple[Datastore, Tuned]
) -> None:
    """Corrupted, or left out: what is kept of the fit is the same to the last bit."""
    mine = record(tuned[0])
    corrupted = {name: text[::-1].replace("e", "ß") for name, text in TEST.items()}
    for test in (texts(corrupted), None):
        store = filled(shared_model, KNOWN)
        other = tune(texts(VALID), shared_model, store, test=test, k=64)
        theirs = record(store)
        assert json.dumps(theirs["mixtures"]) == json.dumps(mine["mixtures"])
        assert other.rows["fixed"].get("test") != tuned[1].rows["fixed"]["test"]
        assert without_test(theirs) == without_test(record(tuned[0]))


def test_a_gate_is_learnt_from_enough_text(shared_model: LanguageModel, store: Datastore) -> None:
    valid = [document(f"v{i}", prose(300 + i, 130)) for i in range(16)]
    result = tune(valid, shared_model, store, k=16)
    assert result.tokens["valid"] == 2080
    assert "learned" in result.rows
    read = Calibration.read(store)
    assert read is not None
    gate = read.mixtures["learned"]
    assert gate.policy.name == "learned"
    scores = evaluate(valid, shared_model, store, gate).scores
    perplexity = np.exp(scores.mixture_nll / scores.tokens)
    # on text that it was fitted to it does about as well
    assert 0.5 < perplexity / result.rows["learned"]["valid"]["perplexity"] < 1.05
    assert settle(store, policy="learned").mixture.policy.name == "learned"


# -- little text, little datastore ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("valid", "message"),
    [
        ([], "There was no text to score."),
        ([document("a", "")], "There was no text to score."),
        ([Problem("x", "It cannot be read.", True)], "There was no text to score."),
        (
            [document("a", prose(1, 499))],
            "The validation text has 499 tokens; fitting needs at least 500.",
        ),
    ],
)
def test_too_little_text(
    shared_model: LanguageModel,
    store: Datastore,
    valid: list[Document | Problem],
    message: str,
) -> None:
    with pytest.raises(CorpusError) as caught:
        tune(valid, shared_model, store, k=16)
    assert str(caught.value) == message
    assert caught.value.hint.startswith("Name ")
    untuned(store)


def test_just_enough_in_one_document(shared_model: LanguageModel, store: Datastore) -> None:
    """Folds are stretches of it then, and each is judged by the others."""
    with little_foreign(1500):
        one = tune([document("a", prose(7, 800))], shared_model, store, k=16)
    assert one.tokens == {"valid": 800, "foreign": 1500}
    assert one.calibration is not None
    plain = one.rows["plain"]["valid"]["perplexity"]
    assert one.rows["fixed"]["valid"]["perplexity"] < plain / 5
    assert tune([document("a", prose(7, 500))], shared_model, store, k=16).tokens["valid"] == 500


def test_one_document_beside_much_foreign_text(
    shared_model: LanguageModel, store: Datastore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twelve documents of it: the text's own must still be on both sides of every fold."""
    short = [Document(d.source, d.name, d.text[:80], {}, 80) for d in list(background_text())[:12]]
    monkeypatch.setattr(module, "foreign_text", lambda: iter(short))
    result = tune([document("a", prose(7, 800))], shared_model, store, k=16)
    assert result.tokens["foreign"] == 400
    plain = result.rows["plain"]["valid"]["perplexity"]
    assert result.rows["fixed"]["valid"]["perplexity"] < plain / 5


def test_little_text_to_score(shared_model: LanguageModel, store: Datastore) -> None:
    """Less than the n-grams that are looked for, down to a token."""
    for n in (1, 15):
        result = tune(
            texts(VALID), shared_model, store, test=[document("t", prose(9, n))], k=8, most=600
        )
        assert result.calibration is not None
        assert result.tokens == {"valid": 600, "foreign": 400, "test": n}


def test_no_text_to_score(shared_model: LanguageModel, store: Datastore) -> None:
    with pytest.raises(CorpusError, match="There was no text to score"):
        tune(texts(VALID), shared_model, store, test=[], k=8, most=600)
    assert Calibration.read(store) is None


def test_more_neighbours_than_entries(shared_model: LanguageModel) -> None:
    store = filled(shared_model, {"a": prose(1, 5)})
    result = tune(texts(VALID), shared_model, store, k=1024, most=600)
    assert list(result.k) == [5]
    for name, row in result.rows.items():
        assert name == "plain" or row["k"] == 5
    twelve = filled(shared_model, {"a": prose(1, 12)})
    assert list(tune(texts(VALID), shared_model, twelve, most=600).k) == [8, 12]


def test_an_empty_datastore(shared_model: LanguageModel, memory_store: Datastore) -> None:
    with pytest.raises(UsageError) as caught:
        tune(texts(VALID), shared_model, memory_store)
    assert str(caught.value) == "memory: is empty."
    assert caught.value.hint == "Fill it first with knnlm-store ingest."


def test_what_was_taken_from_the_data_stays(shared_model: LanguageModel, store: Datastore) -> None:
    """A second fit replaces the first; an ingest keeps it."""
    tune(texts(VALID), shared_model, store, k=8, most=600)
    kept = stored_temperature(store)
    assert kept is not None
    first = record(store)
    tune(texts(VALID), shared_model, store, k=8, most=600)
    assert record(store) == first
    tune(texts(TEST), shared_model, store, k=8, most=550)
    assert record(store) != first
    ingest([document("new", prose(9, 30))], shared_model, store)
    assert settle(store).calibrated
