"""The learned gate: what it sees, what it learns, and that it is kept to the bit."""

from __future__ import annotations

import json
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from knnlm_store.calibrated import policy_from_json, policy_to_json
from knnlm_store.errors import UsageError
from knnlm_store.features import NAMES, features
from knnlm_store.gate import Gate
from knnlm_store.interpolation import Float64
from knnlm_store.mixture import Evidence, Fixed, Mixture
from knnlm_store.tuning.learn import learn
from knnlm_store.tuning.likelihood import best_lambda
from knnlm_store.tuning.sample import joined
from tests.tuning_support import evidence, made, neighbours, one_thread, random_gate, table_of

INF = float("inf")


def by_name(rows: Evidence, temperature: float = 1.0) -> dict[str, Float64]:
    return dict(zip(NAMES, features(rows, temperature).T, strict=True))


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


# -- features -------------------------------------------------------------------------------------


def test_features_by_hand() -> None:
    """Three neighbours of two tokens, of which the model's first choice is one."""
    found = neighbours([[2.0, 4.0, 8.0, INF]], [[7, 8, 7, -1]])
    log_lm = np.log([[0.5, 0.1, 0.5, 1]])
    log_lm[0, 3] = -INF
    rows = Evidence.of(found, log_lm, np.array([1.25]), np.log([0.5]))
    weights = np.exp([-1.0, -2.0, -4.0])
    weights /= weights.sum()
    seven = weights[0] + weights[2]
    seen = by_name(rows, temperature=2.0)
    expected = {
        "log of the nearest distance": np.log(1.1),
        "log of the 10th distance": np.log(4.1),
        "log of the farthest distance": np.log(4.1),
        "nearest over farthest distance": 0.25,
        "entropy of p_kNN": -seven * np.log(seven) - weights[1] * np.log(weights[1]),
        "largest p_kNN": seven,
        "log p_LM of the token of the largest p_kNN": np.log(0.5),
        "p_LM of all neighbours' tokens": 0.6,
        "log p_LM expected under p_kNN": seven * np.log(0.5) + weights[1] * np.log(0.1),
        "p_kNN of the model's first choice": seven,
        "share of the 8 nearest that agree with the nearest": 2 / 4,
        "log of the number of different tokens": np.log(2),
        "entropy of p_LM": 1.25,
        "log of the largest p_LM": np.log(0.5),
    }
    assert {name: value[0] for name, value in seen.items()} == pytest.approx(expected)


def test_features_of_odd_rows_are_finite() -> None:
    """No neighbour, one, exact duplicates, far ones, tokens that the model hardly allows."""
    odd = [[INF] * 12, [3.0] + [INF] * 11, [0.0] * 12, [0.0] + [INF] * 11, [3e38] * 12]
    for log_lm in (-1e-9, -3.0, -1e4):
        for temperature in (1e-3, 1.0, 1e6):
            table = features(evidence(odd, log_lm=log_lm), temperature)
            assert table.shape == (5, len(NAMES))
            assert np.isfinite(table).all()
            assert not table[0].any()
            assert table[1:].any(axis=1).all()
    assert by_name(evidence(odd))["entropy of p_kNN"][2] == pytest.approx(np.log(12))
    assert by_name(evidence(odd))["nearest over farthest distance"].tolist() == [0, 1, 0, 0, 1]


@pytest.mark.parametrize("shape", [(0, 5), (3, 0), (0, 0)])
def test_features_of_nothing(shape: tuple[int, int]) -> None:
    table = features(evidence(np.empty(shape)), 1.0)
    assert table.shape == (shape[0], len(NAMES))
    assert not table.any()


def test_distances_are_seen_in_units_of_the_temperature(rng: np.random.Generator) -> None:
    distances = np.sort(rng.random((4, 9)), axis=1)
    tokens = rng.integers(0, 4, (4, 9))
    near = features(evidence(distances, tokens), 0.5)
    np.testing.assert_allclose(near, features(evidence(distances * 1000, tokens), 500.0), 1e-5)


# -- the network ----------------------------------------------------------------------------------


def test_kept_and_read_it_is_the_same(rng: np.random.Generator) -> None:
    gate = random_gate(rng)
    text = json.dumps(policy_to_json(gate))
    again = policy_from_json(json.loads(text))
    assert isinstance(again, Gate)
    rows = evidence(np.sort(rng.random((50, 12)), axis=1), rng.integers(0, 5, (50, 12)))
    assert again(rows).tobytes() == gate(rows).tobytes()
    assert json.dumps(policy_to_json(again)) == text
    assert (again.scales, again.temperature, again.name) == ((1.0, 2.5), 3.0, "learned")


