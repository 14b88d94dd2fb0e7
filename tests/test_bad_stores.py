"""What can be wrong with a datastore, its disk or the environment: told, and nothing changed."""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from knnlm_store.errors import StoreError
from knnlm_store.values import Location
from knnlm_store_faiss import FaissBackend
from tests.cli_support import (
    STORE,
    WITH_MODEL,
    command,
    contents,
    files,
    python,
    quiet,
    run,
    write_corpus,
)
from tests.faults_servers import small_disk


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, saved_model: Path) -> Path:
    """A corpus, a datastore of it, and a folder of other files beside it."""
    place = tmp_path_factory.mktemp("bad")
    write_corpus(place / "law")
    arguments = ["--store", f"faiss:{place}/stores/law", "--model", saved_model, place / "law"]
    assert run("ingest", *arguments).code == 0
    foreign = place / "stores" / "foreign"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("Do not touch.")
    return place


@pytest.fixture(autouse=True)
def _unchanged(made: Path, saved_model: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every test here leaves every datastore's files as they were."""
    monkeypatch.chdir(made)
    monkeypatch.setenv("KNNLM_STORE_MODEL", str(saved_model))
    monkeypatch.delenv("KNNLM_STORE_URL", raising=False)
    before = files(made / "stores")
    yield
    assert files(made / "stores") == before


@pytest.fixture
def copied(tmp_path: Path, made: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a copy of the datastore, to be spoilt; `stores/law` from there."""
    shutil.copytree(made / "law", tmp_path / "law")
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(made / "stores" / "law", tmp_path / "stores" / "law"))


# -- datastores ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["eval", "generate", "info", "compact", "rm"])
def test_a_datastore_that_does_not_exist(name: str, made: Path) -> None:
    uri = "faiss:stores/nowhere"
    arguments = command(name, store=uri) if name in WITH_MODEL else (name, uri)
    expected = "See what there is: knnlm-store ls faiss:stores"
    if name != "rm":
        expected = (
            f"Make it with: knnlm-store ingest --store {uri} FOLDER, "
            "or see what there is: knnlm-store ls faiss:stores"
        )
    message = f"There is no datastore at {made}/stores/nowhere."
    assert run(*arguments).failure() == (1, message, expected)


@pytest.mark.parametrize("name", ["eval", "generate", "info", "doctor", "compact", "rm"])
@pytest.mark.parametrize("said", ["lwa", "laws", "Law"])
def test_a_name_that_is_nearly_right(name: str, said: str, made: Path) -> None:
    uri = f"faiss:stores/{said}"
    done = run(*(command(name, store=uri) if name in WITH_MODEL else (name, uri)))
    assert done.code == 1
    assert "Did you mean faiss:stores/law? " in (done.out if name == "doctor" else done.err)


def test_what_cannot_be_listed_is_not_guessed(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(location: Location) -> list[str]:
        raise StoreError("You may not list them.")

    monkeypatch.setattr(FaissBackend, "names", refused)
    hint = run("info", "faiss:stores/lwa").failure()[2]
    assert hint.startswith("Make it with: ")


@pytest.mark.parametrize(
    "arguments",
    [("info", "fais:stores/law"), ("eval", "--backend", "fiass", "--name", "law", "law")],
)
def test_a_backend_that_is_nearly_right(arguments: tuple[object, ...]) -> None:
    assert run(*arguments).failure()[2].startswith("Did you mean faiss? Installed: ")


@pytest.mark.parametrize(
    "arguments",
    [
        command("ingest", store="chroma:stores/law"),
        ("eval", "--backend", "chroma", "--name", "law", "law"),
        ("info", "chroma:stores/law"),
        ("ls", "chroma:stores"),
    ],
)
def test_unknown_backend(arguments: tuple[object, ...]) -> None:
    code, message, hint = run(*arguments).failure()
    assert (code, message) == (1, "There is no backend 'chroma'.")
    assert hint.startswith("Installed: ")
    assert "faiss" in hint


@pytest.mark.parametrize("name", ["ingest", "info"])
def test_a_name_in_use_by_other_files(name: str, made: Path) -> None:
    uri = "faiss:stores/foreign"
    if name == "info":
        assert run("info", uri).failure()[1].startswith("There is no datastore at ")
        return
    message = f"The folder {made}/stores/foreign has files and is no datastore."
    told = run(*command("ingest", store=uri)).failure()
    assert told == (1, message, "Take another name, or empty the folder.")


@pytest.mark.parametrize("name", ["ingest", "eval", "info", "compact"])
def test_a_database_that_is_none(name: str, copied: Path) -> None:
    (copied / "store.sqlite").write_bytes(b"This is no database." * 500)
    before = files(copied)
    arguments = (name, STORE) if name in ("info", "compact") else command(name)
    code, message, hint = run(*arguments).failure()
    assert (code, message) == (1, f"{copied}/store.sqlite is damaged.")
    assert hint == "Restore the folder from a copy, or drop the datastore and ingest again."
    assert files(copied) == before


@pytest.mark.parametrize("name", ["ingest", "eval"])
def test_keys_cut_short(name: str, copied: Path) -> None:
    keys = copied / "keys.1"
    with keys.open("r+b") as file:
        file.truncate(keys.stat().st_size // 2)
    before = files(copied)
    write_corpus(Path("law"), {"new.txt": "A new article."})
    code, message, hint = run(*command(name, *quiet(name))).failure()
    assert code == 1
    assert message.startswith(f"{keys} is cut short: it holds ")
    assert hint == "Restore the folder from a copy, or drop the datastore and ingest again."
    lost = {name for name in before if files(copied)[name] != before[name]}
    assert lost <= {"store.sqlite"}  # what was about to be written, for the next run to undo


def test_other_settings_than_the_datastores() -> None:
    cases: list[tuple[list[object], int, str, str]] = [
        (
            ["--storage", "int8"],
            2,
            f"{STORE} keeps keys as float16, not int8.",
            "Leave --storage out, or ingest under another --name than law.",
        ),
        (
            ["--window", 64],
            2,
            f"{STORE} was written with windows of 256 tokens, not 64.",
            "Leave --window out, or ingest under another --name.",
        ),
        (
            ["--key-module", "lm_head_input"],
            1,
            f"{STORE} was written by the model {{model}} with key 'last_ffn_input', "
            "not 'lm_head_input'.",
            "Use that model and its settings, or ingest under another --name.",
        ),
    ]
    model = run("info", STORE, "--json").json()["model"]
    for (options, code, message, hint), dry in itertools.product(cases, ([], ["--dry-run"])):
        told = run(*command("ingest", *options, *dry)).failure()
        assert told == (code, message.format(model=model), hint)


# -- libraries, permission, space ------------------------------------------------------------------

WITHOUT = """
import sys
missing = sys.argv.pop(1)
sys.modules[missing] = None  # as if it were not installed
from knnlm_store.cli.main import main
main()
"""


@pytest.mark.parametrize(
    ("library", "extra", "arguments"),
    [
        *(("torch", "transformers", command(name)) for name in WITH_MODEL),
        ("transformers", "transformers", command("eval")),
        ("faiss", "faiss", ("info", STORE)),
        ("faiss", "faiss", ("ls",)),
        ("pyarrow", "data", ("ingest", "--store", STORE, "table.parquet")),
    ],
)
def test_missing_extra(
    library: str, extra: str, arguments: tuple[str, ...], tmp_path: Path
) -> None:
    (tmp_path / "table.parquet").touch()
    given = [str(tmp_path / a) if a == "table.parquet" else a for a in arguments]
    done = python(WITHOUT, library, *given)
    hint = f"Run: pip install 'knnlm-store[{extra}]'"
    assert done.failure() == (1, f"{library} is not installed.", hint)


AS_NOBODY = """
import os, sys
from knnlm_store import registry
from knnlm_store.cli.main import main
def run(*arguments):
    sys.argv = ["knnlm-store", *arguments]
    try:
        main()
    except SystemExit as ended:
        print(ended.code, flush=True)
changed = sys.argv[1]
found = registry.providers()
registry.providers = lambda: found  # the new user may not read the environment
run("ingest", "--store", "faiss:stores/roots", changed)  # imports all that is needed
os.setgid(65534)
os.setuid(65534)
run("ingest", "--store", "faiss:stores/law", changed)
run("ingest", "--store", "faiss:stores/new", "--transform", "none", changed)
run("rm", "faiss:stores/law", "--yes")
run("info", "faiss:stores/law")
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become a user without permission")
def test_no_permission(copied: Path, tmp_path: Path, saved_model: Path) -> None:
    for folder in (tmp_path, *tmp_path.parents[:-2], saved_model, *saved_model.parents[:-2]):
        folder.chmod(0o755)
    for path in saved_model.iterdir():
        path.chmod(0o644)
    changed = write_corpus(tmp_path / "changed", {"a.txt": "Other words."})
    before = contents(STORE)
    done = python(AS_NOBODY, changed)
    assert done.code == 0, done.err
    assert contents(STORE) == before
    codes = [line for line in done.out.splitlines() if line.isdigit()]
    assert codes == ["0", "1", "1", "1", "0"], done.err
    messages = [line for line in done.err.splitlines() if line.startswith("error: ")]
    hints = [line for line in done.err.splitlines() if line.startswith("Give this user ")]
    assert len(messages) == len(hints) == 3
    assert all(m.startswith("error: This user has no permission ") for m in messages)
    assert "Traceback" not in done.err
    assert not (tmp_path / "stores" / "new").exists()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path, "512k") as disk:
        yield disk


def test_full_disk(disk: Path, tmp_path: Path) -> None:
    store = f"faiss:{disk}/law"
    assert run("ingest", "--store", store, "law").code == 0
    before = run("info", store, "--json").json()["entries"]
    (disk / "ballast").write_bytes(bytes(350_000))
    texts = {f"{i}.txt": f"Article {i} says this at length. " * 20 for i in range(4)}
    more = write_corpus(tmp_path / "more", texts)
    code, message, hint = run("ingest", "--store", store, more).failure()
    assert (code, message) == (1, f"No space is left for {disk}/law.")
    assert hint == "Free some space and run it again; what was committed before is intact."
    assert run("eval", "--store", store, "law", "--limit", 1).code == 0
    (disk / "ballast").unlink()
    again = run("ingest", "--store", store, more, "--json").json()
    assert again["documents"]["failed"] == 0
    assert again["store"]["entries"] == before + sum(map(len, texts.values()))
