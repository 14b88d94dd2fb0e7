"""JSON lines: names, metadata, and every way in which a row can be wrong."""

from __future__ import annotations

import gzip
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from knnlm_store.corpus import Corpus, Document, Problem, ReadOptions, columns
from knnlm_store.errors import CorpusError


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def jsonl(*rows: Any) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def read(data: bytes, name: str = "rows.jsonl", **options: Any) -> list[Document | Problem]:
    """What becomes of a file of these bytes; plain, compressed and piped must agree."""
    Path(name).write_bytes(data)
    items = list(Corpus([name], ReadOptions(**options)))
    Path(f"{name}.gz").write_bytes(gzip.compress(data))
    packed = list(Corpus([f"{name}.gz"], ReadOptions(**options)))
    options["source"] = options.get("source", "rows")
    piped = list(Corpus(["-"], ReadOptions(stdin_format="jsonl", **options), io.BytesIO(data)))
    assert list(map(said, items)) == list(map(said, packed)) == list(map(said, piped))
    return items


def said(item: Document | Problem) -> tuple[Any, ...]:
    """An item without what depends on the container."""
    if isinstance(item, Document):
        return (item.source, item.name.rpartition("#")[2], item.text, item.metadata)
    return (item.where.rpartition(":")[2].rpartition("/")[2].isdecimal(), item.what, item.failed)


def ids(items: list[Document | Problem]) -> list[str]:
    return [item.id if isinstance(item, Document) else item.what for item in items]


def whats(items: list[Document | Problem]) -> list[tuple[str, str]]:
    return [(item.where, item.what) for item in items if isinstance(item, Problem) and item.failed]


def test_rows_with_and_without_ids() -> None:
    rows = jsonl({"text": "a"}, {"text": "b", "id": "B/1"}, {"text": "c", "id": 7})
    assert ids(read(rows)) == ["rows/1", "rows/B/1", "rows/7"]
    assert ids(read(rows.replace(b"\n", b"\r\n\r\n"))) == ["rows/1", "rows/B/1", "rows/7"]
    assert ids(read(b"\xef\xbb\xbf" + rows[:-1])) == ["rows/1", "rows/B/1", "rows/7"]


