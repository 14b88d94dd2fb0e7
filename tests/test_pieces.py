"""Text of single tokens: joined it is the decoded whole, also where they end in characters."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from knnlm_store.pieces import texts_of
from tests.tiny import tiny_tokenizer

BYTES = tiny_tokenizer()
MANY = "naïve, 日本語 🙂👍🏽 e\u0301 \ufffd end"


PLAIN = [*range(33, 127), *range(161, 173), *range(174, 256)]
OTHER = [byte for byte in range(256) if byte not in PLAIN]
"""Bytes that a byte-level vocabulary writes as themselves, and the others, from U+0100 on."""
LETTERS = {byte: chr(byte) for byte in PLAIN} | {byte: chr(256 + i) for i, byte in enumerate(OTHER)}


def tokens_of(content: bytes) -> list[int]:
    """One token a byte, whether they make characters or not."""
    tokens: list[int] = BYTES.convert_tokens_to_ids([LETTERS[byte] for byte in content])
    return tokens


def alone(tokens: list[int]) -> list[str]:
    return texts_of(BYTES, [[token] for token in tokens])


def test_a_character_belongs_to_the_token_that_completes_it() -> None:
    tokens = BYTES.encode(MANY, add_special_tokens=False)
    pieces = alone(tokens)
    assert len(pieces) == len(tokens) == len(MANY.encode())
    assert "".join(pieces) == MANY
    assert alone(tokens_of("nï".encode())) == ["n", "", "ï"]
    assert alone(tokens_of("\ufffd e".encode())) == ["", "", "", "\ufffd ", "e"]
    smile = BYTES.encode("🙂", add_special_tokens=False)
    assert alone(smile) == ["", "", "", "🙂"]
    assert alone(smile[:3]) == ["", "", "\ufffd"]
    assert alone([]) == []


@settings(deadline=None, max_examples=60)
@given(st.one_of(st.text(max_size=30).map(str.encode), st.binary(max_size=40)), st.data())
def test_joined_they_are_the_whole(content: bytes, data: st.DataObject) -> None:
    tokens = tokens_of(content)
    whole = BYTES.decode(tokens, clean_up_tokenization_spaces=False)
    assert "".join(alone(tokens)) == whole
    cuts = sorted(data.draw(st.lists(st.integers(0, len(tokens)), max_size=3)))
    parts = [tokens[a:b] for a, b in zip([0, *cuts], [*cuts, len(tokens)], strict=True)]
    assert "".join(texts_of(BYTES, parts)) == whole


def test_special_tokens_are_tokens_like_others() -> None:
    assert alone([0, *BYTES.encode("a ", add_special_tokens=False), 1]) == ["<s>", "a", " ", "</s>"]


def test_garbage_is_not_held_for_ever() -> None:
    tokens = tokens_of(b"\xff" * 300 + b"a")
    assert "".join(alone(tokens)) == BYTES.decode(tokens)


@pytest.fixture
def spaces() -> Any:
    """A tokenizer that marks words' beginnings, drops the first space, and falls back to bytes."""
    words = ["<unk>", "▁the", "▁cat", "s", *(f"<0x{i:02X}>" for i in range(256))]
    backend = Tokenizer(
        models.BPE(vocab={w: i for i, w in enumerate(words)}, merges=[], byte_fallback=True)
    )
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")  # type: ignore[no-untyped-call]


def test_another_kind_of_tokenizer(spaces: Any) -> None:
    smile = [4 + byte for byte in "🙂".encode()]
    tokens = [1, 2, 3, *smile, *smile, 1, 3]
    pieces = texts_of(spaces, [[token] for token in tokens])
    assert pieces[:3] == ["the", " cat", "s"]
    assert "".join(pieces) == spaces.decode(tokens) == "the cats🙂🙂 thes"
    assert pieces[3:11] == ["", "", "", "🙂", "", "", "", "🙂"]
