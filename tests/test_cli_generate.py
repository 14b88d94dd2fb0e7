"""`knnlm-store generate` as a user types it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from knnlm_store.errors import BackendUnavailable
from knnlm_store_faiss import FaissBackend
from tests.cli_support import Run, run, write_corpus

STORE = "faiss:stores/law"
PROMPT = "The creditor"
TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, saved_model: Path) -> Path:
    """A folder with a datastore, and a model whose tokenizer has a chat template."""
    place = tmp_path_factory.mktemp("generate")
    corpus = write_corpus(place / "law")
    store = f"faiss:{place}/stores/law"
    assert run("ingest", "--store", store, "--model", saved_model, corpus).code == 0
    shutil.copytree(saved_model, place / "chatty")
    tokenizer: Any = AutoTokenizer.from_pretrained(saved_model)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(place / "chatty")
    return place


@pytest.fixture(autouse=True)
def _place(made: Path, saved_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(made)
    monkeypatch.setenv("KNNLM_STORE_MODEL", str(saved_model))


def generate(*arguments: object, stdin: bytes = b"") -> Run:
    return run("generate", "--store", STORE, "--max-new-tokens", 8, *arguments, stdin=stdin)


def texts(done: Run) -> list[str]:
    return [each["text"] for each in done.json()["generations"]]


def plain(folder: Path, text: str, **options: Any) -> str:
    """What transformers itself makes of the text as the beginning of a document."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    encoded = tokenizer(text, add_special_tokens=False).input_ids
    ids = torch.tensor([[tokenizer.bos_token_id, *encoded]])
    made = model.generate(ids, max_new_tokens=8, **{"do_sample": False} | options)
    return str(tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True))


def test_lambda_0_is_plain_transformers(saved_model: Path) -> None:
    for options, same in (
        ([], {}),
        (["--num-beams", 3], {"num_beams": 3}),
        (["--repetition-penalty", 1.3], {"repetition_penalty": 1.3}),
    ):
        expected = plain(saved_model, PROMPT, **same)
        assert texts(generate(PROMPT, "--lmbda", 0, *options, "--json")) == [expected]
    with_store = texts(generate(PROMPT, "--lmbda", 0.999, "--k", 1, "--json"))
    assert with_store == [" shall d"]
    assert with_store != [plain(saved_model, PROMPT)]


def test_several_prompts_as_arguments_and_lines() -> None:
    arguments = generate(PROMPT, "A consumer", "--json").json()
    assert [each["prompt"] for each in arguments["generations"]] == [PROMPT, "A consumer"]
    assert all(0 < each["tokens"] <= 8 for each in arguments["generations"])
    assert arguments["settings"]["k"] == 1024
    assert arguments["store"]["entries"] > 0
    assert arguments["counters"]["mixed"] > 0
    no_outage = {"steps": 0, "failures": 0, "opened": 0, "last_error": None}
    assert arguments["fallback"] == no_outage
    lines = generate("--json", stdin=f"{PROMPT}\n\nA consumer\n".encode())
    assert texts(lines) == [each["text"] for each in arguments["generations"]]


def test_text_goes_to_stdout_and_nothing_else() -> None:
    (text,) = texts(generate(PROMPT, "--json"))
    done = generate(PROMPT, PROMPT)
    assert done.code == 0
    assert done.out == f"{PROMPT}{text}\n\n{PROMPT}{text}\n"  # set apart by an empty line
    assert done.err.startswith("not tuned: ratio policy, temperature ")
    assert generate(PROMPT, "--temperature", 1).err == ""
    (beams,) = texts(generate(PROMPT, "--num-beams", 2, "--json"))
    assert generate(PROMPT, "--num-beams", 2).out == f"{PROMPT}{beams}\n"


def test_sampling_is_reproducible_by_seed() -> None:
    sample = ["--sample", "--sampling-temperature", 1.5, "--top-p", 0.95, "--json"]
    seeds = [texts(generate(PROMPT, *sample, "--seed", seed)) for seed in (1, 1, 2, 3)]
    assert seeds[0] == seeds[1]
    assert seeds[0] != seeds[2] or seeds[0] != seeds[3]


def test_chat_applies_the_template(made: Path) -> None:
    chat = ["--model", made / "chatty", "--chat", "--lmbda", 0]
    done = generate(PROMPT, *chat, "--json")
    model: Any = AutoModelForCausalLM.from_pretrained(made / "chatty")
    tokenizer: Any = AutoTokenizer.from_pretrained(made / "chatty")
    whole = tokenizer(f"<user>{PROMPT}<assistant>", add_special_tokens=False).input_ids
    out = model.generate(torch.tensor([whole]), max_new_tokens=8, do_sample=False)
    expected = tokenizer.decode(out[0, len(whole) :], skip_special_tokens=True)
    assert texts(done) == [expected]
    assert generate(PROMPT, *chat).out == f"{PROMPT}\n{expected}\n"


