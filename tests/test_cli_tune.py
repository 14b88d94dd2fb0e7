"""`knnlm-store tune` as a user types it, and what eval and generate make of it."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from knnlm_store.calibrated import Calibration
from knnlm_store.cli import output
from knnlm_store.datastore import Datastore
from tests.cli_support import Run, contents, run, write_corpus
from tests.ingest_support import prose
from tests.tuning_support import STRANGE, TEST, VALID, little_foreign, one_thread

STORE, STRANGER = "faiss:stores/law", "faiss:stores/strange"
KNOWN = {f"known{i}": prose(i, 100) for i in range(12)}


def files_of(texts: dict[str, str]) -> dict[str, str]:
    return {f"{name}.txt": text for name, text in texts.items()}


@pytest.fixture(scope="module", autouse=True)
def _quick(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with one_thread(), little_foreign(), pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, saved_model: Path, _quick: None) -> Path:
    """Folders of text, a datastore of the model's key space, and one of text that nobody asks."""
    place = tmp_path_factory.mktemp("tune")
    folders = {"law": KNOWN, "strange": STRANGE, "valid": VALID, "test": TEST}
    for name, texts in folders.items():
        write_corpus(place / name, files_of(texts))
    model = ["--model", saved_model, "--window", 32]
    for name, transform in (("law", "model"), ("strange", "none")):
        store = ["--store", f"faiss:{place}/stores/{name}", "--transform", transform]
        done = run("ingest", *store, *model, place / name)
        assert done.code == 0, done.err
    return place


@pytest.fixture(autouse=True)
def place(made: Path, saved_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same folders, with datastores that were not tuned yet."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KNNLM_STORE_MODEL", str(saved_model))
    monkeypatch.delenv("KNNLM_STORE_URL", raising=False)
    return tmp_path


def tune(*arguments: object, store: str = STORE) -> Run:
    return run("tune", store, "--k", 32, *arguments)


def kept(store: str = STORE) -> Calibration | None:
    with Datastore.open(store) as opened:
        return Calibration.read(opened)


def test_tune_then_eval_and_generate() -> None:
    """They use what was fitted, and say so."""
    before = contents(STORE)
    policy = run("eval", "--store", STORE, "test", "--json")
    assert policy.err.startswith("not tuned: ratio policy, temperature ")
    report = tune("valid", "--test", "test", "--json").json()
    assert contents(STORE) == before  # entries and documents
    calibration = kept()
    assert calibration is not None
    mixture = calibration.mixture
    said = f"as tuned: {calibration.chosen} policy, k {mixture.k}, temperature "
    evaluated = run("eval", "--store", STORE, "test", "--json")
    assert evaluated.err.splitlines() == [f"{said}{mixture.temperature:.4g}"]
    settings = evaluated.json()["settings"]
    assert settings["calibrated"] is True
    assert settings["temperature_from"] == "calibration"
    assert settings["policy"] == report["chosen"] == calibration.chosen
    figures = report["policies"][calibration.chosen]["test"]
    found = evaluated.json()["mixture"]["perplexity"]
    assert found == pytest.approx(figures["perplexity"], rel=1e-3)
    assert found != pytest.approx(policy.json()["mixture"]["perplexity"], rel=1e-3)
    generated = run("generate", "--store", STORE, "--max-new-tokens", 3, "the creditor")
    assert generated.code == 0
    assert generated.err.startswith(said)
    for named in ("fixed", "bucketed", "ratio"):
        again = run("eval", "--store", STORE, "test", "--policy", named, "--json")
        expected = report["policies"][named]["test"]["perplexity"]
        assert again.json()["mixture"]["perplexity"] == pytest.approx(expected, rel=1e-3)


def test_what_the_user_says_still_counts() -> None:
    tune("valid", "--max-tokens", 600)
    lmbda = run("eval", "--store", STORE, "test", "--lmbda", 0.5, "--json")
    assert lmbda.json()["settings"]["calibrated"] is False
    assert lmbda.err.startswith("not tuned: fixed policy, temperature ")
    k = run("eval", "--store", STORE, "test", "--k", 8)
    assert "warning: The calibration is not used: it has its own k and temperature." in k.err


