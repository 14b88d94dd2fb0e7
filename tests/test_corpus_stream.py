"""What holds for a corpus as a whole: order, duplicates, completeness, bounded memory."""

from __future__ import annotations

import dataclasses
import gzip
import io
import itertools
import json
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from knnlm_store.corpus import Corpus, Document, Problem, ReadOptions


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("docs/a.txt", "docs/b.txt", "more/docs/a.txt", "more/docs/c.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"Text of {name}.")
    return tmp_path


def test_inputs_come_in_their_order_and_again() -> None:
    Path("rows.jsonl").write_text('{"text": "row"}\n')
    corpus = Corpus(["rows.jsonl", "more/docs/c.txt", "docs"])
    first, second = list(corpus), list(corpus)
    ids = [item.id for item in first if isinstance(item, Document)]
    assert ids == ["rows/1", "docs/c.txt", "docs/a.txt", "docs/b.txt"]
    assert first == second
    assert corpus.sources == {"rows", "docs"}
    sizes = [item.size for item in first if isinstance(item, Document)]
    assert corpus.total_bytes == sum(sizes)
    assert corpus.complete


def test_of_documents_with_one_id_the_first_is_kept() -> None:
    corpus = Corpus(["docs", "more/docs"])
    *_, problem, last = corpus
    what = "The document 'docs/a.txt' was read before; the first one is kept."
    assert problem == Problem("more/docs/a.txt", what, failed=True)
    assert isinstance(last, Document)
    assert last.id == "docs/c.txt"
    assert not corpus.complete


def test_limit() -> None:
    for limit, complete in ((1, False), (2, False), (3, True)):
        corpus = Corpus(["docs"], ReadOptions(limit=limit))
        assert len(list(corpus)) == min(limit, 2)
        assert corpus.complete is complete


def test_complete_is_known_only_after_the_end() -> None:
    corpus = Corpus(["docs"])
    assert not corpus.complete
    for _ in corpus:
        assert not corpus.complete
    assert corpus.complete
    next(iter(corpus))
    assert not corpus.complete


@pytest.mark.parametrize(("data", "complete"), [(b" ", True), (b"\xff", False)])
def test_only_losses_make_a_corpus_incomplete(data: bytes, complete: bool) -> None:
    Path("docs/z.txt").write_bytes(data)
    corpus = Corpus(["docs"])
    assert sum(isinstance(item, Problem) for item in corpus) == 1
    assert corpus.complete is complete


def test_documents_and_problems_are_values() -> None:
    (document, _) = Corpus(["docs"])
    with pytest.raises(dataclasses.FrozenInstanceError):
        document.__setattr__("text", "other")


class Endless(io.RawIOBase):
    """Rows without end; `given` counts the bytes that were taken."""

    def __init__(self) -> None:
        self.given = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        line = json.dumps({"text": "row " * 100, "id": self.given}).encode() + b"\n"
        assert len(buffer) >= len(line)
        buffer[: len(line)] = line
        self.given += len(line)
        return len(line)


def test_an_endless_stream_is_read_as_far_as_documents_are_taken() -> None:
    raw = Endless()
    corpus = Corpus(["-"], ReadOptions(stdin_format="jsonl"), io.BufferedReader(raw))
    taken = list(itertools.islice(corpus, 100))
    assert sum(item.size for item in taken if isinstance(item, Document)) > 40_000
    assert raw.given < 60_000


@pytest.mark.parametrize("packed", [False, True])
def test_memory_is_that_of_one_document(packed: bool) -> None:
    name = "rows.jsonl.gz" if packed else "rows.jsonl"
    row = 100_000
    with gzip.open(name, "wb", 1) if packed else open(name, "wb") as file:
        for n in range(200):
            file.write(b'{"text": "' + b"%06d" % n * (row // 6) + b'"}\n')
    tracemalloc.start()
    try:
        count = sum(isinstance(item, Document) for item in Corpus([name]))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert count == 200
    assert peak < 10 * row


def test_reading_text_imports_neither_tables_nor_models() -> None:
    heavy = "{'pyarrow', 'datasets', 'torch', 'transformers', 'pandas'}"
    code = (
        "import sys; from knnlm_store.corpus import Corpus\n"
        f"assert len(list(Corpus(['docs']))) == 2; print({heavy} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
