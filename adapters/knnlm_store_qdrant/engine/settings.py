"""What a collection is made as: checked, kept, translated for the engine and told again.

The request that made it (with what later ones changed) is the truth; the engine's configuration
follows from it.
"""

from __future__ import annotations

from typing import Any, TypeVar

import qdrant_edge as edge
from pydantic import BaseModel
from qdrant_client.http import models

from knnlm_store_qdrant.engine.refusal import only, translating, wrong

Settings = models.CreateCollection
_Model = TypeVar("_Model", bound=BaseModel)

INDEXING_THRESHOLD = 10_000
"""KiB of vectors from which on an index pays: Qdrant's default."""

_BYTES = {models.Datatype.FLOAT16: 2, models.Datatype.UINT8: 1}
_DATATYPES = {
    models.Datatype.FLOAT32: edge.VectorStorageDatatype.Float32,
    models.Datatype.FLOAT16: edge.VectorStorageDatatype.Float16,
    models.Datatype.UINT8: edge.VectorStorageDatatype.Uint8,
}
_HNSW = {"m": 16, "ef_construct": 100, "full_scan_threshold": 10_000, "max_indexing_threads": 0}
_HNSW_FIELDS = (*_HNSW, "on_disk", "payload_m", "inline_storage")
_OPTIMIZERS = (
    "deleted_threshold",
    "vacuum_min_vector_number",
    "default_segment_number",
    "max_segment_size",
    "indexing_threshold",
    "prevent_unoptimized",
)
_ONE_NODE = ("shard_number", "replication_factor", "write_consistency_factor")
_COLLECTION = (
    *("vectors", "on_disk_payload", "hnsw_config", "wal_config", "optimizers_config"),
    *("quantization_config", "strict_mode_config", "metadata", *_ONE_NODE),
)


def checked(settings: Settings) -> Settings:
    """Give the settings back; raises Refused for what one embedded node cannot honour."""
    only(settings, _COLLECTION)
    for name in _ONE_NODE:
        if (getattr(settings, name) or 1) > 1:
            raise wrong(f"the embedded engine is one node: `{name}` can only be 1")
    vectors = settings.vectors
    if isinstance(vectors, models.VectorParams):
        only(vectors, ("size", "distance", "hnsw_config", "on_disk", "datatype"), "vectors.")
        if vectors.size < 1:
            raise wrong("vectors.size: value 0 invalid, must be 1 or larger")
    elif vectors:
        raise wrong("the embedded engine keeps one unnamed vector a point")
    only(settings.hnsw_config, _HNSW_FIELDS, "hnsw_config.")
    flushing = ("flush_interval_sec", "max_optimization_threads", "memmap_threshold")
    only(settings.optimizers_config, (*_OPTIMIZERS, *flushing), "optimizers_config.")
    strict = settings.strict_mode_config
    if strict is not None and strict.enabled:
        raise wrong("the embedded engine has no strict mode")
    _quantization(settings)
    return settings


def changed(settings: Settings, update: models.UpdateCollection) -> Settings:
    """Apply a change; raises Refused for what one embedded node cannot honour."""
    allowed = ("vectors", "optimizers_config", "params", "hnsw_config", "quantization_config")
    only(update, (*allowed, "metadata"))
    fields: dict[str, Any] = {
        name: _merged(getattr(settings, name), getattr(update, name))
        for name in ("optimizers_config", "hnsw_config")
    }
    if update.params is not None:
        only(update.params, ("on_disk_payload", *_ONE_NODE), "params.")
        fields |= update.params.model_dump(exclude_none=True)
    if update.metadata is not None:
        fields["metadata"] = {**(settings.metadata or {}), **update.metadata}
    if update.quantization_config is not None:
        if isinstance(update.quantization_config, models.Disabled):
            raise wrong("the embedded engine cannot take quantization back")
        fields["quantization_config"] = update.quantization_config
    for name, diff in (update.vectors or {}).items():
        fields["vectors"] = _changed_vector(settings, name, diff)
    whole = settings.model_dump(exclude_unset=True) | _plain(fields)
    return checked(Settings.model_validate(whole))


def _changed_vector(settings: Settings, name: str, diff: models.VectorParamsDiff) -> Any:
    if name or not isinstance(settings.vectors, models.VectorParams):
        raise wrong(f"Not existing vector name error: {name}")
    only(diff, ("hnsw_config", "on_disk"), "vectors.")
    return _merged(settings.vectors, diff)


