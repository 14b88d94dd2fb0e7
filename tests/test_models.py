"""Loading a model, and what the project reads off it and its tokenizer."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import normalizers, processors

from knnlm_store.errors import ModelError, UsageError
from knnlm_store.models import LanguageModel, load
from tests.tiny import tiny_model, tiny_tokenizer


def test_a_local_folder(saved_model: Path, language_model: LanguageModel) -> None:
    lm = load(str(saved_model), device="cpu", window=32)
    assert lm.name == saved_model.name
    assert str(lm.point) == "last_ffn_input"
    assert lm.model.dtype == torch.float32
    assert not lm.model.training
    np.testing.assert_allclose(
        lm.manifest().probe, language_model.manifest().probe, atol=1e-5, rtol=0
    )
    assert lm.manifest().tokenizer == language_model.manifest().tokenizer


def test_a_relative_path(saved_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(saved_model.parent)
    assert load(f"./{saved_model.name}").name == saved_model.name


def test_dtype_and_key_point(saved_model: Path) -> None:
    lm = load(str(saved_model), dtype="bfloat16", key="lm_head_input")
    assert lm.model.dtype == torch.bfloat16
    assert str(lm.point) == "lm_head_input"
    assert lm.manifest().probe.dtype == np.float32


@pytest.mark.parametrize("path", ["/nowhere/at/all", "./nowhere", "~/no/such/model.gguf"])
def test_a_missing_path(path: str) -> None:
    with pytest.raises(ModelError) as caught:
        load(path)
    assert str(caught.value) == f"There is no model at {path}."
    assert caught.value.hint == "Check the path."


def test_a_folder_that_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("text")
    with pytest.raises(ModelError) as caught:
        load(str(tmp_path))
    assert str(caught.value) == f"The folder {tmp_path} holds no model: it has no config.json."


def without(saved_model: Path, folder: Path, *patterns: str) -> Path:
    """A copy of the model that lacks some files."""
    return Path(
        shutil.copytree(saved_model, folder / "copy", ignore=shutil.ignore_patterns(*patterns))
    )


def test_a_model_without_its_tokenizer(saved_model: Path, tmp_path: Path) -> None:
    folder = without(saved_model, tmp_path, "tokenizer*", "special*")
    with pytest.raises(ModelError) as caught:
        load(str(folder))
    assert str(caught.value) == f"No tokenizer comes with {folder}."
    assert "tokenizer.save_pretrained" in caught.value.hint


def test_a_tokenizer_without_its_model(saved_model: Path, tmp_path: Path) -> None:
    folder = without(saved_model, tmp_path, "*.safetensors")
    with pytest.raises(ModelError) as caught:
        load(str(folder))
    assert str(caught.value).startswith(f"The model {folder} cannot be loaded: ")
    assert "\n" not in str(caught.value)
    assert "or give a local folder" in caught.value.hint


def test_no_tokenizer_at_all(model: Any) -> None:
    with pytest.raises(ModelError, match=r"The model has no tokenizer\."):
        LanguageModel.wrap(model, None)


@pytest.mark.parametrize("dtype", ["float99", "int8", "nn", "Tensor"])
def test_a_bad_dtype(saved_model: Path, dtype: str) -> None:
    with pytest.raises(ModelError) as caught:
        load(str(saved_model), dtype=dtype)
    assert str(caught.value) == f"{dtype!r} is no dtype."
    assert caught.value.hint == "Use float32, bfloat16 or float16."


@pytest.mark.parametrize("device", ["toaster", "cuda:99"])
def test_a_bad_device(saved_model: Path, device: str) -> None:
    with pytest.raises(ModelError) as caught:
        load(str(saved_model), device=device)
    assert str(caught.value).startswith(f"The device {device!r} cannot be used: ")
    assert caught.value.hint == "Try --device cpu."


def test_a_bad_key_point(saved_model: Path) -> None:
    with pytest.raises(UsageError, match="is no place to read keys"):
        load(str(saved_model), key="everywhere")


# -- document start ----------------------------------------------------------------------------


def test_a_bos_that_the_tokenizer_does_not_write(language_model: LanguageModel) -> None:
    """It stands before documents all the same: a model was trained with something there."""
    assert language_model.tokenizer("a").input_ids != [0]
    assert language_model.document_start == 0


def start_of(model: Any, tokenizer: Any) -> int:
    return LanguageModel.wrap(model, tokenizer).document_start


def test_a_bos_that_the_tokenizer_writes_goes_first(model: Any) -> None:
    """Even before a separator that it has as well."""
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|endoftext|>"]})
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    assert tokenizer("a").input_ids[0] == 0
    assert start_of(model, tokenizer) == 0


def test_the_separator_goes_before_a_bos_that_marks_a_turn(model: Any) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|endoftext|>"]})
    assert start_of(model, tokenizer) == tokenizer.convert_tokens_to_ids("<|endoftext|>") == 259


def test_without_bos_it_is_eos_and_else_zero(model: Any) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.bos_token = None
    assert start_of(model, tokenizer) == 1
    tokenizer.eos_token = None
    assert start_of(model, tokenizer) == 0


# -- text and windows --------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["<s>", "a</s>b", "<pad>", "<|endoftext|>"])
def test_special_tokens_in_text_stay_text(model: Any, text: str) -> None:
    """A document cannot forge the end of a document."""
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|endoftext|>"]})
    lm = LanguageModel.wrap(model, tokenizer)
    tokens = lm.encode(text)
    assert tokens.dtype == np.int64
    assert not {0, 1, 2, 259} & set(tokens.tolist())
    assert tokenizer.decode(tokens) == text


def test_no_special_tokens_are_added(model: Any) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    assert len(LanguageModel.wrap(model, tokenizer).encode("four")) == 4


def test_long_texts_are_whole(language_model: LanguageModel) -> None:
    """Nothing truncates them, whatever the tokenizer thinks of the model's length."""
    language_model.tokenizer.model_max_length = 16
    try:
        assert len(language_model.encode("x" * 5000)) == 5000
    finally:
        language_model.tokenizer.model_max_length = int(1e30)


