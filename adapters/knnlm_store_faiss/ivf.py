"""The inverted-file index over row numbers: trained once, then appended to without a rebuild."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss as _faiss
import numpy as np
from numpy.typing import NDArray

from knnlm_store.errors import StoreError
from knnlm_store.values import Float32, Int64, Spec

faiss: Any = _faiss  # its stubs lack what its Python wrappers add

UNLISTED = 0xFFFF
"""In place of a list number: the row was dead when its turn came."""

MAX_LISTS = 32768
SAMPLE_A_LIST = 64  # keys to train on; FAISS asks for at least 39
# On 100,000 keys of a real model and held-out queries: recall@32 0.994, @128 0.992, @1024 0.992.
# 96 and 32 gave 0.996, 0.999 and 0.999 at about twice the time.
MIN_LISTS_READ = 32
CANDIDATES_A_NEIGHBOUR = 16
_SMALL_BATCH = 4  # queries; below, barriers between threads cost more than they bring

Bool = NDArray[np.bool_]
Lists = NDArray[np.uint16]


@dataclass(frozen=True, slots=True)
class Plan:
    """Parameters of an index over `count` keys: `lists`, and `sample` keys to train on."""

    count: int
    lists: int
    sample: int
    memory: int  # bytes it will take at least

    @classmethod
    def of(cls, count: int, spec: Spec) -> Plan:
        """Derive the parameters from the number of keys and their dimension."""
        wanted = 2 ** round(math.log2(2 * math.sqrt(max(count, 1))))
        trainable = 2 ** int(math.log2(max(1, count // 39)))
        lists = min(wanted, trainable, MAX_LISTS)
        sample = min(count, SAMPLE_A_LIST * lists)
        bytes_a_key = spec.dimension * (4 if spec.storage == "float32" else 2) + 10
        training = 4 * spec.dimension * (2 * sample + lists)
        return cls(count, lists, sample, count * bytes_a_key + training)

    def check(self) -> None:
        """Raise StoreError unless the machine has the memory."""
        free = _available_memory()
        if free is not None and self.memory > free:
            raise StoreError(
                f"An index over {self.count:,} entries takes {self.memory / 2**30:.1f} GiB of "
                f"memory, and {free / 2**30:.1f} GiB are free.",
                hint="Keep keys in fewer dimensions; searches stay exact meanwhile.",
            )


def _available_memory() -> int | None:
    """Bytes that can be had without swapping; None where the system does not say."""
    try:
        text = Path("/proc/meminfo").read_text(encoding="ascii")
    except OSError:
        return None
    return next(
        (int(line.split()[1]) * 1024 for line in text.splitlines() if "MemAvailable" in line), None
    )


class IvfIndex:
    """Lists of rows around trained centroids, in memory, with their keys.

    float16 and float32 keys are held as they are stored, so that distances are those of the
    files. int8 ones are held as bfloat16 offsets from their centroid: FAISS' own 8 bits have
    ranges fixed in training, and would clip keys of a domain that is added later.
    """

    def __init__(self, blob: NDArray[np.uint8], trained_on: int) -> None:
        """Open an index without rows from the bytes FAISS made of it."""
        self.blob = blob
        self.trained_on = trained_on
        self._faiss: Any = faiss.deserialize_index(blob)
        self._lists: list[Lists] = []
        self.rows = 0

    @classmethod
    def train(cls, plan: Plan, spec: Spec, sample: Float32) -> IvfIndex:
        """Train an index of `plan` on keys float32 `[n, d]`."""
        shape = (faiss.IndexFlatL2(spec.dimension), spec.dimension, plan.lists)
        if spec.storage == "float32":
            index = faiss.IndexIVFFlat(*shape)
        else:
            kind = faiss.ScalarQuantizer
            int8 = spec.storage == "int8"
            code = kind.QT_bf16 if int8 else kind.QT_fp16
            index = faiss.IndexIVFScalarQuantizer(*shape, code, faiss.METRIC_L2, int8)
        index.cp.max_points_per_centroid = SAMPLE_A_LIST
        index.train(sample)
        return cls(faiss.serialize_index(index), plan.count)

    @property
    def name(self) -> str:
        """FAISS' short name, such as `IVF512`."""
        return f"IVF{self._faiss.nlist}"

    @property
    def lists(self) -> Lists:
        """List of each row, uint16 `[rows]`."""
        self._lists = [np.concatenate([np.empty(0, np.uint16), *self._lists])]
        return self._lists[0]

    def assign(self, keys: Float32, live: Bool) -> Lists:
        """Find the lists of keys float32 `[n, d]`; UNLISTED for those not `live`."""
        lists = np.full(len(keys), UNLISTED, np.uint16)
        if live.any():
            _, nearest = self._faiss.quantizer.search(np.ascontiguousarray(keys[live]), 1)
            lists[live] = nearest[:, 0]
        return lists

    def extend(self, keys: Float32, lists: Lists) -> None:
        """Append rows with keys float32 `[n, d]` to their lists uint16 `[n]`."""
        ids = np.arange(self.rows, self.rows + len(keys), dtype=np.int64)
        where = np.where(lists == UNLISTED, -1, lists.astype(np.int64))
        self._faiss.add_core(len(keys), *(faiss.swig_ptr(a) for a in (keys, ids, where)))
        self._lists.append(lists)
        self.rows += len(keys)

    def search(self, queries: Float32, k: int, passing: Bool, count: int) -> tuple[Float32, Int64]:
        """Find some k nearest of the `count` rows that are `passing`, bool `[>= rows]`.

        Returns squared distances and row numbers `[q, k]`; +inf and -1 where there is no row.
        """
        lists, breadth = self._faiss.nlist, self._breadth(k, count)
        selector = None
        if count < len(passing):
            selector = faiss.IDSelectorBitmap(np.packbits(passing, bitorder="little"))
        with _threads(1 if len(queries) <= _SMALL_BATCH else None):
            distances, rows = self._read(queries, k, selector, breadth)
            short = (rows >= 0).sum(axis=1) < min(k, count)
            if breadth < lists and short.any():
                distances[short], rows[short] = self._read(queries[short], k, selector, lists)
        distances[rows < 0] = np.inf
        return distances, rows

    def _breadth(self, k: int, count: int) -> int:
        """How many lists to read for k of `count` rows."""
        lists: int = self._faiss.nlist
        wanted = CANDIDATES_A_NEIGHBOUR * k * lists / max(1, count)
        return min(lists, max(MIN_LISTS_READ, math.ceil(wanted)))

    def share_read(self, k: int, count: int) -> float:
        """Share of `count` rows that a search for k of them looks at."""
        return self._breadth(k, count) / float(self._faiss.nlist)

    def _read(self, queries: Float32, k: int, selector: Any, breadth: int) -> tuple[Float32, Int64]:
        parameters = faiss.SearchParametersIVF(sel=selector, nprobe=breadth)
        found: tuple[Float32, Int64] = self._faiss.search(queries, k, params=parameters)
        return found


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """Let FAISS use `count` threads, or as many as it is set to."""
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(count or before)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)