def test_weights_are_a_softmax(rng: np.random.Generator) -> None:
    """Over the model and each distribution, also far from what was seen."""
    gate = random_gate(rng, (len(NAMES), 3))
    ((weights, bias),) = gate.layers
    table = rng.normal(size=(20, len(NAMES)))
    x = np.exp(np.clip((table - gate.centre) / gate.spread, -5, 5) @ weights + bias)
    expected = (x / x.sum(axis=1, keepdims=True))[:, 1:]
    np.testing.assert_allclose(gate.weigh(table), expected)
    far = gate.weigh(table * 1e300)
    assert np.isfinite(far).all()
    assert (far.sum(axis=1) <= 1 + 1e-12).all()
    nothing = Mixture(4, 1.0, gate).weigh(evidence([[INF] * 4]))
    assert nothing[0].tolist() == [0.0]


@pytest.mark.parametrize("widths", [(13, 3), (14, 4), (14, 2), (14,), (15, 6, 3)])
def test_layers_that_do_not_fit(rng: np.random.Generator, widths: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match="layers of this gate do not fit"):
        random_gate(rng, widths)


def test_layers_that_do_not_meet(rng: np.random.Generator) -> None:
    gate = random_gate(rng)
    (first, bias), second = gate.layers
    for layers in (((first[:, :5], bias), second), (second, (first, bias))):
        with pytest.raises(UsageError, match="do not fit"):
            Gate(1.0, gate.centre, gate.spread, layers, gate.scales)
    for centre, spread in ((gate.centre[1:], gate.spread), (gate.centre, gate.spread[:, None])):
        with pytest.raises(UsageError, match="This gate reads 14 features"):
            Gate(1.0, centre, spread, gate.layers, gate.scales)


# -- learning -------------------------------------------------------------------------------------


def test_near_is_right_and_far_is_wrong() -> None:
    """On new tokens the gate is far better than the best single lambda could be there."""
    rng = np.random.default_rng(5)
    parts = [made(rng, 600, near=0.5, right=0.95), made(rng, 600, near=6.0, right=0.02)]
    seen, new = joined(parts), joined([made(rng, 400, near=0.5, right=0.95)] * 2)
    new = joined([new, made(rng, 800, near=6.0, right=0.02)])
    gate = learn(table_of(seen), np.arange(len(seen)), 1.0)
    lmbda = best_lambda(new.log_knn(1.0), new.log_lm)
    assert 0.2 < lmbda < 0.8
    one = new.log_p(Mixture(8, 1.0, Fixed(lmbda))).mean()
    assert new.log_p(Mixture(8, 1.0, gate)).mean() > one + 0.25
    weights = gate(new.evidence).sum(axis=1)
    assert weights[:800].mean() > 0.85
    assert weights[800:].mean() < 0.1


def test_learning_repeats_itself_and_disturbs_nobody() -> None:
    rng = np.random.default_rng(1)
    table = table_of(made(rng, 300, near=1.0, right=0.5))
    rows = np.arange(300)
    before = torch.get_rng_state()
    first = policy_to_json(learn(table, rows, 2.0, seed=3))
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(10)
    assert policy_to_json(learn(table, rows, 2.0, seed=3)) == first
    assert policy_to_json(learn(table, rows, 2.0, seed=4)) != first
    assert policy_to_json(learn(table, rows[:200], 2.0, seed=3)) != first


def test_foreign_text_makes_it_silent() -> None:
    """Neighbours just as near, but the model is less at a loss there, and they are wrong."""
    rng = np.random.default_rng(2)
    home = made(rng, 600, near=1.0, right=0.8, entropy=3.0, agreed=True)
    foreign = made(rng, 300, near=1.0, right=0.0, entropy=2.7, agreed=True)
    both = table_of(joined([home, foreign]), foreign=300)
    alone = learn(both, np.arange(600), 1.0)
    warned = learn(both, np.arange(900), 1.0)
    assert alone(foreign.evidence).sum(axis=1).mean() > 0.5
    assert warned(foreign.evidence).sum(axis=1).mean() < 0.05
    assert warned(home.evidence).sum(axis=1).mean() > 0.5
