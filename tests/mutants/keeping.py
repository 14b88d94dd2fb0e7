"""Backends that keep entries or records wrongly, in one way each."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any

import numpy as np

from knnlm_store.errors import StoreNotFound
from knnlm_store.values import Entries, Int64, Location, Spec
from tests.mutants.able import Mutant


class Int16Tokens(Mutant):
    caught_by = "test_token_ids_are_uint32"

    def _upsert(self, entries: Entries) -> None:
        tokens = entries.tokens.astype(np.int16).astype(np.int64) % 65_536
        super()._upsert(replace(entries, tokens=tokens))


class DoubleDocuments(Mutant):
    caught_by = "test_any_document_number"

    def _upsert(self, entries: Entries) -> None:
        rounded = entries.documents.astype(np.float64).clip(max=2.0**62).astype(np.int64)
        super()._upsert(replace(entries, documents=rounded))


class InsertsAlways(Mutant):
    caught_by = "test_upsert_is_idempotent"

    def _upsert(self, entries: Entries) -> None:
        self._replace(Entries.concatenate([self._entries, entries]))


class KeepsFirst(Mutant):
    caught_by = "test_upsert_replaces_key_and_token"

    def _upsert(self, entries: Entries) -> None:
        super()._upsert(entries[~np.isin(entries.ids, self._entries.ids)])


class KeepsCallersArrays(Mutant):
    caught_by = "test_caller_may_reuse_arrays"

    def _upsert(self, entries: Entries) -> None:
        if len(self._entries):
            super()._upsert(entries)
        else:
            self._replace(entries)


class WritesBeforeItChecks(Mutant):
    caught_by = "test_wrong_entries_are_refused"

    def upsert(self, entries: Entries) -> None:
        good = np.isfinite(entries.keys).all(axis=-1)
        if entries.keys.shape == (2, 8) and good.sum() == 1:
            self._upsert(entries[good])
        super().upsert(entries)


class DeletesTooMuch(Mutant):
    caught_by = "test_delete_is_by_document"

    def _delete(self, documents: Int64) -> None:
        super()._delete(np.concatenate([documents, documents + 4]))


class DeletesNothing(Mutant):
    caught_by = "test_deleted_document_may_return"

    def _delete(self, documents: Int64) -> None:
        pass


class IdsRestartAtZero(Mutant):
    caught_by = "test_positions_may_have_gaps"

    def _upsert(self, entries: Entries) -> None:
        super()._upsert(replace(entries, positions=np.arange(len(entries), dtype=np.int64)))


class StaleAfterFlush(Mutant):
    caught_by = "test_upsert_replaces_key_and_token"

    def _upsert(self, entries: Entries) -> None:
        self._late, late = entries, getattr(self, "_late", entries[:0])
        if len(late):
            super()._upsert(late)


class LosesLastBatchOnReopening(Mutant):
    caught_by = "test_reopening_finds_everything"

    def close(self) -> None:
        self._replace(self._entries[:-1])


class ScanRepeats(Mutant):
    caught_by = "test_scan"

    def _scan(self, *args: Any) -> Iterator[Entries]:
        for part in super()._scan(*args):
            yield part
        if len(self._entries):
            yield part


class ScanUnbounded(Mutant):
    caught_by = "test_scan"

    def _scan(self, with_keys: bool, documents: Int64 | None, size: int) -> Iterator[Entries]:
        return super()._scan(with_keys, documents, 10**9)


class ScanForgetsDocuments(Mutant):
    caught_by = "test_scan_of_some_documents"

    def _scan(self, with_keys: bool, documents: Int64 | None, size: int) -> Iterator[Entries]:
        return super()._scan(with_keys, None, size)


class PrefixIsLike(Mutant):
    caught_by = "test_scan_by_prefix"

    def scan_records(self, prefix: str) -> Iterator[tuple[str, bytes]]:
        pattern = prefix.lower().replace("%", "*").replace("_", "?") + "*"
        yield from (r for r in super().scan_records("") if fnmatchcase(r[0].lower(), pattern))


class ValuesCut(Mutant):
    caught_by = "test_values_are_any_bytes"

    def put_records(self, records: Mapping[str, bytes]) -> None:
        super().put_records({name: value[:65_535] for name, value in records.items()})


class LastCreatorWins(Mutant):
    caught_by = "test_create_twice_is_refused"

    def create(self, spec: Spec, records: Mapping[str, bytes]) -> None:
        self._spec = None
        super().create(spec, records)


class MakesWhatIsAbsent(Mutant):
    caught_by = "test_absent_store_is_not_found_by_anything"

    def spec(self) -> Spec:
        try:
            return super().spec()
        except StoreNotFound:
            self.create(Spec(8), {})
            return super().spec()


class DropKeepsRecords(Mutant):
    caught_by = "test_drop_leaves_nothing"

    def create(self, spec: Spec, records: Mapping[str, bytes]) -> None:
        old = dict(self._records)
        super().create(spec, {**old, **records})


class NamesWhatIsGone(Mutant):
    caught_by = "test_names_lists_what_exists"

    @classmethod
    def names(cls, location: Location) -> list[str]:
        return sorted(cls.stores)


class LosesConcurrentWrites(Mutant):
    caught_by = "test_writers_at_once"

    def _upsert(self, entries: Entries) -> None:
        before = self._entries
        time.sleep(0.002)
        self._replace(Entries.concatenate([before, entries]))


class CompactionLosesEntries(Mutant):
    caught_by = "test_compaction_keeps_what_is_left"

    def compact(self) -> None:
        with self._lock:  # else a writer at the same time may bring back what is lost
            self._replace(self._entries[: len(self._entries) // 2])
