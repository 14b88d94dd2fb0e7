"""From arguments to sources and names: folders, files, patterns, links, odd names."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from knnlm_store.corpus import Corpus, Document, Problem, ReadOptions
from knnlm_store.errors import CorpusError, UsageError


def ids(*inputs: str | Path, **options: Any) -> list[str]:
    """Ids of the documents; a problem fails the test."""
    items = list(Corpus([str(i) for i in inputs], ReadOptions(**options)))
    assert not [item for item in items if isinstance(item, Problem)]
    return [item.id for item in items if isinstance(item, Document)]


@pytest.fixture
def law(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder `law` in the current one, with files made in no helpful order."""
    monkeypatch.chdir(tmp_path)
    for name in ("z.md", "a.txt", "part/b.txt", "part-1/c.md", "part/deep/d.txt"):
        write(tmp_path / "law" / name, f"Text of {name}.")
    write(tmp_path / "law" / "picture.png", "no text")
    write(tmp_path / "law" / ".hidden.txt", "hidden")
    write(tmp_path / "law" / ".git" / "e.txt", "hidden")
    return tmp_path / "law"


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


ALL = ["law/a.txt", "law/part-1/c.md", "law/part/b.txt", "law/part/deep/d.txt", "law/z.md"]


@pytest.mark.parametrize("argument", ["law", "law/", "./law", "../{}/law", "{tmp}/law", "law/."])
def test_a_folder_however_it_is_written(law: Path, argument: str) -> None:
    argument = argument.replace("{tmp}", str(law.parent)).replace("{}", law.parent.name)
    assert ids(argument) == ALL
    assert Corpus([argument]).sources == {"law"}


