"""Calibrations: kept to the bit, refused when altered or foreign, and when they are used."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from knnlm_store.calibrated import Calibration, policy_to_json
from knnlm_store.calibration import (
    settle,
)
from knnlm_store.datastore import Datastore
from knnlm_store.errors import StoreCorrupt, StoreMismatch
from knnlm_store.interpolation import Float64
from knnlm_store.mixture import Evidence, Fixed, Mixture
from knnlm_store.models import LanguageModel
from knnlm_store.policies import Damped
from tests.ingest_support import some_entries
from tests.tuning_support import MIXTURES, calibration, of_entries, random_gate


@pytest.fixture
def store(shared_model: LanguageModel) -> Datastore:
    return of_entries(shared_model)


def record(store: Datastore) -> bytes:
    return store.backend.get_records(["calibration"])["calibration"]


def put(store: Datastore, value: bytes) -> None:
    store.backend.put_records({"calibration": value})


def records(store: Datastore) -> dict[str, bytes]:
    return dict(store.backend.scan_records(""))


# -- keeping --------------------------------------------------------------------------------------


def test_none_was_written(store: Datastore) -> None:
    assert Calibration.read(store) is None


def test_read_as_written_to_the_bit(store: Datastore) -> None:
    written = calibration(store)
    before = records(store)
    written.write(store)
    assert set(records(store)) - set(before) == {"calibration"}
    read = Calibration.read(store)
    assert read is not None
    assert set(read.mixtures) == set(MIXTURES)
    for name, mixture in MIXTURES.items():
        again = read.mixtures[name]
        assert (again.k, again.temperature) == (mixture.k, mixture.temperature)
        assert policy_to_json(again.policy) == policy_to_json(mixture.policy)
    assert read.mixtures["bucketed"].policy.edges.tolist() == [1e-300, 1 / 7, 2.0**70]  # type: ignore[attr-defined]
    assert read.mixture is read.mixtures["bucketed"]
    for field in ("chosen", "model", "index", "storage", "entries", "created", "figures"):
        assert getattr(read, field) == getattr(written, field)
    assert read.entries == store.backend.count() == 300
    assert (read.index, read.storage) == ("exact", "float32")
    first = record(store)
    read.write(store)
    assert record(store) == first
    replace(read, chosen="fixed").write(store)
    second = Calibration.read(store)
    assert second is not None
    assert second.chosen == "fixed"


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_only_a_likeness_takes_the_newer_format(
    store: Datastore, rng: np.random.Generator, share: float
) -> None:
    gate = random_gate(rng, dimension=32)
    mixture = Mixture(8, 1.0, Damped(gate, share))
    replace(calibration(store), mixtures={"bucketed": mixture}).write(store)
    assert json.loads(record(store))["format"] == 3
    read = Calibration.read(store)
    assert read is not None
    assert policy_to_json(read.mixture.policy) == policy_to_json(mixture.policy)


def test_nothing_in_it_can_run(store: Datastore) -> None:
    """It is JSON; nobody else's policy can get in."""
    calibration(store).write(store)
    assert json.loads(record(store))["format"] == 2

    class Mine:
        name, scales = "mine", (1.0,)

        def __call__(self, evidence: Evidence) -> Float64:
            return np.zeros((len(evidence), 1))

    strange = replace(calibration(store), mixtures={"mine": Mixture(1, 1.0, Mine())})
    before = record(store)
    with pytest.raises(TypeError, match="policy of type Mine"):
        strange.write(store)
    assert record(store) == before


def test_a_damped_policy_is_kept_with_what_it_damps(store: Datastore) -> None:
    policies = {name: Damped(each.policy, 1 / 3) for name, each in MIXTURES.items()}
    mixtures = {name: replace(MIXTURES[name], policy=each) for name, each in policies.items()}
    replace(calibration(store), mixtures=mixtures).write(store)
    read = Calibration.read(store)
    assert read is not None
    for name, policy in policies.items():
        assert policy_to_json(read.mixtures[name].policy) == policy_to_json(policy)
        again = read.mixtures[name].policy
        assert isinstance(again, Damped)
        assert (again.share, again.name) == (1 / 3, name)


# -- refusing -------------------------------------------------------------------------------------


def changed(value: bytes, **fields: Any) -> bytes:
    return json.dumps(json.loads(value) | fields).encode()


def one_digit(value: bytes) -> bytes:
    """The temperature of the fixed mixture, by hand; nothing else changes."""
    assert value.count(b"0.30000000000000004") == 1
    return value.replace(b"0.30000000000000004", b"0.40000000000000004")


