"""Ingests, reads and texts that meet faults, and what must come of them all the same."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import torch

from knnlm_store import retry, writer
from knnlm_store.datastore import Datastore
from knnlm_store.errors import KnnlmError
from knnlm_store.generation import KnnLM
from knnlm_store.ingest import ingest
from knnlm_store.mixture import Fixed, Mixture
from knnlm_store.models import LanguageModel
from knnlm_store.values import Entries, Float32, Neighbours
from tests.ingest_support import assert_whole, corpus, held, new_store, prose

BEFORE = {f"{i:02}": prose(i, 30 + 5 * i) for i in range(12)}
AFTER = {name: text if int(name) % 3 else text[::-1] for name, text in BEFORE.items()} | {
    f"new{i}": prose(100 + i, 40) for i in range(6)
}
MIXTURE = Mixture(8, 2.0, Fixed(0.5))
PROMPT = "the creditor shall disc"


# -- moments ---------------------------------------------------------------------------------------


def at_calls(
    patcher: pytest.MonkeyPatch, owner: Any, name: str, what: Mapping[int, Callable[[], object]]
) -> list[int]:
    """Do something before the n-th call of a method, counted from 1; gives the count, in a list."""
    real, calls = getattr(owner, name), [0]

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] in what:
            what[calls[0]]()
        return real(*args, **kwargs)

    patcher.setattr(owner, name, counted)
    return calls


def hasty(
    patcher: pytest.MonkeyPatch, give_up_after: float = 120.0, group_seconds: float = 0.05
) -> None:
    """Have ingests write and commit small pieces, and retry for so many seconds."""
    patcher.setattr(writer, "_GROUP_SECONDS", group_seconds)
    patcher.setattr(writer, "_BATCH", 64 * 128)
    patcher.setattr(retry, "GIVE_UP_AFTER", give_up_after)


def until(done: Callable[[], bool], seconds: float) -> None:
    """Ask again and again; AssertionError when the time is over."""
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end
        time.sleep(0.1)


class Chance:
    """A mood for proxies: one of some faults at a rate, drawn by a seed."""

    def __init__(self, seed: int, rate: float, faults: Sequence[str]) -> None:
        self._random, self._lock = random.Random(seed), threading.Lock()
        self._rate, self._faults = rate, faults

    def __call__(self, _: str) -> str:
        with self._lock:
            if self._random.random() < self._rate:
                return self._random.choice(self._faults)
            return "pass"


# -- truth -----------------------------------------------------------------------------------------


def quiet_run(lm: LanguageModel, *stages: Mapping[str, str]) -> Datastore:
    """What the same ingests make where nothing goes wrong."""
    store = new_store(lm)
    for texts in stages:
        ingest(corpus(texts), lm, store)
    return store


def stages(seed: int, count: int) -> list[dict[str, str]]:
    """Texts of ingests that follow one another: each replaces some, brings some back, adds some."""
    chance, texts, made = random.Random(seed), dict[str, str](), list[dict[str, str]]()
    for number in range(count + 1):
        for name in chance.sample(sorted(texts), min(3, len(texts))):
            texts[name] = texts[name][::-1] if chance.random() < 0.5 else prose(number, 70)
        texts |= {f"{number}.{i}": prose(10 * number + i, 50 + 20 * i) for i in range(3)}
        made.append(dict(texts))
    return made


def ingested(lm: LanguageModel, uri: str, texts: Mapping[str, str]) -> None:
    """Ingest texts into a new or an existing datastore."""
    with new_store(lm, uri) as store:
        ingest(corpus(texts), lm, store)


def made_exact(lm: LanguageModel, uri: str) -> None:
    """Make a datastore whose searches compare every key: they are right or wrong."""
    Datastore.open_or_create(uri, lm.manifest(), "float32", {"index": "exact"}).close()


def assert_as(uri: str, quiet: Datastore) -> None:
    """The datastore is whole, and holds what that of a quiet run does."""
    with Datastore.open(uri) as store:
        mine, theirs = held(store), held(quiet)
        for name in ("ids", "tokens", "documents"):
            np.testing.assert_array_equal(getattr(mine, name), getattr(theirs, name), name)
        np.testing.assert_allclose(mine.keys, theirs.keys, atol=1e-5)
        assert _versions(store) == _versions(quiet)
        assert_whole(store)


def _versions(store: Datastore) -> dict[str, tuple[int, int, str]]:
    return {
        record.id: (record.version.number, record.version.tokens, record.version.digest)
        for record in store.documents()
    }


def assert_true(found: Neighbours, entries: Entries, queries: Float32, k: int) -> None:
    """An answer must be what brute force gives: the nearest entries, at their distances."""
    distances = ((queries[:, None] - entries.keys) ** 2).sum(axis=2)
    expected = np.sort(distances, axis=1)[:, :k]
    np.testing.assert_allclose(found.distances, expected, rtol=1e-3, atol=1e-3)
    rows = np.searchsorted(entries.ids, found.ids)
    np.testing.assert_array_equal(entries.ids[rows], found.ids)
    np.testing.assert_array_equal(entries.tokens[rows], found.tokens)
    own = np.take_along_axis(distances, rows, axis=1)
    np.testing.assert_allclose(found.distances, own, rtol=1e-3, atol=1e-3)


def outcome_of(work: Callable[[], object]) -> str:
    """Name of our error that ends it, which has a hint, or ""; anything else is a bug."""
    try:
        work()
    except KnnlmError as error:
        if not error.hint:
            raise
        return type(error).__name__
    return ""


def read(store: Datastore, entries: Entries, chance: random.Random) -> None:
    """Read one thing or another, which must be as it was written."""
    rows = [chance.randrange(len(entries)) for _ in range(chance.choice((1, 1, 5)))]
    match chance.randrange(5):
        case 0:
            assert store.backend.count() == len(entries)
        case 1:
            found = held(store)
            for name in ("ids", "tokens", "keys"):
                np.testing.assert_array_equal(getattr(found, name), getattr(entries, name))
        case 2:
            document = int(entries.documents[rows[0]])
            inside = int((entries.documents == document).sum())
            assert store.backend.count([document]) == inside
        case _:
            queries, k = entries.keys[rows] + np.float32(0.01), chance.choice((1, 8, len(entries)))
            assert_true(store.search(queries, k), entries, queries, k)


# -- decoding --------------------------------------------------------------------------------------


class EachToken:
    """A streamer of generate() that does something after the n-th new token."""

    def __init__(self, what: Mapping[int, Callable[[], object]]) -> None:
        self._what, self._tokens = what, -1  # the prompt comes first

    def put(self, _: torch.Tensor) -> None:
        self._tokens += 1
        if self._tokens in self._what:
            self._what[self._tokens]()

    def end(self) -> None:
        pass


def continued(
    lm: KnnLM,
    tokens: torch.Tensor,
    count: int,
    what: Mapping[int, Callable[[], object]] = MappingProxyType({}),
) -> torch.Tensor:
    """Greedy continuation by so many tokens, `[1, t + count]`."""
    made: torch.Tensor = lm.language_model.model.generate(
        tokens,
        attention_mask=torch.ones_like(tokens),
        max_new_tokens=count,
        do_sample=False,
        eos_token_id=None,
        streamer=EachToken(what),
    )
    return made


@torch.no_grad()
def logits_of(lm: KnnLM, tokens: torch.Tensor) -> list[torch.Tensor]:
    """Logits after each token `[v]`, fed one by one through a cache, as decoding does."""
    cache, logits = None, []
    for token in tokens[0]:
        out = lm.language_model.model(token[None, None], past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        logits.append(out.logits[0, -1])
    return logits


def prompt(lm: KnnLM) -> torch.Tensor:
    ids: torch.Tensor = lm.language_model.tokenizer(PROMPT, return_tensors="pt").input_ids
    return ids


@contextmanager
def mixing(model: LanguageModel, store: Datastore, timeout: float = 10.0) -> Iterator[KnnLM]:
    lm = KnnLM(model).use(store, MIXTURE, timeout=timeout)
    try:
        yield lm
    finally:
        lm.detach()
