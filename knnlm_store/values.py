"""The values that cross the contract: NumPy arrays in frozen, slotted dataclasses."""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from knnlm_store.errors import InvalidEntries, UsageError

Float32: TypeAlias = NDArray[np.float32]
Int64: TypeAlias = NDArray[np.int64]

MAX_TOKEN = 2**32 - 1
MAX_ID = 2**63 - 1
_LARGEST = float(np.finfo(np.float32).max)
_LARGEST_HALF = float(np.finfo(np.float16).max)

_LATEST = 2.5e11  # seconds; datetime ends soon after, in any time zone


def is_time(value: object) -> bool:
    """Whether what was read from JSON is seconds since the epoch that a date can be made of."""
    return type(value) in (int, float) and 0 <= cast("float", value) <= _LATEST


def is_count(value: object) -> bool:
    """Whether what was read from JSON is a whole number that can count entries or bytes."""
    return type(value) is int and 0 <= value <= MAX_ID


class Freshness(enum.Enum):
    """What a search must see: all that was flushed, or that with a bounded lag."""

    LATEST = "latest"
    FAST = "fast"


@dataclass(frozen=True, slots=True)
class Location:
    """Where a datastore lies: `SCHEME:ROOT/NAME`, or `SCHEME://HOST:PORT/NAME`.

    `root` is a folder or file for local schemes and `host:port` for servers.
    """

    scheme: str
    root: str
    name: str
    network: bool = False

    def __str__(self) -> str:
        """Give back the URI."""
        mark = "://" if self.network else ":"
        if not self.root:
            return f"{self.scheme}:"
        return f"{self.scheme}{mark}{self.root.rstrip('/')}/{self.name}"


@dataclass(frozen=True, slots=True)
class Spec:
    """What a datastore is created as: `dimension` of its keys, and how they are kept.

    options: the vendor's own settings, such as a number of shards, as text; used once, by
    `create`, and not read back.
    """

    dimension: int
    storage: str = "float32"
    options: Mapping[str, str] = field(default_factory=dict, compare=False)


@dataclass(frozen=True, slots=True)
class DocumentFilter:
    """Restricts a search to some document numbers (`keep`), or to all but those."""

    documents: Int64
    keep: bool

    @classmethod
    def keeping(cls, documents: Any) -> DocumentFilter:
        """Search only these document numbers."""
        return cls(np.unique(np.asarray(documents, dtype=np.int64)), keep=True)

    @classmethod
    def leaving_out(cls, documents: Any) -> DocumentFilter:
        """Search all but these document numbers."""
        return cls(np.unique(np.asarray(documents, dtype=np.int64)), keep=False)

    def mask(self, documents: Int64) -> NDArray[np.bool_]:
        """Tell for each of `documents`, any shape, whether it passes."""
        inside: NDArray[np.bool_] = np.isin(documents, self.documents)
        return inside if self.keep else ~inside


@dataclass(frozen=True, slots=True)
class Entries:
    """A batch of n entries.

    keys: float32 `[n, d]` (`[n, 0]` where a scan left them out). tokens: int64 `[n]`, each the
    id of the token that came next, 0 to 2**32 - 1. documents: int64 `[n]`, the number of the
    version of the document, which is the id of its entry at position 0. positions: int64 `[n]`,
    index of the token in its document.
    """

    keys: Float32
    tokens: Int64
    documents: Int64
    positions: Int64

    def __len__(self) -> int:
        """Count the entries."""
        return len(self.tokens)

    @property
    def ids(self) -> Int64:
        """Entry ids, int64 `[n]`: document number + position."""
        return self.documents + self.positions

    def __getitem__(self, rows: Any) -> Entries:
        """Select entries by a slice, an index array or a mask."""
        return Entries(
            self.keys[rows], self.tokens[rows], self.documents[rows], self.positions[rows]
        )

    @classmethod
    def concatenate(cls, batches: list[Entries]) -> Entries:
        """Join batches in order."""
        return cls(
            np.concatenate([b.keys for b in batches]),
            np.concatenate([b.tokens for b in batches]),
            np.concatenate([b.documents for b in batches]),
            np.concatenate([b.positions for b in batches]),
        )

    def check(self, spec: Spec) -> None:
        """Raise InvalidEntries unless a datastore of this spec may hold these."""
        n, dimension = len(self.tokens), spec.dimension
        if self.keys.dtype != np.float32:
            raise InvalidEntries(f"Keys are {self.keys.dtype}; the contract takes float32.")
        if self.keys.shape != (n, dimension):
            raise InvalidEntries(
                f"Keys have shape {self.keys.shape}; this datastore takes [{n}, {dimension}]."
            )
        for name in ("tokens", "documents", "positions"):
            array = getattr(self, name)
            if array.shape != (n,) or array.dtype != np.int64:
                raise InvalidEntries(f"{name} must be int64 of shape [{n}].")
            if n and name != "tokens" and int(array.min()) < 0:
                raise InvalidEntries(f"{name} must not be negative.")
        if n and (int(self.tokens.min()) < 0 or int(self.tokens.max()) > MAX_TOKEN):
            raise InvalidEntries("Token ids must lie in 0..2**32-1.")
        check_vectors(self.keys, "Keys")
        if spec.storage == "float16" and np.abs(self.keys).max(initial=0) > _LARGEST_HALF:
            raise InvalidEntries(
                "Keys exceed 65504, the largest float16.",
                hint="Make a datastore with storage float32 or int8.",
            )
        if n and int(self.ids.min()) < 0:
            raise InvalidEntries("An entry id exceeds 2**63-1.")
        if len(np.unique(self.ids)) != n:
            raise InvalidEntries("An entry id stands twice in one batch.")


