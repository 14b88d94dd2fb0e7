"""Files that commands write for a browser."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from knnlm_store.errors import UsageError
from knnlm_store.pages import check_place, write

AGAIN = "Again."


def test_a_page_takes_the_place_of_another(tmp_path: Path) -> None:
    page, linked = tmp_path / "page.html", tmp_path / "linked.html"
    linked.symlink_to("page.html")
    for text in ("ä", "b"):
        check_place(linked, "page")
        write(linked, text, "page", hint=AGAIN)
        assert page.read_text(encoding="utf-8") == text
    assert linked.is_symlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["linked.html", "page.html"]
    assert page.stat().st_mode & 0o777 == 0o666 & ~_umask()
    page.chmod(0o600)
    write(linked, "c", "page", hint=AGAIN)
    assert page.stat().st_mode & 0o777 == 0o600


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_what_is_no_file_is_written_to(tmp_path: Path) -> None:
    pipe, read = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()))
    reader.start()
    check_place(pipe, "page")
    write(pipe, "text", "page", hint=AGAIN)
    reader.join(60)
    assert (read, pipe.is_fifo()) == (["text"], True)


def test_a_failure_leaves_the_old_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "page.html"
    write(page, "old", "page", hint=AGAIN)
    with pytest.raises(UnicodeEncodeError):
        write(page, "new \ud800", "page", hint=AGAIN)
    full = OSError(28, "No space left on device")
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(full))
    with pytest.raises(UsageError, match=r"page could not be written to .*No space left") as told:
        write(page, "new", "page", hint=AGAIN)
    assert told.value.hint == AGAIN
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("page.html", "old")]


@pytest.mark.parametrize(
    ("place", "message", "hint"),
    [
        ("", "is a folder, not a file for the page.", "Name a file, such as "),
        ("no/page.html", "There is no folder ", "mkdir -p "),
    ],
)
def test_places_that_cannot_be(tmp_path: Path, place: str, message: str, hint: str) -> None:
    with pytest.raises(UsageError, match=message) as told:
        check_place(tmp_path / place, "page")
    assert told.value.hint.startswith(hint)
    with pytest.raises(UsageError, match="could not be written"):
        write(tmp_path / place, "text", "page", hint=AGAIN)


def test_a_folder_of_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write everywhere
    with pytest.raises(UsageError, match="The page cannot be written to "):
        check_place(tmp_path / "page.html", "page")