ALTERED: dict[str, Callable[[bytes], bytes]] = {
    "one digit": one_digit,
    "other entries": lambda value: changed(value, entries=10**9),
    "other choice": lambda value: changed(value, chosen="fixed"),
    "other digest": lambda value: changed(value, digest="0" * 64),
    "no digest": lambda value: changed(value, digest=None),
    "strange format": lambda value: changed(value, format="new"),
    "cut": lambda value: value[: len(value) // 2],
    "empty": lambda _: b"",
    "a list": lambda _: b"[1]",
    "null": lambda _: b"null",
    "no object": lambda _: b"{}",
    "no text": lambda _: b"\xff\xfe",
}


@pytest.mark.parametrize("how", ALTERED)
def test_edited_by_hand(store: Datastore, how: str) -> None:
    calibration(store).write(store)
    put(store, ALTERED[how](record(store)))
    before = records(store)
    uses: tuple[Callable[[Datastore], object], ...] = (Calibration.read, settle)
    for use in uses:
        with pytest.raises(StoreCorrupt) as caught:
            use(store)
        assert str(caught.value) == "The calibration of memory: is not what `tune` wrote."
        assert caught.value.hint == (
            "Fit it again with knnlm-store tune, or do without it: --lmbda 0.25"
        )
    assert records(store) == before
    assert settle(store, lmbda=0.25).mixture.policy == Fixed(0.25)  # as the hint says


@pytest.mark.parametrize("edges", ["", "AAAA", "!", 3])
def test_arrays_that_are_none(store: Datastore, edges: object) -> None:
    """Also under a digest that fits: a writer of another kind may have its own faults."""
    from knnlm_store.calibrated import _digest

    calibration(store).write(store)
    body = json.loads(record(store))
    del body["digest"]
    body["mixtures"]["bucketed"]["policy"]["edges"] = edges
    put(store, json.dumps(body | {"digest": _digest(body)}).encode())
    with pytest.raises(StoreCorrupt, match="is not what `tune` wrote"):
        Calibration.read(store)


def test_a_newer_format(store: Datastore) -> None:
    """Whatever else it holds: nothing of it is read."""
    put(store, json.dumps({"format": 4, "digest": "of another kind"}).encode())
    with pytest.raises(StoreMismatch) as caught:
        settle(store)
    assert str(caught.value) == "The calibration of memory: was written by a newer version."
    assert caught.value.field == "calibration"
    assert caught.value.hint == "Run: pip install --upgrade knnlm-store"


@pytest.mark.parametrize("field", ["model", "precision", "key", "tokenizer", "transform"])
def test_of_another_model(store: Datastore, field: str) -> None:
    mine = calibration(store)
    replace(mine, model={**mine.model, field: "another"}).write(store)
    with pytest.raises(StoreMismatch) as caught:
        settle(store)
    own = getattr(store.manifest, field)
    assert str(caught.value) == (
        f"The calibration of memory: was fitted for {field} 'another', not {own!r}."
    )
    assert caught.value.field == field
    assert settle(store, lmbda=0.1).mixture.policy == Fixed(0.1)


# -- age ------------------------------------------------------------------------------------------


def test_growth_is_told(store: Datastore) -> None:
    """By more than a fifth of the 300 entries."""
    calibration(store).write(store)
    assert settle(store).note is None
    store.backend.upsert(some_entries(10**6, 60, dimension=32))
    assert settle(store).note is None
    store.backend.upsert(some_entries(2 * 10**6, 1, dimension=32))
    settled = settle(store)
    assert settled.calibrated
    assert settled.note == (
        "memory: has grown from 300 to 361 entries since it was calibrated; "
        "knnlm-store tune fits it again."
    )


@pytest.mark.parametrize(
    ("was", "now", "is_told"),
    [
        (("exact", "float32"), "exact (no index built yet)", False),
        (("IVF256", "float32"), "IVF256 over 1,500 entries, else exact", False),
        (("IVF256", "float32"), "exact", True),
        (("exact", "float32"), "HNSW16", True),
        (("exact", "float16"), "exact", True),  # keys were rounded otherwise
        (("exact", ""), "exact", False),  # nobody noted it
    ],
)
def test_another_index_or_storage_is_told(
    store: Datastore,
    monkeypatch: pytest.MonkeyPatch,
    was: tuple[str, str],
    now: str,
    is_told: bool,
) -> None:
    index, storage = was
    replace(calibration(store), index=index, storage=storage).write(store)
    monkeypatch.setattr("knnlm_store.calibrated.describe_index", lambda _: now)
    settled = settle(store)
    assert settled.calibrated
    told = (
        f"memory: was searched otherwise when it was calibrated ({index}, {storage} keys; now "
        f"{now}, float32 keys); knnlm-store tune fits it again."
    )
    assert settled.note == (told if is_told else None)


def test_one_written_before_storage_was_noted(store: Datastore) -> None:
    """It is read as ever."""
    from knnlm_store.calibrated import _digest

    calibration(store).write(store)
    body = json.loads(record(store)) | {"format": 1}
    del body["digest"], body["storage"]
    put(store, json.dumps(body | {"digest": _digest(body)}).encode())
    settled = settle(store)
    assert settled.calibrated
    assert settled.note is None
