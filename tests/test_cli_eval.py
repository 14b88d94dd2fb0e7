"""`knnlm-store eval` as a user types it."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from knnlm_store.calibrated import Calibration
from knnlm_store.cli import output
from knnlm_store.datastore import Datastore
from knnlm_store.mixture import Fixed, Mixture
from knnlm_store.policies import Bucketed, Ratio
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


TUNED = {
    "fixed": Mixture(9, 0.5, Fixed(0.3)),
    "ratio": Mixture(5, 0.2, Ratio(0.3, 0.2)),
    "bucketed": Mixture(7, 0.1, Bucketed(np.array([0.5, 2.0]), np.array([0.9, 0.4, 0.1]))),
}


@pytest.fixture
def tuned(made: Path) -> Iterator[None]:
    with Datastore.open(STORE) as store:
        Calibration.of(store, TUNED, "bucketed", "today", {}).write(store)
    yield
    with Datastore.open(STORE) as store:
        store.backend.delete_records(["calibration"])


@pytest.fixture
def held_out(made: Path) -> str:
    write_corpus(made / "unseen", {"a.txt": "The seller may disclose a rate. Nothing cancels it. "})
    return "unseen"


def same(one: dict[str, Any], other: dict[str, Any]) -> None:
    """Nll, perplexities and settings."""
    for name in ("nll", "perplexity", "perplexity_per_word", "perplexity_per_byte"):
        assert one[name] == pytest.approx(other["mixture"][name], rel=1e-9)
    assert one["settings"] == other["settings"]


@pytest.mark.usefixtures("tuned")
def test_all_policies_in_one_pass(held_out: str) -> None:
    done = run("eval", "--store", STORE, held_out, "--policy", "all", "--json")
    report = done.json()
    assert list(report["policies"]) == list(TUNED)  # nobody fitted a learned one
    assert "mixture" not in report
    assert "settings" not in report
    for name, values in report["policies"].items():
        alone = run("eval", "--store", STORE, held_out, "--policy", name, "--json")
        same(values, alone.json())
        assert values["settings"]["k"] == TUNED[name].k
        assert report["plain"] == alone.json()["plain"]
        assert 0 <= values["hurt"] <= 1 - values["helped"] <= 1
    nlls = {round(values["nll"], 6) for values in report["policies"].values()}
    assert len(nlls) == 3
    assert done.err.splitlines() == [
        "as tuned: fixed policy, k 9, temperature 0.5",
        "as tuned: ratio policy, k 5, temperature 0.2",
        "as tuned: bucketed policy, k 7, temperature 0.1",
    ]


def test_all_is_what_needs_no_fitting_before_tune(held_out: str) -> None:
    report = run("eval", "--store", STORE, held_out, "--policy", "all", "--json").json()
    assert list(report["policies"]) == ["fixed", "ratio"]


@pytest.mark.usefixtures("tuned")
def test_named_policies_and_settings_of_the_user(held_out: str) -> None:
    chosen = ["--k", 6, "--temperature", 0.4]
    named = ["--policy", "ratio", "--policy", "fixed", "--policy", "ratio"]
    told = run("eval", "--store", STORE, held_out, *named, *chosen, "--lmbda", 0.8, "--json")
    report = told.json()
    assert list(report["policies"]) == ["ratio", "fixed"]
    for name, option in (("ratio", ["--policy", "ratio"]), ("fixed", ["--lmbda", 0.8])):
        alone = run("eval", "--store", STORE, held_out, *chosen, *option, "--json").json()
        same(report["policies"][name], alone)
    once = run("eval", "--store", STORE, held_out, "--policy", "ratio", "--policy", "ratio")
    assert "with datastore" in once.out


@pytest.mark.usefixtures("tuned")
def test_table_of_policies(held_out: str) -> None:
    report = run("eval", "--store", STORE, held_out, "--policy", "all", "--json").json()
    done = run("eval", "--store", STORE, held_out, "--policy", "all")
    header, plain, *rows, legend, last = done.out.splitlines()
    assert header.split() == ["policy", "perplexity", "change", "helped", "hurt"]
    before = report["plain"]["perplexity"]
    assert plain.split() == ["plain", "model", f"{before:,.3f}"]
    assert [row.split()[0] for row in rows] == list(TUNED)
    for row in rows:
        name, perplexity, change, _, helped, _, hurt, _ = row.split()
        values = report["policies"][name]
        assert perplexity == f"{values['perplexity']:,.3f}"
        assert float(change) == pytest.approx(100 * (values["perplexity"] / before - 1), abs=0.05)
        assert float(helped) == pytest.approx(100 * values["helped"], abs=0.05)
        assert float(hurt) == pytest.approx(100 * values["hurt"], abs=0.05)
    assert len({len(line) for line in (header, *rows)}) == 1
    assert legend == "helped, hurt: share of tokens made likelier, unlikelier by over 1 %"
    assert last.startswith(f"{report['tokens']} tokens in ")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--policy", "best"], "'best' is no policy."),
        (["--policy", "fixed", "--policy", "best"], "'best' is no policy."),
        (
            ["--policy", "fixed", "--policy", "learned"],
            f"{STORE} has no learned policy that was fitted for it.",
        ),
        (
            ["--policy", "ratio", "--policy", "bucketed", "--lmbda", 0.3],
            "Lambda is not fixed under the ratio policy.",
        ),
        (["--policy", "all", "--k", 0], "k must be at least 1, not 0."),
    ],
)
def test_policies_that_cannot_be(options: list[object], message: str) -> None:
    done = run("eval", "--store", STORE, "law", "--model", "./no-such-model", *options)
    assert done.failure()[:2] == (2, message)
