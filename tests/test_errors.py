from __future__ import annotations

import re

import pytest

from knnlm_store import errors
from knnlm_store.errors import KnnlmError, MissingDependency, StoreMismatch

CLASSES = {
    name: thing
    for name, thing in vars(errors).items()
    if isinstance(thing, type) and issubclass(thing, KnnlmError)
}


def drawn() -> dict[str, str]:
    """Class to parent, as the tree in the module's docstring has it."""
    parents, path = {}, ["KnnlmError"]
    for line in (errors.__doc__ or "").splitlines():
        if match := re.match(r"((?:[| ] {3})*)[|`]-- (\w+)", line):
            depth = len(match[1]) // 4 + 1
            path[depth:] = [match[2]]
            parents[match[2]] = path[depth - 1]
    return parents


def test_the_tree_is_the_truth() -> None:
    real = {name: cls.__bases__[0].__name__ for name, cls in CLASSES.items()}
    assert drawn() == {name: parent for name, parent in real.items() if name != "KnnlmError"}


def test_only_an_unavailable_backend_is_worth_a_retry() -> None:
    assert [name for name, cls in CLASSES.items() if cls.retryable] == ["BackendUnavailable"]


def test_message_and_hint_are_apart() -> None:
    error = MissingDependency.of("faiss", "faiss")
    assert str(error) == "faiss is not installed."
    assert error.hint == "Run: pip install 'knnlm-store[faiss]'"
    assert KnnlmError("No hint.").hint == ""


def test_mismatch_names_its_field() -> None:
    with pytest.raises(StoreMismatch, match="Another tokenizer") as mismatch:
        raise StoreMismatch("Another tokenizer.", field="tokenizer", hint="Use the first.")
    assert mismatch.value.field == "tokenizer"
    assert mismatch.value.hint == "Use the first."
