"""A datastore: a backend with its manifest; refuses what does not fit."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, Self

from knnlm_store import intents, registry
from knnlm_store.backend import Aliased, Indexed, VectorBackend
from knnlm_store.documents import DocumentRecord, scan
from knnlm_store.errors import (
    InvalidEntries,
    StoreError,
    StoreExists,
    StoreMismatch,
    StoreNotFound,
    UsageError,
)
from knnlm_store.manifest import RECORDS, Manifest
from knnlm_store.values import DocumentFilter, Float32, Freshness, Location, Neighbours, Spec

_log = logging.getLogger(__name__)


class Datastore:
    """A handle on one datastore: the manifest is frozen at opening, entries are live."""

    def __init__(self, location: Location, backend: VectorBackend, manifest: Manifest) -> None:
        self.location = location
        self.backend = backend
        self.manifest = manifest
        self._warned = False

    @classmethod
    def open(cls, uri: str | Location) -> Datastore:
        """Open an existing datastore.

        Raises StoreNotFound, StoreCorrupt, StoreMismatch (a newer format) and what the backend
        raises.
        """
        location = registry.parse(uri) if isinstance(uri, str) else uri
        backend = registry.connect(location)
        try:
            return cls(location, backend, _read(backend, location))
        except BaseException as error:
            backend.close()
            if isinstance(error, StoreNotFound):
                place = str(location).removesuffix("/" + location.name)
                error.hint = (
                    f"{registry.did_you_mean(location)}"
                    f"Make it with: knnlm-store ingest --store {location} FOLDER, "
                    f"or see what there is: knnlm-store ls {place}"
                )
            raise

    @classmethod
    def open_or_create(
        cls,
        uri: str | Location,
        manifest: Manifest,
        storage: str | None = None,
        options: Mapping[str, str] | None = None,
    ) -> Datastore:
        """Open the datastore for the model that `manifest` describes, or make it.

        storage: how keys are kept, by default the backend's first choice; None accepts whatever
        an existing datastore has. options: the backend's own settings for a new datastore; that
        an existing one keeps its own is logged. Raises StoreMismatch if another model wrote it,
        UsageError if `storage` differs from the existing datastore's, or for options that the
        backend does not know.
        """
        location = registry.parse(uri) if isinstance(uri, str) else uri
        backend = registry.connect(location)
        try:
            spec = Spec(manifest.key_dimension, storage or backend.storages[0], options or {})
            if backend.exists():
                _tell_unused(backend, location, spec)
            else:
                try:
                    backend.create(spec, manifest.records())
                except StoreExists:
                    if not backend.exists():  # the name is taken by something else
                        raise
                    # another writer came first: its manifest counts, and is compared below
            store = cls(location, backend, _read(backend, location))
            store.require(manifest)
            store.require_storage(storage)
        except BaseException:
            backend.close()
            raise
        return store

    def require_storage(self, storage: str | None) -> None:
        """Raise UsageError if keys are to be kept otherwise than this datastore keeps them."""
        kept = self.backend.spec().storage
        if storage is not None and storage != kept:
            raise UsageError(
                f"{self.location} keeps keys as {kept}, not {storage}.",
                hint="Leave --storage out, or ingest under another --name than "
                f"{self.location.name}.",
            )

    def require(self, manifest: Manifest) -> None:
        """Raise StoreMismatch unless the model that `manifest` describes may use this.

        Logs, once, where its keys are rounded differently.
        """
        warning = self.manifest.require_same(manifest, str(self.location))
        if warning and not self._warned:
            self._warned = True
            _log.warning(warning)

    def require_keys(self, manifest: Manifest) -> None:
        """Raise StoreMismatch unless keys that were made under `manifest` may stand among these."""
        self.require(manifest)
        mine, theirs = self.manifest.transform, manifest.transform
        if mine != theirs:
            raise StoreMismatch(
                f"{self.location} maps keys by the transform {mine}, not by {theirs}.",
                field="transform",
                hint="Choose another datastore as the target.",
            )

    def search(
        self,
        queries: Float32,
        k: int,
        *,
        within: DocumentFilter | None = None,
        freshness: Freshness = Freshness.LATEST,
        timeout: float | None = None,
    ) -> Neighbours:
        """Search for hidden states, float32 `[q, d]`; see VectorBackend.search."""
        keys = self.keys(queries)
        found = self.backend.search(keys, k, within=within, freshness=freshness, timeout=timeout)
        return replace(found, queries=keys)

    def keys(self, hidden: Float32) -> Float32:
        """Map hidden states float32 `[n, d]` to keys as they are stored, float32 `[n, m]`.

        Raises InvalidEntries for another d.
        """
        key_map = self.manifest.key_map
        if key_map is None:
            return hidden
        if hidden.ndim != 2 or hidden.shape[1] != self.manifest.dimension:
            raise InvalidEntries(
                f"Hidden states have shape {hidden.shape}; this datastore's model has "
                f"[n, {self.manifest.dimension}]."
            )
        return key_map(hidden)

    def documents(self) -> Iterator[DocumentRecord]:
        """Iterate over the catalog, in any order."""
        return scan(self.backend)

    def info(self) -> dict[str, Any]:
        """Describe the datastore; counts are counted."""
        backend, manifest = self.backend, self.manifest
        return {
            "name": self.location.name,
            **_alias(backend, self.location),
            "uri": str(self.location),
            "backend": self.location.scheme,
            "entries": backend.count(),
            "documents": sum(1 for _ in self.documents()),
            "unfinished": sum(1 for intent in intents.scan(backend) if intent.is_abandoned),
            "dimension": manifest.key_dimension,
            "hidden_dimension": manifest.dimension,
            "storage": backend.spec().storage,
            "bytes": backend.size(),
            "index": backend.describe_index() if isinstance(backend, Indexed) else "exact",
            "model": manifest.model,
            "architecture": manifest.architecture,
            "precision": manifest.precision,
            "key": manifest.key,
            "transform": manifest.transform,
            "window": manifest.window,
            "document_start": manifest.document_start,
            "created": manifest.created,
            "format": manifest.format,
        }

    def close(self) -> None:
        """Release the backend."""
        self.backend.close()

    def __enter__(self) -> Self:
        """Close at the end of a with block."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()


def _alias(backend: VectorBackend, location: Location) -> dict[str, str | None]:
    """Say for which datastore a name stands, where the backend has aliases and shows them."""
    if not isinstance(backend, Aliased):
        return {}
    try:
        return {"alias_of": type(backend).aliases(location).get(location.name)}
    except StoreError:  # who may read a datastore need not be allowed to list what is beside it
        return {"alias_of": None}


def _tell_unused(backend: VectorBackend, location: Location, spec: Spec) -> None:
    """Say that options came too late. Raises UsageError for those that no datastore takes."""
    if spec.options:
        backend.check_spec(spec)
        _log.warning("%s exists already and keeps its own options.", location)


def _read(backend: VectorBackend, location: Location) -> Manifest:
    backend.spec()
    return Manifest.read(backend.get_records(RECORDS), str(location))
