"""`knnlm-store doctor` as a user types it."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from knnlm_store.datastore import Datastore
from tests.cli_support import STORE, TEXTS, files, python, run, write_corpus
from tests.doctor_support import Forgetful, Late, Rooted, Unreachable, brute_force, install
from tests.tiny import tiny_model, tiny_tokenizer

ENTRIES = sum(map(len, TEXTS.values()))  # the tokenizer is of bytes
FAULTS = {"rooted": Rooted, "forgetful": Forgetful, "late": Late, "unreachable": Unreachable}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, saved_model: Path) -> Path:
    place = tmp_path_factory.mktemp("doctor")
    write_corpus(place / "law")
    arguments = ["--store", f"faiss:{place}/stores/law", "--model", saved_model, place / "law"]
    assert run("ingest", *arguments).code == 0
    return place


@pytest.fixture(autouse=True)
def _place(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(made / "stores", tmp_path / "stores")
    monkeypatch.chdir(tmp_path)
    install(tmp_path / "site", monkeypatch, FAULTS)


def checks(report: dict[str, Any]) -> dict[str, Any]:
    return {check["name"]: check for check in report["checks"]}


def test_a_line_for_each_check(tmp_path: Path) -> None:
    before = files(tmp_path / "stores")
    done = run("doctor", STORE)
    assert (done.code, done.err) == (0, "")
    lines = done.out.splitlines()
    names = [line[9:].split("  ")[0] for line in lines]
    assert names == [
        "connection", "versions", "fingerprint", "catalog", "sample", "distance unit",
        "self-retrieval", "recall@32", f"recall@{ENTRIES}", "latency",
    ]  # fmt: skip
    assert all(line.startswith("ok       ") for line in lines)
    begin = {re.match(r"ok +\S+( \S+)?  +", line).end() for line in lines}  # type: ignore[union-attr]
    assert len(begin) == 1  # the messages stand below each other
    assert f"3 documents of {ENTRIES:,} tokens, {ENTRIES:,} entries" in done.out
    assert re.search(r"latency +p50 [\d.]+ ms, p95 [\d.]+ ms for one query at k=\d+$", done.out)
    assert files(tmp_path / "stores") == before


def test_json() -> None:
    done = run("doctor", STORE, "--k", 100, "--json")
    assert done.err == ""
    report = done.json()
    assert {name: report[name] for name in ("store", "status", "k", "recall", "recall_at")} == {
        "store": STORE, "status": "ok", "k": 100, "recall": 1.0,
        "recall_at": {"32": 1.0, "100": 1.0},
    }  # fmt: skip
    assert (report["distance_unit"], report["self_retrieval"]) == ("squared_l2", 1.0)
    assert 0 < report["latency_ms"]["p50"] <= report["latency_ms"]["p95"]
    assert {"knnlm-store", "numpy"} <= set(report["versions"])
    assert checks(report)["sample"]["value"] == 64
    assert checks(report)["fingerprint"]["value"]["dimension"] == 32


def test_recall_is_the_brute_forces(tmp_path: Path) -> None:
    """With every entry in the sample, that of every entry is the report's."""
    report = json.loads(
        run("doctor", "forgetful:stores/law", "--k", 60, "--sample", ENTRIES, "--json").out
    )
    with Datastore.open("forgetful:stores/law") as store:
        (held,) = store.backend.scan(with_keys=True)
        found = store.backend.search(held.keys, 60).ids
    distances = brute_force(held.keys, held)
    right = 0
    for row, ids in zip(distances, found, strict=True):
        near = held.ids[row <= sorted(row)[59] * (1 + 1e-6) + 1e-9]
        right += min(60, len(set(near.tolist()) & set(ids.tolist())))
    assert 0.6 < report["recall"] < 0.7
    assert report["recall"] == pytest.approx(right / len(held) / 60, abs=0.002)


def test_quick_and_seed_and_sample() -> None:
    done = run("doctor", STORE, "--quick", "--sample", 5, "--seed", 3)
    assert done.code == 0
    assert "\nnot run  recall@32       left out by --quick\n" in done.out
    assert "5 entries, drawn from the first ones" in done.out
    report = run("doctor", STORE, "--quick", "--json").json()
    assert (report["recall"], report["recall_at"]["32"]) == (None, None)