def _merged(old: _Model | None, new: BaseModel | None) -> Any:
    """Overlay what `new` sets, field by field."""
    if new is None:
        return old
    return _plain(old or {}) | new.model_dump(exclude_unset=True)


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(exclude_unset=True)
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    return value


def dimension(settings: Settings) -> int:
    """Count the dimensions of a vector; 0 where points have none."""
    return settings.vectors.size if isinstance(settings.vectors, models.VectorParams) else 0


def vector_bytes(settings: Settings) -> int:
    """Count the bytes that the engine keeps of a vector."""
    vectors = settings.vectors
    if not isinstance(vectors, models.VectorParams):
        return 0
    return vectors.size * (4 if vectors.datatype is None else _BYTES.get(vectors.datatype, 4))


def indexing_threshold(settings: Settings) -> int:
    """Tell from how many KiB of vectors on an index is built; 0: never."""
    given = settings.optimizers_config
    threshold = None if given is None else given.indexing_threshold
    return INDEXING_THRESHOLD if threshold is None else threshold


def configuration(settings: Settings) -> edge.EdgeConfig:
    """Translate the settings for the engine."""
    with translating():
        vectors = _vectors(settings)
        return edge.EdgeConfig(
            vectors=vectors,
            # The engine wants a vector of some kind; points without any are kept beside this one.
            sparse_vectors=None if vectors else {"none": edge.EdgeSparseVectorParams()},
            on_disk_payload=settings.on_disk_payload,
            hnsw_config=edge.HnswIndexConfig(**_hnsw(settings)),
            quantization_config=_quantization(settings),
            optimizers=edge.EdgeOptimizersConfig(**_optimizers(settings)),
            wal_enabled=True,
        )


def _vectors(settings: Settings) -> edge.EdgeVectorParams | None:
    given = settings.vectors
    if not isinstance(given, models.VectorParams):
        return None
    own = given.hnsw_config
    only(own, _HNSW_FIELDS, "vectors.hnsw_config.")
    return edge.EdgeVectorParams(
        size=given.size,
        distance=getattr(edge.Distance, given.distance.value),
        on_disk=given.on_disk,
        datatype=None if given.datatype is None else _DATATYPES[given.datatype],
        hnsw_config=None if own is None else edge.HnswIndexConfig(**_hnsw(settings) | _set(own)),
    )


def _quantization(settings: Settings) -> edge.ScalarQuantizationConfig | None:
    given = settings.quantization_config
    if given is None:
        return None
    if not isinstance(given, models.ScalarQuantization):
        raise wrong("the embedded engine offers scalar quantization only")
    only(given.scalar, ("type", "quantile", "always_ram"), "quantization_config.scalar.")
    return edge.ScalarQuantizationConfig(
        type=edge.ScalarType.Int8,
        quantile=given.scalar.quantile,
        always_ram=given.scalar.always_ram,
    )


def _set(given: BaseModel | None) -> dict[str, Any]:
    return {} if given is None else given.model_dump(exclude_none=True)


def _hnsw(settings: Settings) -> dict[str, Any]:
    return _HNSW | _set(settings.hnsw_config)


def _optimizers(settings: Settings) -> dict[str, Any]:
    given = {k: v for k, v in _set(settings.optimizers_config).items() if k in _OPTIMIZERS}
    return {"indexing_threshold": INDEXING_THRESHOLD} | given


def described(settings: Settings) -> dict[str, Any]:
    """Tell the settings in the shape of `GET /collections/NAME`."""
    vectors = settings.vectors
    params = {"vectors": _set(vectors) if isinstance(vectors, models.VectorParams) else {}}
    ones = {name: getattr(settings, name) or 1 for name in _ONE_NODE}
    defaults = {
        "deleted_threshold": 0.2,
        "vacuum_min_vector_number": 1000,
        "default_segment_number": 0,
        "flush_interval_sec": 5,
    }
    on_disk = True if settings.on_disk_payload is None else settings.on_disk_payload
    return {
        "params": params | ones | {"on_disk_payload": on_disk},
        "hnsw_config": _hnsw(settings),
        "optimizer_config": defaults | _optimizers(settings) | _set(settings.optimizers_config),
        "wal_config": {"wal_capacity_mb": 32, "wal_segments_ahead": 0},
        "quantization_config": _set(settings.quantization_config) or None,
        "metadata": settings.metadata,
    }
