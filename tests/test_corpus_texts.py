"""Text files and standard input: bytes to text, and everything that is no text."""

from __future__ import annotations

import builtins
import gzip
import io
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from knnlm_store.corpus import Corpus, Document, Problem, ReadOptions
from knnlm_store.corpus.values import shown
from knnlm_store.errors import CorpusError


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "docs").mkdir()
    return tmp_path / "docs"


def read(data: bytes, **options: Any) -> Document | Problem:
    """What becomes of a file of these bytes; the folder and standard input must agree."""
    Path("docs/a.txt").write_bytes(data)
    (item,) = Corpus(["docs"], ReadOptions(**options))
    (piped,) = Corpus(["-"], ReadOptions(**options), stdin=io.BytesIO(data))
    if isinstance(item, Document):
        assert isinstance(piped, Document)
        assert (piped.id, piped.text, piped.size) == ("stdin/stdin", item.text, item.size)
    else:
        assert piped == Problem("stdin", item.what, item.failed)
    return item


def test_a_text() -> None:
    metadata = {"licence": "CC0"}
    document = read("Grüße\n".encode(), metadata=metadata)
    assert document == Document("docs", "a.txt", "Grüße\n", metadata, 8)
    assert document.id == "docs/a.txt"


@pytest.mark.parametrize(
    ("data", "encoding", "text"),
    [
        (b"one\r\ntwo\rthree\n\n", "utf-8", "one\r\ntwo\rthree\n\n"),
        (b"\xef\xbb\xbfmarked", "utf-8", "marked"),
        (b"\xef\xbb\xbfmarked", "UTF8", "marked"),
        (b"\xef\xbb\xbf\xef\xbb\xbfx", "utf-8", "\ufeffx"),
        ("wide".encode("utf-16"), "utf-16", "wide"),
        ("wide".encode("utf-32-le"), "utf-32-le", "wide"),
        (b"caf\xe9", "latin-1", "café"),
        (b"x" * 8192 + b"\0", "utf-8", "x" * 8192 + "\0"),
    ],
)
def test_bytes_become_text_exactly(data: bytes, encoding: str, text: str) -> None:
    document = read(data, encoding=encoding)
    assert isinstance(document, Document)
    assert (document.text, document.size) == (text, len(data))


@pytest.mark.parametrize(
    ("data", "options", "what", "failed"),
    [
        (b"", {}, "The document is empty.", False),
        (b" \r\n\t\xc2\xa0", {}, "The document is empty.", False),
        (b"\xef\xbb\xbf", {}, "The document is empty.", False),
        (b"caf\xe9 au lait", {}, "The bytes are not utf-8: 0xe9 at offset 3.", True),
        (b"cut \xe2\x82", {}, "The bytes are not utf-8: 0xe2 at offset 4.", True),
        (b"%PDF\0", {}, "The file is binary: it holds NUL bytes.", True),
        (b"\0", {"encoding": "latin-1"}, "The file is binary: it holds NUL bytes.", True),
        (
            "wide".encode("utf-16"),
            {},
            "The file is UTF-16, not utf-8; give its encoding.",
            True,
        ),
        (b"abc", {"encoding": "utf-16-le"}, "The bytes are not utf-16-le: 0x63 at offset 2.", True),
        (b"+2AA-", {"encoding": "utf-7"}, "The text holds a lone surrogate.", True),
    ],
)
def test_what_is_no_text(data: bytes, options: dict[str, Any], what: str, failed: bool) -> None:
    assert read(data, **options) == Problem("docs/a.txt", what, failed)


def test_a_codec_that_names_no_byte() -> None:
    problem = read(b"xn--a.b..c", encoding="idna")
    assert isinstance(problem, Problem)
    assert problem.what.startswith("The bytes cannot be decoded: ")


def test_reading_goes_on_behind_a_problem(folder: Path) -> None:
    (folder / "a.txt").write_bytes(b"\xff")
    (folder / "b.txt").write_bytes(b"text")
    (folder / "c.txt").write_bytes(b"")
    problem, document, empty = Corpus(["docs"])
    assert isinstance(problem, Problem)
    assert isinstance(document, Document)
    assert isinstance(empty, Problem)
    assert (problem.failed, document.id, empty.failed) == (True, "docs/b.txt", False)