@pytest.mark.parametrize("name", ["r.ndjson", "r.JSONL", "r.jsonl.gz", "r.NdJson.gz"])
def test_suffixes(name: str) -> None:
    data = jsonl({"text": "a"})
    Path(name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    assert ids(list(Corpus([name]))) == ["r/1"]


def test_names_by_number_in_a_wider_source(folder: Path) -> None:
    (folder / "docs" / "sub").mkdir(parents=True)
    data = jsonl({"text": "a"}, {"text": "b", "id": "B"})
    for name in ("docs/one.jsonl", "docs/sub/two.ndjson"):
        (folder / name).write_bytes(data.replace(b"B", name[-6:].encode()))
    names = ["one.jsonl#1", ".jsonl", "sub/two.ndjson#1", "ndjson"]
    assert ids(list(Corpus(["docs"]))) == [f"docs/{name}" for name in names]
    files = ["docs/one.jsonl", "docs/sub/two.ndjson"]
    flat = [f"all/{name.removeprefix('sub/')}" for name in names]
    assert ids(list(Corpus(files, ReadOptions(source="all")))) == flat


def test_sizes_add_up_to_the_bytes_of_the_file() -> None:
    data = b"\n" + jsonl({"text": "a"}, {"text": ""}, {"text": "long" * 99})
    items = read(data)
    sizes = [item.size for item in items if isinstance(item, Document)]
    assert sizes == [1 + 14, len(data) - 15]
    packed = Corpus(["rows.jsonl.gz"])
    sizes = [item.size for item in packed if isinstance(item, Document)]
    assert sum(sizes) == packed.total_bytes == Path("rows.jsonl.gz").stat().st_size


def test_metadata() -> None:
    row = {"text": "a", "url": "x", "tags": ["p", {"q": 1.5}], "none": None, "odd": float("nan")}
    constant = {"licence": "CC0"}
    (document,) = read(jsonl(row), metadata=constant)
    assert isinstance(document, Document)
    assert document.metadata == constant
    columns = ("url", "tags", "none", "odd")
    (document,) = read(jsonl(row), metadata=constant, metadata_columns=columns)
    assert isinstance(document, Document)
    assert document.metadata == {"licence": "CC0", "url": "x", "tags": ["p", {"q": 1.5}]}


MISSING = ReadOptions(metadata_columns=("year", "ulr", "tag"), stdin_format="jsonl")
TAGGED = jsonl({"text": "a", "year": 1, "url": ""}, {"text": "b"})
NO_ROW = "No row has the metadata column 'tag', 'ulr'; there are: 'text', 'url', 'year'."


def test_metadata_that_is_missing_from_every_row_is_an_error(folder: Path) -> None:
    """Told before anything is read, as a file is known to its end."""
    Path("rows.jsonl").write_bytes(TAGGED)
    (folder / "notes").mkdir()
    Path("notes/a.txt").write_text("a")
    with pytest.raises(CorpusError, match=re.escape(NO_ROW)):
        Corpus(["notes", "rows.jsonl"], MISSING)
    one = ReadOptions(metadata_columns=("ulr",))
    with pytest.raises(CorpusError) as caught:
        Corpus(["rows.jsonl"], one)
    assert caught.value.hint == "Did you mean 'url'? Name a column that is there, or none."


def test_metadata_that_is_missing_from_every_row_of_a_pipe_is_a_problem() -> None:
    corpus = Corpus(["-"], MISSING, io.BytesIO(TAGGED))
    assert corpus.doubt == ""
    *documents, problem = corpus
    assert len(documents) == 2
    assert problem == Problem("stdin", NO_ROW, failed=True)


def test_metadata_that_is_in_another_file_is_there() -> None:
    Path("one.jsonl").write_bytes(TAGGED)
    Path("two.jsonl").write_bytes(jsonl({"text": "a", "ulr": 1, "tag": 2}))
    corpus = Corpus(["one.jsonl", "two.jsonl"], MISSING)
    assert corpus.doubt == ""
    assert whats(list(corpus)) == [
        ("one.jsonl", NO_ROW),
        ("two.jsonl", "No row has the metadata column 'year'; there are: 'tag', 'text', 'ulr'."),
    ]


def test_metadata_that_may_come_later_is_a_doubt(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows beyond those that are looked at, lines that are none, a damaged file."""
    monkeypatch.setattr(columns, "LOOKED_AT", 1)
    options = ReadOptions(metadata_columns=("late",))
    late = jsonl({"text": "c", "late": 1})
    for data in (TAGGED + late, TAGGED[:-10] + b"\n" + late):
        Path("rows.jsonl").write_bytes(data)
        doubt = Corpus(["rows.jsonl"], options).doubt
        assert doubt.startswith("None of the first rows has the metadata column 'late'; there are:")
    Path("rows.jsonl").write_bytes(jsonl({"text": "a"}) + late)
    assert Corpus(["rows.jsonl"], options).doubt == ""


def test_metadata_columns_without_rows_are_a_doubt() -> None:
    Path("a.txt").write_text("a")
    doubt = Corpus(["a.txt"], MISSING).doubt
    assert doubt == "There are no rows, and only rows have metadata columns."
    assert Corpus(["a.txt"]).doubt == ""


def test_metadata_that_cannot_be_kept_costs_only_itself() -> None:
    data = b'{"text": "a", "m": [Infinity], "n": "\\ud800", "o": 1}\n'
    first, second, document = read(data, metadata_columns=("m", "n", "o"))
    assert isinstance(first, Problem)
    assert first.what.startswith("The column 'm' cannot be kept as metadata: Out of range float")
    what = "The column 'n' holds a lone surrogate; it is left out."
    assert second == Problem("rows.jsonl:1", what, failed=True)
    assert isinstance(document, Document)
    assert document.metadata == {"o": 1}


GOOD = {"text": "good", "id": "good"}
WRONG: list[tuple[bytes, str]] = [
    (b'{"text": "a"', "The line is not JSON: Expecting ',' delimiter at column 13."),
    (b"words", "The line is not JSON: Expecting value at column 1."),
    (b'["a"]', "The line is not a JSON object but list."),
    (b"null", "The line is not a JSON object but NoneType."),
    (b'{"text": "\xff"}', "The bytes are not utf-8: 0xff at offset 10."),
    (b'{"body": "a", "n": 1}', "There is no column 'text'; there are: 'body', 'n'."),
    (b"{}", "There is no column 'text'; there are: none."),
    (b'{"text": 7}', "The column 'text' holds int, not text."),
    (b'{"text": ["a"]}', "The column 'text' holds list, not text."),
    (b'{"text": "\\ud83d"}', "The text holds a lone surrogate."),
    (b'{"text": "a", "id": 1.0}', "The column 'id' holds float, no usable id."),
    (b'{"text": "a", "id": true}', "The column 'id' holds bool, no usable id."),
    (b'{"text": "a", "id": ""}', "The column 'id' holds '', no usable id."),
    (b'{"text": "a", "id": "\\ud83d"}', r"The column 'id' holds '\ud83d', no usable id."),
    (b'{"text": "again", "id": "good"}', "The document 'rows/good' was read before; the first"),
]


@pytest.mark.parametrize(("line", "what"), WRONG)
def test_wrong_rows(line: bytes, what: str) -> None:
    items = read(jsonl(GOOD) + line + b"\n" + jsonl({"text": "more"}))
    assert ids(items)[::2] == ["rows/good", "rows/3"]
    ((where, said_what),) = whats(items)
    assert said_what.startswith(what)
    assert where == ("rows.jsonl" if "before" in what else "rows.jsonl:2")


@pytest.mark.parametrize("deep", [b'{"text": ' + b"[" * 200_000, b'{"text": 1' + b"0" * 5000])
def test_lines_beyond_the_limits_of_the_parser(deep: bytes) -> None:
    ((_, what),) = whats(read(deep))
    assert what.startswith("The line is not JSON: ")


@pytest.mark.parametrize("text", ["", " \n", None])
def test_empty_rows_are_harmless(text: str | None) -> None:
    empty, document = read(jsonl({"text": text}, GOOD))
    assert empty == Problem("rows.jsonl:1", "The document is empty.", failed=False)
    assert isinstance(document, Document)


@pytest.mark.parametrize("data", [b"", b"\n\n"])
def test_a_file_without_rows_is_harmless(data: bytes) -> None:
    items = read(data, metadata_columns=("year",))
    assert items == [Problem("rows.jsonl", "There are no rows.", failed=False)]


def test_columns_by_other_names() -> None:
    rows = jsonl({"body": "a", "key": "k"}, {"body": "b"}, {"body": "c", "key": None})
    items = read(rows, text_column="body", id_column="key")
    assert ids(items)[0] == "rows/k"
    assert whats(items) == [
        ("rows.jsonl:2", "There is no column 'key'; there are: 'body'."),
        ("rows.jsonl:3", "The column 'key' is null, no usable id."),
    ]


def test_many_columns_are_not_all_listed() -> None:
    items = read(jsonl({f"c{n}": n for n in range(20)}))
    ((_, what),) = whats(items)
    assert what.endswith("'c14', 'c15' and 12 more.")


@pytest.mark.parametrize("kept", [50, 500])
def test_truncated_gzip(kept: int) -> None:
    data = gzip.compress(jsonl(*({"text": f"row {n} {3**n}"} for n in range(99))), mtime=0)
    Path("rows.jsonl.gz").write_bytes(data[:kept])
    *documents, problem = Corpus(["rows.jsonl.gz"])
    assert all(isinstance(item, Document) for item in documents)
    assert isinstance(problem, Problem)
    assert problem.where == f"rows.jsonl.gz:{len(documents) + 1}"
    assert problem.what.startswith("The file cannot be read further: Compressed file ended before")
    assert problem.failed


def test_damaged_gzip() -> None:
    data = bytearray(gzip.compress(jsonl(*({"text": f"row {n}"} for n in range(9))), mtime=0))
    for damaged, words in ((b"no gzip", "Not a gzipped file"), (data[:-8] + b"x" * 8, "CRC check")):
        Path("rows.jsonl.gz").write_bytes(damaged)
        ((where, what),) = whats(list(Corpus(["rows.jsonl.gz"])))
        assert where.startswith("rows.jsonl.gz:")
        assert words in what
    data[10:14] = b"\xff" * 4
    Path("rows.jsonl.gz").write_bytes(data)
    ((where, what),) = whats(list(Corpus(["rows.jsonl.gz"])))
    assert where == "rows.jsonl.gz:1"
    assert "while decompressing data" in what


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda below: st.lists(below, max_size=2) | st.dictionaries(st.text(), below, max_size=2),
    max_leaves=4,
)
ROW = st.dictionaries(st.sampled_from(["text", "id", "year"]), JSON)


@given(st.lists(ROW | JSON | st.just({"text": "a", "id": "b"}), max_size=5))
def test_every_row_is_a_document_or_a_problem(rows: list[Any]) -> None:
    data = jsonl(*rows) + b"\n"
    options = ReadOptions(stdin_format="jsonl", metadata_columns=("year",))
    items = list(Corpus(["-"], options, io.BytesIO(data)))
    documents = [item for item in items if isinstance(item, Document)]
    # A row may lose its metadata and still be a document; the columns may be missing altogether.
    assert len(documents) <= len(rows) <= len(items)
    assert len({item.id for item in documents}) == len(documents)
    for item in documents:
        json.dumps([item.id, item.text, item.metadata], ensure_ascii=False).encode()


@given(st.binary(max_size=40))
def test_no_bytes_crash(data: bytes) -> None:
    options = ReadOptions(stdin_format="jsonl")
    for item in Corpus(["-"], options, io.BytesIO(data + b'\n{"text": "last"}')):
        last = item
    assert isinstance(last, Document)
    assert last.text == "last"
