"""What a user says of a new datastore, and what an existing one must agree with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from knnlm_store.cli import common, output
from knnlm_store.errors import UsageError

_NONE = "none"  # of transform.py, which brings in NumPy

if TYPE_CHECKING:
    from knnlm_store.datastore import Datastore
    from knnlm_store.manifest import Manifest
    from knnlm_store.models import LanguageModel
    from knnlm_store.values import Location


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the user said of a new datastore, and an old one must agree with; None if nothing."""

    key: str | None
    window: int | None
    storage: str | None
    settings: dict[str, str]
    transform: str | None = None
    transform_from: str | None = None

    def __post_init__(self) -> None:
        if self.transform not in (None, "model", _NONE):
            raise UsageError(
                f"--transform takes model or none, not {self.transform!r}.",
                hint="Leave it out, or name another datastore: --transform-from STORE",
            )
        if self.transform is not None and self.transform_from is not None:
            raise UsageError(
                "--transform and --transform-from exclude each other.", hint="Leave one out."
            )

    def check_transform(self, store: Datastore) -> None:
        """Raise UsageError if an existing datastore's keys are made otherwise."""
        from knnlm_store.datastore import Datastore

        kept = store.manifest.transform
        if self.transform_from is not None:
            with Datastore.open(self.transform_from) as other:
                same = other.manifest.transform == kept
        else:
            same = self.transform is None or (kept == _NONE) == (self.transform == _NONE)
        if not same:
            raise UsageError(
                f"{store.location} has its own key transform, {kept}.",
                hint="Leave --transform and --transform-from out, or ingest under another --name.",
            )

    def loading(self) -> dict[str, Any]:
        """Give what concerns the loading of a model."""
        said = {"key": self.key, "window": self.window}
        return {name: value for name, value in said.items() if value is not None}


def key_space(
    model: LanguageModel, where: Location, wanted: Wanted, batch_size: int | None
) -> Manifest:
    """Decide how a new datastore's keys are made; gives its manifest."""
    from knnlm_store import registry
    from knnlm_store.datastore import Datastore
    from knnlm_store.keyspace import transform_of

    manifest = model.manifest()
    backend = registry.connect(where)
    try:
        there = backend.exists()
    finally:
        backend.close()
    if there:
        return manifest
    if wanted.transform_from is not None:
        with Datastore.open(wanted.transform_from) as other:
            other.require(manifest)
            return manifest.mapping(other.manifest.key_map)
    if wanted.transform == _NONE:
        return manifest
    with output.status("fitting the key space of the model, once"):
        return manifest.mapping(transform_of(model, common.batch_tokens(model, batch_size)))
