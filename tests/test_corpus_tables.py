"""Parquet files and hub datasets, read offline."""

from __future__ import annotations

import datetime
import os
import sys
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from knnlm_store.corpus import Corpus, Document, Problem, ReadOptions
from knnlm_store.errors import CorpusError, MissingDependency

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(columns: Any, name: str = "rows.parquet", **options: Any) -> None:
    pq.write_table(pa.table(columns), name, **options)


def read(name: str = "rows.parquet", **options: Any) -> list[Document | Problem]:
    return list(Corpus([name], ReadOptions(**options)))


def failure(name: str = "rows.parquet", **options: Any) -> tuple[str, str]:
    (item,) = read(name, **options)
    assert isinstance(item, Problem)
    assert item.failed
    return item.where, item.what


def test_rows_by_number_and_by_id() -> None:
    texts = [f"text {n}" for n in range(1, 21)]
    write({"text": texts, "other": texts}, row_group_size=7)
    items = read()
    assert [i.id for i in items if isinstance(i, Document)] == [f"rows/{n}" for n in range(1, 21)]
    assert [i.text for i in items if isinstance(i, Document)] == texts
    sizes = [i.size for i in items if isinstance(i, Document)]
    assert sum(sizes) == Corpus(["rows.parquet"]).total_bytes == os.path.getsize("rows.parquet")
    write({"text": ["a", "b", "c"], "id": ["x", None, "z"]})
    assert [i.id for i in read() if isinstance(i, Document)] == ["rows/x", "rows/2", "rows/z"]


def test_parquet_inside_a_folder(folder: Path) -> None:
    (folder / "docs" / "sub").mkdir(parents=True)
    write({"text": ["a"]}, "docs/sub/rows.parquet")
    assert [i.id for i in read("docs") if isinstance(i, Document)] == ["docs/sub/rows.parquet#1"]


@pytest.mark.skipif(sys.platform == "darwin", reason="its file names are always UTF-8")
def test_a_file_name_that_is_not_utf8(folder: Path) -> None:
    write({"text": ["a"]})
    os.rename("rows.parquet", b"\xff.parquet")
    (document,) = read(os.fsdecode(b"\xff.parquet"))
    assert isinstance(document, Document)
    assert document.id == r"\xff/1"


TEXT_TYPES = ["string", "large_string", "string_view"]


@pytest.mark.parametrize("kind", [*TEXT_TYPES, "dictionary"])
def test_every_type_of_text(kind: str) -> None:
    column = pa.array(["a", "b", "a", None])
    column = column.dictionary_encode() if kind == "dictionary" else column.cast(kind)
    write({"text": column})
    *documents, empty = read()
    assert [i.text for i in documents if isinstance(i, Document)] == ["a", "b", "a"]
    assert empty == Problem("rows.parquet#4", "The document is empty.", failed=False)


@pytest.mark.parametrize(
    ("columns", "options", "what"),
    [
        ({"text": [1]}, {}, "The column 'text' holds int64, not text."),
        ({"text": [b"a"]}, {}, "The column 'text' holds binary, not text."),
        ({"text": [["a"]]}, {}, "The column 'text' holds list<element: string>, not text."),
        ({"body": ["a"]}, {}, "There is no column 'text'; there are: 'body'."),
        (
            {"text": ["a"], "id": ["b"]},
            {"id_column": "key"},
            "There is no column 'key'; there are: 'id', 'text'.",
        ),
    ],
)
def test_tables_that_do_not_fit(columns: Any, options: dict[str, Any], what: str) -> None:
    write(columns)
    assert failure(**options) == ("rows.parquet", what)


def test_a_column_twice() -> None:
    both = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], ["text", "text"])
    pq.write_table(both, "rows.parquet")
    assert failure() == ("rows.parquet", "There are several columns 'text'.")


def test_metadata_of_every_type() -> None:
    day = datetime.date(2024, 2, 29)
    columns = {
        "text": ["a"],
        "day": [day],
        "at": [datetime.datetime(2024, 2, 29, 12)],
        "nan": [float("nan")],
        "tags": [["x", "y"]],
        "raw": [b"x"],
        "price": [Decimal("1.5")],
    }
    write(columns)
    raw, price, document = read(metadata_columns=tuple(columns)[1:])
    what = "The column 'raw' cannot be kept as metadata: bytes is not JSON."
    assert raw == Problem("rows.parquet#1", what, failed=True)
    what = "The column 'price' cannot be kept as metadata: Decimal is not JSON."
    assert price == Problem("rows.parquet#1", what, failed=True)
    assert isinstance(document, Document)
    assert document.metadata == {
        "day": "2024-02-29",
        "at": "2024-02-29T12:00:00",
        "tags": ["x", "y"],
    }


def test_metadata_columns_that_are_not_there() -> None:
    write({"text": ["a"], "year": [1]})
    what = "No row has the metadata column 'yaer'; there are: 'text', 'year'."
    with pytest.raises(CorpusError, match=f"^{what}$") as caught:
        Corpus(["rows.parquet"], ReadOptions(metadata_columns=("yaer",)))
    assert caught.value.hint.startswith("Did you mean 'year'?")
    Path("broken.parquet").write_bytes(b"no table")
    both = ["rows.parquet", "broken.parquet"]
    doubt = Corpus(both, ReadOptions(metadata_columns=("yaer",))).doubt
    assert doubt == what.replace("No row", "None of the first rows")


