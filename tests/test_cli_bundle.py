"""`knnlm-store export` and `import`, as a user runs them, and what their page says."""

from __future__ import annotations

import os
import re
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from knnlm_store import copying
from knnlm_store.bundle import writing
from knnlm_store.cli import copy, output
from knnlm_store.datastore import Datastore
from knnlm_store.errors import KnnlmError
from tests.bundle_support import small, store_at
from tests.cli_support import TEXTS, contents, documents, files, python, run, write_corpus
from tests.tiny import tiny_model, tiny_tokenizer
from tests.tuning_support import one_thread

STORE = "faiss:stores/law"
PAGE = (Path(__file__).parent.parent / "docs" / "bundles.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, saved_model: Path) -> Path:
    place = tmp_path_factory.mktemp("bundles")
    corpus = write_corpus(place / "law")
    done = run("ingest", "--store", f"faiss:{place}/stores/law", "--model", saved_model, corpus)
    assert done.code == 0, done.err
    return place


@pytest.fixture(autouse=True)
def place(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(made / "stores", tmp_path / "stores")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_page(place: Path) -> None:
    """Every command and line of it runs, in order."""
    before = contents(STORE)
    (commands,) = re.findall(r"```sh\n(.*?)```", PAGE, flags=re.DOTALL)
    lines = [line.split("#")[0].split()[1:] for line in commands.splitlines()]
    assert [words[0] for words in lines] == ["export", "import", "import"]
    for words in lines:
        done = run(*words)
        assert done.code == 0, done.err
    assert timeless("faiss:restored/law") == timeless(STORE)
    for block in re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL):
        exec(compile(block, "bundles.md", "exec"), {})
    assert timeless("faiss:restored/law-2") == timeless(STORE)
    assert contents(STORE) == before


def timeless(store: str) -> dict[str, tuple[object, ...]]:
    return {
        name: (record.metadata, record.version.number, record.version.digest)
        for name, record in documents(store).items()
    }


def test_export_and_import(saved_model: Path, made: Path) -> None:
    """What is said of it; the datastore serves in the place of the first one."""
    total = sum(map(len, TEXTS.values()))
    done = run("export", STORE, "backup/law")
    assert done.code == 0, done.err
    assert (done.err, done.out.splitlines()[0]) == ("", "documents: 3")
    assert done.out.splitlines()[1].startswith(f"entries: {total:,} in ")
    assert done.out.splitlines()[2].startswith("bundle: backup/law, ")
    checked = run("import", "backup/law", "--check", "--model", saved_model, "--json").json()
    assert (checked["bundle"], checked["entries"], checked["documents"]) == ("backup/law", total, 3)
    done = run("import", "backup/law", "--backend", "faiss", "--name", "new")
    assert done.code == 0, done.err
    assert done.out.splitlines()[0] == "documents: 3 copied, 0 there already"
    assert done.out.splitlines()[-1] == "datastore: faiss:stores/new, keys as float16"
    again = run("import", "backup/law", "--store", "faiss:stores/new", "--json").json()
    assert again["documents"] == {"copied": 0, "skipped": 3}
    assert again["source"] == "bundle:backup/law"
    ingest = ["ingest", "--store", "faiss:stores/new", "--model", saved_model, made / "law"]
    assert run(*ingest, "--json").json()["documents"]["skipped"] == 3
    question = ["--model", saved_model, "--max-new-tokens", 8, "--temperature", 5, "The creditor"]
    old, new = (
        run("generate", "--store", each, *question).out for each in (STORE, "faiss:stores/new")
    )
    assert old == new


def test_another_model(place: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    tiny_model("llama", seed=9).save_pretrained(other)
    tiny_tokenizer().save_pretrained(other)
    assert run("export", STORE, "b").code == 0
    told = run("import", "b", "--store", "faiss:new/law", "--model", other)
    code, message, _ = told.failure()
    assert code == 1
    assert message.startswith("bundle:./b was written by another model")
    assert not (place / "new").exists()


def test_refusals(place: Path) -> None:
    assert run("export", STORE, "b").code == 0
    kept = files(place)
    assert run("export", STORE, "b").failure() == (
        1,
        f"{place}/b exists already.",
        "Name another folder, or remove this one first.",
    )
    assert run("import", "b").failure()[:2] == (2, "No datastore is named.")
    assert run("import", "stores", "--store", "faiss:new/law").failure() == (
        1,
        "stores is no bundle: it has no bundle.json.",
        "Make one with: knnlm-store export STORE stores",
    )
    assert run("export", "faiss:stores/none", "c").failure()[0] == 1
    assert files(place) == kept
    path = place / "b" / "entries-00000.parquet"
    path.write_bytes(path.read_bytes()[:-5])
    for more in (["--store", "faiss:new/law"], ["--check"]):
        code, message, hint = run("import", "b", *more).failure()
        assert (code, "b/entries-00000.parquet was cut short" in message) == (1, True)
        assert hint.startswith("Copy the bundle again")
    assert not (place / "new").exists()


def test_documents_that_change_meanwhile(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Named, with exit code 1; the others are in the bundle."""
    monkeypatch.setattr(writing, "_of", lambda version, *_: None)
    done = run("export", STORE, "b")
    assert done.code == 1
    assert done.out.startswith("documents: 0\n")
    names = [f"changed meanwhile, not exported: law/{name}" for name in sorted(TEXTS)]
    assert done.err.splitlines() == names
    assert run("import", "b", "--check").code == 0


HOSTILE = "\x1b]0;evil\x07"


def test_hostile_text_stays_text(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a manifest, which another may have written."""
    assert run("export", STORE, "b").code == 0
    describe = Datastore.info

    def info(store: Datastore) -> dict[str, object]:
        return describe(store) | {"model": f"{HOSTILE}\nx"}

    monkeypatch.setattr(Datastore, "info", info)
    for done in (run("import", "b", "--check"), run("info", STORE)):
        assert "\x1b" not in done.out
        (line,) = (line for line in done.out.splitlines() if line.startswith("model:"))
        assert line.endswith(r"\x1b]0;evil\x07\nx")


def test_errors_are_printable(capsys: pytest.CaptureFixture[str]) -> None:
    copy.tell_left_out(0, [f"{HOSTILE}\n"], "copied")
    output.tell_error(KnnlmError(f"ä {HOSTILE}.", hint=f"{HOSTILE}\nsecond line \ud800"))
    assert capsys.readouterr().err.splitlines() == [
        r"changed meanwhile, not copied: \x1b]0;evil\x07\n",
        r"error: ä \x1b]0;evil\x07.",
        r"\x1b]0;evil\x07",
        r"second line \ud800",
    ]


def test_interrupted_export(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small(monkeypatch)
    monkeypatch.setattr(copying, "_GROUP", 1)
    of = writing._of

    def interrupting(*arguments: object) -> object:
        os.kill(os.getpid(), signal.SIGINT)
        return of(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(writing, "_of", interrupting)
    done = run("export", STORE, "b")
    assert (done.code, done.out) == (130, "")
    assert done.err.splitlines()[-1] == "Interrupted: nothing was left at b."
    assert sorted(os.listdir(place)) == ["stores"]


WITHOUT = "import sys; sys.modules['pyarrow'] = None; from knnlm_store.cli.main import main; main()"


def test_without_pyarrow() -> None:
    """Told before anything is looked at."""
    for arguments in (["export", "faiss:stores/none", "b"], ["import", "none"]):
        code, message, hint = python(WITHOUT, *arguments).failure()
        assert (code, message) == (1, "pyarrow is not installed.")
        assert hint == "Run: pip install 'knnlm-store[data]'"


def test_progress_where_there_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "LINE_SECONDS", 0.0)
    with store_at("faiss:stores/many"):
        pass
    assert "export: 303 of 303 entries" in run("export", "faiss:stores/many", "b").err
    told = run("import", "b", "--store", "faiss:new/many").err
    assert "check: 303 of 303 entries" in told
    assert "import: 303 of 303 entries" in told