@pytest.mark.parametrize(
    ("scheme", "code", "line", "hint"),
    [
        ("rooted", 1, r"failed   distance unit   distances are the root of squared L2", "adapter"),
        ("forgetful", 1, r"failed   recall@32       0\.656 over 64 queries", "knnlm-store compact"),
        ("late", 0, r"warning  latency         p50 .* each token waits for one search", "--k"),
    ],
)
def test_faults(scheme: str, code: int, line: str, hint: str) -> None:
    done = run("doctor", f"{scheme}:stores/law")
    assert (done.code, done.err) == (code, "")
    lines = done.out.splitlines()
    (place,) = (i for i, text in enumerate(lines) if re.match(line, text))
    assert lines[place + 1].startswith(" " * 25)
    assert hint in lines[place + 1]
    report = json.loads(run("doctor", f"{scheme}:stores/law", "--json").out)
    assert report["status"] == ("failed" if code else "warning")


def test_a_place_that_does_not_answer() -> None:
    done = run("doctor", "unreachable:stores/law", "--json")
    assert (done.code, done.err) == (1, "")
    report = json.loads(done.out)
    connection = checks(report)["connection"]
    assert (connection["status"], connection["hint"]) == ("failed", "Start the server.")
    assert {c["status"] for c in report["checks"][1:]} == {"not run"}


def test_a_datastore_that_does_not_exist(tmp_path: Path) -> None:
    done = run("doctor", "faiss:stores/nowhere")
    assert (done.code, done.err) == (1, "")
    first, second = done.out.splitlines()
    assert first == f"failed   connection      There is no datastore at {tmp_path}/stores/nowhere."
    assert second.endswith("or see what there is: knnlm-store ls faiss:stores")


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["law"], 2),
        (["chroma:stores/law"], 1),
        ([STORE, "--k", 0], 2),
        ([STORE, "--sample", 0], 2),
        ([STORE, "--seed", -1], 2),
    ],
)
def test_arguments_that_cannot_be_right(arguments: list[object], code: int) -> None:
    done = run("doctor", *arguments)
    assert (done.code, done.out) == (code, "")
    assert "Traceback" not in done.err


# -- with a model ----------------------------------------------------------------------------------


def test_the_same_model(saved_model: Path) -> None:
    report = run("doctor", STORE, "--model", saved_model, "--quick", "--json").json()
    fingerprint = checks(report)["fingerprint"]
    assert fingerprint["status"] == "ok"
    assert fingerprint["message"].endswith(f"{saved_model.name} gives the same keys")


def test_another_precision(saved_model: Path) -> None:
    done = run("doctor", STORE, "--model", saved_model, "--dtype", "bfloat16", "--quick")
    assert (done.code, done.err) == (0, "")
    assert re.search(r"warning  fingerprint     Keys of .* \(bfloat16\) differ by 0\.\d%", done.out)


def test_another_model(tmp_path: Path) -> None:
    tiny_model("llama", seed=9).save_pretrained(tmp_path / "other")
    tiny_tokenizer().save_pretrained(tmp_path / "other")
    done = run("doctor", STORE, "--model", "other", "--quick", "--json")
    assert done.code == 1
    report = json.loads(done.out)
    assert (report["status"], report["self_retrieval"]) == ("failed", 1.0)
    fingerprint = checks(report)["fingerprint"]
    assert fingerprint["status"] == "failed"
    assert "was written by another model" in fingerprint["message"]
    assert fingerprint["hint"] == "Use that model, or ingest under another --name."


def test_a_model_that_is_not_there() -> None:
    done = run("doctor", STORE, "--model", "./missing", "--quick")
    assert done.code == 1
    assert "failed   fingerprint     There is no model at ./missing." in done.out


def test_no_model_is_loaded_without_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the environment names one; and torch takes seconds."""
    script = (
        "import sys\nfrom knnlm_store.cli.main import main\n"
        "sys.argv = ['knnlm-store', 'doctor', sys.argv[1]]\n"
        "main.__globals__['app'](standalone_mode=False)\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)\n"
    )
    monkeypatch.setenv("KNNLM_STORE_MODEL", "./missing")
    done = python(script, STORE)
    assert (done.code, done.err) == (0, "")
    assert "not compared with a model" in done.out
