"""From a user's arguments to what is to be read, in order, before any of it is read."""

from __future__ import annotations

import glob
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TypeAlias

from knnlm_store.corpus.folders import Found, Walk, could_hold, fits, matches
from knnlm_store.corpus.values import (
    ROW_SUFFIXES,
    TABLE_SUFFIXES,
    Problem,
    ReadOptions,
    check_source,
    lossless,
    reason,
    shown,
)
from knnlm_store.errors import CorpusError, UsageError
from knnlm_store.wording import counted

HUB = "hf:"
_NAMED = 3  # folders that a message names, at most
_MARKUP = (".html", ".htm", ".xhtml")
_AS_TEXT = "Turn it into text first, for example: pandoc -t plain page.html -o page.txt"


class Kind(Enum):
    """How a target is read."""

    TEXT = "text"
    JSONL = "jsonl"
    PARQUET = "parquet"
    HUB = "hub"


@dataclass(frozen=True, slots=True)
class Target:
    """One thing to read: a file, standard input (`path` is None), or a hub dataset.

    `name` is the document's, or what precedes a row's number; empty where a container is a
    source of its own. `size` is None where nobody knows it.
    """

    kind: Kind
    path: str | None
    where: str
    source: str
    name: str
    size: int | None

    def row_name(self, number: int) -> str:
        """The name of a row that brings no id."""
        return f"{self.name}#{number}" if self.name else str(number)


@dataclass(frozen=True, slots=True)
class Nothing:
    """A source of which there is nothing to read; only where options say that this may be."""

    source: str


Item: TypeAlias = Target | Problem | Nothing


def plan(inputs: Sequence[str], options: ReadOptions) -> list[Item]:
    """What the arguments name, in their order; problems stand where their files would.

    Raises CorpusError for an argument that names nothing, UsageError for one that cannot be
    right.
    """
    if not inputs:
        raise UsageError("No input is given.", hint="Name folders, files, patterns, or -.")
    if inputs.count("-") > 1:
        raise UsageError("Standard input (-) is given twice.")
    items = list(_once(item for text in inputs for item in _resolve(text, options)))
    if all(isinstance(item, Problem) for item in items):
        first = next(item for item in items if isinstance(item, Problem))
        raise CorpusError(f"There is nothing to read. {first.where}: {first.what}", hint=_AS_TEXT)
    return items


def may_be_a_part(text: str) -> bool:
    """Whether an argument may name less than its source: a text, a pattern, a dataset's split."""
    if text == "-" or os.path.isdir(text):
        return False
    if text.startswith(HUB) or not os.path.exists(text):
        return text.startswith(HUB) or glob.has_magic(text)
    return _kind(text) is Kind.TEXT


def _once(items: Iterable[Item]) -> Iterator[Item]:
    """Drop what was given before under the same name: overlapping arguments lose nothing."""
    seen: set[tuple[str, str, str]] = set()
    for item in items:
        if isinstance(item, Target) and item.path is not None:
            key = (item.source, item.name, os.path.abspath(item.path))
            if key in seen:
                yield Problem(item.where, "This was given before; it is read once.", False)
                continue
            seen.add(key)
        yield item


def _resolve(text: str, options: ReadOptions) -> Iterable[Item]:
    if not text:
        raise UsageError("An input is empty.", hint="Name a folder, a file, a pattern, or -.")
    if text == "-":
        return [_stdin(options)]
    if text.startswith(HUB):
        return [_hub(text, options)]
    return _path(text, options)


def _path(text: str, options: ReadOptions) -> Iterable[Item]:
    try:
        status = os.stat(text)
    except (OSError, ValueError) as error:
        if glob.has_magic(text):
            return _pattern(text, options)
        raise CorpusError(
            f"{shown(text)} cannot be read: {reason(error)}.",
            hint="Check the path; a hub dataset is written hf:NAME:SPLIT.",
        ) from error
    if stat.S_ISDIR(status.st_mode):
        return _folder(text, options)
    if stat.S_ISREG(status.st_mode):
        return [_file(text, status.st_size, options)]
    raise CorpusError(
        f"{shown(text)} is neither a file nor a folder.", hint="Pipe it in and name - instead."
    )


def _stdin(options: ReadOptions) -> Target:
    kind = Kind(options.stdin_format)
    rows_alone = kind is Kind.JSONL and options.source is None
    name = "" if rows_alone else "stdin"
    return Target(kind, None, "stdin", options.source or "stdin", name, None)