def test_chat_needs_a_template() -> None:
    code, message, hint = generate(PROMPT, "--chat", "--temperature", 1).failure()
    assert (code, hint) == (1, "Leave --chat out.")
    assert message.endswith(" has no chat template.")


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        (["--top-p", "0.5"], "--top-p needs --sample.", "Add --sample to --top-p."),
        (["--seed", "5"], "--seed needs --sample.", "Add --sample to --seed."),
        (
            ["--sample", "--top-p", "2"],
            "--top-p must lie above 0 and up to 1, not 2.0.",
            "Try --top-p 0.9.",
        ),
        (
            ["--sample", "--sampling-temperature", "0"],
            "--sampling-temperature must be above 0, not 0.0.",
            "1 has no effect.",
        ),
        (
            ["--repetition-penalty", "-1"],
            "--repetition-penalty must be above 0, not -1.0.",
            "1 has no effect.",
        ),
        (
            ["--search-timeout", "0"],
            "--search-timeout must be above 0, not 0.0.",
            "2 seconds is the default.",
        ),
    ],
)
def test_options_of_sampling(arguments: list[str], message: str, hint: str) -> None:
    assert generate(PROMPT, *arguments).failure() == (2, message, hint)


def test_one_policy_at_a_time() -> None:
    told = generate(PROMPT, "--policy", "all", "--model", "./no-such-model").failure()
    hint = "knnlm-store eval --policy all compares them."
    assert told == (2, "Text is generated by one policy, not by all.", hint)


GONE = "The server is down."
SUMMARY = f"6 of 8 steps fell back to the plain model: {GONE}"


@pytest.fixture
def outage(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The datastore answers two searches, and then nothing, not even how much it holds.

    Gives the timeouts of the searches.
    """
    real: Any = FaissBackend._search
    calls: list[float] = []

    def search(self: FaissBackend, *arguments: Any) -> Any:
        calls.append(arguments[-1])
        if len(calls) > 2:
            raise BackendUnavailable(GONE, hint="Start it.")
        return real(self, *arguments)

    def count(self: FaissBackend, documents: Any = None) -> int:
        if calls:
            raise BackendUnavailable(GONE, hint="Start it.")
        return 1

    monkeypatch.setattr(FaissBackend, "_search", search)
    monkeypatch.setattr(FaissBackend, "count", count)
    return calls


SURE = ["--temperature", 1, "--lmbda", 0.999, "--k", 1]


def test_an_outage_is_summed_up(saved_model: Path, outage: list[float]) -> None:
    done = generate(PROMPT, *SURE)
    assert done.code == 0
    kept = f"{PROMPT} s"  # what two searches gave
    (made,) = done.out.splitlines()
    assert made.startswith(kept)
    rest = plain(saved_model, kept)
    assert made.removeprefix(kept) == rest[: len(made) - len(kept)] != ""
    told = f"WARNING: {GONE} Until it answers, the plain model goes on alone."
    assert done.err.splitlines() == [told, SUMMARY]
    assert outage == [2.0] * 5


def test_an_outage_as_json(outage: list[float]) -> None:
    done = generate(PROMPT, *SURE, "--search-timeout", 7, "--json")
    assert outage == [7.0] * 5
    assert done.err.splitlines()[-1] == SUMMARY
    report = done.json()
    assert report["counters"] == {"steps": 8, "searched": 2, "mixed": 2}
    expected = {"steps": 6, "failures": 3, "opened": 1, "last_error": GONE}
    assert report["fallback"] == expected


def test_an_outage_without_fallback(outage: list[float]) -> None:
    done = generate(PROMPT, *SURE, "--no-fallback", "--json")
    assert done.failure() == (1, GONE, "Start it.")


def test_more_than_the_model_can_read() -> None:
    code, message, hint = generate("x" * 250, "--temperature", 1).failure()
    assert code == 2
    assert message.startswith("A prompt of 251 tokens and 8 new ones exceed the 256 that ")
    assert hint == "Shorten the prompt, or lower --max-new-tokens."


def test_no_prompt() -> None:
    code, message, hint = generate(stdin=b"\n\n").failure()
    assert (code, message) == (2, "There is no prompt.")
    assert hint.startswith("Name one, as in: knnlm-store generate ")
    code, message, hint = generate(stdin=b"abc\xff").failure()
    assert (code, message) == (2, "Standard input is not UTF-8: byte 3 cannot be read.")
    assert "iconv" in hint
