"""What the model `knnlm` takes and refuses, and the harness's command line with it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lm_eval.api.registry import get_model
from transformers import AutoConfig, AutoModelForSeq2SeqLM

from knnlm_store import models
from knnlm_store.calibrated import Calibration
from knnlm_store.datastore import Datastore
from knnlm_store.errors import ModelError, StoreMismatch, StoreNotFound, UsageError
from knnlm_store.ingest import ingest
from knnlm_store.mixture import Fixed, Mixture
from knnlm_store_lm_eval import KnnHFLM
from tests.ingest_support import corpus, new_store, prose
from tests.lm_eval_support import TEMPERATURE, K, Reference, requests
from tests.tiny import tiny_model, tiny_tokenizer

KNOWN = {str(i): prose(i, 60) for i in range(3)}


@pytest.fixture(scope="module")
def lm(saved_model: Path) -> models.LanguageModel:
    return models.load(str(saved_model), device="cpu")


@pytest.fixture(scope="module")
def store(lm: models.LanguageModel) -> Iterator[Datastore]:
    with new_store(lm) as made:
        ingest(corpus(KNOWN), lm, made)
        yield made


def test_the_harness_knows_it_by_name(saved_model: Path, store: Datastore) -> None:
    assert get_model("knnlm") is KnnHFLM
    arguments = {"pretrained": str(saved_model), "store": store, "lambda": 0.3, "k": 7}
    harness = KnnHFLM.create_from_arg_obj(arguments, {"device": "cpu", "batch_size": 2})
    told = harness.get_model_info()["knnlm_store"]
    assert (told["k"], told["lmbda"], told["temperature_from"]) == (7, 0.3, "datastore")
    assert (told["store"], told["entries"]) == ("memory:", 180)
    assert (told["policy"], told["calibrated"]) == ("fixed", False)


@contextmanager
def tuned(store: Datastore, mixture: Mixture) -> Iterator[None]:
    """For a while, a datastore with a calibration."""
    Calibration.of(store, {"mine": mixture}, "mine", "", {}).write(store)
    yield
    store.backend.delete_records(["calibration"])


def test_it_is_as_tuned_where_nothing_is_said(
    saved_model: Path, store: Datastore, caplog: pytest.LogCaptureFixture
) -> None:
    """Without a calibration the ratio rule; the report tells which it was."""

    def made(**said: Any) -> tuple[float, dict[str, Any]]:
        harness = KnnHFLM(str(saved_model), store=store, device="cpu", **said)
        ((p, _),) = harness.loglikelihood(
            requests("loglikelihood", ("a creditor", " shall")), disable_tqdm=True
        )
        info: dict[str, Any] = harness.get_model_info()["knnlm_store"]
        return p, info

    p, told = made()
    assert (told["policy"], told["k"], told["calibrated"]) == ("ratio", 1024, False)
    assert told["temperature_from"] == "datastore"
    with tuned(store, Mixture(K, TEMPERATURE, Fixed(0.4))):
        as_tuned, told = made()
        assert (told["policy"], told["lmbda"], told["k"]) == ("fixed", 0.4, K)
        assert (told["temperature_from"], told["calibrated"]) == ("calibration", True)
        assert made(lmbda=0.4, k=K, temperature=TEMPERATURE)[0] == as_tuned != p
    with tuned(store, Mixture(K, TEMPERATURE, Fixed(0.0))):
        plain, told = made()
        assert (told["calibrated"], told["searched"]) == (True, 0)
        assert plain == made(lmbda=0)[0]
    assert "as tuned: the plain model; this datastore did not pay" in caplog.text


def test_another_beginning_is_told(
    saved_model: Path, store: Datastore, caplog: pytest.LogCaptureFixture
) -> None:
    KnnHFLM(str(saved_model), store=store, device="cpu")
    assert "begins with token" not in caplog.text
    KnnHFLM(str(saved_model), store=store, device="cpu", prefix_token_id=5)
    assert "begins with token 5 here, with 0 in memory:; prefix_token_id=0" in caplog.text


def test_another_model_is_refused(tmp_path: Path, store: Datastore) -> None:
    tiny_model("llama", seed=1).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(StoreMismatch, match="was written by another model") as refused:
        KnnHFLM(str(tmp_path), store=store, device="cpu")
    assert refused.value.field == "model"


def test_a_model_with_an_encoder_is_refused(saved_model: Path, store: Datastore) -> None:
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    config = AutoConfig.for_model("t5", vocab_size=300, decoder_start_token_id=0, **sizes)
    model: Any = AutoModelForSeq2SeqLM.from_config(config)  # type: ignore[no-untyped-call]
    with pytest.raises(ModelError, match="is not a causal language model"):
        KnnHFLM(model, tokenizer=tiny_tokenizer(), store=store)


BAD: list[tuple[dict[str, Any], str, str]] = [
    ({"lamda": 0.3}, "There is no model argument 'lamda'.", "Do you mean 'lambda'?"),
    ({"temprature": 3}, "no model argument 'temprature'", "Do you mean 'temperature'?"),
    ({"k": "many"}, "k must be a whole number, not 'many'.", "Try k=1024."),
    ({"k": 0}, "k must be at least 1, not 0.", "lambda to 0"),
    ({"temperature": "hot"}, "temperature must be a number, not 'hot'.", "Leave it out"),
    ({"temperature": -1}, "The temperature must be above 0, not -1.", "Leave it out"),
    ({"lmbda": 2}, r"lambda must lie in 0..1, not 2", "0.25"),
    ({"lambda": 0.2, "lmbda": 0.2}, "lambda and lmbda are one argument.", "Give one"),
    ({"store": None}, "The model knnlm needs a datastore.", "--model_args pretrained=MODEL,store="),
    ({"store": "law"}, "'law' is not a datastore.", "faiss:stores/law"),
]


@pytest.mark.parametrize(("given", "message", "hint"), BAD, ids=[str(b[0]) for b in BAD])
def test_bad_arguments_are_told_before_the_model_is_loaded(
    store: Datastore, given: dict[str, Any], message: str, hint: str
) -> None:
    with pytest.raises(UsageError, match=message) as refused:
        KnnHFLM("no/such/model/anywhere", **{"store": store, "device": "cpu", **given})
    assert hint in refused.value.hint


def test_what_nobody_knows_is_refused(saved_model: Path, store: Datastore) -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'colour'"):
        KnnHFLM(str(saved_model), store=store, device="cpu", colour="blue")
    loaded = tiny_model("llama")
    with pytest.raises(UsageError, match="There is no model argument 'colour'"):
        KnnHFLM(loaded, tokenizer=tiny_tokenizer(), store=store, colour="blue")


def test_a_store_that_is_not_there(saved_model: Path, tmp_path: Path) -> None:
    with pytest.raises(StoreNotFound):
        KnnHFLM(str(saved_model), store=f"faiss:{tmp_path}/law", device="cpu")


# -- the command line ------------------------------------------------------------------------------

COMMAND = [sys.executable, "-m", "knnlm_store_lm_eval"]
TASK = """
task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
"""
CHOICES = """
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: answer
"""
ROLLING = """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list:
  - metric: byte_perplexity