@pytest.mark.parametrize(
    ("limit", "asked", "expected"),
    [(256, None, 256), (256, 64, 64), (256, 256, 256), (4096, None, 1024), (4096, 2048, 2048)],
)
def test_the_window(tokenizer: Any, limit: int, asked: int | None, expected: int) -> None:
    model = tiny_model("llama", max_position_embeddings=limit)
    assert LanguageModel.wrap(model, tokenizer, window=asked).window == expected


def test_a_window_beyond_the_models_limit(model: Any, tokenizer: Any) -> None:
    with pytest.raises(UsageError, match="A window of 257 tokens exceeds the 256"):
        LanguageModel.wrap(model, tokenizer, window=257)


def test_the_window_of_a_model_without_a_limit(tokenizer: Any) -> None:
    sizes: dict[str, Any] = {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "max_position_embeddings": None,
    }
    model = tiny_model("mamba", state_size=4, **sizes)
    assert LanguageModel.wrap(model, tokenizer, window=2048).window == 2048
    assert LanguageModel.wrap(model, tokenizer).window == 1024


def test_the_window_is_no_part_of_the_identity(model: Any, tokenizer: Any) -> None:
    """A datastore may be used, and added to, with another window."""
    short = LanguageModel.wrap(model, tokenizer, window=16).manifest()
    LanguageModel.wrap(tiny_model("llama"), tokenizer, window=64).manifest().require_same(
        short, "x"
    )


def test_a_model_made_in_code_is_named_by_its_class(language_model: LanguageModel) -> None:
    assert language_model.name == "LlamaForCausalLM"


def test_a_hub_name_stays_whole(language_model: LanguageModel) -> None:
    language_model.model.name_or_path = "some/model"
    assert language_model.name == "some/model"


def test_the_tokenizer_is_part_of_the_identity(model: Any, language_model: LanguageModel) -> None:
    """Its vocabulary, and how it splits with the same vocabulary."""
    more, other = tiny_tokenizer(), tiny_tokenizer()
    more.add_tokens(["extra"])
    other.backend_tokenizer.normalizer = normalizers.Lowercase()
    digests = {
        LanguageModel.wrap(model, tokenizer, window=32).manifest().tokenizer
        for tokenizer in (tiny_tokenizer(), more, other)
    }
    assert len(digests) == 3
    assert language_model.manifest().tokenizer in digests
