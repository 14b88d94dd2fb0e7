"""What each row of a batch is mixed with, and the searches of one step for all of them.

Every datastore is opened, checked and guarded once, however many rows use it, and searched once a
step. Where a guard gives None its part is the plain model's for that step; the others go on.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, cast

import numpy as np

from knnlm_store import registry
from knnlm_store.calibration import DEFAULT_K, default_mixture, settle
from knnlm_store.datastore import Datastore
from knnlm_store.domains import Domain, Domains, is_name
from knnlm_store.errors import UsageError
from knnlm_store.fallback import Guard, Outages
from knnlm_store.in_use import Held
from knnlm_store.manifest import Manifest
from knnlm_store.mixture import Mixture
from knnlm_store.several import Answered, Blend, Pool, Searchable, together
from knnlm_store.values import Float32, Int64, Location, Neighbours

Source: TypeAlias = Datastore | str | Pool | Blend | Sequence[Datastore | str]
"""What can be mixed in: a datastore, its URI or a domain's name, several of these, or a blend."""
Row: TypeAlias = Source | tuple[Source, Mixture | None] | None
"""What one row is mixed with: with or without a mixture; None is the plain model."""


class Guarded(NamedTuple):
    """One part of what a row is mixed with."""

    guard: Guard
    mixture: Mixture
    weight: float


Memory: TypeAlias = tuple[Guarded, ...]
"""The parts that a row is mixed with; none is the plain model."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What the parts of one memory found: for queries `rows`, int64 `[r]`, `[r, k]` each."""

    rows: Int64
    parts: list[Answered]


