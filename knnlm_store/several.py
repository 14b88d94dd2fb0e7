"""Several datastores at once: pooled in one softmax, or blended with weights.

Pooled, the k nearest of all are neighbours alike: for datastores that share one key space. Blended,
each datastore has its own mixture p_s, and

    p(y) = sum over s of w_s p_s(y) + (1 - sum of w_s) p_LM(y)

with weights fitted on held-out text (blending.py). As every p_s = lambda_s p_kNN_s +
(1 - lambda_s) p_LM, that is again one mixture: lambda = sum of w_s lambda_s, and a neighbour of s
has w_s lambda_s / lambda of its share in p_kNN_s.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple, Self, TypeAlias, TypeVar

import numpy as np

from knnlm_store.datastore import Datastore
from knnlm_store.errors import StoreMismatch, UsageError
from knnlm_store.interpolation import Float64
from knnlm_store.manifest import Manifest
from knnlm_store.mixture import Evidence, Mixture
from knnlm_store.values import DocumentFilter, Float32, Freshness, Int64, Neighbours

T = TypeVar("T")

_log = logging.getLogger(__name__)


class Pool:
    """Datastores of one key space, searched as if they were one.

    Raises UsageError for none at all or one twice, and StoreMismatch where models, their settings
    or key transforms differ. The datastores stay the caller's until `close`.
    """

    def __init__(self, stores: Iterable[Datastore]) -> None:
        self.stores = tuple(stores)
        if not self.stores:
            raise UsageError("A pool needs at least one datastore.")
        for i, store in enumerate(self.stores):
            if any(store is before for before in self.stores[:i]):
                raise UsageError(
                    f"{store.location} stands twice in a pool.",
                    hint="Name each datastore once; its entries would count twice.",
                )
        for other in self.stores[1:]:
            _require_one_space(self.stores[0], other)

    @property
    def location(self) -> str:
        """Name all of them, for errors."""
        return " + ".join(str(store.location) for store in self.stores)

    def require(self, manifest: Manifest) -> None:
        """Raise StoreMismatch unless the model that `manifest` describes may use each."""
        for store in self.stores:
            store.require(manifest)

    def search(
        self,
        queries: Float32,
        k: int,
        *,
        within: DocumentFilter | None = None,
        freshness: Freshness = Freshness.LATEST,
        timeout: float | None = None,
    ) -> Neighbours:
        """Find the k nearest entries of all for hidden states, float32 `[q, d]`.

        Remote datastores are searched at the same time; where one fails, the search fails. Of
        equal distances the datastore named first comes first. See VectorBackend.search.
        """
        filters = [within] * len(self.stores)
        found = self.search_each(queries, k, within=filters, freshness=freshness, timeout=timeout)
        return merged(found, k)

    def search_each(
        self,
        queries: Float32,
        k: int,
        *,
        within: Sequence[DocumentFilter | None],
        freshness: Freshness = Freshness.LATEST,
        timeout: float | None = None,
    ) -> list[Neighbours]:
        """Find the k nearest entries of each, `[q, k]`; within: a filter for each."""
        keys = self.stores[0].keys(queries)
        searches = [
            partial(
                store.backend.search, keys, k, within=mine, freshness=freshness, timeout=timeout
            )
            for store, mine in zip(self.stores, within, strict=True)
        ]
        found = together(searches, [store.backend.remote for store in self.stores])
        return [replace(each, queries=keys) for each in found]

    def close(self) -> None:
        """Close every datastore."""
        for store in self.stores:
            store.close()

    def __enter__(self) -> Self:
        """Close at the end of a with block."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()


Searchable: TypeAlias = Datastore | Pool
"""What hidden states can be searched in: `search`, `require`, `location`, `close`."""


def is_remote(store: Searchable) -> bool:
    """Whether a search leaves this process."""
    stores = store.stores if isinstance(store, Pool) else (store,)
    return any(each.backend.remote for each in stores)


class Part(NamedTuple):
    """A datastore, or a pool, and how its neighbours become probabilities."""

    store: Searchable
    mixture: Mixture


class Blend:
    """Parts with weights; what the weights leave of 1 is the plain model's.

    Each part keeps its own k, temperature, policy and key transform. weights: float64 `[m]`, not
    negative, at most 1 in sum; see blending.fit_blend. Raises UsageError for others.
    """

    def __init__(
        self, parts: Iterable[tuple[Searchable, Mixture]], weights: Sequence[float] | Float64
    ) -> None:
        self.parts = tuple(Part(*part) for part in parts)
        self.weights = np.array(weights, dtype=np.float64)
        if self.weights.shape != (len(self.parts),) or not self.parts:
            raise UsageError(
                f"A blend of {len(self.parts)} needs as many weights, not {self.weights.size}.",
                hint="fit_blend gives one for each part.",
            )
        total = float(self.weights.sum())
        if not (math.isfinite(total) and (self.weights >= 0).all() and total <= 1 + 1e-6):
            raise UsageError(
                f"A blend's weights must be 0 or more and at most 1 in sum, not {total:g}.",
                hint="What they leave of 1 is the plain model's.",
            )
        self.weights /= max(1.0, total)

    def search(self, queries: Float32) -> list[Answered]:
        """Search each part for hidden states, float32 `[q, d]`, at its own k."""
        found = together(
            [partial(part.store.search, queries, part.mixture.k) for part in self.parts],
            [is_remote(part.store) for part in self.parts],
        )
        parts = zip(found, self.parts, self.weights, strict=True)
        return [Answered(each, part.mixture, float(weight)) for each, part, weight in parts]