"""
QUESTIONS = [
    {"question": "a creditor shall", "choices": ["disclose", "of fee"], "answer": 0},
    {"question": "every fee of", "choices": ["x", "charge and a rate"], "answer": 1},
]
TEXTS = [{"text": prose(90, 30)}, {"text": prose(91, 70)}]


def write_task(folder: Path, name: str, rows: list[dict[str, Any]], rest: str) -> None:
    data = folder / f"{name}.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / f"{name}.yaml").write_text(TASK.format(name=name, data=data) + rest)


def run(folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the command in a folder, without a network."""
    offline = dict.fromkeys(("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"), "1")
    own = {"HF_HOME": str(folder / "hf"), "OMP_NUM_THREADS": "2"}
    return subprocess.run(
        [*COMMAND, *map(str, arguments)],
        cwd=folder, env=os.environ | offline | own, capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_command_line(tmp_path: Path, saved_model: Path, lm: models.LanguageModel) -> None:
    uri = f"faiss:{tmp_path}/stores/law"
    with new_store(lm, uri) as made:
        ingest(corpus(KNOWN), lm, made)
        reference = Reference(lm, made, 0.4)
    (tasks := tmp_path / "tasks").mkdir()
    write_task(tasks, "law_choices", QUESTIONS, CHOICES)
    write_task(tasks, "law_rolling", TEXTS, ROLLING)
    settings = f"k={K},temperature={TEMPERATURE:g},lambda=0.4"
    done = run(
        tmp_path, "run", "--model", "knnlm", "--device", "cpu", "--batch_size", 2,
        "--model_args", f"pretrained={saved_model},store={uri},{settings}",
        "--include_path", tasks, "--tasks", "law_choices,law_rolling",
        "--output_path", tmp_path / "out", "--log_samples",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (report,) = (tmp_path / "out").rglob("results_*.json")
    told = json.loads(report.read_text())
    tokens = 0
    nll = 0.0
    for row in TEXTS:
        text = lm.encode(row["text"]).tolist()
        nll -= reference.score([0], text)[0]
        tokens += len(text)
    found = told["results"]["law_rolling"]["byte_perplexity,none"]
    assert found == pytest.approx(float(np.exp(nll / tokens)), rel=1e-5)
    (samples,) = (tmp_path / "out").rglob("samples_law_choices_*.jsonl")
    for line in samples.read_text().splitlines():
        sample = json.loads(line)
        for choice, (answer,) in zip(sample["doc"]["choices"], sample["resps"], strict=True):
            context = lm.encode(sample["doc"]["question"]).tolist()
            continuation = lm.encode(" " + choice).tolist()
            expected, greedy = reference.score(context, continuation)
            assert float(answer[0]) == pytest.approx(expected, abs=1e-4)
            assert str(answer[1]) == str(greedy)
            tokens += len(continuation)
    assert told["config"]["knnlm_store"] == {
        "store": uri,
        "entries": 180,
        "k": K,
        "temperature": TEMPERATURE,
        "temperature_from": "user",
        "lmbda": 0.4,
        "policy": "fixed",
        "calibrated": False,
        "searched": tokens,
        "mixed": tokens,
    }


def test_command_line_says_what_is_wrong(tmp_path: Path, saved_model: Path) -> None:
    (tasks := tmp_path / "tasks").mkdir()
    write_task(tasks, "law_rolling", TEXTS, ROLLING)
    done = run(
        tmp_path, "--model", "knnlm", "--device", "cpu", "--include_path", tasks,
        "--model_args", f"pretrained={saved_model},store=faiss:{tmp_path}/law",
        "--tasks", "law_rolling",
    )  # fmt: skip
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    message, hint = done.stderr.splitlines()[-2:]
    assert message == f"error: There is no datastore at {tmp_path}/law."
    assert hint.startswith("Make it with: knnlm-store ingest")
