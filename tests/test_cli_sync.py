"""`knnlm-store sync` and `add`: what they bring in, and what they prune only when it is safe."""

from __future__ import annotations

from pathlib import Path

import pytest

from knnlm_store.corpus import Corpus
from knnlm_store.datastore import Datastore
from tests.changing import write
from tests.cli_support import STORE, TEXTS, Run, contents, documents, run, write_corpus

LORE = {"x.txt": "Once upon a time there was a creditor. " * 4}
LAW = {f"law/{name}" for name in TEXTS}


@pytest.fixture(autouse=True)
def place(tmp_path: Path, saved_model: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a corpus that is in the datastore, beside another source."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KNNLM_STORE_MODEL", str(saved_model))
    monkeypatch.delenv("KNNLM_STORE_URL", raising=False)
    write_corpus(tmp_path / "law")
    write_corpus(tmp_path / "lore", LORE)
    assert sync("law").code == sync("lore").code == 0
    return tmp_path


def sync(*arguments: object, stdin: bytes = b"") -> Run:
    return run("sync", "--store", STORE, *arguments, stdin=stdin)


def test_new_changed_unchanged_and_left(place: Path) -> None:
    (place / "law" / "new.txt").write_text("A new section. " * 3)
    (place / "law" / "a.txt").write_text("Changed. " * 3)
    (place / "law" / "b.md").unlink()
    report = sync("law", "--json").json()
    assert report["documents"] == {"added": 1, "replaced": 1, "skipped": 1, "failed": 0}
    assert "pruned" not in report
    assert set(documents(STORE)) == LAW | {"law/new.txt", "lore/x.txt"}
    report = sync("law", "--prune", "--json").json()
    assert report["documents"] == {"added": 0, "replaced": 0, "skipped": 3, "failed": 0}
    assert report["pruned"]["documents"] == ["law/b.md"]
    assert report["pruned"]["entries"] == len(TEXTS["b.md"])
    assert set(documents(STORE)) == LAW - {"law/b.md"} | {"law/new.txt", "lore/x.txt"}
    assert report["store"]["entries"] == sum(d.version.tokens for d in documents(STORE).values())


def test_told_to_people(place: Path) -> None:
    (place / "law" / "b.md").unlink()
    done = sync("law", "--prune")
    assert done.code == 0
    assert f"pruned: 1 document, {len(TEXTS['b.md'])} entries" in done.out.splitlines()
    assert "pruned: law/b.md" in done.err.splitlines()


def test_many_that_changed_are_none_that_left(place: Path) -> None:
    """One of three left, and the others were replaced: nothing to ask for."""
    (place / "law" / "b.md").unlink()
    for name in ("a.txt", "deep/c.txt"):
        (place / "law" / name).write_text("Changed. " * 3)
    report = sync("law", "--prune", "--json").json()
    assert report["documents"]["replaced"] == 2
    assert report["pruned"]["documents"] == ["law/b.md"]


def test_another_folder_of_the_same_name_is_asked_for(place: Path) -> None:
    write_corpus(place / "other" / "law", {"x.txt": "Something else. " * 3})
    done = sync("other/law", "--prune")
    assert done.code == 1
    assert "More than half of law left it. Forget 3 documents of it? [y/N]: " in done.err
    assert set(documents(STORE)) == LAW | {"lore/x.txt", "law/x.txt"}


def test_a_folder_that_is_not_there(place: Path) -> None:
    code, message, _ = sync("nonexist/", "--prune").failure()
    assert (code, message) == (1, "nonexist/ cannot be read: No such file or directory.")


def test_metadata_stays_where_a_run_says_none(place: Path) -> None:
    for said in (["--metadata", "customer=17"], [], ["--metadata", "customer=18"]):
        assert sync("law", *said).code == 0
    (place / "law" / "a.txt").write_text("Changed. " * 3)
    assert sync("law").code == 0
    assert {d.metadata["customer"] for d in documents(STORE).values() if d.source == "law"} == {
        "18"
    }


def test_a_source_by_another_name(place: Path) -> None:
    """The folder's name does not matter where the source is named."""
    (place / "law").rename(place / "elsewhere")
    (place / "elsewhere" / "b.md").unlink()
    assert sync("elsewhere", "--source", "law", "--prune").code == 0
    assert set(documents(STORE)) == LAW - {"law/b.md"} | {"lore/x.txt"}


def test_an_empty_source_is_asked_for(place: Path) -> None:
    for name in TEXTS:
        (place / "law" / name).unlink()
    before = contents(STORE)
    question = "More than half of law left it. Forget 3 documents of it? [y/N]: "
    for answer in (b"", b"n\n"):
        refused = sync("law", "--prune", stdin=answer)
        assert refused.code == 1
        assert question in refused.err
        assert "error: Nothing was removed." in refused.err
        assert contents(STORE) == before
    assert sync("law", "--prune", stdin=b"y\n").code == 0
    assert set(documents(STORE)) == {"lore/x.txt"}
    assert sync("law", "--prune").code == 0  # nothing to ask for


def test_an_empty_source_with_yes(place: Path) -> None:
    for name in TEXTS:
        (place / "law" / name).unlink()
    report = sync("law", "--prune", "--yes", "--json").json()
    assert set(report["pruned"]["documents"]) == LAW
    assert set(documents(STORE)) == {"lore/x.txt"}


def test_an_empty_folder_without_prune(place: Path) -> None:
    (place / "void").mkdir()
    code, message, _ = sync("void").failure()
    assert (code, message) == (1, "void holds nothing to read.")


