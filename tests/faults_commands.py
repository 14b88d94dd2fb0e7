"""Every command about one datastore, what it says where that fails, and what it may never say."""

from __future__ import annotations

import base64
import logging
import re
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias
from unittest.mock import patch

import pytest

from knnlm_store.cli import output
from knnlm_store.errors import KnnlmError
from tests import cli_support
from tests.cli_support import Run, run, write_corpus
from tests.faults_support import BEFORE

COMMANDS: dict[str, tuple[str, ...]] = {
    "ingest": ("ingest", "--store", "{}", "--model", "{model}", "{corpus}"),
    "info": ("info", "{}"),
    "ls": ("ls", "{place}"),
    "eval": ("eval", "--store", "{}", "--model", "{model}", "{corpus}"),
    "generate": (
        *("generate", "--store", "{}", "--model", "{model}"),
        *("--max-new-tokens", "8", "The creditor"),
    ),
    "doctor": ("doctor", "{}"),
    "copy": ("copy", "{}", "{copy}"),
    "alias": ("alias", "{}", "{name}_now"),
    "compact": ("compact", "{}"),
    "rm": ("rm", "--yes", "{}"),
}
_WITHOUT_JSON = ("alias", "compact", "rm")
EVERY = {
    **{
        f"{name} --json": (*words, "--json")
        for name, words in COMMANDS.items()
        if name not in _WITHOUT_JSON
    },
    **COMMANDS,
}
"""COMMANDS, and before them those that print JSON as well, doing so."""
PACKAGES = ("knnlm_store", "knnlm_store_milvus", "knnlm_store_qdrant")
Command: TypeAlias = Callable[[str, str], Run]


def commands(model: Path, folder: Path) -> Command:
    """Give what runs one of EVERY about the datastore of a URI."""
    corpus = write_corpus(folder, {"a.txt": BEFORE["03"]})

    def runs(name: str, uri: str) -> Run:
        place, _, store = uri.rpartition("/")
        copy = f"faiss:{folder.parent}/copies/{store}"
        values = {"place": place, "name": store, "model": model, "corpus": corpus, "copy": copy}
        return run(*(word.format(uri, **values) for word in EVERY[name]))

    return runs


def assert_told(done: Run, expected: tuple[str, str], address: str) -> None:
    """A command ended with exit code 1, a message of this pattern, and the hint."""
    pattern, hint = expected[0].format(re.escape(address)), expected[1]
    if done.out:  # a report, of which the message is a part
        assert done.code == 1
        assert re.search(pattern, done.out), done.out
    else:
        code, message, next_step = done.failure()
        assert (code, next_step) == (1, hint)
        assert re.fullmatch(pattern, message), message


@contextmanager
def kept_secret(
    key: str, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> Iterator[None]:
    """Whatever the block does, the key is neither logged nor printed, not even by libraries."""
    told: list[str] = []

    def noted(code: int, out: str, err: str) -> Run:
        told.append(out + err)
        return Run(code, out, err)

    caplog.set_level(logging.DEBUG)
    with patch.object(cli_support, "Run", noted):
        yield
    assert_kept(key, caplog.text, *capfd.readouterr(), *told)


def assert_kept(key: str, *texts: str) -> None:
    """None of the texts shows the key, or the password in it, plain or in base64."""
    secrets = {key, key.rpartition(":")[2]}
    secrets |= {base64.b64encode(secret.encode()).decode() for secret in secrets}
    assert not [secret for secret in secrets for text in texts if secret in text]


def loud(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have commands log all there is to log, and the whole traceback of an error."""
    set_up, tell = output.set_up, output.tell_error

    def set_up_loudly() -> None:
        set_up()
        for name in PACKAGES:
            logging.getLogger(name).setLevel(logging.DEBUG)
        logging.getLogger(PACKAGES[0]).debug("loud")

    def tell_loudly(error: KnnlmError) -> None:
        tell(error)
        output.say("".join(traceback.format_exception(error)))

    monkeypatch.setattr(output, "set_up", set_up_loudly)
    monkeypatch.setattr(output, "tell_error", tell_loudly)