@dataclass(frozen=True, slots=True, eq=False)
class Memories:
    """The memories in use: one for every row, or row by row.

    rows: index into `memories` for each row of a batch, or for each group of rows that a prompt
    became, int64 `[n]`; -1 is the plain model. everywhere: the one row stands for all of a batch
    of any size. held: what was opened for these.
    """

    memories: tuple[Memory, ...]
    rows: Int64
    everywhere: bool
    held: Held

    def owners(self, batch: int) -> Int64:
        """Index into `memories` for each row of a batch, int64 `[b]`; -1 where that is plain.

        Beams and returned sequences of one prompt stand side by side. Raises UsageError for a
        batch that is no multiple of `rows`.
        """
        n = len(self.rows)
        if batch % n and not self.everywhere:
            raise UsageError(
                f"Datastores are in use for {n} rows, and the batch has {batch}.",
                hint="Call use_rows with one for each prompt, or use(STORE) for all.",
            )
        return np.repeat(self.rows, batch if self.everywhere else batch // n)

    def blend(self) -> Blend:
        """Give the one memory of all rows as a blend, past its guards.

        Raises UsageError where rows have their own, or where it is the plain model.
        """
        if not self.everywhere:
            raise UsageError(
                "Each row has its own datastore in use.",
                hint="Explain a row's text inside: with lm.using(STORE):",
            )
        (memory,) = self.memories
        if not memory:
            raise UsageError(
                "What is in use is the plain model: its lambda is 0.",
                hint="Call use(STORE, MIXTURE) with a lambda above 0.",
            )
        parts = [(part.guard.store, part.mixture) for part in memory]
        return Blend(parts, [part.weight for part in memory])

    def search(self, queries: Float32, owners: Int64) -> list[Answer]:
        """Search for queries `[q, d]` of the memories `owners`, int64 `[q]`, none of them -1.

        Each datastore is searched once, remote ones at the same time. Parts and memories whose
        search gave nothing are left out.
        """
        rows = {int(i): np.flatnonzero(owners == i) for i in np.unique(owners)}
        found = self._search(queries, rows)
        answers = [Answer(mine, _parts(self.memories[i], mine, found)) for i, mine in rows.items()]
        return [answer for answer in answers if answer.parts]

    def _search(self, queries: Float32, rows: dict[int, Int64]) -> _Found:
        guards: dict[int, Guard] = {}
        asked: dict[int, list[Int64]] = {}
        k: dict[int, int] = {}
        for i, mine in rows.items():
            for part in self.memories[i]:
                key = id(part.guard)
                guards[key] = part.guard
                asked.setdefault(key, []).append(mine)
                k[key] = max(k.get(key, 0), part.mixture.k)
        searched = {key: np.unique(np.concatenate(each)) for key, each in asked.items()}
        calls = [
            partial(guard.search, queries[searched[key]], k[key]) for key, guard in guards.items()
        ]
        found = together(calls, [guard.remote for guard in guards.values()])
        return {key: (searched[key], each) for key, each in zip(guards, found, strict=True)}


_Found: TypeAlias = dict[int, tuple[Int64, Neighbours | None]]
"""By a guard's id: the queries it was asked, int64 `[n]` ascending, and what it found."""


def _parts(memory: Memory, rows: Int64, found: _Found) -> list[Answered]:
    """Take the neighbours of queries `rows`, int64 `[r]`, out of all that was found."""
    parts = []
    for guard, mixture, weight in memory:
        searched, theirs = found[id(guard)]
        if theirs is None:
            continue
        if len(searched) != len(rows):
            theirs = theirs[np.searchsorted(searched, rows)]
        parts.append(Answered(theirs.padded(mixture.k), mixture, weight))
    return parts


class Opening:
    """Opens, checks and guards what rows name, once; where that fails it closes what it opened.

    manifest: of the model that is to use them. config: where domains stand, by default as
    domains.find finds it; read once. options: Guard's.
    """

    def __init__(
        self,
        manifest: Manifest,
        outages: Outages,
        config: str | Path | None = None,
        **options: Any,
    ) -> None:
        self._manifest = manifest
        self._config = config
        self._domains: Domains | None = None
        self._outages = outages
        self._options = options
        self._stack = ExitStack()
        self._held = Held(self._stack)
        self._stores: dict[Location, Datastore] = {}
        self._guards: dict[int, tuple[Searchable, Guard]] = {}

    def everywhere(self, source: Source, mixture: Mixture | None) -> Memories:
        """Give one memory for every row."""
        return self._made([(source, mixture)], everywhere=True)

    def by_row(self, rows: Sequence[Row]) -> Memories:
        """Give each row its own memory. Raises UsageError for no rows."""
        if not rows:
            raise UsageError("There are no rows.", hint="Give one datastore for each prompt.")
        return self._made(rows, everywhere=False)

    def _made(self, rows: Sequence[Row], *, everywhere: bool) -> Memories:
        memories: list[Memory] = []
        known: dict[tuple[str | int, int], int] = {}
        indices = []
        with ExitStack() as failed:
            failed.callback(self._held.leave)
            for source, mixture in map(_pair, rows):
                what = source if isinstance(source, str) else id(source), id(mixture)
                if what not in known:
                    known[what] = len(memories)
                    memories.append(() if source is None else self._memory(source, mixture))
                indices.append(known[what] if memories[known[what]] else -1)
            failed.pop_all()
        return Memories(tuple(memories), np.array(indices), everywhere, self._held)

    def _memory(self, source: Source, mixture: Mixture | None) -> Memory:
        """Leave out parts that say nothing, so that they are not searched."""
        if isinstance(source, str) and is_name(source):
            parts = self._parts_of(self._domain(source), mixture)
        else:
            parts = self._parts(source, mixture)
        return tuple(part for part in parts if part.weight and not part.mixture.is_plain)

    def _parts(self, source: Source, mixture: Mixture | None) -> list[Guarded]:
        if not isinstance(source, Blend):
            store = self._opened(source)
            guard = self._guard(store)
            return [Guarded(guard, mixture or mixture_for(store), 1.0)]
        if mixture is not None:
            raise UsageError(
                "A blend has a mixture for each part already.",
                hint="Leave the mixture out, or give the datastores as a list to pool them.",
            )
        return [
            Guarded(self._guard(part.store), part.mixture, float(weight))
            for part, weight in zip(source.parts, source.weights, strict=True)
        ]

    def _parts_of(self, domain: Domain, mixture: Mixture | None) -> list[Guarded]:
        stores = [self._at(where) for where in domain.stores]
        if domain.blend is not None:
            each = [(store, mixture_for(store, **domain.settings)) for store in stores]
            return self._parts(Blend(each, domain.blend), mixture)
        source = stores[0] if len(stores) == 1 else Pool(stores)
        return self._parts(source, mixture or mixture_for(source, **domain.settings))

    def _opened(self, source: Datastore | str | Pool | Sequence[Datastore | str]) -> Searchable:
        if isinstance(source, Datastore | Pool):
            return source
        if isinstance(source, str):
            return self._at(registry.parse(source))
        return Pool(store for each in source for store in self._pooled(each))

    def _pooled(self, source: Datastore | str) -> list[Datastore]:
        if isinstance(source, Datastore):
            return [source]
        if is_name(source):
            return [self._at(where) for where in self._domain(source).among_others()]
        return [self._at(registry.parse(source))]

    def _domain(self, name: str) -> Domain:
        if self._domains is None:
            self._domains = Domains.read(self._config)
        return self._domains.named(name)

    def _at(self, where: Location) -> Datastore:
        if where not in self._stores:
            self._stores[where] = self._stack.enter_context(Datastore.open(where))
        return self._stores[where]

    def _guard(self, store: Searchable) -> Guard:
        if id(store) not in self._guards:
            guard = Guard(store, self._outages, held=self._held, **self._options)
            store.require(self._manifest)
            self._guards[id(store)] = store, guard
        return self._guards[id(store)][1]


def _pair(row: Row) -> tuple[Source | None, Mixture | None]:
    if isinstance(row, tuple) and len(row) == 2 and isinstance(row[1], Mixture | None):
        return row
    return cast("Source | None", row), None


def mixture_for(
    store: Searchable,
    *,
    k: int | None = None,
    temperature: float | None = None,
    lmbda: float | None = None,
    policy: str | None = None,
) -> Mixture:
    """Give the mixture where none was named: of a datastore, its default; see calibration.settle.

    A pool has the default of datastores that nobody calibrated, at the median of their
    temperatures: what was fitted on one alone, whose entries may lie much denser, is not carried
    over. It is a guess until fitted on the pool.
    """
    said: dict[str, Any] = {"temperature": temperature, "lmbda": lmbda, "policy": policy}
    if isinstance(store, Datastore):
        return default_mixture(store, k=k, **said)
    # a calibration has its own k: naming one leaves it out
    k = DEFAULT_K if k is None else k
    each = [settle(one, k=k, **said).mixture for one in store.stores]
    return replace(each[0], temperature=float(np.median([one.temperature for one in each])))
