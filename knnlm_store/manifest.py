"""What a datastore is: the model that wrote it, where its keys were read, and its format.

Three records hold it: `manifest` (JSON), `probe` (keys of a fixed sentence) and, where there is
one, `transform` (see transform.py). The probe says
what file digests cannot: whether the model at hand maps text to the same key space, whatever
file, dtype or quantisation it was loaded from.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np

from knnlm_store.errors import StoreCorrupt, StoreMismatch
from knnlm_store.transform import NONE, RECORD, Transform
from knnlm_store.values import Float32

FORMAT = 1
RECORDS = ("manifest", "probe", RECORD)

# Relative distance between two models' keys of the probe sentence. Measured on SmolLM2-135M:
# below 1e-5 between batch shapes, 0.001 for float16, 0.012 for bfloat16, 0.015 for int8 weights,
# 0.34 for the crudest 4-bit rounding of all weights; 0.02, 0.1 and 0.3 to 0.4 for noise of 1, 3
# and 10 % on all weights, which a fine-tune may resemble.
SAME = 1e-3
ALIKE = 0.05
ALIKE_QUANTISED = 0.5

FLOATS = ("float32", "float16", "bfloat16")


@dataclass(frozen=True)
class Manifest:
    """Identity of a datastore, fixed at its creation.

    model, architecture: name and class of the model. shape: its type and sizes. precision: dtype
    of its weights, or how they are quantised. tokenizer: digest of its vocabulary and of
    how it splits a probe sentence. key: the key point. dimension: of the hidden states.
    document_start: id of the token put before each document. window: inputs of one forward pass
    at ingest. transform: name of what maps hidden states to stored keys; key_map: that map, None
    for `none`. probe: float32 `[p, d]`, hidden states of the probe sentence.
    """

    model: str
    architecture: str
    shape: Mapping[str, Any]
    precision: str
    tokenizer: str
    key: str
    dimension: int
    document_start: int
    window: int
    created: str
    transform: str = NONE
    format: int = FORMAT
    probe: Float32 = field(default_factory=lambda: np.empty((0, 0), np.float32), compare=False)
    key_map: Transform | None = field(default=None, compare=False)

    @property
    def key_dimension(self) -> int:
        """Count the dimensions of stored keys."""
        return self.dimension if self.key_map is None else self.key_map.dimension

    def mapping(self, key_map: Transform | None) -> Manifest:
        """Give this manifest with a key transform, or with none."""
        return replace(self, transform=key_map.name if key_map else NONE, key_map=key_map)

    def records(self) -> dict[str, bytes]:
        """Give the records that hold this manifest."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "key_map"}
        probe = io.BytesIO()
        np.save(probe, values.pop("probe"), allow_pickle=False)
        text = json.dumps(values, ensure_ascii=False, sort_keys=True)
        records = {"manifest": text.encode(), "probe": probe.getvalue()}
        return records | (self.key_map.records() if self.key_map else {})

    @classmethod
    def read(cls, records: Mapping[str, bytes], where: str) -> Manifest:
        """Rebuild a manifest; `where` names the datastore in errors.

        Raises StoreCorrupt, and StoreMismatch on `format` if a newer version wrote it.
        """
        try:
            values = json.loads(records["manifest"])
            written = values["format"]
        except (KeyError, TypeError, ValueError) as error:
            raise StoreCorrupt(
                f"The manifest of {where} cannot be read.",
                hint=f"Restore it from a backup, or remove it: knnlm-store rm {where}",
            ) from error
        if written != FORMAT:
            raise StoreMismatch(
                f"{where} has format {written}; this version reads format {FORMAT}.",
                field="format",
                hint="Run: pip install --upgrade knnlm-store",
            )
        known = {f.name for f in fields(cls)} - {"probe", "key_map"}
        try:
            probe = np.lib.format.read_array(io.BytesIO(records["probe"]), allow_pickle=False)
            manifest = cls(probe=probe, **{k: v for k, v in values.items() if k in known})
        except (KeyError, TypeError, ValueError) as error:
            raise StoreCorrupt(f"The manifest of {where} is incomplete.") from error
        return replace(manifest, key_map=Transform.read(records, manifest.transform, where))

    def require_same(self, other: Manifest, where: str) -> str | None:
        """Raise StoreMismatch, naming the field, unless `other`'s model may use this datastore.

        Gives a warning where the model is the same but its keys are rounded differently.
        """
        differing = [
            (name, getattr(self, name), getattr(other, name))
            for name in ("key", "tokenizer", "document_start")
        ] + [(name, self.shape.get(name), value) for name, value in other.shape.items()]
        for name, mine, theirs in differing:
            if mine != theirs:
                raise StoreMismatch(
                    f"{where} was written by the model {self.model} with {name} {mine!r}, "
                    f"not {theirs!r}.",
                    field=name,
                    hint="Use that model and its settings, or ingest under another --name.",
                )
        return self._require_near(other, where)

    def _require_near(self, other: Manifest, where: str) -> str | None:
        distance = self.probe_distance(other)
        quantised = not {self.precision, other.precision} <= set(FLOATS)
        if not distance <= (ALIKE_QUANTISED if quantised else ALIKE):  # nor NaN
            raise StoreMismatch(
                f"{where} was written by another model ({self.model}, {self.precision}); keys of "
                f"{other.model} ({other.precision}) lie elsewhere, {100 * distance:.0f}% away.",
                field="model",
                hint="Use that model, or ingest under another --name.",
            )
        if distance <= SAME:
            return None
        return (
            f"Keys of {other.model} ({other.precision}) differ by {100 * distance:.1f}% from those "
            f"in {where} ({self.precision}); the same dtype would find its neighbours better."
        )

    def probe_distance(self, other: Manifest) -> float:
        """Distance of the probe's keys relative to their length; inf for other shapes."""
        if self.probe.shape != other.probe.shape:
            return float("inf")
        length = float(np.linalg.norm(self.probe))
        return float(np.linalg.norm(self.probe - other.probe)) / max(length, 1e-12)