@dataclass(frozen=True, slots=True)
class Neighbours:
    """What a search found: q rows of k neighbours, nearest first.

    distances: float32 `[q, k]`, squared L2. tokens, documents, positions: int64 `[q, k]`, as in
    Entries. keys: float32 `[q, k, d]`, or None unless asked for. A row with fewer hits is padded
    at its end: distance +inf, token, document and position -1, key 0. queries: what was searched
    for, float32 `[q, d]`, which a datastore adds; backends leave it out.
    """

    distances: Float32
    tokens: Int64
    documents: Int64
    positions: Int64
    keys: Float32 | None = None
    queries: Float32 | None = None

    @property
    def ids(self) -> Int64:
        """Entry ids, int64 `[q, k]`; -1 for padding."""
        return np.where(self.tokens < 0, np.int64(-1), self.documents + self.positions)

    @classmethod
    def none(cls, rows: int, k: int, dimension: int | None = None) -> Neighbours:
        """Rows of nothing but padding."""
        blank = np.full((rows, k), -1, dtype=np.int64)
        keys = None if dimension is None else np.zeros((rows, k, dimension), np.float32)
        return cls(np.full((rows, k), np.inf, np.float32), blank, blank, blank, keys)

    def __getitem__(self, rows: Any) -> Neighbours:
        """Select rows by a slice, an index array or a mask."""
        queries = None if self.queries is None else self.queries[rows]
        return replace(self._each(lambda array: array[rows]), queries=queries)

    def sorted(self) -> Neighbours:
        """Order each row by distance, with negative rounding clamped to 0."""
        distances = np.maximum(self.distances.astype(np.float32, copy=False), 0)
        if (distances[:, 1:] >= distances[:, :-1]).all():
            return replace(self, distances=distances)
        return replace(self, distances=distances).taken(np.argsort(distances, axis=1))

    def taken(self, columns: Int64) -> Neighbours:
        """Take these columns of each row, int64 `[q, n]`, in this order."""
        rows = np.arange(len(columns))[:, None]
        return self._each(lambda array: array[rows, columns])

    def padded(self, k: int) -> Neighbours:
        """Cut or pad each row to k columns."""
        rows, width = self.distances.shape
        if width >= k:
            return self if width == k else self._each(lambda array: array[:, :k])
        dimension = None if self.keys is None else self.keys.shape[2]
        blank = Neighbours.none(rows, k - width, dimension)
        return self._each(lambda a, b: np.concatenate([a, b], axis=1), blank)

    def _each(self, change: Callable[..., Any], *others: Neighbours) -> Neighbours:
        """Apply `change` to each array of columns, along with the same array of `others`."""
        all_ = (self, *others)
        return Neighbours(
            change(*(n.distances for n in all_)),
            change(*(n.tokens for n in all_)),
            change(*(n.documents for n in all_)),
            change(*(n.positions for n in all_)),
            None if self.keys is None else change(*(n.keys for n in all_)),
            self.queries,
        )


def check_dimension(dimension: int) -> None:
    """Raise UsageError unless keys can have this dimension."""
    if dimension < 1:
        raise UsageError(f"The dimension must be at least 1, not {dimension}.")


def check_vectors(vectors: Float32, what: str) -> None:
    """Raise InvalidEntries unless float32 can hold the squared distances between such vectors."""
    largest = float(np.abs(vectors).max(initial=0))
    if not np.isfinite(largest):
        raise InvalidEntries(f"{what} hold NaN or infinite values.")
    if 4 * vectors.shape[1] * largest**2 > _LARGEST:
        raise InvalidEntries(f"{what} are so large that squared distances overflow float32.")
