"""What a datastore says of itself: named byte strings beside the entries."""

from __future__ import annotations

import numpy as np
import pytest

from knnlm_store.backend import VectorBackend
from knnlm_store.testing.base import Base, Scratch, write
from knnlm_store.testing.truth import FAR, batch, line

ODD_NAMES = [
    "plain",
    "UPPER",
    "upper",
    "document/src/a b.txt",
    "a/../b//c\\d",
    'it\'s "quoted" `so`',
    "100%_[x]*?",
    "tab\tnew\nline",
    "naïve/日本語/🙂",
    "e\u0301 is not \u00e9",
    "\u00e9",
    " spaces ",
    "x" * 300,
]
LARGE = np.random.default_rng(0).bytes(700_000)
"""More than vendors take in one value: a key transform of 576 x 256 float32 is 590 KB."""


class Records(Base):
    """Tests of put, get, delete and scan."""

    def test_put_get_delete(self, store: VectorBackend) -> None:
        """Unknown names are left out of an answer, and ignored by a deletion."""
        assert store.get_records(["a"]) == {}
        store.put_records({"a": b"1", "b": b"2"})
        assert store.get_records(["b", "a", "missing"]) == {"a": b"1", "b": b"2"}
        assert store.get_records([]) == {}
        store.delete_records(["a", "missing"])
        assert store.get_records(["a", "b"]) == {"b": b"2"}

    def test_put_replaces(self, store: VectorBackend) -> None:
        """Only what is named, and an empty mapping nothing."""
        store.put_records({"a": b"1", "b": b"2"})
        store.put_records({"a": b"3"})
        store.put_records({})
        assert dict(store.scan_records("")) == {"a": b"3", "b": b"2"}

    def test_names_are_any_text(self, store: VectorBackend) -> None:
        """A catalog holds paths: slashes, quotes, wildcards, other scripts, case that counts."""
        written = {name: name.encode() + b"!" for name in ODD_NAMES}
        store.put_records(written)
        assert store.get_records(ODD_NAMES) == written
        assert dict(store.scan_records("")) == written
        for name in ODD_NAMES:
            assert store.get_records([name]) == {name: written[name]}
        store.delete_records(ODD_NAMES[1:])
        assert dict(store.scan_records("")) == {"plain": b"plain!"}

    @pytest.mark.parametrize(
        "value", [b"", b"\x00", bytes(range(256)), LARGE], ids=["empty", "nul", "binary", "large"]
    )
    def test_values_are_any_bytes(self, scratch: Scratch, value: bytes) -> None:
        """Nothing is stripped, decoded or cut, also when read again from the place."""
        scratch.backend.put_records({"v": value, "w": b"beside"})
        for again in (False, True):
            store = scratch.reopen() if again else scratch.backend
            assert store.get_records(["v"]) == {"v": value}
            assert sorted(store.scan_records("")) == [("v", value), ("w", b"beside")]

    def test_value_may_change_its_size(self, store: VectorBackend) -> None:
        """No tail of a larger value is left behind."""
        for value in (b"small", LARGE, b"small again", LARGE[:300_000], b""):
            store.put_records({"v": value})
            assert list(store.scan_records("")) == [("v", value)]
        store.put_records({"v": LARGE})
        store.delete_records(["v"])
        assert list(store.scan_records("")) == []

    @pytest.mark.parametrize(
        ("prefix", "names"),
        [
            ("", ["A_B", "a%b", "a*b", "a[b]", "a_b", "axb", "b", "document/1", "document/2"]),
            ("a", ["a%b", "a*b", "a[b]", "a_b", "axb"]),
            ("a%", ["a%b"]),
            ("a_", ["a_b"]),
            ("a*", ["a*b"]),
            ("a[b", ["a[b]"]),
            ("A", ["A_B"]),
            ("document/", ["document/1", "document/2"]),
            ("document/1", ["document/1"]),
            ("%", []),
            ("document/1/", []),
        ],
    )
    def test_scan_by_prefix(self, store: VectorBackend, prefix: str, names: list[str]) -> None:
        """A prefix is text, not a pattern, and its case counts."""
        every = ["document/2", "b", "axb", "a_b", "a[b]", "a*b", "a%b", "A_B", "document/1"]
        store.put_records({name: name.encode() for name in every})
        found = sorted(store.scan_records(prefix))
        assert found == [(name, name.encode()) for name in names]

    def test_many_records(self, store: VectorBackend) -> None:
        """Past the page, and past the parameters, that a vendor takes at once."""
        written = {f"document/{i:05d}": b"%d" % i for i in range(2500)}
        store.put_records(written)
        assert sorted(store.scan_records("document/")) == list(written.items())
        assert store.get_records(list(written)) == written
        store.delete_records(list(written)[1:])
        assert list(store.scan_records("")) == [("document/00000", b"0")]

    def test_records_are_no_entries(self, store: VectorBackend) -> None:
        """Each is counted, scanned and removed apart from the other."""
        store.put_records({"manifest": b"m", str(FAR): b"named like an id"})
        assert store.count() == 0
        assert list(store.scan()) == []
        written = write(store, batch(FAR, line(3)))
        self.check(store, written, line(1))
        store.delete([FAR])
        store.flush()
        assert len(list(store.scan_records(""))) == 2