def test_json_shape() -> None:
    done = tune("valid", "--test", "test", "--max-tokens", 600, "--json")
    report = done.json()
    assert set(report) == {
        "store",
        "chosen",
        "pays",
        "k",
        "temperature",
        "policies",
        "groups",
        "measured",
        "perplexity_by_k",
        "tokens",
        "available",
        "notes",
        "warnings",
    }
    assert report["store"] == STORE
    assert report["tokens"] == {"valid": 600, "foreign": 400, "test": 550}
    assert list(report["policies"]) == ["plain", "fixed", "bucketed", "ratio"]
    assert set(report["policies"]["ratio"]) == {
        "k",
        "temperature",
        "share",
        "valid",
        "foreign_over_plain",
        "foreign",
        "test",
    }
    assert set(report["policies"]["plain"]["test"]) == {"perplexity", "helped", "hurt"}
    assert set(report["groups"]) == {"frequency", "overlap"}
    assert all(int(k) <= 32 and p > 1 for k, p in report["perplexity_by_k"].items())
    assert report["warnings"] == []
    assert done.err == ""
    untested = tune("valid", "--max-tokens", 600, "--json").json()
    assert untested["tokens"] == {"valid": 600, "foreign": 400}
    assert "test" not in untested["policies"]["plain"]


def test_summary_for_people(place: Path) -> None:
    """With a report beside it, which says the same."""
    said = ["valid", "--test", "test", "--max-tokens", 600, "--max-test-tokens", 500]
    report = tune(*said, "--json").json()
    lines = tune(*said, "--report", "out.html").out.splitlines()
    page = (place / "out.html").read_text(encoding="utf-8")
    assert f"<title>Calibration of {STORE}</title>" in page
    assert lines[0].split() == ["policy", "validation", "foreign", "text", "test", "helped", "hurt"]
    assert lines[1].split() == ["tokens", "600", "400", "500"]
    for line, (name, row) in zip(lines[2:6], report["policies"].items(), strict=True):
        words = line.split()
        assert words[:2] == [name, f"{row['valid']['perplexity']:,.3f}"]
        assert f"{row['test']['perplexity']:,.3f}" in words
        assert f"<td>{row['test']['perplexity']:,.3f}</td>" in page
        if name != "plain":
            assert words[2] == f"{100 * (row['foreign_over_plain'] - 1):+.2f}"
            assert words[-2:] == [f"{100 * row['test']['hurt']:.0f}", "%"]
    assert "500 of 550 tokens of the test text were used, from 5 of 5 documents." in lines
    assert "gain by frequency, nats a token: test tokens" in lines
    assert "gain by overlap, nats a token: test tokens" in lines
    assert any(re.fullmatch(r"  none +[+-]\d\.\d{3} +\d+ tokens", line) for line in lines)
    assert lines[-1] == (
        f"chosen: {report['chosen']}, k {report['k']}, temperature {report['temperature']:.4g}; "
        "kept in the datastore"
    )


def test_a_report_that_cannot_be_written() -> None:
    """It is told before anything is read."""
    assert tune("valid", "--report", "none/out.html").failure() == (
        2,
        "There is no folder none for the report.",
        "mkdir -p none",
    )
    assert kept() is None


def test_a_datastore_that_never_helps() -> None:
    """The plain model is kept; exit code 1 says so to a script, a sentence to a reader."""
    done = tune("valid", "--max-tokens", 600, "--report", "out.html", store=STRANGER)
    assert done.code == 1
    assert done.out.splitlines()[-1] == (
        "No policy pays on held-out text: eval and generate use the plain model from now on, but "
        "for --policy or --lmbda."
    )
    assert done.err == ""
    assert "No policy pays on held-out text" in Path("out.html").read_text(encoding="utf-8")
    calibration = kept(STRANGER)
    assert calibration is not None
    assert calibration.mixture.is_plain
    as_json = tune("valid", "--max-tokens", 600, "--json", store=STRANGER)
    assert as_json.code == 1
    told = json.loads(as_json.out)
    assert (told["chosen"], told["pays"]) == ("plain", False)
    said = "as tuned: the plain model; this datastore did not pay on held-out text"
    ran = run("eval", "--store", STRANGER, "test", "--json")
    assert ran.err.splitlines() == [said]
    assert ran.json()["mixture"]["nll"] == ran.json()["plain"]["nll"]
    assert run("generate", "--store", STRANGER, "--max-new-tokens", 1, "x").err.startswith(said)
    assert "the plain model, of 20" in run("info", STRANGER).out
    ratio = run("eval", "--store", STRANGER, "test", "--policy", "ratio", "--json")
    assert ratio.json()["settings"]["policy"] == "ratio"
    assert ratio.json()["mixture"]["nll"] != ratio.json()["plain"]["nll"]