def test_a_file_that_vanishes_after_the_listing(folder: Path) -> None:
    for name in "ab":
        (folder / f"{name}.txt").write_text(name)
    corpus = Corpus(["docs"])
    (folder / "a.txt").unlink()
    problem, document = corpus
    what = "The file cannot be read: No such file or directory."
    assert problem == Problem("docs/a.txt", what, failed=True)
    assert isinstance(document, Document)
    assert not corpus.complete


def test_a_file_without_permission(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "a.txt").write_text("secret")

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    corpus = Corpus(["docs"])
    monkeypatch.setattr(builtins, "open", refuse)
    items = list(corpus)
    monkeypatch.undo()
    assert items == [Problem("docs/a.txt", "The file cannot be read: Permission denied.", True)]


class Failing(io.RawIOBase):
    """A stream that breaks after its first bytes."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self.data:
            raise OSError(5, "Input/output error")
        buffer[: len(self.data)] = self.data
        count, self.data = len(self.data), b""
        return count


@pytest.mark.parametrize(("kind", "where"), [("text", "stdin"), ("jsonl", "stdin:2")])
def test_a_stream_that_breaks(kind: Any, where: str) -> None:
    stream = io.BufferedReader(Failing(b'{"text": "one"}\n'))
    *_, problem = Corpus(["-"], ReadOptions(stdin_format=kind), stdin=stream)
    assert isinstance(problem, Problem)
    assert (problem.where, problem.failed) == (where, True)
    assert problem.what.endswith("Input/output error.")


def test_standard_input_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"piped")))
    corpus = Corpus(["-"])
    assert corpus.total_bytes is None
    assert corpus.sources == {"stdin"}
    assert list(corpus) == [Document("stdin", "stdin", "piped", {}, 5)]
    with pytest.raises(CorpusError, match=r"^Standard input can be read only once\.$"):
        list(corpus)
    named = Corpus(["-"], ReadOptions(source="notes"), stdin=io.BytesIO(b"piped"))
    assert list(named) == [Document("notes", "stdin", "piped", {}, 5)]


def test_a_compressed_text_is_binary(folder: Path) -> None:
    (folder / "a.txt.gz").write_bytes(gzip.compress(b"text" * 9, mtime=0))
    (problem,) = Corpus(["docs/a.txt.gz"])
    assert problem == Problem("docs/a.txt.gz", "The file is binary: it holds NUL bytes.", True)


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1))
def test_any_text_comes_back_as_it_was(text: str) -> None:
    stream = io.BytesIO(b"\xef\xbb\xbf" + text.encode())
    (item,) = Corpus(["-"], stdin=stream)
    if isinstance(item, Document):
        assert item.text == text
    else:
        assert (item.what, text.strip()) == ("The document is empty.", "")


@given(st.binary(max_size=64), st.sampled_from(["utf-8", "utf-16", "utf-7", "cp1252", "idna"]))
def test_no_bytes_crash(data: bytes, encoding: str) -> None:
    (item,) = Corpus(["-"], ReadOptions(encoding=encoding), stdin=io.BytesIO(data))
    if isinstance(item, Document):
        item.text.encode()


def test_any_text_can_be_shown() -> None:
    assert shown("a\x1b[2J\ud800\udcff\n") == "a\\x1b[2J\\ud800\\udcff\\n"


HTML = "This is HTML, whose tags would be read as text."


@pytest.mark.parametrize("name", ["page.html", "PAGE.HTM", "page.xhtml"])
def test_html_is_not_read_as_text(folder: Path, name: str) -> None:
    (folder / name).write_text("<p>One &amp; two</p>")
    (folder / "a.txt").write_text("text")
    with pytest.raises(CorpusError) as caught:
        Corpus([f"docs/{name}"])
    assert str(caught.value) == f"There is nothing to read. docs/{name}: {HTML}"
    assert caught.value.hint.startswith("Turn it into text first, for example: pandoc ")
    refused = Problem(f"docs/{name}", HTML, failed=True)
    for inputs, options in (
        (["docs/*"], ReadOptions()),
        ([f"docs/{name}", "docs/a.txt"], ReadOptions()),
        (["docs"], ReadOptions(include=("*",))),
    ):
        corpus = Corpus(inputs, options)
        assert refused in list(corpus)
        assert len(list(corpus)) == 2
        assert not corpus.complete
    (document,) = Corpus(["docs"])  # left out, as by default
    assert isinstance(document, Document)
