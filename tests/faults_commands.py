"""Every command about one datastore, and what it says where that fails."""

from __future__ import annotations

import logging
import re
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import pytest

from knnlm_store.cli import output
from knnlm_store.errors import KnnlmError
from tests.cli_support import Run, run, write_corpus
from tests.faults_support import BEFORE

COMMANDS: dict[str, tuple[str, ...]] = {
    "ingest": ("ingest", "--store", "{}", "--model", "{model}", "{corpus}"),
    "info": ("info", "{}"),
    "ls": ("ls", "{place}"),
    "eval": ("eval", "--store", "{}", "--model", "{model}", "{corpus}"),
    "generate": ("generate", "--store", "{}", "--model", "{model}", "The creditor"),
    "doctor": ("doctor", "{}"),
    "rm": ("rm", "--yes", "{}"),
}
PACKAGES = ("knnlm_store", "knnlm_store_milvus", "knnlm_store_qdrant")
Command: TypeAlias = Callable[[str, str], Run]


def commands(model: Path, folder: Path) -> Command:
    """Give what runs one of COMMANDS about the datastore of a URI."""
    corpus = write_corpus(folder, {"a.txt": BEFORE["03"]})

    def runs(name: str, uri: str) -> Run:
        values = {"place": uri.rpartition("/")[0], "model": model, "corpus": corpus}
        return run(*(word.format(uri, **values) for word in COMMANDS[name]))

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