class Answered(NamedTuple):
    """What one part found for some rows, and how it counts."""

    found: Neighbours
    mixture: Mixture
    weight: float


@dataclass(frozen=True, slots=True)
class Weighed:
    """Neighbours of all parts side by side, for q rows.

    lmbda: float64 `[q]`. log_shares: log of each neighbour's share of p_kNN, `[q, n]`, 1 in sum
    where lambda is above 0. tokens: int64 `[q, n]`, -1 in places without a neighbour. log_lm: log
    p_LM of the tokens, `[q, n]`, -inf there.
    """

    lmbda: Float64
    log_shares: Float64
    tokens: Int64
    log_lm: Float64

    def __getitem__(self, rows: Int64) -> Weighed:
        """Select rows."""
        return Weighed(
            self.lmbda[rows], self.log_shares[rows], self.tokens[rows], self.log_lm[rows]
        )


def weigh(parts: Sequence[tuple[Mixture, float]], evidences: Sequence[Evidence]) -> Weighed:
    """Make one mixture of several, each with its weight and what it has found for the same rows."""
    each = [m.weigh(evidence) for (m, _), evidence in zip(parts, evidences, strict=True)]
    lmbdas = [weight * lmbda for (_, weight), (lmbda, _) in zip(parts, each, strict=True)]
    total: Float64 = np.sum(lmbdas, axis=0)
    with np.errstate(divide="ignore"):
        log_parts = [np.log(lmbda / np.maximum(total, 1e-300))[:, None] for lmbda in lmbdas]
    shares = [log_part + shares for log_part, (_, shares) in zip(log_parts, each, strict=True)]
    return Weighed(
        np.minimum(total, 1.0),
        np.concatenate(shares, axis=1),
        np.concatenate([evidence.tokens for evidence in evidences], axis=1),
        np.concatenate([evidence.log_lm for evidence in evidences], axis=1),
    )


def merged(found: Sequence[Neighbours], k: int) -> Neighbours:
    """The k nearest of several searches of the same queries; the first named wins a tie."""
    if len(found) == 1:
        return found[0].padded(k)
    names = ("distances", "tokens", "documents", "positions")
    whole = (np.concatenate([getattr(each, name) for each in found], axis=1) for name in names)
    side_by_side = replace(Neighbours(*whole), queries=found[0].queries)
    return side_by_side.taken(nearest_columns(found, k)).padded(k)


def nearest_columns(found: Sequence[Neighbours], k: int) -> Int64:
    """Which columns of several searches side by side are the k nearest, int64 `[q, k]`."""
    distances = np.concatenate([each.distances for each in found], axis=1)
    return np.argsort(distances, axis=1, kind="stable")[:, :k]


def together(calls: Sequence[Callable[[], T]], remote: Sequence[bool]) -> list[T]:
    """Make calls, the remote ones in threads at the same time; gives results in order.

    When all have ended raises the error of the first that failed: none is left behind to hang.
    """
    if len(calls) == 1:
        return [calls[0]()]
    pairs = list(zip(calls, remote, strict=True))
    started = [in_thread(call) if far else None for call, far in pairs]
    answers = [future or _here(call) for future, call in zip(started, calls, strict=True)]
    wait(answers)
    return [answer.result() for answer in answers]


def in_thread(call: Callable[[], T]) -> Future[T]:
    """Make a call in a daemon thread: if it hangs it keeps no interpreter from ending."""
    answer: Future[T] = Future()
    threading.Thread(
        target=_answer, args=(call, answer), name="knnlm-store search", daemon=True
    ).start()
    return answer


def _here(call: Callable[[], T]) -> Future[T]:
    answer: Future[T] = Future()
    _answer(call, answer)
    return answer


def _answer(call: Callable[[], T], answer: Future[T]) -> None:
    try:
        answer.set_result(call())
    except BaseException as error:  # noqa: BLE001  raised again by whoever waits
        answer.set_exception(error)


def _require_one_space(first: Datastore, other: Datastore) -> None:
    """Raise StoreMismatch unless keys of both lie in one space; log where they are rounded."""
    mine, theirs = first.manifest, other.manifest
    try:
        warning = mine.require_same(theirs, str(first.location))
    except StoreMismatch as error:
        raise StoreMismatch(
            f"{other.location} cannot be pooled with {first.location}: their {error.field} "
            "differs.",
            field=error.field,
            hint="Pool what one model wrote with one key point.",
        ) from error
    # last: a model's own transform differs wherever the model does
    if mine.transform != theirs.transform:
        raise StoreMismatch(
            f"{other.location} maps keys by the transform {theirs.transform}, not by "
            f"{mine.transform} as {first.location} does; they cannot be pooled.",
            field="transform",
            hint=f"Ingest it under another --name with --transform-from {first.location}, or mix "
            "the two with weights, as a Blend.",
        )
    if warning:
        _log.warning(warning)
