"""`knnlm-store info`, `ls`, `rm` and `compact` as a user types them; none needs a model."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from knnlm_store import intents
from knnlm_store.datastore import Datastore
from knnlm_store.intents import Intent
from knnlm_store_qdrant.engine import acquire
from tests.cli_support import TEXTS, contents, run, write_corpus
from tests.qdrant_front import fronted

STORE = "faiss:stores/law"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, saved_model: Path) -> Path:
    place = tmp_path_factory.mktemp("stores")
    corpus = write_corpus(place / "law")
    store = f"faiss:{place}/stores/law"
    ingest = ["ingest", "--store", store, "--model", saved_model, corpus]
    assert run(*ingest).code == 0
    (corpus / "a.txt").write_text("Repealed.")
    assert run(*ingest).code == 0  # leaves dead entries, for compact
    return place


@pytest.fixture(autouse=True)
def place(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the datastore that a test may change."""
    shutil.copytree(made / "stores", tmp_path / "stores")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("KNNLM_STORE_URL", raising=False)
    return tmp_path


def test_info(saved_model: Path) -> None:
    facts = run("info", STORE, "--json").json()
    entries = sum(len(text) for name, text in TEXTS.items() if name != "a.txt") + 9
    expected = {
        "name": "law",
        "backend": "faiss",
        "entries": entries,
        "documents": 3,
        "dimension": 32,
        "model": saved_model.name,
        "key": "last_ffn_input",
    }
    assert {name: facts[name] for name in expected} == expected
    assert re.fullmatch(r"pca32-[0-9a-f]{12}", facts["transform"])
    assert facts["bytes"] > entries * 2 * 32
    lines = dict(line.split(":", 1) for line in run("info", STORE).out.splitlines())
    assert set(lines) == set(facts)
    assert lines["entries"].strip() == f"{entries:,}"
    assert lines["bytes"].strip().endswith(" KiB")


def test_ls(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(place / "stores" / "law", place / "stores" / "tax")
    (place / "stores" / "notes").mkdir()
    assert run("ls").out == "faiss:stores/law\nfaiss:stores/tax\n"
    listed = run("ls", f"faiss:{place}/stores/", "--json").json()
    assert listed == {"place": f"faiss:{place}/stores", "names": ["law", "tax"]}
    monkeypatch.setenv("KNNLM_STORE_URL", str(place / "stores"))
    monkeypatch.chdir("/")
    assert run("ls").out == f"faiss:{place}/stores/law\nfaiss:{place}/stores/tax\n"
    nothing = run("ls", "faiss:nowhere")
    assert (nothing.code, nothing.out) == (0, "")
    assert nothing.err == "There are no datastores at faiss:nowhere.\n"


def test_rm_asks(place: Path) -> None:
    asked = run("rm", STORE, stdin=b"n\n")
    assert asked.code == 1
    assert f"Remove {STORE} and all its entries? [y/N]" in asked.err
    nobody = run("rm", STORE)  # there to answer
    assert (nobody.code, nobody.out) == (1, "")
    assert nobody.err.splitlines()[1:] == [
        "error: Nothing was removed.",
        "Add --yes to remove it without being asked.",
    ]
    assert run("info", STORE).code == 0
    removed = run("rm", STORE, stdin=b"y\n")
    assert (removed.code, removed.out.strip()) == (0, f"removed {STORE}")
    assert list((place / "stores").iterdir()) == []


def test_rm_takes_what_cannot_be_opened(place: Path) -> None:
    (place / "stores" / "law" / "store.sqlite").write_bytes(b"no database" * 500)
    assert run("info", STORE).code == 1
    assert run("rm", STORE, "--yes").out == f"removed {STORE}\n"
    assert list((place / "stores").iterdir()) == []


def test_compact() -> None:
    before = contents(STORE)
    size = run("info", STORE, "--json").json()["bytes"]
    done = run("compact", STORE)
    assert done.code == 0
    assert done.err == ""
    assert done.out.startswith(f"{size / 1024:,.1f} KiB before, ")
    assert run("info", STORE, "--json").json()["bytes"] < size - 200 * 2 * 32
    assert contents(STORE) == before


def test_compact_on_a_server(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It compacts by itself, and is told to build the index; a folder's engine does both here."""
    assert run("copy", STORE, f"qdrant:{place}/engine/law").code == 0
    here = run("compact", f"qdrant:{place}/engine/law")
    assert (here.code, here.err) == (0, "")
    assert re.fullmatch(r"[\d,.]+ .iB before, [\d,.]+ .iB after\nindex: .*\n", here.out)
    endpoint = acquire(place / "engine")
    monkeypatch.setenv("KNNLM_QDRANT_API_KEY", endpoint.api_key)
    with fronted(endpoint) as front:
        there = run("compact", front.location("law"))
    endpoint.release()
    assert (there.code, there.err) == (0, "")
    assert there.out.startswith("deleted entries: the server takes them off its disks by itself")
    assert "\nindex: " in there.out


def test_compact_where_there_is_nothing_to_do() -> None:
    assert run("compact", "memory:").code == 1


def test_info_tells_what_is_unfinished() -> None:
    """Entries that no document owns are a killed run's, until the next ingest removes them."""
    assert run("info", STORE, "--json").json()["unfinished"] == 0
    with Datastore.open(STORE) as store:
        intents.put(store.backend, [Intent("law/a.txt", 7, True, "", 0.0)])
    assert run("info", STORE, "--json").json()["unfinished"] == 1
    copied = run("copy", STORE, "faiss:stores/copy")
    assert copied.code == 0
    assert copied.err == "1 unfinished document of the source left out; ingest there again.\n"
