"""A backend that can do everything, kept in memory: what mutants are made from."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar, Self

import numpy as np
import pytest

from knnlm_store.backend import Compactable, Indexed
from knnlm_store.memory import MemoryBackend
from knnlm_store.testing import BackendSuite
from knnlm_store.values import Entries, Float32, Location


class Able(MemoryBackend, Indexed, Compactable):
    """Outlives its objects, which are one, keeps keys in three ways, has every ability."""

    storages: tuple[str, ...] = ("float32", "float16", "int8")
    stores: ClassVar[dict[str, Any]] = {}

    def __init_subclass__(cls) -> None:
        cls.stores = {}

    @classmethod
    def connect(cls, location: Location) -> Self:
        store: Self = cls.stores.setdefault(location.name, cls(location))
        return store

    @classmethod
    def names(cls, location: Location) -> list[str]:
        return sorted(name for name, store in cls.stores.items() if store.exists())

    def _upsert(self, entries: Entries) -> None:
        super()._upsert(replace(entries, keys=self._stored(entries.keys)))

    def _stored(self, keys: Float32) -> Float32:
        match self.spec().storage:
            case "float16":
                return keys.astype(np.float16).astype(np.float32)
            case "int8":
                step = np.maximum(np.abs(keys).max(axis=1, keepdims=True), 1e-9) / 127
                return np.asarray(np.round(keys / step) * step, np.float32)
        return keys

    def build_index(self) -> str | None:
        return None

    def describe_index(self) -> str:
        return "exact"

    def compact(self) -> None:
        pass


class SuiteOfAble(BackendSuite):
    adapter = Able

    @pytest.fixture(scope="class")
    @classmethod
    def location(cls) -> Location:
        return Location("able", "", "")


class Mutant(Able):
    """The base of those with a planted bug; one storage is enough."""

    storages: tuple[str, ...] = ("float32",)
    caught_by: ClassVar[str]
