"""Datastores that are pooled under a mixture fitted on text: by the command line, and in Python."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from knnlm_store import models
from knnlm_store.corpus import Corpus, Document, ReadOptions
from knnlm_store.datastore import Datastore
from knnlm_store.errors import CorpusError
from knnlm_store.mixture import Mixture
from knnlm_store.models import LanguageModel
from knnlm_store.several import Pool
from knnlm_store.tuning.pooling import fit_pool
from tests.cli_support import run, write_corpus
from tests.ingest_support import prose
from tests.tuning_support import STRANGE, filled, little_foreign, one_thread, texts

LAW, DIARY = (f"faiss:stores/{name}" for name in ("law", "diary"))
TWO = ("--store", LAW, "--store", DIARY)
PARTS = {
    name: {f"{name}{i}": prose(first + i, 100) for i in range(6)}
    for name, first in (("law", 0), ("diary", 50))
}
VALID = {f"valid{i}": prose(100 + i, 110) for i in range(10)}


@pytest.fixture(scope="module", autouse=True)
def _quick(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with one_thread(), little_foreign(), pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, saved_model: Path, _quick: None) -> Path:
    place = tmp_path_factory.mktemp("pool")
    for name, of in {**PARTS, "valid": VALID, "held-out": {"a": prose(300, 200)}}.items():
        write_corpus(place / name, {f"{each}.txt": text for each, text in of.items()})
    for name in PARTS:
        store = ("--store", f"faiss:{place}/stores/{name}", "--window", 32)
        assert run("ingest", *store, "--model", saved_model, place / name).code == 0
    return place


@pytest.fixture(autouse=True)
def _place(made: Path, saved_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(made)
    monkeypatch.setenv("KNNLM_STORE_MODEL", str(saved_model))
    monkeypatch.delenv("KNNLM_STORE_URL", raising=False)


@pytest.fixture(scope="module")
def fitted(made: Path, saved_model: Path) -> Mixture:
    """What is fitted from Python."""
    stores = [Datastore.open(f"faiss:{made}/stores/{name}") for name in PARTS]
    with Pool(stores) as pool:
        manifest = stores[0].manifest
        model = models.load(str(saved_model), key=manifest.key, window=manifest.window)
        return fit_pool(Corpus([str(made / "valid")], ReadOptions()), model, pool)


def test_a_pool_is_fitted_and_says_so(fitted: Mixture) -> None:
    done = run("eval", *TWO, "--tune-from", "valid", "held-out", "--json")
    report = done.json()
    settings = report["settings"]
    assert settings["policy"] == fitted.policy.name
    assert (settings["k"], settings["temperature"]) == (fitted.k, fitted.temperature)
    assert (settings["temperature_from"], settings["calibrated"]) == ("text", False)
    assert done.err.splitlines() == [
        f"fitted to the pool: {fitted.policy.name} policy, k {fitted.k}, temperature "
        f"{fitted.temperature:.4g}"
    ]
    untuned = run("eval", *TWO, "held-out", "--json").json()
    assert report["mixture"]["nll"] < untuned["mixture"]["nll"]
    assert report["mixture"]["nll"] < report["plain"]["nll"]


def test_generate_fits_as_eval_does(fitted: Mixture) -> None:
    options = ("--tune-from", "valid", "--max-new-tokens", 4, "--json")
    report = run("generate", *TWO, *options, "The").json()
    assert report["settings"]["policy"] == fitted.policy.name
    assert report["settings"]["temperature"] == fitted.temperature
    assert report["counters"]["mixed"] > 0


def test_k_that_is_named_is_kept() -> None:
    done = run("eval", *TWO, "--tune-from", "valid", "--k", 16, "held-out", "--json")
    assert done.json()["settings"]["k"] == 16


def test_nothing_is_kept_in_the_datastores(made: Path, fitted: Mixture) -> None:
    assert fitted.k > 1
    for name in PARTS:
        with Datastore.open(f"faiss:{made}/stores/{name}") as store:
            assert store.backend.get_records(["calibration"]) == {}


def test_the_plain_model_is_used_where_nothing_helps(language_model: LanguageModel) -> None:
    stores = [filled(language_model, STRANGE) for _ in range(2)]
    mixture = fit_pool(texts(VALID), language_model, Pool(stores))
    assert mixture.is_plain


def test_text_that_is_too_little(language_model: LanguageModel) -> None:
    stores = [filled(language_model, PARTS["law"]) for _ in range(2)]
    with pytest.raises(CorpusError, match="fitting needs at least 500"):
        fit_pool([Document("v", "1", "Too little.", {}, 0)], language_model, Pool(stores))


@pytest.mark.parametrize(
    "option",
    [
        ("--policy", "fixed"),
        ("--lmbda", 0.2),
        ("--temperature", 3),
        ("--blend", "0.5,0.5"),
        ("--blend-from", "valid"),
    ],
)
def test_what_would_decide_it_otherwise_is_refused(option: tuple[str, object]) -> None:
    name = option[0]
    for command, text in (("eval", "held-out"), ("generate", "The")):
        done = run(command, *TWO, "--tune-from", "valid", *option, text)
        assert done.failure() == (
            2,
            f"--tune-from fits one mixture of all datastores; {name} decides it otherwise.",
            f"Leave --tune-from or {name} out.",
        )


def test_one_datastore_is_tuned_by_tune() -> None:
    done = run("eval", "--store", LAW, "--tune-from", "valid", "held-out")
    assert done.failure() == (
        2,
        "--tune-from needs more than one datastore.",
        "One is fitted with knnlm-store tune, which keeps what it finds.",
    )


def test_standard_input_is_not_read() -> None:
    done = run("eval", *TWO, "--tune-from", "-", "held-out")
    message = "--tune-from does not read standard input."
    assert done.failure() == (2, message, "Name a folder or a file.")