@pytest.mark.parametrize("broken", ["unreadable", "not text", "two of one id"])
def test_a_reading_that_failed_prunes_nothing(place: Path, broken: str) -> None:
    (place / "law" / "b.md").unlink()
    arguments: list[object] = ["law"]
    if broken == "not text":
        (place / "law" / "a.txt").write_bytes(b"\xff\xfe\xff")
    elif broken == "unreadable":
        (place / "law" / "a.txt").unlink()
        (place / "law" / "a.txt").symlink_to("nowhere")
    else:
        write_corpus(place / "law2", {"a.txt": "Another text of the same id. "})
        arguments = ["law", "law2", "--source", "law"]
    before = contents(STORE)
    done = sync(*arguments, "--prune", "--yes")
    assert done.code == 1
    assert "Nothing was pruned: not everything of the source could be read." in done.err
    assert contents(STORE) == before


def test_a_file_that_goes_while_it_is_read(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Listed, and gone when its turn comes: it is not taken for one that left."""
    opening = Corpus._open

    def losing(self: Corpus, target: object) -> object:
        (place / "law" / "b.md").unlink(missing_ok=True)
        return opening(self, target)  # type: ignore[arg-type]

    monkeypatch.setattr(Corpus, "_open", losing)
    done = sync("law", "--prune")
    assert done.code == 1
    assert "Nothing was pruned" in done.err
    assert set(documents(STORE)) == LAW | {"lore/x.txt"}
    monkeypatch.setattr(Corpus, "_open", opening)
    assert sync("law", "--prune").code == 0
    assert set(documents(STORE)) == LAW - {"law/b.md"} | {"lore/x.txt"}


def test_what_another_process_brings_in_meanwhile_stays(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is of the source, not in the folder when that was listed, and newer than the listing."""
    (place / "law" / "b.md").unlink()
    opening = Corpus._open

    def bringing(self: Corpus, target: object) -> object:
        with Datastore.open(STORE) as store:
            write(store.backend, {"late.txt": "a late text", "c": "of another"}, source="law")
        return opening(self, target)  # type: ignore[arg-type]

    monkeypatch.setattr(Corpus, "_open", bringing)
    report = sync("law", "--prune", "--json").json()
    assert report["pruned"]["documents"] == ["law/b.md"]
    assert {"law/late.txt", "law/c"} <= set(documents(STORE))


@pytest.mark.parametrize("empty", ["", "  \n"])
def test_a_file_that_is_empty_is_still_there(place: Path, empty: str) -> None:
    (place / "law" / "a.txt").write_text(empty)
    before = contents(STORE)
    done = sync("law", "--prune")
    assert done.code == 0
    assert "pruned: 0 documents, 0 entries" in done.out
    assert contents(STORE) == before


@pytest.mark.parametrize("part", ["law/a.txt", "law/*.txt", "hf:law:train"])
def test_a_part_of_a_source_is_not_pruned_by(part: str) -> None:
    before = contents(STORE)
    code, message, hint = sync(part, "--prune").failure()
    assert code == 2
    assert message == f"{part} may be a part of its source only, and --prune forgets the rest."
    assert "--source NAME" in hint
    assert contents(STORE) == before


def test_a_file_that_is_the_whole_source(place: Path) -> None:
    rows = place / "rows.jsonl"
    rows.write_text('{"id": "one", "text": "First of all."}\n{"id": "two", "text": "Second."}\n')
    assert sync("rows.jsonl").code == 0
    rows.write_text('{"id": "two", "text": "Second."}\n')
    assert sync("rows.jsonl", "--prune").code == 0
    assert set(documents(STORE)) == LAW | {"lore/x.txt", "rows/two"}


def test_a_source_that_may_be_misspelt_is_told(place: Path) -> None:
    (place / "note.txt").write_text("A note.")
    told = "new source 'lwa'; the datastore has 'law', 'lore'\n"
    named = ("note.txt", "--store", STORE, "--source", "lwa")
    dry = run("ingest", *named, "--dry-run", "--json")
    assert (dry.json()["documents"], dry.err) == (1, told)
    added = run("add", *named)
    assert (added.code, added.err) == (0, told)
    assert run("sync", *named).err == ""  # by now it is known


def test_a_source_that_is_known_is_not_told(place: Path) -> None:
    """Nor is the first one of a datastore, or one that is named by a folder."""
    (place / "note.txt").write_text("A note.")
    assert sync("note.txt", "--source", "law").err == ""
    write_corpus(place / "more", LORE)
    assert sync("more").err == ""
    first = run("ingest", "note.txt", "--store", "faiss:stores/other", "--source", "notes")
    assert (first.code, first.err) == (0, "")


def test_add_to_what_is_there(place: Path) -> None:
    (place / "note.txt").write_text("A note about the rate. " * 2)
    report = run("add", "note.txt", "--store", STORE, "--source", "law", "--json").json()
    assert report["documents"]["added"] == 1
    assert set(documents(STORE)) == LAW | {"lore/x.txt", "law/note.txt"}


def test_add_makes_no_datastore(place: Path) -> None:
    (place / "note.txt").write_text("A note.")
    code, message, hint = run("add", "note.txt", "--store", "faiss:stores/none").failure()
    assert code == 1
    assert message.startswith("There is no datastore")
    assert "knnlm-store ingest" in hint
    assert not (place / "stores" / "none").exists()
