"""A datastore that another process changes, forgets from and swaps while text is generated."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from knnlm_store.datastore import Datastore
from knnlm_store.generation import KnnLM
from knnlm_store.manifest import Manifest
from knnlm_store.mixture import Fixed, Mixture
from tests.changing import texts_in, tokens_of, write
from tests.milvus_support import milvus_root, own_server
from tests.qdrant_engine_support import alone
from tests.tiny import tiny_model

__all__ = ["milvus_root", "own_server"]

ROOT = Path(__file__).parent.parent
ROUNDS = 10
TEXTS = ({"base": "a first text that stays " * 8}, {"base": "Another Text Instead " * 8})
ALL = {*"".join(text for texts in TEXTS for text in texts.values()), *"0123456789 rounds of text"}
"""Every character of every version of every document."""
BACKENDS = ("faiss", "qdrant", "milvus")


@contextmanager
def place(backend: str, folder: Path, request: pytest.FixtureRequest) -> Iterator[tuple[str, bool]]:
    """A root that several processes can use, and whether it has aliases."""
    if backend == "faiss":
        yield f"faiss:{folder}", False
    elif backend == "qdrant":
        with alone(folder, "--port", "0") as (_, said):
            yield f"qdrant://127.0.0.1:{said['port']}", True
    else:
        yield f"milvus://{request.getfixturevalue('milvus_root')}", True


def filled(uri: str, manifest: Manifest, texts: dict[str, str]) -> None:
    with Datastore.open_or_create(uri, manifest, "float32") as store:
        write(store.backend, texts)


@contextmanager
def changing(*uris: str) -> Iterator[Callable[[], bool]]:
    """Another process that changes datastores; tells whether it still does."""
    command = [sys.executable, "-W", "error", "-m", "tests.changing", str(ROUNDS), *uris]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "0\n"
        try:
            yield lambda: process.poll() is None
            assert process.wait(60) == 0
            assert process.stdout.read().split() == [str(i) for i in range(1, ROUNDS)]
        finally:
            process.kill()


@pytest.mark.parametrize("backend", BACKENDS)
def test_generation_goes_on(
    backend: str, tmp_path: Path, request: pytest.FixtureRequest, tokenizer: Any
) -> None:
    """At lambda 1 a token that no version of any document has would show."""
    lm = KnnLM.attach(tiny_model("llama"), tokenizer)
    model: Any = lm.language_model.model
    manifest = lm.language_model.manifest()
    mixture = Mixture(16, 2.0, Fixed(1.0))
    ids = torch.tensor([[0, *lm.language_model.encode("a text").tolist()]])
    # the tiny tokenizer gives byte b the token that its character has
    allowed = {int(t) for character in ALL for t in lm.language_model.encode(character)}
    allowed |= set(tokens_of("".join(ALL)).tolist())
    with place(backend, tmp_path, request) as (root, aliased):
        uris = [f"{root}/use_one", f"{root}/use_two"]
        for uri, texts in zip(uris, TEXTS, strict=True):
            filled(uri, manifest, texts)
        name = f"{root}/use_now" if aliased else uris[0]
        runs = 0
        with changing(*uris, *(["use_now"] if aliased else [])) as busy:
            while busy() or runs < 3:
                lm.use(name, mixture, fallback=False, timeout=None)
                made = model.generate(
                    ids, attention_mask=torch.ones_like(ids), max_new_tokens=6,
                    min_new_tokens=6, do_sample=True,
                )  # fmt: skip
                assert {*made[0, ids.shape[1] :].tolist()} <= allowed
                runs += 1
        assert lm.counters.fallbacks == 0
        assert lm.counters.mixed == lm.counters.searched >= 6 * runs
        for uri, texts in zip(uris, TEXTS, strict=True):
            with Datastore.open(uri) as store:
                last = f"round{ROUNDS - 1}"
                assert set(texts_in(store.backend)) == {*texts, last}
                store.backend.drop()