def _hub(text: str, options: ReadOptions) -> Target:
    name, *rest = text.removeprefix(HUB).split(":")
    if not name or len(rest) not in (1, 2) or not all(rest):
        raise UsageError(
            f"{text!r} names no split of a hub dataset.",
            hint="Write hf:NAME:SPLIT or hf:NAME:CONFIG:SPLIT, for example hf:ag_news:train.",
        )
    source = options.source or _folder_name(name)
    return Target(Kind.HUB, text, shown(text), source, "/".join(rest), None)


def split_hub(text: str) -> tuple[str, str | None, str]:
    """Name, configuration and split of `hf:NAME[:CONFIG]:SPLIT`."""
    name, *config, split = text.removeprefix(HUB).split(":")
    return name, config[0] if config else None, split


def _file(path: str, size: int, options: ReadOptions) -> Target | Problem:
    if path.lower().endswith(_MARKUP):
        return _tagged(path)
    kind = _kind(path)
    folder, base = os.path.split(path)
    name = lossless(base)
    if kind is Kind.TEXT:
        source = options.source or _folder_name(folder)
        return Target(kind, path, shown(path), source, name, size)
    if options.source is None:
        return Target(kind, path, shown(path), check_source(_stem(name)), "", size)
    return Target(kind, path, shown(path), options.source, name, size)


def _folder(root: str, options: ReadOptions) -> list[Item]:
    walk = Walk(
        root,
        lambda path: _any(path, options.include) and not _any(path, options.exclude),
        lambda path: not _any(path, options.exclude),
    )
    return _found(walk, root, root, options, f"Looked for {', '.join(options.include)}.")


def _pattern(text: str, options: ReadOptions) -> list[Item]:
    segments = text.split("/")
    fixed = next(i for i, segment in enumerate(segments) if glob.has_magic(segment))
    root = "/".join(segments[:fixed]) or ("/" if fixed else ".")
    pattern = "/".join(segments[fixed:])
    walk = Walk(
        root,
        lambda path: fits(path, pattern) and not _any(path, options.exclude),
        lambda path: could_hold(path, pattern) and not _any(path, options.exclude),
    )
    return _found(walk, text, root, options, "A pattern matches files; write **/ for any depth.")


def _any(relative: str, patterns: Iterable[str]) -> bool:
    return any(matches(relative, pattern) for pattern in patterns)


def _found(walk: Walk, text: str, root: str, options: ReadOptions, hint: str) -> list[Item]:
    if "" in walk.stores:
        raise CorpusError(
            f"{shown(root)} is a datastore's folder or a bundle, and holds no texts.",
            hint="Name a folder of texts; a bundle is read by: knnlm-store import",
        )
    left_out = [_left_out(walk.stores, root)] if walk.stores else []
    walk.problems += left_out
    if not walk.files:
        failed = [f" {p.where}: {p.what}" for p in walk.problems if p.failed]
        if options.may_be_empty and not failed:
            return [*walk.problems, Nothing(options.source or _folder_name(root))]
        why = [*failed, *(f" {problem.what}" for problem in left_out)]
        raise CorpusError(f"{shown(text)} holds nothing to read.{''.join(why[:1])}", hint=hint)
    source = options.source or _folder_name(root)
    targets = (_inside(root, found, source) for found in walk.files)
    return [*walk.problems, *targets]


def _left_out(stores: list[str], root: str) -> Problem:
    some = ", ".join(map(shown, sorted(stores)[:_NAMED]))
    more = f" and {len(stores) - _NAMED} more" if len(stores) > _NAMED else ""
    what = f"{counted(len(stores), 'folder')} of datastores or bundles left out: {some}{more}."
    return Problem(shown(root), what, failed=False)


def _tagged(path: str) -> Problem:
    return Problem(shown(path), "This is HTML, whose tags would be read as text.", failed=True)


def _inside(root: str, found: Found, source: str) -> Target | Problem:
    path = os.path.join(root, found.relative)
    if path.lower().endswith(_MARKUP):
        return _tagged(path)
    name = lossless(found.relative)
    return Target(_kind(path), path, shown(path), source, name, found.size)


def _kind(path: str) -> Kind:
    lower = path.lower()
    if lower.endswith(ROW_SUFFIXES):
        return Kind.JSONL
    return Kind.PARQUET if lower.endswith(TABLE_SUFFIXES) else Kind.TEXT


def _stem(name: str) -> str:
    lower = name.lower()
    suffix = next(s for s in ROW_SUFFIXES + TABLE_SUFFIXES if lower.endswith(s))
    return name[: -len(suffix)]


def _folder_name(path: str) -> str:
    """A folder's own name, as the user wrote it; where it ends in `..`, as it resolves."""
    whole = os.path.realpath(path) if ".." in path.split("/") else os.path.abspath(path)
    return check_source(lossless(os.path.basename(whole)))
