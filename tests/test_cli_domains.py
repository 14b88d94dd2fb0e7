"""`knnlm-store domains`, and domains in other commands, as a user runs them."""

from __future__ import annotations

import os
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cli_support import run, write_corpus
from tests.tuning_support import one_thread

PAGE = (Path(__file__).parent.parent / "docs" / "domains.md").read_text(encoding="utf-8")
TEXTS = {"law": "The creditor shall disclose. " * 5, "medical": "The patient shall rest. " * 5}


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, saved_model: Path) -> Path:
    place = tmp_path_factory.mktemp("domains")
    for name, text in TEXTS.items():
        corpus = write_corpus(place / name, {"a.txt": text})
        store = f"faiss:{place}/stores/{name}"
        assert run("ingest", "--store", store, "--model", saved_model, corpus).code == 0
    shutil.copytree(place / "stores" / "law", place / "stores" / "law-2")
    write_corpus(place / "held-out", {"a.txt": TEXTS["law"]})
    return place


@pytest.fixture(autouse=True)
def place(made: Path, tmp_path: Path, saved_model: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(made, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("KNNLM_STORE_MODEL", str(saved_model))
    monkeypatch.delenv("KNNLM_STORE_CONFIG", raising=False)
    return tmp_path / "here"


def block(language: str) -> str:
    (found,) = re.findall(rf"```{language}\n(.*?)```", PAGE, flags=re.DOTALL)
    return str(found)


def write(text: str = "") -> None:
    Path("knnlm.toml").write_text(text or block("toml"))


def evaluated(*arguments: object) -> dict[str, Any]:
    return run("eval", *arguments, "held-out", "--json").json()


def generated(*arguments: object) -> str:
    done = run("generate", *arguments, "--max-new-tokens", 5, "The creditor")
    assert done.code == 0, done.err
    return done.out


def test_the_page(model: Any, tokenizer: Any) -> None:
    """Every command and line of it runs, with the file that it shows."""
    write()
    for line in block("sh").splitlines():
        words = shlex.split(line.split("#")[0])
        short = ["--max-new-tokens", 3] if words[1] == "generate" else []
        done = run(*words[1:], *short)
        assert done.code == 0, (line, done.err)
    assert run("domains", "--json").json()["domains"]["law"] == {"stores": ["faiss:stores/law-2"]}
    exec(compile(block("python"), "domains.md", "exec"), {"model": model, "tokenizer": tokenizer})


def test_set_and_list(place: Path) -> None:
    done = run("domains")
    assert (done.code, done.out) == (0, "")
    assert done.err == (
        "There is no knnlm.toml here or above; set one: knnlm-store domains set NAME STORE\n"
    )
    assert run("domains", "--json").json() == {"file": None, "domains": {}}
    assert run("domains", "set", "law", "faiss:stores/law").out == "law -> faiss:stores/law\n"
    write(Path("knnlm.toml").read_text() + "k = 4\n")
    done = run("domains", "set", "law", "faiss:stores/law-2", "faiss:stores/medical")
    assert done.out == "law -> faiss:stores/law-2 + faiss:stores/medical (k 4)\n"
    assert run("domains").out == done.out
    assert run("domains", "--json").json() == {
        "file": f"{place}/knnlm.toml",
        "domains": {"law": {"stores": ["faiss:stores/law-2", "faiss:stores/medical"], "k": 4}},
    }
    for options in (["--config", "b.toml", "set"], ["set", "--config", "b.toml"]):
        assert run("domains", *options, "other", "faiss:stores/law").code == 0
        assert run("domains", "--config", "b.toml").out == "other -> faiss:stores/law\n"
        os.unlink("b.toml")


def test_what_cannot_be_set(place: Path) -> None:
    """A datastore that is not there is told now, not when somebody uses the domain."""
    for name, store, code in (
        ("law", "faiss:stores/none", 1),
        ("law", "law", 2),
        ("a/b", "faiss:stores/law", 2),
        ("law", "memory:", 2),
    ):
        assert run("domains", "set", name, store).failure()[0] == code
    assert not Path("knnlm.toml").exists()


def test_a_domain_in_eval_and_generate() -> None:
    """As if its datastores and settings had been typed; what is typed goes before."""
    write()
    typed = evaluated("--store", "faiss:stores/medical", "--k", 256)
    found = evaluated("--domain", "medical")
    for key in ("mixture", "stores", "settings"):
        assert found[key] == typed[key]
    other = evaluated("--domain", "medical", "--lmbda", 0, "--k", 3)
    assert other["settings"]["k"] == 3
    assert other["mixture"]["perplexity"] == other["plain"]["perplexity"]
    pair = ["--store", "faiss:stores/law", "--store", "faiss:stores/medical"]
    explained = run("explain", "--domain", "everything", "The creditor", "--json").json()
    assert [store["weight"] for store in explained["stores"]] == [0.5, 0.3]
    assert generated("--store", "everything") == generated(*pair, "--blend", "0.5,0.3")


def test_policy_of_a_domain() -> None:
    write('[domains.law]\nstore = "faiss:stores/law"\ntemperature = 3\npolicy = "fixed"\n')
    assert evaluated("--store", "law")["settings"]["policy"] == "fixed"
    assert evaluated("--domain", "law", "--policy", "ratio")["settings"]["policy"] == "ratio"


def test_several_names() -> None:
    write()
    found = evaluated("--store", "law", "--store", "faiss:stores/medical", "--temperature", 2)
    assert [store["name"] for store in found["stores"]] == ["law", "medical"]
    told = run("eval", "--store", "law", "--store", "medical", "held-out").failure()
    assert told[0] == 2
    assert told[1].startswith("The domain medical has settings of its own (k)")


def test_what_cannot_be_named() -> None:
    code, message, _ = run("generate", "--domain", "law", "The").failure()
    assert (code, message) == (
        2,
        "'law' is neither a datastore nor a domain: there is no knnlm.toml here or above.",
    )
    assert run("generate", "--store", "law", "The").failure()[1] == message
    write()
    code, message, hint = run("eval", "--domain", "low", "held-out").failure()
    assert (code, message.endswith("knnlm.toml has no domain 'low'.")) == (2, True)
    assert hint.startswith("It has: law, medical, everything. ")
    code, message, _ = run("eval", "--domain", "law", "--store", "a:b/c", "held-out").failure()
    assert (code, message.startswith("--domain names the datastore")) == (2, True)
    write(block("toml").replace("k = 256", "kk = 256"))
    code, message, _ = run("eval", "--domain", "law", "held-out").failure()
    assert code == 2
    assert message.endswith("knnlm.toml: domain medical, kk: there is no such key.")


# -- in commands that take one datastore ----------------------------------------------------------

ONE = (
    "[domains.law]\nstore = 'faiss:stores/law'\nk = 4\n[domains.tax]\nstore = 'faiss:stores/tax'\n"
)
POOL = "[domains.all]\nstores = ['faiss:stores/law', 'faiss:stores/medical']\n"


@pytest.mark.parametrize(
    "command",
    [
        ["info"],
        ["documents"],
        ["history"],
        ["history", "--document", "law/a.txt"],
        ["verify"],
        ["doctor", "--quick"],
    ],
)
def test_a_domain_in_place_of_a_datastore(command: list[str]) -> None:
    """From a folder below the file's, too: what is meant is what the file says."""
    write(ONE)
    name, *options = command
    by_name, by_uri = (
        run(name, store, *options, "--json") for store in ("law", "faiss:stores/law")
    )
    assert (by_name.code, by_name.err) == (0, "")
    kept = [re.sub(r"[\d.]+", "N", each.out) for each in (by_name, by_uri)]
    assert kept[0] == kept[1]


def test_a_domain_from_another_folder(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(ONE)
    (place / "below").mkdir()
    monkeypatch.chdir(place / "below")
    assert run("info", "law", "--json").json()["uri"] == f"faiss:{place}/stores/law"
    monkeypatch.chdir("/")
    monkeypatch.setenv("KNNLM_STORE_CONFIG", str(place / "knnlm.toml"))
    assert run("info", "law", "--json").json()["uri"] == f"faiss:{place}/stores/law"


def test_a_domain_is_written_to(place: Path) -> None:
    write(ONE)
    Path("new.txt").write_text("Nothing in this part limits the seller.")
    for number, command in enumerate((["add", "--store", "law"], ["sync", "--domain", "law"])):
        done = run(*command, "new.txt", "--source", f"s{number}", "--json").json()
        assert done["store"]["uri"] == "faiss:stores/law"
        assert done["documents"]["added"] == 1
    with_file = ["--domain", "law", "--config", place / "knnlm.toml"]
    again = run("ingest", *with_file, "law", "--json").json()
    assert again["documents"]["skipped"] == 1
    forgotten = run("forget", "s0/new.txt", "--domain", "law", "--json").json()
    assert forgotten["store"] == "faiss:stores/law"
    assert run("forget", "s1/new.txt", "--store", "law").code == 0
    assert run("documents", "faiss:stores/law", "--json").json()["found"] == 1


def test_a_domain_is_copied_exported_and_imported() -> None:
    write(ONE)
    assert run("copy", "law", "faiss:stores/tax", "--json").json()["source"] == "faiss:stores/law"
    assert run("copy", "faiss:stores/law", "tax", "--json").json()["target"] == "faiss:stores/tax"
    assert run("copy", "law", "faiss:stores/law").failure()[0] == 2
    assert run("export", "law", "bundle", "--json").json()["source"] == "faiss:stores/law"
    for options in (["--domain", "tax"], ["--store", "tax"]):
        done = run("import", "bundle", *options, "--json").json()
        assert done["target"] == "faiss:stores/tax"
    assert run("compact", "tax").code == 0


def test_a_domain_is_tuned() -> None:
    write(ONE)
    code, message, _ = run("tune", "low", "held-out").failure()
    assert (code, message.endswith("knnlm.toml has no domain 'low'.")) == (2, True)
    done = run("tune", "law", "held-out", "--max-tokens", 500)  # there is too little to fit to
    assert "domain" not in done.err
    assert done.code in (0, 1)


def test_a_map_is_taken_from_a_domain() -> None:
    write(ONE)
    made = ["ingest", "--store", "faiss:stores/new", "--transform-from", "law", "medical"]
    assert run(*made).code == 0
    both = [run("info", f"faiss:stores/{name}", "--json").json() for name in ("law", "new")]
    assert both[0]["transform"] == both[1]["transform"]


@pytest.mark.parametrize(
    "command",
    [
        ["info", "all"],
        ["doctor", "all"],
        ["alias", "all", "now"],
        ["tune", "all", "held-out"],
        ["copy", "all", "faiss:stores/new"],
        ["forget", "law/a.txt", "--store", "all"],
        ["forget", "law/a.txt", "--domain", "all"],
        ["ingest", "--domain", "all", "law"],
    ],
)
def test_a_pool_where_one_is_needed(command: list[str]) -> None:
    write(POOL)
    assert run(*command).failure() == (
        2,
        "The domain all stands for 2 datastores, and this takes one.",
        "Name one of them: faiss:stores/law, faiss:stores/medical",
    )


@pytest.mark.parametrize(
    "command",
    [
        ["info", "low"],
        ["export", "low", "bundle"],
        ["forget", "law/a.txt", "--store", "low"],
        ["sync", "law", "--domain", "low"],
        ["rm", "--yes", "low"],
    ],
)
def test_names_that_are_no_domain(command: list[str], place: Path) -> None:
    write(ONE)
    code, message, hint = run(*command).failure()
    assert (code, message) == (2, f"{place}/knnlm.toml has no domain 'low'.")
    assert hint.startswith("It has: law, tax. ")


def test_a_domain_goes_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """KNNLM_STORE_URL is not said, and --backend is as it was."""
    write(ONE)
    for more in (["--store", "law"], ["--backend", "faiss"], ["--name", "law"], ["--url", "x"]):
        told = run("forget", "law/a.txt", "--domain", "law", *more).failure()
        assert (told[0], told[2]) == (2, "Use --domain law alone.")
    monkeypatch.setenv("KNNLM_STORE_URL", "stores")
    for named in (["--domain", "law"], ["--store", "law"], ["--backend", "faiss", "--name", "law"]):
        done = run("forget", "law/a.txt", "--dry-run", "--json", *named).json()
        assert done["documents"] == ["law/a.txt"]


def test_rm_takes_no_domain() -> None:
    """The domain may have been set to another datastore since the user looked."""
    write(ONE)
    assert run("rm", "law", "--yes").failure() == (
        2,
        "law is a domain, which stands for faiss:stores/law.",
        "Remove a datastore by its own name: knnlm-store rm faiss:stores/law",
    )
    assert run("info", "law").code == 0
