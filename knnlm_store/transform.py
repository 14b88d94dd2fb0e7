"""The map from hidden states to stored keys: centred, turned, weighed, cut.

Principal component i is divided by its variance to the power `POWER`, between plain PCA (0) and
whitening (1/2), and only the first components are kept. It is part of the datastore: keys and
queries go through the same map, which is kept before the first entry and never changes.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from knnlm_store.errors import StoreCorrupt, UsageError
from knnlm_store.interpolation import Float64
from knnlm_store.values import Float32

NONE = "none"
"""Name of keys that are the hidden states themselves."""
RECORD = "transform"
DIMENSION, POWER = 256, 0.25
SAMPLE = 10
"""Keys a dimension of the hidden states that a fit should have; fewer make noisy variances."""

_FLOOR = 1e-6  # of the largest variance: a component without any must not be blown up


@dataclass(frozen=True, slots=True)
class Transform:
    """keys = (hidden - mean) @ matrix; mean float32 `[d]`, matrix float32 `[d, m]`."""

    mean: Float32
    matrix: Float32

    @property
    def name(self) -> str:
        """Identify the map: datastores of one name share a key space."""
        digest = hashlib.sha256(self.mean.tobytes() + self.matrix.tobytes()).hexdigest()
        return f"pca{self.dimension}-{digest[:12]}"

    @property
    def dimension(self) -> int:
        """Count the dimensions of stored keys."""
        return int(self.matrix.shape[1])

    def __call__(self, hidden: Float32) -> Float32:
        """Map hidden states float32 `[n, d]` to keys float32 `[n, m]`."""
        if not len(hidden):
            return np.empty((0, self.dimension), np.float32)
        return np.asarray((hidden - self.mean) @ self.matrix, np.float32)

    def records(self) -> dict[str, bytes]:
        """Give the record that holds it."""
        file = io.BytesIO()
        np.savez(file, mean=self.mean, matrix=self.matrix)
        return {RECORD: file.getvalue()}

    @classmethod
    def read(cls, records: Mapping[str, bytes], name: str, where: str) -> Transform | None:
        """Rebuild the transform that a manifest names; `where` names the datastore in errors.

        None for `none`. Raises StoreCorrupt if the record is missing or is not what was named.
        """
        if name == NONE:
            return None
        try:
            transform = cls.parse(records[RECORD])
            if transform.name == name:
                return transform
        except (KeyError, ValueError) as error:
            raise _corrupt(where) from error
        raise _corrupt(where)

    @classmethod
    def parse(cls, record: bytes) -> Transform:
        """Rebuild one from its record; raises KeyError or ValueError for what is none."""
        try:
            with np.load(io.BytesIO(record), allow_pickle=False) as arrays:
                mean, matrix = arrays["mean"], arrays["matrix"]
        except (OSError, EOFError, RuntimeError, zipfile.BadZipFile) as error:
            raise ValueError(str(error)) from error
        if mean.ndim != 1 or matrix.ndim != 2 or len(matrix) != len(mean):
            raise ValueError(f"{mean.shape} and {matrix.shape} are no transform.")
        return cls(mean, matrix)


def fit(sample: Float32, dimension: int = DIMENSION, power: float = POWER) -> Transform:
    """Fit on hidden states, float32 `[n, d]`.

    dimension: of the keys, at most; d if that is smaller. Raises UsageError for one below 1, and
    for fewer than 2 hidden states a dimension of the keys.
    """
    if dimension < 1:
        raise UsageError(f"Keys need at least 1 dimension, not {dimension}.")
    n, d = sample.shape
    if n < 2 * min(d, dimension):
        raise UsageError(f"{n} hidden states are too few to fit {min(d, dimension)} dimensions.")
    wide: Float64 = sample.astype(np.float64)
    mean: Float64 = wide.mean(axis=0)
    wide = wide - mean
    variances, directions = np.linalg.eigh(wide.T @ wide / n)  # ascending
    variances, directions = variances[::-1][:dimension], directions[:, ::-1][:, :dimension]
    # the sign of a component means nothing; fixing it makes equal samples give equal keys
    peaks = directions[np.abs(directions).argmax(axis=0), np.arange(directions.shape[1])]
    directions = directions * np.sign(peaks)
    scales = np.maximum(variances, _FLOOR * max(variances[0], 1e-30)) ** power
    matrix = np.ascontiguousarray(directions / scales, dtype=np.float32)
    return Transform(mean.astype(np.float32), matrix)


def _corrupt(where: str) -> StoreCorrupt:
    return StoreCorrupt(
        f"The key transform of {where} cannot be read.",
        hint=f"Restore it from a backup, or remove it: knnlm-store rm {where}",
    )
