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
