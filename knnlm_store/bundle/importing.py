"""From a bundle to a datastore: refused before anything is written, or copied and verified."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from knnlm_store import registry
from knnlm_store.backend import VectorBackend
from knnlm_store.bundle.backend import SCHEME, BundleBackend
from knnlm_store.bundle.checking import check
from knnlm_store.bundle.listing import damaged
from knnlm_store.copying import CopyReport, copy
from knnlm_store.datastore import Datastore
from knnlm_store.errors import StoreCorrupt, StoreMismatch
from knnlm_store.manifest import RECORDS, Manifest
from knnlm_store.values import Location, Spec


def open_bundle(folder: str | Path) -> Datastore:
    """Open a bundle as a datastore that can be read, not searched; its entries are not checked.

    Raises MissingDependency without pyarrow, StoreNotFound where there is no bundle,
    StoreMismatch for a newer format, and StoreCorrupt.
    """
    registry.require("pyarrow", "data")
    folder = Path(folder)
    location = Location(SCHEME, str(folder.parent), folder.name)
    backend = BundleBackend.connect(location)
    return Datastore(location, backend, _manifest(backend))


def require_target(
    bundle: Datastore,
    where: Location,
    storage: str | None = None,
    options: Mapping[str, str] | None = None,
) -> str | None:
    """Raise, with nothing written, unless a bundle can be imported to a place.

    Gives the storage to create it with; None where there is a datastore. Raises StoreMismatch
    if another model or key transform wrote it, UsageError for a storage or options that cannot be.
    """
    backend = registry.connect(where)
    try:
        if not backend.exists():
            return _creatable(bundle, backend, storage, options)
    finally:
        backend.close()
    with Datastore.open(where) as target:
        try:
            target.require_keys(bundle.manifest)
        except StoreMismatch as error:
            error.hint = f"Import it under another --name than {where.name}."
            raise
        target.require_storage(storage)
    return None


def import_bundle(
    folder: str | Path,
    target: str | Location,
    *,
    storage: str | None = None,
    options: Mapping[str, str] | None = None,
    progress: Callable[[CopyReport], None] = lambda _: None,
    stop: Callable[[], bool] = lambda: False,
) -> CopyReport:
    """Check a bundle in full, then copy it into a datastore, which is made if need be.

    What the target has already is skipped; an import that was killed or stopped goes on where it
    was. storage, options: of a new datastore, by default the storage of the exported one. Raises
    as `open_bundle`, `check` and `require_target` do, with nothing written.
    """
    where = registry.parse(target) if isinstance(target, str) else target
    with open_bundle(folder) as bundle:
        kept = require_target(bundle, where, storage, options)
        check(bundle)
        with Datastore.open_or_create(where, bundle.manifest, kept, options) as store:
            return copy(bundle, store, progress=progress, stop=stop, called="import")


def _creatable(
    bundle: Datastore,
    backend: VectorBackend,
    storage: str | None,
    options: Mapping[str, str] | None,
) -> str:
    spec = bundle.backend.spec()
    if storage is None:
        storage = spec.storage if spec.storage in backend.storages else backend.storages[0]
    backend.check_spec(Spec(spec.dimension, storage, options or {}))
    return storage


def _manifest(backend: BundleBackend) -> Manifest:
    """Read the manifest, which must be the one that bundle.json shows."""
    place = backend.folder / backend.listing.the("records").name
    records = backend.get_records(RECORDS)
    try:
        manifest = Manifest.read(records, str(place))
    except StoreCorrupt as error:
        raise damaged(place, "holds no manifest that can be read") from error
    if not _is_sound(manifest):
        raise damaged(place, "holds no manifest that can be read")
    if json.loads(records["manifest"]) != backend.listing.manifest:
        raise damaged(place, "holds another manifest than bundle.json shows")
    if manifest.key_dimension != backend.listing.dimension:
        raise damaged(place, f"has keys of {manifest.key_dimension} dimensions, the entries others")
    return manifest


def _is_sound(manifest: Manifest) -> bool:
    """Whether all values are of their types."""
    kinds: dict[Any, type] = {"str": str, "int": int}
    plain = (field for field in fields(manifest) if field.type in kinds)
    return (
        isinstance(manifest.shape, dict)
        and manifest.probe.ndim == 2
        and all(isinstance(getattr(manifest, f.name), kinds[f.type]) for f in plain)
    )
