"""Which mixture is used: what the user says, what was fitted, what the data say."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from knnlm_store.calibration import (
    DEFAULT_K,
    DEFAULT_LMBDA,
    POLICIES,
    Settled,
    settle,
    stored_temperature,
)
from knnlm_store.datastore import Datastore
from knnlm_store.errors import UsageError
from knnlm_store.mixture import Fixed, LambdaPolicy
from knnlm_store.models import LanguageModel
from knnlm_store.policies import Bucketed, Ratio
from tests.tuning_support import MIXTURES, calibration, of_entries


@pytest.fixture
def store(shared_model: LanguageModel) -> Datastore:
    return of_entries(shared_model)


def records(store: Datastore) -> dict[str, bytes]:
    return dict(store.backend.scan_records(""))


def short(settled: Settled) -> tuple[int, float, LambdaPolicy]:
    mixture = settled.mixture
    return mixture.k, mixture.temperature, mixture.policy


def test_without_a_calibration(store: Datastore) -> None:
    settled = settle(store)
    kept = stored_temperature(store)
    assert kept is not None
    assert short(settled) == (DEFAULT_K, kept, Ratio())
    assert (settled.calibrated, settled.temperature_from_data, settled.note) == (False, True, None)
    assert short(settle(store, policy="ratio")) == (DEFAULT_K, kept, Ratio())
    assert short(settle(store, policy="fixed")) == (DEFAULT_K, kept, Fixed(DEFAULT_LMBDA))
    assert short(settle(store, lmbda=0.7, k=9)) == (9, kept, Fixed(0.7))
    said = settle(store, temperature=2.0)
    assert short(said) == (DEFAULT_K, 2.0, Ratio())
    assert not said.temperature_from_data


def test_as_calibrated(store: Datastore) -> None:
    calibration(store).write(store)
    settled = settle(store)
    assert (settled.calibrated, settled.temperature_from_data, settled.note) == (True, False, None)
    assert short(settled)[:2] == (64, np.pi)
    assert isinstance(settled.mixture.policy, Bucketed)
    for policy in POLICIES:
        named = settle(store, policy=policy)
        assert named.calibrated
        assert short(named)[:2] == (64, MIXTURES[policy].temperature)
        assert named.mixture.policy.name == policy
    assert stored_temperature(store) is None  # none was needed


def test_what_the_user_says_goes_before(store: Datastore) -> None:
    """A lambda, or a k or temperature, which a fitted policy cannot do with."""
    calibration(store).write(store)
    lmbda = settle(store, lmbda=0.5)
    assert not lmbda.calibrated
    assert lmbda.note is None
    assert short(lmbda)[0::2] == (DEFAULT_K, Fixed(0.5))
    for said in ({"k": 7}, {"temperature": 3.0}, {"k": 7, "temperature": 3.0}):
        settled = settle(store, **said)
        assert not settled.calibrated
        assert settled.note == "The calibration is not used: it has its own k and temperature."
        assert settled.mixture.k == said.get("k", DEFAULT_K)
        assert settled.temperature_from_data == ("temperature" not in said)
        assert settled.mixture.policy == Ratio()
    for policy, expected in (("ratio", Ratio()), ("fixed", Fixed(DEFAULT_LMBDA))):
        named = settle(store, policy=policy, k=7)
        assert (named.calibrated, named.note, named.mixture.policy) == (False, None, expected)


@pytest.mark.parametrize("policy", ["bucketed", "learned"])
def test_what_was_not_fitted(store: Datastore, policy: str) -> None:
    def refused(**said: Any) -> None:
        with pytest.raises(UsageError) as caught:
            settle(store, policy=policy, **said)
        assert str(caught.value) == f"memory: has no {policy} policy that was fitted for it."
        assert caught.value.hint.startswith("Fit one with knnlm-store tune")

    refused()
    calibration(store).write(store)
    assert settle(store, policy=policy).calibrated
    refused(k=7)
    refused(temperature=2.0)
    rest = {name: each for name, each in MIXTURES.items() if name != policy}
    replace(calibration(store, "fixed"), mixtures=rest).write(store)
    refused()
    assert settle(store).mixture.policy == Fixed(1 / 3)


@pytest.mark.parametrize(
    ("said", "message", "hint"),
    [
        ({"policy": "nest"}, "'nest' is no policy.", "Use one of fixed, ratio, bucketed, learned."),
        (
            {"policy": "ratio", "lmbda": 0.2},
            "Lambda is not fixed under the ratio policy.",
            "Leave --lmbda or --policy out.",
        ),
        (
            {"lmbda": -0.1},
            "lambda must lie in 0..1, not -0.1.",
            "0 is the plain model; 0.25 is a good first choice.",
        ),
    ],
)
def test_what_cannot_be_right(
    store: Datastore, said: dict[str, Any], message: str, hint: str
) -> None:
    before = records(store)
    with pytest.raises(UsageError) as caught:
        settle(store, **said)
    assert (str(caught.value), caught.value.hint) == (message, hint)
    assert records(store) == before
    assert settle(store, policy="fixed", lmbda=0.2).mixture.policy == Fixed(0.2)
