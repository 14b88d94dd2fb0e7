"""How a datastore's collections are made: its Spec and the options of `create`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from qdrant_client import models

from knnlm_store.errors import UsageError
from knnlm_store.values import Spec

STORAGES = ("float16", "float32", "int8")
MOST_DIMENSIONS = 65536
OPTIONS: Mapping[str, str] = {
    "index": "hnsw (the default), or exact: every search compares every key",
    "m": "links of a key in the HNSW graph, 16 by default",
    "ef_construct": "keys looked at when one is linked, 100 by default",
    "on_disk": "true: read keys from disk rather than hold them in memory",
    "on_disk_payload": "false: hold tokens and document numbers in memory",
    "shard_number": "parts of the collection, which several nodes can share",
    "replication_factor": "copies of each part, on different nodes",
    "write_consistency_factor": "copies that must have acknowledged a write, all by default",
}

DEFERRED = 0
"""An indexing threshold that defers the index, so that a first load is not slowed by it."""
DOCUMENT, TOKEN = "d", "t"  # an entry's payload; short, for it travels with every neighbour


@dataclass(frozen=True, slots=True)
class Options:
    """The options of `create`, read. None leaves the choice to the server."""

    index: str = "hnsw"
    m: int | None = None
    ef_construct: int | None = None
    on_disk: bool | None = None
    on_disk_payload: bool | None = None
    shard_number: int | None = None
    replication_factor: int | None = None
    write_consistency_factor: int | None = None

    @classmethod
    def of(cls, texts: Mapping[str, str]) -> Options:
        """Read Spec.options, whose names were checked. Raises UsageError naming the option."""
        values: dict[str, Any] = {}
        for field in fields(cls):
            if (text := texts.get(field.name)) is not None:
                read = {"index": _index, "on_disk": _flag, "on_disk_payload": _flag}
                values[field.name] = read.get(field.name, _number)(field.name, text)
        options = cls(**values)
        if options.index == "exact" and (options.m or options.ef_construct):
            raise UsageError(
                "The options m and ef_construct shape an HNSW graph, and index=exact has none.",
                hint="Leave them out, or take index=hnsw.",
            )
        return options

    def entries_collection(self, spec: Spec) -> dict[str, Any]:
        """Arguments of `create_collection` for the entries."""
        int8 = spec.storage == "int8"
        quantized = models.ScalarQuantization(
            scalar=models.ScalarQuantizationConfig(
                type=models.ScalarType.INT8, quantile=0.99, always_ram=True
            )
        )
        return {
            "vectors_config": models.VectorParams(
                size=spec.dimension,
                distance=models.Distance.EUCLID,
                datatype=_DATATYPES[spec.storage],
                on_disk=True if int8 and self.on_disk is None else self.on_disk,
            ),
            "hnsw_config": models.HnswConfigDiff(
                m=0 if self.index == "exact" else self.m, ef_construct=self.ef_construct
            ),
            "optimizers_config": models.OptimizersConfigDiff(indexing_threshold=DEFERRED),
            "quantization_config": quantized if int8 else None,
            "on_disk_payload": self.on_disk_payload,
            **self._cluster(),
        }

    def records_collection(self) -> dict[str, Any]:
        """Arguments of `create_collection` for the records, which are payload and nothing else."""
        return {
            # one number, for not every version takes a collection without vectors
            "vectors_config": models.VectorParams(size=1, distance=models.Distance.EUCLID),
            "hnsw_config": models.HnswConfigDiff(m=0),
            "on_disk_payload": True,
            **(self._cluster() | {"shard_number": None}),
        }

    def _cluster(self) -> dict[str, Any]:
        acknowledging = self.write_consistency_factor or self.replication_factor
        return {
            "shard_number": self.shard_number,
            "replication_factor": self.replication_factor,
            "write_consistency_factor": acknowledging,
        }


_DATATYPES = {
    "float16": models.Datatype.FLOAT16,
    "float32": models.Datatype.FLOAT32,
    # what is rescored; half precision would make infinities of large keys
    "int8": models.Datatype.FLOAT32,
}


def _index(name: str, text: str) -> str:
    if text not in ("hnsw", "exact"):
        raise UsageError(f"The option {name} is hnsw or exact, not {text!r}.")
    return text


def _flag(name: str, text: str) -> bool:
    if text not in ("true", "false"):
        raise UsageError(f"The option {name} is true or false, not {text!r}.")
    return text == "true"


def _number(name: str, text: str) -> int:
    if not (text.isascii() and text.isdigit() and 1 <= int(text) < 2**32):
        raise UsageError(f"The option {name} is a number from 1 on, not {text!r}.")
    return int(text)
