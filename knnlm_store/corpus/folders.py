"""The files below a folder: sorted, safe from loops of links, without hidden ones or datastores."""

from __future__ import annotations

import os
import stat
from collections import deque
from collections.abc import Callable, Collection, Sequence
from fnmatch import fnmatchcase
from typing import NamedTuple

from knnlm_store.corpus.values import Problem, reason, shown

_STORES = (
    (".knnlm-store*",),  # for the adapter of any backend; Qdrant's folders have it
    ("bundle.json", "records.parquet"),
    ("store.sqlite", "keys.*", "tokens.*"),  # FAISS
    ("LOCK", "collections", "databases"),  # Milvus Lite
)
"""What stands in a folder of ours, each of them: there is no text in it to be read."""


class Found(NamedTuple):
    """A regular file: its path relative to the root, and its bytes."""

    relative: str
    size: int


def matches(relative: str, pattern: str) -> bool:
    """Whether a relative path fits a pattern; one without a slash is a name at any depth."""
    pattern = pattern.rstrip("/")
    return fits(relative, pattern.lstrip("/") if "/" in pattern else f"**/{pattern}")


def is_store(names: Collection[str]) -> bool:
    """Whether a folder of these names is a datastore's, or a bundle."""
    return any(all(any(fnmatchcase(n, p) for n in names) for p in marks) for marks in _STORES)


def fits(relative: str, pattern: str) -> bool:
    """Whether a relative path fits a pattern from the root on; `**` spans folders."""
    return _fits(relative.split("/"), pattern.split("/"))


def could_hold(folder: str, pattern: str) -> bool:
    """Whether something below the folder might fit a pattern that starts at the root."""
    names, segments = folder.split("/"), pattern.split("/")
    if "**" in segments:
        return True
    return len(names) < len(segments) and all(map(fnmatchcase, names, segments))


def _fits(names: Sequence[str], segments: Sequence[str]) -> bool:
    if not segments:
        return not names
    if segments[0] == "**":
        return _fits(names, segments[1:]) or (bool(names) and _fits(names[1:], segments))
    return bool(names) and fnmatchcase(names[0], segments[0]) and _fits(names[1:], segments[1:])


class Walk:
    """Lists the files below a root once; `files` are sorted, `problems` are as met.

    stores: folders that are left out, as datastores or bundles.

    Every folder is read once, however many links lead to it, and under its own path rather
    than a link's: links wait until the real folders are through.
    """

    def __init__(
        self, root: str, keep: Callable[[str], bool], enter: Callable[[str], bool]
    ) -> None:
        self.files: list[Found] = []
        self.problems: list[Problem] = []
        self.stores: list[str] = []
        self._root, self._keep, self._enter = root, keep, enter
        self._seen: set[tuple[int, int]] = set()
        self._links = deque([""])
        while self._links:
            self._descend(self._links.popleft())
        self.files.sort()

    def _descend(self, top: str) -> None:
        stack = [top]
        while stack:
            folder = stack.pop()
            try:
                if self._first_time(folder):
                    stack += reversed(self._list(folder))
            except OSError as error:
                self._problem(folder, f"The folder cannot be listed: {reason(error)}.", True)

    def _first_time(self, folder: str) -> bool:
        status = os.stat(self._path(folder))
        identity = (status.st_dev, status.st_ino)
        if identity in self._seen:
            self._problem(folder, "A link leads to a folder that is read already.", False)
            return False
        self._seen.add(identity)
        return True

    def _list(self, folder: str) -> list[str]:
        """Take the files of one folder and return its subfolders."""
        below: list[str] = []
        with os.scandir(self._path(folder)) as entries:
            ordered = sorted(entries, key=lambda entry: entry.name)
        if is_store([entry.name for entry in ordered]):
            self.stores.append(folder)
            return []
        for entry in ordered:
            relative = f"{folder}/{entry.name}" if folder else entry.name
            if entry.name.startswith("."):
                continue
            # Not entry.is_dir(), which raises for a link that leads to itself.
            if not os.path.isdir(self._path(relative)):
                self._file(relative)
            elif self._enter(relative):
                (self._links if entry.is_symlink() else below).append(relative)
        return below

    def _file(self, relative: str) -> None:
        if not self._keep(relative):
            return
        try:
            status = os.stat(self._path(relative))
        except OSError as error:
            self._problem(relative, f"The file cannot be read: {reason(error)}.", True)
            return
        if stat.S_ISREG(status.st_mode):
            self.files.append(Found(relative, status.st_size))
        else:
            self._problem(relative, "This is not a regular file.", False)

    def _path(self, relative: str) -> str:
        return os.path.join(self._root, relative) if relative else self._root

    def _problem(self, relative: str, what: str, failed: bool) -> None:
        self.problems.append(Problem(shown(self._path(relative)), what, failed))
