"""A corpus: the documents of several inputs, one after the other."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from hashlib import blake2b
from typing import BinaryIO

from knnlm_store.corpus.columns import doubt, known
from knnlm_store.corpus.inputs import Kind, Nothing, Target, plan
from knnlm_store.corpus.readers import json_rows, text_document
from knnlm_store.corpus.rows import documents
from knnlm_store.corpus.tables import Hub, hub_rows, open_hub, parquet_rows
from knnlm_store.corpus.values import Document, Problem, ReadOptions, reason
from knnlm_store.errors import CorpusError
from knnlm_store.registry import require


class Corpus:
    """Documents of folders, files, patterns, standard input (`-`) and hub datasets.

    Folders are listed and datasets are opened at once, so that a wrong argument raises
    CorpusError or UsageError here, not after hours; texts are read while iterating, which may
    be done again unless standard input is among the inputs. doubt: a sentence about metadata
    columns that may be nowhere, or nothing; where that is sure it is a CorpusError.
    """

    def __init__(
        self,
        inputs: Sequence[str],
        options: ReadOptions | None = None,
        stdin: BinaryIO | None = None,
    ) -> None:
        self._options = options or ReadOptions()
        self._plan = plan(inputs, self._options)
        self._stdin = stdin
        self._stdin_read = False
        self._complete = False
        self._hub: dict[Target, Hub] = {}
        for target in self._targets():
            if target.kind is Kind.PARQUET:
                require("pyarrow", "data")
            elif target.kind is Kind.HUB:
                self._hub[target] = open_hub(target, self._options)
        found = (each for t in self._targets() for each in known(t, self._hub.get(t)))
        self.doubt = doubt(self._options.metadata_columns, found)

    @property
    def total_bytes(self) -> int | None:
        """Bytes of input, as the documents' sizes count them; None if nobody knows."""
        total = 0
        for target in self._targets():
            if target.size is None:
                return None
            total += target.size
        return total

    @property
    def complete(self) -> bool:
        """Whether the last iteration ran to its end, lost nothing and met no limit."""
        return self._complete

    @property
    def sources(self) -> set[str]:
        """The sources that documents may come from."""
        return {item.source for item in self._plan if isinstance(item, Target | Nothing)}

    def __iter__(self) -> Iterator[Document | Problem]:
        self._complete = False
        failed, count = False, 0
        for item in self._distinct():
            if isinstance(item, Document):
                count += 1
            else:
                failed |= item.failed
            yield item
            if count == self._options.limit:
                return
        self._complete = not failed

    def _distinct(self) -> Iterator[Document | Problem]:
        """Let the first document of an id pass, and report later ones."""
        seen: set[bytes] = set()
        for where, item in self._items():
            if isinstance(item, Document):
                # Digests, so that what is kept does not grow with the length of names.
                digest = blake2b(item.id.encode(), digest_size=16).digest()
                if digest in seen:
                    what = f"The document {item.id!r} was read before; the first one is kept."
                    item = Problem(where, what, failed=True)
                seen.add(digest)
            yield item

    def _items(self) -> Iterator[tuple[str, Document | Problem]]:
        for target in self._plan:
            if isinstance(target, Nothing):
                continue
            if isinstance(target, Problem):
                yield target.where, target
                continue
            for item in self._read(target):
                yield target.where, item

    def _read(self, target: Target) -> Iterator[Document | Problem]:
        if target.kind is Kind.HUB:
            rows = hub_rows(self._hub[target], target)
            yield from documents(rows, target, self._options)
            return
        try:
            with self._open(target) as stream:
                yield from self._read_stream(stream, target)
        except OSError as error:
            yield Problem(target.where, f"The file cannot be read: {reason(error)}.", failed=True)

    def _read_stream(self, stream: BinaryIO, target: Target) -> Iterator[Document | Problem]:
        options = self._options
        if target.kind is Kind.TEXT:
            yield text_document(stream, target, options)
        elif target.kind is Kind.PARQUET:
            yield from documents(parquet_rows(stream, target, options), target, options)
        else:
            yield from documents(json_rows(stream, target.where), target, options)

    def _open(self, target: Target) -> AbstractContextManager[BinaryIO]:
        return open(target.path, "rb") if target.path else nullcontext(self._standard_input())

    def _standard_input(self) -> BinaryIO:
        if self._stdin_read:
            raise CorpusError("Standard input can be read only once.")
        self._stdin_read = True
        return self._stdin or sys.stdin.buffer

    def _targets(self) -> Iterator[Target]:
        return (item for item in self._plan if isinstance(item, Target))
