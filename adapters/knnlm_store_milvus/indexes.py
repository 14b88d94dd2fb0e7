"""Which index a datastore gets, and how broadly a search must look into it.

Milvus indexes each sealed segment by itself, so what is chosen holds for segments of any size. Keys
of the others are compared one by one, or through an index of Milvus' own; see docs/milvus.md.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from knnlm_store.errors import StoreCorrupt, UsageError
from knnlm_store.values import Spec

OPTIONS = {
    "index": "hnsw (default), ivf_flat, or exact, which compares every key",
    "m": "links of a node of hnsw, 2 to 256; 16 by default",
    "ef_construction": "breadth of building hnsw, 8 to 4096; 200 by default",
    "shards": "write channels of the collection, 1 to 64; 1 by default",
    "replicas": "copies of the collection in memory, 1 to 64; 1 by default",
}
LARGEST_K = 16384
_LARGEST_EF = 32768
_SEGMENT_BYTES = 512 * 2**20  # the default size of a sealed segment
_POINTS_A_LIST = 39  # fewer, and Milvus makes fewer lists
_FORMAT = 1


@dataclass(frozen=True, slots=True)
class Plan:
    """How a main collection is made; kept in its description, so that anyone can repair it."""

    type: str
    params: Mapping[str, int]
    shards: int = 1
    replicas: int = 1

    @classmethod
    def of(cls, spec: Spec, *, lite: bool) -> Plan:
        """Choose from the spec's options. Raises UsageError naming the one that is wrong."""
        wanted = spec.options
        kind = wanted.get("index", "exact" if lite else "hnsw")
        shards, replicas = (
            _number(wanted, "shards", 1, 64, 1),
            _number(wanted, "replicas", 1, 64, 1),
        )
        m = _number(wanted, "m", 2, 256, 16)
        breadth = _number(wanted, "ef_construction", 8, 4096, 200)
        if lite and (kind != "exact" or shards > 1 or replicas > 1):
            raise UsageError(
                "Milvus Lite has only the option index, which must be exact.",
                hint="Use a Milvus server for an index.",
            )
        if kind != "hnsw" and wanted.keys() & {"m", "ef_construction"}:
            raise UsageError(
                f"The options m and ef_construction are of hnsw, not of {kind}.",
                hint="Leave them out, or set index=hnsw.",
            )
        match kind:
            case "hnsw":
                return cls("HNSW", {"M": m, "efConstruction": max(breadth, m)}, shards, replicas)
            case "ivf_flat":
                return cls("IVF_FLAT", {"nlist": _lists(spec.dimension)}, shards, replicas)
            case "exact":
                return cls("FLAT", {}, shards, replicas)
        raise UsageError(
            f"The option index must be hnsw, ivf_flat or exact, not {kind!r}.",
            hint="Leave it out for hnsw.",
        )

    def __str__(self) -> str:
        """The index and its parameters, in a few words."""
        if self.type == "FLAT":
            return "exact"
        return f"{self.type} ({', '.join(f'{k} {v}' for k, v in self.params.items())})"

    def index(self) -> dict[str, Any]:
        """Parameters of creating the index."""
        return {"index_type": self.type, "metric_type": "L2", "params": dict(self.params)}

    def search(self, k: int) -> dict[str, Any]:
        """Parameters of a search for k neighbours: twice k in a graph, eight times in lists."""
        params: dict[str, int] = {}
        if self.type == "HNSW":
            params["ef"] = min(_LARGEST_EF, max(2 * k, 128))
        elif self.type == "IVF_FLAT":
            params["nprobe"] = min(self.params["nlist"], max(32, 8 * k // _POINTS_A_LIST))
        return {"metric_type": "L2", "params": params}

    def mark(self, creator: str) -> str:
        """What the collection says of itself."""
        return json.dumps(
            {
                "knnlm-store": _FORMAT,
                "creator": creator,
                "made": time.time(),
                "index": self.type,
                "params": dict(self.params),
                "shards": self.shards,
                "replicas": self.replicas,
            }
        )

    @classmethod
    def read(cls, mark: Mapping[str, Any], where: str) -> Plan:
        """Read a collection's mark. Raises StoreCorrupt."""
        if mark.get("knnlm-store") != _FORMAT:
            raise StoreCorrupt(
                f"{where} was made by another version of knnlm-store.", hint="Update knnlm-store."
            )
        try:
            return cls(
                str(mark["index"]),
                {str(name): int(value) for name, value in mark["params"].items()},
                int(mark["shards"]),
                int(mark["replicas"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise StoreCorrupt(
                f"The description of the collection of {where} is damaged.",
                hint="Restore it, or drop the datastore and ingest again.",
            ) from error


def parse_mark(text: str) -> dict[str, Any] | None:
    """Read what a collection says of itself; None if knnlm-store did not make it."""
    try:
        mark = json.loads(text)
    except ValueError:
        return None
    return mark if isinstance(mark, dict) and "knnlm-store" in mark else None


def _lists(dimension: int) -> int:
    """Lists of a full segment: four times the root of its rows, a power of two."""
    rows = _SEGMENT_BYTES // (4 * dimension)
    return min(8192, max(64, 1 << (4 * math.isqrt(rows)).bit_length() - 1))


def _number(options: Mapping[str, str], name: str, low: int, high: int, default: int) -> int:
    text = options.get(name, str(default))
    if not (text.isascii() and text.isdigit() and low <= int(text) <= high):
        raise UsageError(
            f"The option {name} must be a whole number from {low} to {high}, not {text!r}.",
            hint=f"It is {OPTIONS[name]}.",
        )
    return int(text)
