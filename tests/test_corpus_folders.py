"""Folders: order, links, odd names, and which paths a pattern fits."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from knnlm_store.corpus import Corpus, Document, Problem, ReadOptions
from knnlm_store.corpus.folders import could_hold, fits, matches
from knnlm_store.errors import CorpusError


def problems(*inputs: str) -> list[Problem]:
    return [item for item in Corpus(inputs) if isinstance(item, Problem)]


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


def test_loops_of_links_end(law: Path) -> None:
    os.symlink("..", law / "part" / "up")
    os.symlink("self", law / "self.txt")
    os.symlink("self.txt", law / "self")
    found = problems("law")
    again = "A link leads to a folder that is read already."
    assert Problem("law/part/up", again, failed=False) in found
    assert ("law/self.txt", True) in [(p.where, p.failed) for p in found]
    assert len(found) == 2
    assert problems("law/**/*.txt") == found


def test_linked_folders_are_read_once_under_their_real_path(law: Path, tmp_path: Path) -> None:
    write(tmp_path / "other" / "x.txt", "outside")
    os.symlink(tmp_path / "other", law / "a-link")
    os.symlink("part", law / "0-first")
    items = list(Corpus(["law"]))
    names = [item.id for item in items if isinstance(item, Document)]
    assert names == ["law/a-link/x.txt", *ALL]
    again = "A link leads to a folder that is read already."
    assert [p for p in items if isinstance(p, Problem)] == [Problem("law/0-first", again, False)]


def test_a_broken_link_and_a_pipe(law: Path) -> None:
    os.symlink("nowhere", law / "gone.txt")
    os.symlink("nowhere", law / "gone.png")
    os.mkfifo(law / "pipe.txt")
    assert problems("law") == [
        Problem("law/gone.txt", "The file cannot be read: No such file or directory.", True),
        Problem("law/pipe.txt", "This is not a regular file.", False),
    ]
    with pytest.raises(CorpusError, match=r"^law/pipe.txt is neither a file nor a folder\.$"):
        Corpus(["law/pipe.txt"])


def test_a_folder_that_cannot_be_listed(law: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scandir: Callable[[str], Any] = os.scandir

    def refusing(path: str) -> Any:
        if path.endswith("part"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    denied = "The folder cannot be listed: Permission denied."
    corpus = Corpus(["law"])
    assert [p for p in corpus if isinstance(p, Problem)] == [Problem("law/part", denied, True)]
    assert not corpus.complete
    with pytest.raises(CorpusError, match=rf"holds nothing to read\. {law}/part: {denied}"):
        Corpus([str(law / "part")])


@pytest.mark.skipif(sys.platform == "darwin", reason="its file names are always UTF-8")
def test_names_that_are_not_utf8_survive(law: Path) -> None:
    with open(os.fsencode(law) + b"/caf\xe9.txt", "wb") as file:
        file.write(b"")
    with open(os.fsencode(law) + b"/\xff.txt", "wb") as file:
        file.write(b"coffee")
    assert problems("law") == [Problem(r"law/caf\xe9.txt", "The document is empty.", False)]
    names = [item.id for item in Corpus(["law"]) if isinstance(item, Document)]
    assert names == [*ALL, r"law/\xff.txt"]


def test_names_with_line_breaks_survive_and_are_shown_on_one_line(law: Path) -> None:
    write(law / "two\nlines.txt", "text")
    write(law / "three\r\n\tlines\u2028.txt", " ")
    assert "law/two\nlines.txt" in [i.id for i in Corpus(["law"]) if isinstance(i, Document)]
    assert [p.where for p in problems("law")] == [r"law/three\r\n\tlines\u2028.txt"]


def test_order_does_not_depend_on_the_file_system(
    law: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = [item.id for item in Corpus([str(law)]) if isinstance(item, Document)]
    scandir = os.scandir

    class Backwards:
        def __init__(self, path: str) -> None:
            with scandir(path) as entries:
                self.entries = sorted(entries, key=lambda e: e.name, reverse=True)

        def __enter__(self) -> list[os.DirEntry[str]]:
            return self.entries

        def __exit__(self, *_: object) -> None:
            self.entries = []

    monkeypatch.setattr(os, "scandir", Backwards)
    found = [item.id for item in Corpus([str(law)]) if isinstance(item, Document)]
    assert found == expected == ALL


@pytest.mark.parametrize(
    "names",
    [
        (".knnlm-store-engine", "collections/a/b.parquet"),
        (".knnlm-store", "b.txt"),
        ("bundle.json", "records.parquet", "documents.parquet", "entries-00000.parquet"),
        ("store.sqlite", "keys.1", "tokens.1", "b.txt"),
        ("LOCK", "databases/x", "collections/a/b.parquet"),
    ],
)
def test_datastores_and_bundles_are_left_out(law: Path, names: tuple[str, ...]) -> None:
    for place in ("memory", "part/memory", "part/deep/memory", "part-1/memory"):
        for name in names:
            write(law / place / name, "no text")
    items = list(Corpus(["law"]))
    assert [item.id for item in items if isinstance(item, Document)] == ALL
    left_out = (
        "4 folders of datastores or bundles left out: memory, part-1/memory, part/deep/memory and "
        "1 more."
    )
    assert [p for p in items if isinstance(p, Problem)] == [Problem("law", left_out, False)]
    assert len(problems("law/part/**")) == 1
    with pytest.raises(CorpusError, match=r"holds nothing to read\. 1 folder of datastores"):
        Corpus(["law/*/*.rst"])
    for whole in ("law/memory", "law/memory/*"):
        with pytest.raises(CorpusError, match="law/memory is a datastore's folder or a bundle"):
            Corpus([whole], ReadOptions(may_be_empty=True))


@pytest.mark.parametrize("name", ["bundle.json", "records.parquet", "store.sqlite", "LOCK"])
def test_another_programs_folder_is_read(law: Path, name: str) -> None:
    write(law / "part" / name, "no text")
    items = list(Corpus(["law"], ReadOptions(exclude=("*.parquet",))))
    assert [item.id for item in items if isinstance(item, Document)] == ALL
    assert len(items) == len(ALL)


NAME = st.text("ab.", min_size=1, max_size=3)
PATH = st.lists(NAME, min_size=1, max_size=4).map("/".join)
SEGMENT = st.one_of(NAME, st.sampled_from(["*", "**", "a*", "?b", "[ab]"]))
PATTERN = st.lists(SEGMENT, min_size=1, max_size=4).map("/".join)


@given(PATH, PATTERN)
def test_patterns_without_double_stars_match_as_pathlib_does(path: str, pattern: str) -> None:
    pattern = pattern.replace("**", "*")
    same_depth = path.count("/") == pattern.count("/")
    # pathlib drops `.` segments, and anchors a pattern at the end.
    if not {".", ""} & {*path.split("/"), *pattern.split("/")}:
        assert fits(path, pattern) == (same_depth and PurePosixPath(path).match(pattern))


@given(PATH, PATTERN)
def test_a_walk_enters_every_folder_above_a_match(path: str, pattern: str) -> None:
    folders = path.split("/")
    if fits(path, pattern):
        assert all(could_hold("/".join(folders[:n]), pattern) for n in range(1, len(folders)))


@pytest.mark.parametrize(
    ("path", "pattern", "expected"),
    [
        ("a/b/c.txt", "*.txt", True),
        ("a/b/c.txt", "/*.txt", False),
        ("c.txt", "/*.txt", True),
        ("a/b/c.txt", "b", False),
        ("a/b", "b/", True),
        ("a/b/c.txt", "a/*.txt", False),
        ("a/b/c.txt", "a/**", True),
        ("a/c.txt", "a/**/c.txt", True),
        ("a/b/c.txt", "a/**/c.txt", True),
        ("a/b/c.txt", "**", True),
        ("A.TXT", "*.txt", False),
    ],
)
def test_matching(path: str, pattern: str, expected: bool) -> None:
    assert matches(path, pattern) is expected
