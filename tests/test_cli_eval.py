"""`knnlm-store eval` as a user types it."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest

from knnlm_store.cli import output
from tests.cli_support import TEXTS, contents, run, write_corpus

STORE = "faiss:stores/law"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, saved_model: Path) -> Path:
    """A folder with a corpus and the datastore made of it."""
    place = tmp_path_factory.mktemp("eval")
    write_corpus(place / "law")
    store = f"faiss:{place}/stores/law"
    assert run("ingest", "--store", store, "--model", saved_model, place / "law").code == 0
    return place


@pytest.fixture(autouse=True)
def _place(made: Path, saved_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(made)
    monkeypatch.setenv("KNNLM_STORE_MODEL", str(saved_model))
    monkeypatch.delenv("KNNLM_STORE_URL", raising=False)


def perplexities(report: dict[str, Any]) -> list[float]:
    return [report[which]["perplexity"] for which in ("plain", "mixture")]


def test_report() -> None:
    done = run("eval", "--store", STORE, "law", "--json")
    report = done.json()
    assert report["tokens"] == report["store"]["entries"] == sum(map(len, TEXTS.values()))
    plain, mixture = perplexities(report)
    assert 1 < mixture < plain / 2  # the datastore has seen these very texts
    assert plain == pytest.approx(math.exp(report["plain"]["nll"] / report["tokens"]))
    assert report["seconds"] > 0
    settings = report["settings"]
    assert {k: settings[k] for k in ("k", "lmbda", "policy")} == {
        "k": 1024,
        "lmbda": None,
        "policy": "ratio",
    }
    assert settings["temperature"] > 0
    assert done.err.splitlines() == [
        f"not tuned: ratio policy, temperature {settings['temperature']:.4g} derived from the "
        "datastore's distances; knnlm-store tune fits them"
    ]


def test_progress_without_a_terminal_is_a_line_now_and_then(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(output, "LINE_SECONDS", 0.0)
    lines = run("eval", "--store", STORE, "law", "--temperature", 1).err.splitlines()
    assert lines
    for line in lines:
        assert re.fullmatch(r"eval: [\d,]+ tokens, [\d,]+/s, \d+ s left", line), line


def test_no_temperature_is_told_where_none_applies() -> None:
    assert run("eval", "--store", STORE, "law", "--lambda", 0).err == ""


def test_settings_are_used() -> None:
    chosen = ["--k", 8, "--temperature", 0.5, "--lmbda", 0.9]
    done = run("eval", "--store", STORE, "law", *chosen, "--json")
    settings = done.json()["settings"]
    assert [settings[k] for k in ("k", "temperature", "lmbda")] == [8, 0.5, 0.9]
    assert done.err == ""
    default = perplexities(run("eval", "--store", STORE, "law", "--json").json())
    assert perplexities(done.json())[0] == pytest.approx(default[0])
    assert perplexities(done.json())[1] != pytest.approx(default[1], rel=1e-2)


def test_lambda_0_is_the_plain_model() -> None:
    plain, mixture = perplexities(
        run("eval", "--store", STORE, "law", "--lmbda", 0, "--json").json()
    )
    assert mixture == plain


def test_short_form_is_the_same(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = ["law", "--limit", 1, "--json"]
    one = perplexities(run("eval", "--store", STORE, *chosen).json())
    short = run("eval", "--backend", "faiss", "--name", "law", *chosen).json()
    assert short["store"]["uri"] == STORE
    assert perplexities(short) == one
    monkeypatch.setenv("KNNLM_STORE_URL", str(made / "stores"))
    monkeypatch.chdir("/")
    environment = run("eval", "--backend", "faiss", "--name", "law", made / "law", *chosen[1:])
    assert perplexities(environment.json()) == one
    url = ["--url", made / "stores", "--name", "law"]
    monkeypatch.setenv("KNNLM_STORE_URL", "/nowhere")
    flag = run("eval", "--backend", "faiss", *url, made / "law", *chosen[1:]).json()
    assert perplexities(flag) == one


def test_summary_for_people(made: Path) -> None:
    before = contents(STORE)
    (made / "held-out").mkdir(exist_ok=True)
    (made / "held-out" / "bad.txt").write_bytes(b"\xff")
    (made / "held-out" / "good.txt").write_text("The seller may cancel. " * 3)
    done = run("eval", "--store", STORE, "held-out")
    assert done.code == 0
    header, plain, mixture, last = done.out.splitlines()
    assert header.split() == ["perplexity", "per", "token", "per", "word", "per", "byte"]
    assert plain.startswith("plain model  ")
    assert mixture.startswith("with datastore  ")
    assert len({len(line) for line in (header, plain, mixture)}) == 1
    assert last.startswith("69 tokens in ")
    assert last.endswith(" %")
    assert "failed: held-out/bad.txt: The bytes are not utf-8: 0xff at offset 0." in done.err
    assert contents(STORE) == before
