"""Random lives of a datastore, on every backend, against a dictionary that knows the truth."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from knnlm_store import registry
from knnlm_store.datastore import Datastore
from knnlm_store.forgetting import choose, forget
from knnlm_store.integrity import check
from knnlm_store.manifest import Manifest
from knnlm_store.pruning import Seen, leavers
from tests.changing import SOURCE, Killed, fragile, keys_of, texts_in, tokens_of, write
from tests.milvus_support import milvus_root, own_server

__all__ = ["milvus_root", "own_server"]

DIMENSION = 8
NAMES = ("a", "b", "c", "d/e")
TEXTS = ("one text", "another text, longer", "third " * 9, "x")
LIVES = {"memory": 60, "faiss": 12, "qdrant": 6, "lite": 4, "milvus": 3}
"""Random lives on each backend; a server is slower."""

Step: TypeAlias = tuple[Any, ...]
Life: TypeAlias = list[tuple[Step, tuple[int, bool] | None]]

_documents = st.dictionaries(st.sampled_from(NAMES), st.sampled_from(TEXTS), min_size=1)
_steps = st.one_of(
    st.tuples(st.just("write"), _documents),
    st.tuples(st.just("forget"), st.sets(st.sampled_from(NAMES), min_size=1)),
    st.tuples(st.just("sync"), st.dictionaries(st.sampled_from(NAMES), st.sampled_from(TEXTS))),
    st.tuples(st.just("reopen")),
)
_deaths = st.none() | st.tuples(st.integers(0, 12), st.booleans())
lives = st.lists(st.tuples(_steps, _deaths), min_size=3, max_size=9)


def manifest() -> Manifest:
    shape = {"model_type": "none"}
    return Manifest(
        "none", "None", shape, "float32", "tokens", "key", DIMENSION, 0, 64, "today",
        probe=np.ones((1, DIMENSION), np.float32),
    )  # fmt: skip


class Living:
    """A datastore and what it should hold."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self.truth: dict[str, str] = {}
        self.store = Datastore.open_or_create(uri, manifest(), "float32")

    def take(self, step: Step, death: tuple[int, bool] | None) -> None:
        """Take a step, or die in it; afterwards a run that does nothing must find it whole."""
        after = self.expected(step)
        if step[0] == "reopen":
            self.reopen()
            return
        if death is None:
            self.act(step)
            self.truth = after
            return
        fatal, late = death
        died = fragile(self.store.backend, fatal, after=late)
        with suppress(Killed):
            self.act(step)
        if not died():
            self.truth = after
        self.reopen()
        write(self.store.backend, {})  # as any next run begins
        if died():
            now = texts_in(self.store.backend)
            for name in NAMES:  # each document is the old one or the new one
                assert now.get(name) in (self.truth.get(name), after.get(name))
            self.truth = now

    def expected(self, step: Step) -> dict[str, str]:
        kind, what = step[0], step[-1]
        if kind == "write":
            return {**self.truth, **what}
        if kind == "forget":
            return {name: text for name, text in self.truth.items() if name not in what}
        return {**what} if kind == "sync" else self.truth

    def act(self, step: Step) -> None:
        kind, what = step
        if kind == "forget":
            names = [f"{SOURCE}/{name}" for name in what if name in self.truth]
            if names:
                forget(self.store, choose(self.store, names))
            return
        seen = Seen()
        seen.look(self.store)
        write(self.store.backend, what)
        if kind == "sync":
            seen.ids = {f"{SOURCE}/{name}" for name in what}
            gone = leavers(self.store, {SOURCE}, seen).documents
            if gone:
                forget(self.store, gone, versions=gone)

    def reopen(self) -> None:
        if self.uri == "memory:":  # ends with its object
            for name in ("upsert", "delete", "flush", "put_records", "delete_records"):
                self.store.backend.__dict__.pop(name, None)
            return
        self.store.close()
        self.store = Datastore.open(self.uri)

    def look(self) -> None:
        """Catalog, entries and searches agree with the truth."""
        assert texts_in(self.store.backend) == self.truth
        assert check(self.store).findings == []
        for name in NAMES:
            for text in TEXTS:
                found = self.store.backend.search(keys_of(name, text, DIMENSION)[-1:], 1)
                near = bool(found.distances[0, 0] < 1e-3)
                assert near == (self.truth.get(name) == text)
                if near:
                    assert found.tokens[0, 0] == tokens_of(text)[-1]
                    assert found.positions[0, 0] == len(text) - 1

    def clear(self) -> None:
        self.act(("sync", {}))
        self.truth = {}
        assert self.store.backend.count() == 0


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("living")


@pytest.fixture
def living(request: pytest.FixtureRequest, root: Path) -> Iterator[Living]:
    place: dict[str, Callable[[], str]] = {
        "memory": lambda: "memory:",
        "faiss": lambda: f"faiss:{root}/faiss/living",
        "qdrant": lambda: f"qdrant:{root}/qdrant/living",
        "lite": lambda: f"milvus:{root}/lite.db/living",
        "milvus": lambda: f"milvus://{request.getfixturevalue('milvus_root')}/living",
    }
    made = Living(place[request.param]())
    # an embedded engine ends with its last user, and starting another takes its time
    user = registry.connect(made.uri)
    user.exists()
    yield made
    made.store.backend.drop()
    made.store.close()
    user.close()


@pytest.mark.parametrize("living", LIVES, indirect=True)
def test_any_life_is_true(living: Living, request: pytest.FixtureRequest) -> None:
    @settings(
        max_examples=LIVES[request.node.callspec.params["living"]],
        deadline=None,
        phases=[Phase.generate],  # shrinking would take a server long
        suppress_health_check=list(HealthCheck),
        derandomize=True,
    )
    @given(lives)
    def play(life: Life) -> None:
        living.clear()
        for step, death in life:
            living.take(step, death)
            living.look()

    play()
