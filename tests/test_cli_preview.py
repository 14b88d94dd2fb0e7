"""`knnlm-store sync --dry-run`: what would be done, by document; nothing is."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli_support import STORE, TEXTS, Run, contents, run, write_corpus


@pytest.fixture(autouse=True)
def place(tmp_path: Path, saved_model: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a corpus that is in the datastore, and then changed on disk."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KNNLM_STORE_MODEL", str(saved_model))
    monkeypatch.delenv("KNNLM_STORE_URL", raising=False)
    law = write_corpus(tmp_path / "law")
    assert sync("law").code == 0
    (law / "new.txt").write_text("A new section. " * 3)
    (law / "a.txt").write_text("Changed. " * 3)
    (law / "b.md").unlink()
    return tmp_path


def sync(*arguments: object) -> Run:
    return run("sync", "--store", STORE, *arguments)


def files(place: Path) -> dict[str, bytes]:
    return {
        str(path): path.read_bytes() for path in (place / "stores").rglob("*") if path.is_file()
    }


def test_it_says_what_the_sync_then_does(place: Path) -> None:
    before, held = files(place), contents(STORE)
    told = sync("law", "--prune", "--dry-run", "--json").json()
    assert contents(STORE) == held
    assert files(place) == before
    assert told["dry_run"] is True
    assert told["add"] == ["law/new.txt"]
    assert told["change"] == ["law/a.txt"]
    assert told["change_metadata"] == []
    assert told["forget"] == ["law/b.md"]
    assert told["unchanged"] == len(TEXTS) - 2
    done = sync("law", "--prune", "--json").json()
    assert done["documents"] == {"added": 1, "replaced": 1, "skipped": 1, "failed": 0}
    assert done["pruned"]["documents"] == told["forget"]
    again = sync("law", "--prune", "--dry-run", "--json").json()
    assert (again["add"], again["change"], again["forget"]) == ([], [], [])


def test_told_to_people(place: Path) -> None:
    done = sync("law", "--prune", "--dry-run")
    assert done.code == 0
    assert done.out.splitlines() == [
        "to add: law/new.txt",
        "to change: law/a.txt",
        "to forget: law/b.md",
        "documents: 1 to add, 1 to change, 0 to change metadata, 1 to forget, 1 unchanged",
        f"Nothing was written to {STORE}.",
    ]


def test_without_prune_nothing_is_to_forget(place: Path) -> None:
    assert "forget" not in sync("law", "--dry-run", "--json").json()
    assert "forget" not in sync("law", "--dry-run").out


def test_no_model_is_loaded() -> None:
    told = sync("law", "--model", "nowhere", "--dry-run", "--json").json()
    assert told["add"] == ["law/new.txt"]


def test_a_datastore_that_is_not_there_is_not_made(place: Path) -> None:
    told = run("sync", "--store", "faiss:stores/none", "law", "--dry-run", "--prune", "--json")
    assert len(told.json()["add"]) == len(TEXTS)
    assert told.json()["forget"] == []
    assert not (place / "stores" / "none").exists()


def test_what_would_be_asked_is_said(place: Path) -> None:
    for name in TEXTS:
        (place / "law" / name).unlink(missing_ok=True)
    done = sync("law", "--prune", "--dry-run")
    assert done.code == 0
    assert "More than half of law left it. Without --yes you would be asked." in done.err
    assert "Without --yes" not in sync("law", "--prune", "--dry-run", "--yes").err


def test_a_reading_that_failed_would_prune_nothing(place: Path) -> None:
    (place / "law" / "bad.txt").write_bytes(b"\xff\xfe\xfa")
    done = sync("law", "--prune", "--dry-run")
    assert done.code == 1
    assert "Nothing would be pruned: not everything of the source could be read." in done.err
    assert "0 to forget" in done.out
    assert "failed: " in done.err