def test_a_row_that_is_not_utf8_costs_only_itself() -> None:
    raw = pa.array([b"a", b"\xff", b"c"]).view("string")
    write({"text": raw})
    first, problem, third = read()
    assert isinstance(first, Document)
    assert isinstance(problem, Problem)
    assert isinstance(third, Document)
    assert problem.where == "rows.parquet#2"
    assert problem.what.startswith("The row cannot be read: 'utf-8' codec can't decode byte 0xff")


def test_damaged_files() -> None:
    write({"text": ["a"]})
    data = Path("rows.parquet").read_bytes()
    for damaged in (b"", b"PAR1", data[:-9], b"no table at all"):
        Path("rows.parquet").write_bytes(damaged)
        where, what = failure()
        assert where == "rows.parquet#1"
        assert what.startswith("The file cannot be read further: Parquet ")


def test_rows_before_the_damage_are_read() -> None:
    write({"text": [f"text {n}" for n in range(32)]}, use_dictionary=False, row_group_size=16)
    page = pq.read_metadata("rows.parquet").row_group(1).column(0).data_page_offset
    data = bytearray(Path("rows.parquet").read_bytes())
    data[page : page + 40] = b"\xff" * 40
    Path("rows.parquet").write_bytes(data)
    *documents, problem = read()
    assert [i.id for i in documents if isinstance(i, Document)][-1] == "rows/16"
    assert isinstance(problem, Problem)
    assert problem.where == "rows.parquet#17"
    assert problem.what.startswith("The file cannot be read further: ")


def test_an_empty_table_is_harmless() -> None:
    write({"text": pa.array([], "string")})
    assert read() == [Problem("rows.parquet", "There are no rows.", failed=False)]


def test_memory_does_not_grow_with_a_row_group() -> None:
    texts = [os.urandom(25_000).hex() for _ in range(200)]
    write({"text": texts, "unused": texts}, compression="none", use_dictionary=False)
    before, most = pa.total_allocated_bytes(), 0
    for item in Corpus(["rows.parquet"]):
        assert isinstance(item, Document)
        most = max(most, pa.total_allocated_bytes() - before)
    assert most < sum(map(len, texts)) / 5


def test_missing_libraries(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write({"text": ["a"]})
    (folder / "docs").mkdir()
    (folder / "docs" / "a.txt").write_text("a")
    for name in [m for m in sys.modules if m.split(".")[0] in ("pyarrow", "datasets")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "datasets", None)
    for name, library in (("rows.parquet", "pyarrow"), ("hf:docs:train", "datasets")):
        with pytest.raises(MissingDependency, match=f"^{library} is not installed") as caught:
            Corpus(["docs", name])
        assert caught.value.hint == "Run: pip install 'knnlm-store[data]'"
    assert len(read("docs")) == 1


@pytest.fixture
def hub(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A dataset as the hub would serve it, in a folder."""
    pytest.importorskip("datasets")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (folder / "verse").mkdir()
    lines = ['{"text": "a", "id": "A", "n": 1}', '{"text": " ", "id": "B", "n": 2}']
    (folder / "verse" / "train.jsonl").write_text("\n".join(lines))
    (folder / "verse" / "test.jsonl").write_text('{"text": "Größe", "n": 3}')
    return f"hf:{folder}/verse"


def test_a_hub_dataset(hub: str) -> None:
    corpus = Corpus([f"{hub}:train"], ReadOptions(metadata_columns=("n",)))
    expected = [
        Document("verse", "A", "a", {"n": 1}, 2),
        Problem(f"{hub}:train#2", "The document is empty.", failed=False),
    ]
    assert list(corpus) == expected
    assert list(corpus) == expected
    assert corpus.total_bytes is None
    assert corpus.sources == {"verse"}
    assert read(f"{hub}:default:test") == [Document("verse", "default/test#1", "Größe", {}, 7)]
    assert read(f"{hub}:test", source="s") == [Document("s", "test#1", "Größe", {}, 7)]


@pytest.mark.parametrize(
    ("suffix", "options", "words"),
    [
        (":dev", {}, "cannot be opened: .*dev"),
        (":nothing:train", {}, "cannot be opened: .*nothing"),
        ("s:train", {}, "cannot be opened: .*verses"),
        (":train", {"text_column": "body"}, "train: There is no column 'body'; there are:"),
        (":train", {"id_column": "key"}, "train: There is no column 'key'; there are:"),
        (":train", {"metadata_columns": ("m",)}, "column 'm'; there are: 'id', 'n', 'text'"),
    ],
)
def test_hub_datasets_that_do_not_fit(
    hub: str, suffix: str, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(CorpusError, match=words):
        Corpus([hub + suffix], ReadOptions(**options))


def test_a_hub_dataset_that_breaks(hub: str) -> None:
    path = Path(hub.removeprefix("hf:"), "train.jsonl")
    corpus = Corpus([f"{hub}:train"])
    path.unlink()
    (problem,) = corpus
    assert isinstance(problem, Problem)
    assert problem.where == f"{hub}:train#1"
    assert problem.what.startswith("The dataset cannot be read further: ")
    assert not corpus.complete


def test_a_hub_dataset_whose_columns_nobody_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")

    def rows() -> Iterator[dict[str, object]]:
        yield {"text": "a", "other": 1}
        yield {"body": "b"}
        raise TimeoutError("No answer\nfor 10 s.")

    stream = datasets.IterableDataset.from_generator(rows)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: stream)
    assert read("hf:org/verse:train") == [
        Document("verse", "train#1", "a", {}, 1),
        Problem("hf:org/verse:train#2", "There is no column 'text'; there are: 'body'.", True),
        Problem("hf:org/verse:train#3", "The dataset cannot be read further: No answer.", True),
    ]