def test_contamination_is_told(place: Path) -> None:
    shutil.copy(place / "law" / "known3.txt", place / "test" / "copied.txt")
    done = tune("valid", "--test", "test", "--max-tokens", 700, "--json")
    warning = (
        "1 of 6 test documents are in the datastore (test/copied.txt); the figures flatter it."
    )
    assert done.err.splitlines() == [f"warning: {warning}"]
    assert done.json()["warnings"] == [warning]


def test_too_little_text(place: Path) -> None:
    (place / "little").mkdir()
    (place / "little" / "a.txt").write_bytes(b"x" * 499)
    before = contents(STORE)
    assert tune("little").failure() == (
        1,
        "The validation text has 499 tokens; fitting needs at least 500.",
        "Name more text that is not in the datastore.",
    )
    assert kept() is None
    assert contents(STORE) == before


def test_each_part_of_the_work_is_named(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each with a speed of its own."""
    monkeypatch.setattr(output, "LINE_SECONDS", 0.0)
    done = tune("valid", "--test", "test", "--max-tokens", 600)
    told = [re.sub(r" [\d,]+ tokens, [\d,]+/s$", "", line) for line in done.err.splitlines()]
    expected = ["tune: validation text:", "tune: foreign text:", "tune: test text:"]
    assert list(dict.fromkeys(told))[:3] == expected


def test_files_that_cannot_be_read_are_why(place: Path) -> None:
    (place / "little").mkdir()
    (place / "little" / "bad.txt").write_bytes(b"\xff")
    done = tune("little")
    assert done.code == 1
    problem, error, _ = done.err.splitlines()
    assert problem == "failed: little/bad.txt: The bytes are not utf-8: 0xff at offset 0."
    assert error == "error: There was no text to score."
    shutil.copy(place / "little" / "bad.txt", place / "valid" / "bad.txt")
    done = tune("valid", "--max-tokens", 600)
    assert done.code == 0
    assert done.err.splitlines() == [problem.replace("little", "valid")]


def test_an_altered_calibration_can_be_fitted_again(place: Path) -> None:
    """Using it is refused, in a sentence; both ways out of the hint are open."""
    tune("valid", "--max-tokens", 600)
    with Datastore.open(STORE) as opened:
        record = opened.backend.get_records(["calibration"])["calibration"]
        altered: dict[str, Any] = json.loads(record)
        altered["mixtures"]["fixed"]["temperature"] *= 2
        opened.backend.put_records({"calibration": json.dumps(altered).encode()})
    before = contents(STORE)
    for command in (("eval", "--store", STORE, "test"), ("generate", "--store", STORE, "x")):
        code, message, hint = run(*command).failure()
        assert code == 1
        assert message == f"The calibration of {STORE} is not what `tune` wrote."
        assert hint == "Fit it again with knnlm-store tune, or do without it: --lmbda 0.25"
    assert contents(STORE) == before
    assert run("eval", "--store", STORE, "test", "--lmbda", 0.25).code == 0
    assert tune("valid", "--max-tokens", 600).code == 0
    assert run("eval", "--store", STORE, "test").err.startswith("as tuned: ")


def test_where_there_is_no_datastore() -> None:
    code, message, hint = tune("valid", store="faiss:stores/none").failure()
    assert code == 1
    assert message.startswith("There is no datastore at ")
    assert hint.startswith("Make it with: knnlm-store ingest")
    assert not Path("stores/none").exists()


def test_summary_without_text_to_score() -> None:
    """Who is helped and hurt is read off folds that the policies were not fitted to."""
    lines = tune("valid", "--max-tokens", 600).out.splitlines()
    assert lines[0].split() == ["policy", "validation", "foreign", "text", "helped", "hurt"]
    assert len(lines[2].split()) == 2
    assert len(lines[3].split()) == 8
    assert "gain by overlap, nats a token: validation tokens (held-out folds)" in lines
    assert lines[-1].startswith("chosen: ")


def test_a_copy_takes_the_calibration_along() -> None:
    tune("valid", "--max-tokens", 600)
    assert run("copy", STORE, "faiss:backup/law").code == 0
    mine, theirs = kept(), kept("faiss:backup/law")
    assert mine is not None
    assert theirs is not None
    assert (theirs.chosen, theirs.created, theirs.mixture.k) == (
        mine.chosen,
        mine.created,
        mine.mixture.k,
    )
    assert run("eval", "--store", "faiss:backup/law", "test").err.startswith("as tuned: ")
