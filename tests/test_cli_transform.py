"""How a new datastore's keys are made, as a user asks for it, and what an old one refuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from knnlm_store.datastore import Datastore
from knnlm_store.models import load
from knnlm_store.transform import Transform
from tests.cli_support import Run, contents, run, write_corpus
from tests.ingest_support import prose
from tests.tuning_support import one_thread

RAW, LAW, OTHER = "faiss:stores/raw", "faiss:stores/law", "faiss:stores/other"
TEXTS = {"a.txt": prose(1, 60), "b.txt": prose(2, 40)}
OWN = "Leave --transform and --transform-from out, or ingest under another --name."


@pytest.fixture(autouse=True)
def corpus(tmp_path: Path, saved_model: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KNNLM_STORE_MODEL", str(saved_model))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("KNNLM_STORE_URL", raising=False)
    monkeypatch.setattr("knnlm_store.keyspace.SAMPLE", 3)  # a fit to less text is as good here
    return write_corpus(tmp_path / "corpus", TEXTS)


def transform(store: str) -> str:
    with Datastore.open(store) as opened:
        return opened.manifest.transform


def ingest(store: str, *options: object) -> tuple[int, str]:
    with one_thread():
        done = run("ingest", "--store", store, "corpus", "--window", 32, *options)
    return done.code, done.err


def test_a_new_datastore_takes_anothers(tmp_path: Path) -> None:
    """Also where it is not the model's own; the two can be pooled."""
    assert ingest(RAW, "--transform", "none")[0] == 0
    assert ingest(LAW)[0] == 0
    assert transform(RAW) == "none"
    assert transform(LAW).startswith("pca32-")
    for other, taken in ((RAW, "none"), (LAW, transform(LAW))):
        name = f"faiss:stores/like-{taken}"
        assert ingest(name, "--transform-from", other)[0] == 0
        assert transform(name) == taken
        assert run("eval", "--store", other, "--store", name, "corpus", "--json").code == 0


def test_an_old_datastore_keeps_its_own() -> None:
    """What agrees with it is fine; what does not is told before a model is loaded."""
    assert ingest(RAW, "--transform", "none")[0] == 0
    assert ingest(LAW)[0] == 0
    for agreeing in (["--transform", "none"], ["--transform-from", RAW], []):
        assert ingest(RAW, *agreeing)[0] == 0
    assert ingest(LAW, "--transform", "model")[0] == 0
    before = contents(RAW), contents(LAW)
    nowhere = ["--model", "no/such/model"]
    for store, said in (
        (RAW, ["--transform", "model"]),
        (RAW, ["--transform-from", LAW]),
        (LAW, ["--transform", "none"]),
        (LAW, ["--transform-from", RAW]),
    ):
        for dry in ([], ["--dry-run"]):
            done = run("ingest", "--store", store, "corpus", *said, *nowhere, *dry)
            message = f"{store} has its own key transform, {transform(store)}."
            assert done.failure() == (2, message, OWN)
    assert (contents(RAW), contents(LAW)) == before


@pytest.mark.parametrize(
    ("said", "code", "message", "hint"),
    [
        (
            ["--transform", "pca"],
            2,
            "--transform takes model or none, not 'pca'.",
            "Leave it out, or name another datastore: --transform-from STORE",
        ),
        (
            ["--transform", "none", "--transform-from", LAW],
            2,
            "--transform and --transform-from exclude each other.",
            "Leave one out.",
        ),
    ],
)
def test_what_cannot_be(said: list[str], code: int, message: str, hint: str) -> None:
    """It is told before a model is loaded."""
    done = run("ingest", "--store", OTHER, "corpus", "--model", "no/such/model", *said)
    assert done.failure() == (code, message, hint)
    assert not Path("stores").exists()


def test_a_dry_run_counts_the_bytes_of_the_keys_to_come(saved_model: Path) -> None:
    """As many dimensions as those of the datastore that the map is taken from."""
    manifest = load(str(saved_model), device="cpu", window=32).manifest()
    narrow = Transform(np.zeros(32, np.float32), np.eye(32, 5, dtype=np.float32))
    Datastore.open_or_create(RAW, manifest.mapping(narrow)).close()

    def dry(*said: object) -> Run:
        return run("ingest", "--store", OTHER, "corpus", "--dry-run", "--json", *said)

    less = dry("--transform-from", RAW).json()["bytes"]
    assert dry().json()["bytes"] - less == 100 * 2 * (32 - 5)
    missing = dry("--transform-from", LAW).failure()
    assert missing[:2] == (1, f"There is no datastore at {Path.cwd()}/stores/law.")
