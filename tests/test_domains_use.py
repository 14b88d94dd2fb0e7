"""Domains in use from Python, and one that another process sets while text is generated."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LogitsProcessorList

from knnlm_store.errors import StoreNotFound, UsageError
from knnlm_store.generation import KnnLM
from knnlm_store.memories import mixture_for
from knnlm_store.mixture import Fixed, Mixture
from knnlm_store.models import LanguageModel
from tests.cli_support import finish
from tests.several_support import TEXTS, filled, in_use
from tests.tuning_support import one_thread

FILE = """
[domains.law]
store = "faiss:stores/law"

[domains.medical]
store = "faiss:stores/medical"
k = 8
temperature = 2
lmbda = 0.6

[domains.both]
stores = ["faiss:stores/law", "faiss:stores/medical"]
k = 8
temperature = 2
lmbda = 0.6

[domains.blended]
stores = ["faiss:stores/law", "faiss:stores/medical"]
k = 8
temperature = 2
lmbda = 0.6
blend = [0.5, 0.3]
"""
MIXTURE = Mixture(8, 2.0, Fixed(0.6))
LAW, MEDICAL = "faiss:stores/law", "faiss:stores/medical"


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory, shared_model: LanguageModel) -> Path:
    folder = tmp_path_factory.mktemp("domains") / "stores"
    for name, text in zip(("law", "medical"), TEXTS, strict=False):
        filled(shared_model, text, uri=f"faiss:{folder}/{name}").close()
    return folder


@pytest.fixture
def lm(
    model: Any, tokenizer: Any, stores: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> KnnLM:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("KNNLM_STORE_CONFIG", raising=False)
    (tmp_path / "knnlm.toml").write_text(FILE)
    shutil.copytree(stores, tmp_path / "stores")
    return KnnLM(LanguageModel.wrap(model, tokenizer, window=64))


@torch.no_grad()
def logits(lm: KnnLM, rows: int = 1) -> torch.Tensor:
    tokens = lm.language_model.tokenizer("the creditor shall", return_tensors="pt").input_ids
    made: torch.Tensor = lm.language_model.model(tokens.repeat(rows, 1)).logits
    return made


def test_a_domain_is_its_datastore_and_settings(lm: KnnLM) -> None:
    assert torch.equal(logits(lm.use("law")), logits(lm.use(LAW)))
    medical = logits(lm.use(MEDICAL, MIXTURE))
    assert torch.equal(logits(lm.use("medical")), medical)
    other = Mixture(4, 1.0, Fixed(0.1))  # what is said goes before what the domain says
    assert torch.equal(logits(lm.use("medical", other)), logits(lm.use(MEDICAL, other)))
    assert torch.equal(logits(lm.use("both")), logits(lm.use([LAW, MEDICAL], MIXTURE)))
    blended = logits(lm.use("blended"))
    assert not torch.equal(blended, logits(lm.use("both")))
    weights = [part.weight for part in lm.use("blended")._used.now.memories[0]]  # type: ignore[union-attr]
    assert weights == [0.5, 0.3]
    with pytest.raises(UsageError, match="A blend has a mixture for each part"):
        lm.use("blended", MIXTURE)


def test_using_and_rows(lm: KnnLM) -> None:
    law, medical = (logits(lm.use(name)) for name in ("law", "medical"))
    lm.off()
    plain = logits(lm)
    with lm.using("medical"):
        assert torch.equal(logits(lm), medical)
    assert torch.equal(logits(lm), plain)
    lm.use_rows(["law", None, "medical", ("law", MIXTURE), "law"])
    rows = logits(lm, 5)
    mixed = logits(lm.use(LAW, MIXTURE))
    for row, expected in zip(rows, (law, plain, medical, mixed, law), strict=True):
        torch.testing.assert_close(row[None], expected)


def test_names_and_uris_in_a_list(lm: KnnLM, tokenizer: Any, tmp_path: Path) -> None:
    """In another file."""
    (tmp_path / "plain.toml").write_text(FILE.split("k = 8")[0])
    model = lm.language_model.model
    lm = KnnLM.attach(model, tokenizer, domains=tmp_path / "plain.toml")
    pooled = logits(lm.use([LAW, MEDICAL], MIXTURE))
    assert torch.equal(logits(lm.use(["law", "medical"], MIXTURE)), pooled)
    assert torch.equal(logits(lm.use(["law", MEDICAL], MIXTURE)), pooled)
    with pytest.raises(UsageError, match="twice"):
        lm.use(["law", LAW])


def test_what_cannot_be_used(lm: KnnLM, tmp_path: Path) -> None:
    """What was in use stays in use."""
    before = logits(lm.use("law"))
    with pytest.raises(UsageError, match=r"knnlm\.toml has no domain 'low'"):
        lm.use("low")
    with pytest.raises(UsageError, match="medical has settings of its own"):
        lm.use(["law", "medical"])
    (tmp_path / "knnlm.toml").write_text('[domains.law]\nstore = "faiss:stores/none"')
    with pytest.raises(StoreNotFound):
        lm.use("law")
    (tmp_path / "knnlm.toml").write_text("broken")
    with pytest.raises(UsageError, match="is not TOML"):
        lm.use_rows([None, "law"])
    assert torch.equal(logits(lm), before)


def test_a_pool_with_settings(lm: KnnLM) -> None:
    with lm.using([LAW, MEDICAL]) as pooled:
        pool = pooled._used.now.memories[0][0].guard.store  # type: ignore[union-attr]
        assert mixture_for(pool, k=5, temperature=3.0, lmbda=0.2) == Mixture(5, 3.0, Fixed(0.2))
        assert mixture_for(pool, k=5).k == 5


SWAP = """
import sys
from knnlm_store.cli.main import main
for store in sys.stdin:
    sys.argv[1:] = ["domains", "set", "law", store.strip()]
    try:
        main()
    except SystemExit as ended:
        assert not ended.code, ended.code
    sys.stdout.flush()
"""


def test_ten_swaps_while_text_is_generated(lm: KnnLM, tokenizer: Any) -> None:
    """No error, no step without a datastore; a running generation keeps its own."""
    command = [sys.executable, "-W", "error", "-c", SWAP]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, text=True, stdin=pipe, stdout=pipe, stderr=pipe)
    told = process.stdout
    assert told
    answers: list[str] = []
    used: list[str] = []

    def swap(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """At the third token, by the other process."""
        if ids.shape[1] == len(prompt.input_ids[0]) + 2:
            print((MEDICAL, LAW)[len(used) % 2], file=process.stdin, flush=True)
            answers.append(told.readline())
        return scores

    prompt = tokenizer("the creditor shall", return_tensors="pt")
    swapping = LogitsProcessorList([swap])
    for _ in range(10):
        store = in_use(lm.use("law"))
        made = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
        lm.language_model.model.generate(**prompt, **made, logits_processor=swapping)
        assert in_use(lm) is store
        used.append(str(store.location))
    assert (finish(process).code, used) == (0, [LAW, MEDICAL] * 5)
    assert answers == [f"law -> {store}\n" for store in [MEDICAL, LAW] * 5]
    counters = lm.counters
    assert counters.searched == counters.mixed == counters.steps == 60
    assert (counters.fallbacks, counters.failures) == (0, 0)
