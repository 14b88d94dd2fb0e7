"""`ingest --option KEY=VALUE`: a backend's own settings for a new datastore."""

from __future__ import annotations

from pathlib import Path

import pytest

from knnlm_store.datastore import Datastore
from knnlm_store.errors import UsageError
from tests.cli_support import run, write_corpus
from tests.doctor_support import Linked, install, manifest

STORE = "linked:stores/law"
MANY = ["--option", "colour=blue", "--option", "shards=a=b"]


@pytest.fixture(autouse=True)
def _place(tmp_path: Path, saved_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KNNLM_STORE_MODEL", str(saved_model))
    install(tmp_path / "site", monkeypatch, {"linked": Linked})
    write_corpus(tmp_path / "law")
    Linked.made_with.clear()


def test_options_reach_the_backend_once() -> None:
    done = run("ingest", "--store", STORE, *MANY, "law")
    assert (done.code, done.err) == (0, "")
    (spec,) = Linked.made_with
    assert dict(spec.options) == {"colour": "blue", "shards": "a=b"}
    assert spec.dimension == 32


def test_none_are_none() -> None:
    assert run("ingest", "--store", STORE, "law").code == 0
    assert dict(Linked.made_with[0].options) == {}


def test_a_datastore_that_exists_keeps_its_own() -> None:
    run("ingest", "--store", STORE, "law")
    again = run("ingest", "--store", STORE, *MANY, "law", "--json")
    assert again.json()["documents"]["skipped"] == 3
    assert again.err == f"WARNING: {STORE} exists already and keeps its own options.\n"
    assert len(Linked.made_with) == 1


@pytest.mark.parametrize("there", [False, True])
@pytest.mark.parametrize("more", [[], ["--dry-run"]])
@pytest.mark.parametrize(
    ("store", "option", "message", "hint"),
    [
        (
            STORE,
            "color=red",
            "This backend has no option 'color'.",
            "It has: colour, shards.",
        ),
        (STORE, "colour=green", "colour is red or blue.", "Use --option colour=red."),
        (
            "faiss:stores/law",
            "colour=red",
            "This backend has no option 'colour'.",
            "It has: none.",
        ),
        (
            STORE,
            "colour",
            "--option takes KEY=VALUE, not 'colour'.",
            "For example: --option shard_number=2",
        ),
        (
            STORE,
            "=red",
            "--option takes KEY=VALUE, not '=red'.",
            "For example: --option shard_number=2",
        ),
    ],
)
def test_options_that_cannot_be(
    store: str, option: str, message: str, hint: str, more: list[str], there: bool
) -> None:
    """Told before a model is loaded: it is missing here."""
    if there:
        run("ingest", "--store", store, "law")
    made = len(Linked.made_with)
    told = run("ingest", "--store", store, "--option", option, "--model", "./no", *more, "law")
    assert told.failure() == (2, message, hint)
    assert len(Linked.made_with) == made
    assert Path("stores").exists() is there


def test_from_python(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    uri = f"linked:{tmp_path}/stores/law"
    with pytest.raises(UsageError, match="no option 'size'"):
        Datastore.open_or_create(uri, manifest(), options={"size": "3"})
    assert not (tmp_path / "stores").exists()
    for _ in range(2):
        Datastore.open_or_create(uri, manifest(), options={"colour": "red"}).close()
    assert [record.getMessage() for record in caplog.records] == [
        f"{uri} exists already and keeps its own options."
    ]
    with pytest.raises(UsageError, match="no option 'size'"):
        Datastore.open_or_create(uri, manifest(), options={"size": "3"})
