"""What a user can get wrong: one sentence, what to try next, an exit code, and nothing changed."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli_support import (
    ANOTHER,
    STORE,
    WITH_MODEL,
    command,
    contents,
    files,
    quiet,
    run,
    write_corpus,
)
from tests.tiny import tiny_model, tiny_tokenizer


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, saved_model: Path) -> Path:
    """A corpus, a datastore of it, and other models."""
    place = tmp_path_factory.mktemp("bad")
    write_corpus(place / "law")
    arguments = ["--store", f"faiss:{place}/stores/law", "--model", saved_model, place / "law"]
    assert run("ingest", *arguments).code == 0
    tiny_model("llama", seed=9).save_pretrained(place / "other")
    tiny_tokenizer().save_pretrained(place / "other")
    shutil.copytree(saved_model, place / "speechless")
    for path in (place / "speechless").glob("tokenizer*"):
        path.unlink()
    shutil.copytree(saved_model, place / "torn")
    with (place / "torn" / "model.safetensors").open("r+b") as weights:
        weights.truncate(1000)
    (place / "empty").mkdir()
    return place


@pytest.fixture(autouse=True)
def _unchanged(made: Path, saved_model: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every test here leaves every datastore's files as they were."""
    monkeypatch.chdir(made)
    monkeypatch.setenv("KNNLM_STORE_MODEL", str(saved_model))
    monkeypatch.delenv("KNNLM_STORE_URL", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    before = files(made / "stores")
    yield
    assert files(made / "stores") == before


# -- models ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WITH_MODEL)
def test_wrong_model_for_a_datastore(name: str) -> None:
    before = contents(STORE)
    code, message, hint = run(*command(name, "--model", "other", *quiet(name))).failure()
    assert (code, hint) == (1, ANOTHER)
    assert message.startswith(f"{STORE} was written by another model (")
    assert "keys of other (float32) lie elsewhere" in message
    assert contents(STORE) == before


def test_a_model_that_lacks_the_key_point(tmp_path: Path, made: Path) -> None:
    """Keys of a module that the other model has not: it is the model that is wrong."""
    gpt2 = tmp_path / "gpt2"
    tiny_model("gpt2").save_pretrained(gpt2)
    tiny_tokenizer().save_pretrained(gpt2)
    store = f"faiss:{tmp_path}/norm"
    module = ["--key-module", "model.norm:output"]
    assert run(*command("ingest", *module, store=store)).code == 0
    code, message, hint = run(*command("ingest", "--model", gpt2, store=store)).failure()
    assert (code, hint) == (1, ANOTHER)
    assert message.endswith("GPT2LMHeadModel has no module 'model.norm'.")


@pytest.mark.parametrize(
    ("model", "message", "hint"),
    [
        (
            "speechless",
            "No tokenizer comes with speechless.",
            "Save one there with tokenizer.save_pretrained, or name another model.",
        ),
        ("./missing", "There is no model at ./missing.", "Check the path."),
        ("models/of/mine", "There is no model at models/of/mine.", "Check the path."),
        ("missing.gguf", "There is no model at missing.gguf.", "Check the path."),
        (
            "empty",
            "The folder empty holds no model: it has no config.json.",
            "Name a folder that save_pretrained wrote, or a GGUF file in it.",
        ),
        ("law/a.txt", "law/a.txt is no model.", "Name its folder, or a GGUF file."),
        (
            "torn",
            "The model torn cannot be loaded: ",
            "Check the name, --revision and HF_TOKEN, or give a local folder.",
        ),
        (
            "nobody/nothing",
            "The model nobody/nothing cannot be loaded: ",
            "Check the name, --revision and HF_TOKEN, or give a local folder.",
        ),
    ],
)
def test_models_that_cannot_serve(model: str, message: str, hint: str) -> None:
    code, told, hinted = run(*command("ingest", "--model", model)).failure()
    assert (code, hinted) == (1, hint)
    assert told.startswith(message)


@pytest.mark.parametrize(
    ("options", "message", "hint"),
    [
        (["--dtype", "int8"], "'int8' is no dtype.", "Use float32, bfloat16 or float16."),
        (["--device", "abacus"], "The device 'abacus' cannot be used: ", "Try --device cpu."),
    ],
)
def test_device_and_dtype(options: list[str], message: str, hint: str) -> None:
    code, told, hinted = run(*command("eval", *quiet("eval"), *options)).failure()
    assert (code, hinted) == (1, hint)
    assert told.startswith(message)


# -- arguments -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        (
            command("eval", "--backend", "faiss"),
            "--store names the whole place; --backend, --name and --url go without it.",
            "Use --store BACKEND:PATH/NAME alone.",
        ),
        (
            command("generate", "--url", "elsewhere"),
            "--store names the whole place; --backend, --name and --url go without it.",
            "Use --store BACKEND:PATH/NAME alone.",
        ),
        *(
            (
                (name, "law"),
                "No datastore is named.",
                "Use --store faiss:stores/NAME, or --backend faiss --name NAME.",
            )
            for name in WITH_MODEL
        ),
        (
            ("eval", "--backend", "faiss", "law"),
            "The datastore needs a name.",
            "Add --name NAME.",
        ),
        (
            command("ingest", store="memory:"),
            "A datastore in memory would end with the command.",
            "Use --store faiss:stores/NAME.",
        ),
        (
            command("ingest", "--metadata", "year:1984"),
            "--metadata takes KEY=VALUE, not 'year:1984'.",
            "For example: --metadata language=en",
        ),
        (
            command("ingest", "--metadata", "=1984"),
            "--metadata takes KEY=VALUE, not '=1984'.",
            "For example: --metadata language=en",
        ),
        (
            command("ingest", "--storage", "float8"),
            "faiss keeps keys as float16, float32, int8, not float8.",
            "Use --storage float16, or leave it out.",
        ),
        (
            command("ingest", "--window", "257", store="faiss:stores/new"),
            "A window of 257 tokens exceeds the 256 that the model can read.",
            "Use a window of 256 or less.",
        ),
        (
            command("ingest", "--key-module", "head", store="faiss:stores/new"),
            "'head' is no place to read keys.",
            "Use last_ffn_input, lm_head_input or PATH:input or PATH:output.",
        ),
        (
            command("ingest", "--stdin-format", "csv"),
            "'csv' is no format of standard input.",
            "Use --stdin-format text or jsonl.",
        ),
        (("ls", "stores"), "'stores' is no place of datastores.", None),
        *(
            (
                (name, store),
                f"{store!r} is neither a datastore nor a domain{more}.",
                None,
            )
            for name in ("info", "doctor", "documents", "history", "verify", "compact", "rm")
            for store, more in (
                ("law", ": there is no knnlm.toml here or above"),
                ("stores/law", ""),
            )
        ),
        *(
            (command(name, *options), message, hint)
            for name in ("eval", "generate")
            for options, message, hint in (
                (
                    ["--k", "0"],
                    "k must be at least 1, not 0.",
                    "1024 is a good first choice; for the plain model set lambda to 0.",
                ),
                *(
                    (
                        ["--lmbda", value],
                        f"lambda must lie in 0..1, not {value}.",
                        "0 is the plain model; 0.25 is a good first choice.",
                    )
                    for value in ("1.5", "-0.1", "nan")
                ),
                *(
                    (
                        ["--temperature", value],
                        f"The temperature must be above 0, not {value}.",
                        "Leave it out, and it is taken from the datastore.",
                    )
                    for value in ("0.0", "-2.0", "inf")
                ),
            )
        ),
    ],
)
def test_arguments_that_cannot_be_right(
    arguments: tuple[object, ...], message: str, hint: str | None
) -> None:
    told = run(*arguments).failure()
    assert told[:2] == (2, message)
    assert told[2] == hint or (hint is None and "for example faiss:stores" in told[2])


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (command("eval", "--k", "many"), "Invalid value for '--k'"),
        (command("eval", "--lmbda", "half"), "Invalid value for '--lmbda'"),
        (command("ingest", "--window", "1"), "Invalid value for '--window'"),
        (command("ingest", "--limit", "0"), "Invalid value for '--limit'"),
        (command("eval", "--gamma", "0"), "No such option: --gamma"),
        (("eval", "--store", STORE), "Missing argument"),
        (("rename", STORE), "No such command 'rename'"),
    ],
)
def test_arguments_that_cannot_be_read(arguments: tuple[object, ...], complaint: str) -> None:
    done = run(*arguments)
    assert (done.code, done.out) == (2, "")
    assert complaint in done.err
    assert "--help' for help." in done.err


def test_corpora_with_nothing_to_read() -> None:
    missing = run("ingest", "--store", STORE, "nowhere").failure()
    assert missing[:2] == (1, "nowhere cannot be read: No such file or directory.")
    assert missing[2] == "Check the path; a hub dataset is written hf:NAME:SPLIT."
    empty = run("eval", "--store", STORE, "empty").failure()
    assert empty[:2] == (1, "empty holds nothing to read.")
    assert empty[2].startswith("Looked for *.txt, *.md")


def test_nothing_to_score_says_why(tmp_path: Path) -> None:
    (tmp_path / "bad.txt").write_bytes(b"\xff")
    done = run("eval", "--store", STORE, "--temperature", 1, tmp_path / "bad.txt")
    assert (done.code, done.out) == (1, "")
    assert done.err.splitlines() == [
        f"failed: {tmp_path}/bad.txt: The bytes are not utf-8: 0xff at offset 0.",
        "error: There was no text to score.",
        "Name files that hold text.",
    ]
