"""Documents with made-up keys, written as ingest writes them; no model is needed.

`python -m tests.changing ROUNDS URI [URI ALIAS]` changes datastores in a process of its own: each
round adds a document and forgets the last round's, and moves the alias if there is one.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from knnlm_store.backend import Aliased, VectorBackend
from knnlm_store.catalog import Catalog
from knnlm_store.datastore import Datastore
from knnlm_store.documents import Change, DocumentRecord
from knnlm_store.forgetting import forget
from knnlm_store.values import Entries, Float32, Int64
from knnlm_store.writer import DocumentWriter

CHANGES = ("upsert", "delete", "flush", "put_records", "delete_records")
SOURCE = "s"


class Killed(BaseException):
    """What a SIGKILL is to the code that it hits."""


def tokens_of(text: str) -> Int64:
    return np.frombuffer(text.encode(), np.uint8).astype(np.int64)


def keys_of(name: str, text: str, dimension: int) -> Float32:
    """Keys that only this text has, float32 `[n, d]`."""
    seed = int.from_bytes(hashlib.sha256(f"{name} {text}".encode()).digest()[:8], "big")
    keys = np.random.default_rng(seed).normal(size=(len(text.encode()), dimension))
    return keys.astype(np.float32)


def write(backend: VectorBackend, texts: Mapping[str, str], *, source: str = SOURCE) -> None:
    """Add or replace documents, after mending what a killed run left."""
    catalog = Catalog(backend)
    catalog.recover()
    dimension = backend.spec().dimension
    with DocumentWriter(backend, catalog, give_up_after=0.0) as writer:
        for name, text in texts.items():
            digest = hashlib.sha256(text.encode()).hexdigest()[:32]
            known = catalog.get(f"{source}/{name}")
            if known is not None and known.version.digest == digest:
                continue
            keys, tokens = keys_of(name, text, dimension), tokens_of(text)
            version = catalog.new_version(f"{source}/{name}", digest, len(tokens), len(tokens))
            change = Change(DocumentRecord(source, name, {}, version))
            writer.begin(change)
            if len(tokens):
                writer.write(version, 0, keys, tokens)
            writer.done(change)


def texts_in(backend: VectorBackend) -> dict[str, str]:
    """The documents, as their entries spell them; fails where catalog and entries disagree."""
    records = {d.version.number: d for d in Catalog(backend)}
    parts = list(backend.scan())
    found: dict[int, dict[int, int]] = {number: {} for number in records}
    if parts:
        whole = Entries.concatenate(parts)
        for number, position, token in zip(
            whole.documents.tolist(), whole.positions.tolist(), whole.tokens.tolist(), strict=True
        ):
            assert position not in found[number]  # nor is there a number without a document
            found[number][position] = token
    texts = {}
    for number, record in records.items():
        spelt = found[number]
        assert sorted(spelt) == list(range(record.version.tokens))
        texts[record.name] = bytes(spelt[i] for i in range(len(spelt))).decode()
    return texts


def fragile(backend: VectorBackend, fatal: int, *, after: bool) -> Callable[[], bool]:
    """Have a backend die before or after its n-th change from now; tells whether it did."""
    left = [fatal]

    def dying(call: Callable[..., None]) -> Callable[..., None]:
        def wrapped(*arguments: Any) -> None:
            left[0] -= 1
            if left[0] < 0 and not (after and left[0] == -1):
                raise Killed
            call(*arguments)
            if left[0] < 0:
                raise Killed

        return wrapped

    for name in CHANGES:
        setattr(backend, name, dying(getattr(backend, name)))
    return lambda: left[0] < 0


def forget_names(store: Datastore, names: Iterable[str]) -> None:
    forget(store, [f"{SOURCE}/{name}" for name in names])


def main(rounds: str, uri: str, other: str = "", alias: str = "") -> None:
    """Change datastores so many times, and say after each round that it is over."""
    stores = [Datastore.open(each) for each in (uri, other) if each]
    for turn in range(int(rounds)):
        for store in stores:
            write(store.backend, {f"round{turn}": f"{turn} rounds of text " * 4})
            if turn:
                forget_names(store, [f"round{turn - 1}"])
        if alias:
            current = stores[turn % 2].backend
            assert isinstance(current, Aliased)
            current.set_alias(alias)
        print(turn, flush=True)
    for store in stores:
        store.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
