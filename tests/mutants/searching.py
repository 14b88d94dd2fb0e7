"""Backends that search wrongly, in one way each; `caught_by` is the test made for it."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import numpy as np

from knnlm_store.values import DocumentFilter, Entries, Float32, Int64, Neighbours
from tests.mutants.able import Mutant


class RootDistances(Mutant):
    caught_by = "test_distances_are_squared"

    def _search(self, *args: Any) -> Neighbours:
        found = super()._search(*args)
        return replace(found, distances=np.sqrt(np.maximum(found.distances, 0)))


class InnerProduct(Mutant):
    caught_by = "test_keys_far_from_the_origin"

    def _upsert(self, entries: Entries) -> None:
        lengths = np.linalg.norm(entries.keys, axis=1, keepdims=True)
        super()._upsert(replace(entries, keys=entries.keys / np.maximum(lengths, 1e-9)))


class Unsorted(Mutant):
    caught_by = "test_distances_are_squared"

    def search(self, queries: Float32, k: int, **options: Any) -> Neighbours:
        found = super().search(queries, k, **options)
        return found._each(lambda array: array[:, ::-1].copy())


class OneNeighbourLost(Mutant):
    caught_by = "test_neighbours_are_the_nearest"

    def _search(self, queries: Float32, k: int, *args: Any) -> Neighbours:
        found = super()._search(queries, k + 1, *args).sorted()
        return found._each(lambda array: np.delete(array, 1, axis=1)) if k > 2 else found


class TokensOfAnotherRow(Mutant):
    caught_by = "test_neighbours_are_the_nearest"

    def _search(self, *args: Any) -> Neighbours:
        found = super()._search(*args)
        return replace(found, tokens=np.roll(found.tokens, 1, axis=1))


class FilterIgnored(Mutant):
    caught_by = "test_filter"

    def _search(self, queries: Float32, k: int, within: Any, *args: Any) -> Neighbours:
        return super()._search(queries, k, None, *args)


class FilterAfterwards(Mutant):
    caught_by = "test_filter_sees_past_nearer_documents"

    def _search(
        self, queries: Float32, k: int, within: DocumentFilter | None, *args: Any
    ) -> Neighbours:
        found = super()._search(queries, k, None, *args)
        if within is None:
            return found
        passes = within.mask(found.documents) & (found.tokens >= 0)
        blank = Neighbours.none(len(queries), passes.shape[1], queries.shape[1])
        return found._each(
            lambda a, b: np.where(passes[:, :, None] if a.ndim == 3 else passes, a, b), blank
        )


class EmptyFilterMeansAll(Mutant):
    caught_by = "test_filter"

    def _search(
        self, queries: Float32, k: int, within: DocumentFilter | None, *args: Any
    ) -> Neighbours:
        real = within if within and len(within.documents) else None
        return super()._search(queries, k, real, *args)


class PadsWithZero(Mutant):
    caught_by = "test_more_wanted_than_there_are"

    def search(self, queries: Float32, k: int, **options: Any) -> Neighbours:
        found = super().search(queries, k, **options)
        return replace(found, tokens=np.maximum(found.tokens, 0))


class NegativeDistances(Mutant):
    caught_by = "test_queries_that_are_keys"

    def search(self, queries: Float32, k: int, **options: Any) -> Neighbours:
        found = super().search(queries, k, **options)
        return replace(found, distances=found.distances - np.float32(1e-6))


class KeysOfAnotherRow(Mutant):
    caught_by = "test_keys_come_with_their_neighbours"

    def _search(self, *args: Any) -> Neighbours:
        found = super()._search(*args)
        return found if found.keys is None else replace(found, keys=found.keys[:, ::-1])


class TornReads(Mutant):
    caught_by = "test_searches_beside_a_writer"

    def _search(self, *args: Any) -> Neighbours:
        before, found = self._entries, super()._search(*args)
        time.sleep(0.002)
        torn = self._entries is not before
        return replace(found, tokens=np.roll(found.tokens, 1, axis=1)) if torn else found


class IndexForgetsDeletions(Mutant):
    caught_by = "test_searches_are_right_around_an_index"

    def build_index(self) -> str | None:
        self._built = True
        return "built"

    def _delete(self, documents: Int64) -> None:
        if not getattr(self, "_built", False):
            super()._delete(documents)