def test_dots_are_named_as_they_resolve(law: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(law)
    assert ids(".") == ALL
    monkeypatch.chdir(law / "part")
    assert ids("..") == ALL
    assert ids("b.txt") == ["part/b.txt"]
    assert ids("*.txt") == ["part/b.txt"]
    assert ids("../a.txt") == ["law/a.txt"]


def test_the_name_of_a_link_is_the_source(law: Path) -> None:
    os.symlink("law", "latest")
    assert ids("latest") == [name.replace("law", "latest", 1) for name in ALL]
    os.makedirs("elsewhere")
    os.symlink(law / "part" / "deep", "elsewhere/deep")
    assert ids("elsewhere/deep/..") == ["part/b.txt", "part/deep/d.txt"]


@pytest.mark.usefixtures("law")
def test_folder_file_and_pattern_agree() -> None:
    assert ids("law/a.txt") == ids("law/*.txt") == ["law/a.txt"]
    assert ids("law/**/*.txt") == [name for name in ALL if name.endswith(".txt")]
    assert ids("law/part/*") == ["part/b.txt"]
    assert ids("law/*/*.[mt][dx]*") == ["law/part-1/c.md", "law/part/b.txt"]
    assert ids("l?w/a.txt", source="s") == ["s/law/a.txt"]


def test_a_pattern_that_is_a_file_is_the_file(law: Path) -> None:
    write(law / "[1].txt", "one")
    assert ids("law/[1].txt") == ["law/[1].txt"]


def test_a_pattern_from_the_root(law: Path) -> None:
    first, *rest = law.parts[1:]
    pattern = "/".join(["", first[:-1] + "?", *rest, "a.txt"])
    assert ids(pattern, source="s") == ["s/" + "/".join([first, *rest, "a.txt"])]


@pytest.mark.usefixtures("law")
def test_include_and_exclude() -> None:
    assert ids("law", include=("*.md",)) == ["law/part-1/c.md", "law/z.md"]
    assert ids("law", include=("part/*",)) == ["law/part/b.txt"]
    assert ids("law", include=("part/**/*.txt",)) == ["law/part/b.txt", "law/part/deep/d.txt"]
    assert ids("law", exclude=("part",)) == ["law/a.txt", "law/part-1/c.md", "law/z.md"]
    assert ids("law", exclude=("part/deep/", "*.md")) == ["law/a.txt", "law/part/b.txt"]
    assert ids("law/**/*.txt", exclude=("deep",)) == ["law/a.txt", "law/part/b.txt"]


def test_a_source_can_be_named(law: Path) -> None:
    assert ids("law/a.txt", "law/part/b.txt", source="mine") == ["mine/a.txt", "mine/b.txt"]
    assert Corpus(["law", "law/part/b.txt"]).sources == {"law", "part"}
    assert Corpus([str(law)], ReadOptions(source="mine")).sources == {"mine"}


def test_overlapping_arguments_lose_nothing(law: Path) -> None:
    corpus = Corpus(["law", str(law / "a.txt"), "law/*.md"])
    items = list(corpus)
    assert [item.id for item in items if isinstance(item, Document)] == ALL
    assert [item for item in items if isinstance(item, Problem)] == [
        Problem(str(law / "a.txt"), "This was given before; it is read once.", failed=False),
        Problem("law/z.md", "This was given before; it is read once.", failed=False),
    ]
    assert corpus.complete


@pytest.mark.usefixtures("law")
@pytest.mark.parametrize(
    ("argument", "message", "hint"),
    [
        ("nothing", r"nothing cannot be read: No such file or directory\.", "hf:NAME:SPLIT"),
        ("law/a.txt/", r"law/a.txt/ cannot be read: Not a directory\.", "Check the path"),
        ("a\0b", r"a\\x00b cannot be read: embedded null byte\.", "Check the path"),
        ("law/*.rst", r"law/\*.rst holds nothing to read\.", "write **/ for any depth"),
        ("law/*/*/*/*", r"law/\*/\*/\*/\* holds nothing to read\.", "**/"),
        ("none/*.txt", r"none/\*.txt holds nothing to read\. none: .* No such file", "**/"),
    ],
)
def test_arguments_that_name_nothing(argument: str, message: str, hint: str) -> None:
    with pytest.raises(CorpusError, match=message) as caught:
        Corpus(["law", argument])
    assert hint in caught.value.hint


def test_a_folder_without_texts(tmp_path: Path) -> None:
    write(tmp_path / "data.csv", "a,b")
    with pytest.raises(CorpusError, match="holds nothing to read") as caught:
        Corpus([str(tmp_path)])
    assert "*.txt, *.md, *.jsonl, " in caught.value.hint
    assert ids(tmp_path / "data.csv") == [f"{tmp_path.name}/data.csv"]


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ([], r"No input is given\."),
        ([""], r"An input is empty\."),
        (["-", "-"], r"Standard input \(-\) is given twice\."),
        (["hf:"], r"'hf:' names no split of a hub dataset\."),
        (["hf:wikitext"], r"'hf:wikitext' names no split of a hub dataset\."),
        (["hf:a:b:c:d"], "names no split"),
        (["hf:a::b"], "names no split"),
        (["hf::train"], "names no split"),
    ],
)
def test_arguments_that_cannot_be_right(inputs: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Corpus(inputs)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"source": ""}, "'' cannot name a source: it must not be empty or hold a slash"),
        ({"source": "a/b"}, "'a/b' cannot name a source"),
        ({"source": "\udcff"}, "cannot name a source"),
        ({"limit": 0}, "A limit of 0 documents leaves nothing to read"),
        ({"encoding": "klingon"}, "'klingon' is not a text encoding"),
        ({"encoding": "hex"}, "'hex' is not a text encoding"),
        ({"encoding": "undefined"}, "'undefined' is not a text encoding"),
        ({"text_column": "id"}, "The column 'id' cannot be both text and id"),
        ({"metadata_columns": ("text",)}, "The text column 'text' cannot be metadata as well"),
        (
            {"metadata_columns": ("year",), "metadata": {"year": "1984"}},
            "Metadata 'year' is given both as a column and as a constant",
        ),
        ({"include": ()}, "No pattern of files to include is given"),
        ({"stdin_format": "csv"}, "'csv' is no format of standard input"),
    ],
)
def test_options_that_cannot_be_right(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ReadOptions(**options)


def test_the_root_folder_has_no_name_of_its_own(law: Path) -> None:
    write(law / ".jsonl", '{"text": "x"}')
    with pytest.raises(UsageError, match="'' cannot name a source") as caught:
        Corpus(["law/.jsonl"])
    assert caught.value.hint == "Name the source yourself, with letters and digits."
    assert ids("law/.jsonl", source="s") == ["s/.jsonl#1"]
