"""Weights of a mixture: bisection and EM against a fine grid."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from knnlm_store.interpolation import Float64
from knnlm_store.tuning.likelihood import best_lambda, best_weights

GRID = np.linspace(0, 1, 4001)
INF = float("inf")


@st.composite
def tokens(draw: st.DrawFn) -> tuple[Float64, Float64, Float64]:
    """Log p of n tokens under neighbours and model, `[n]`, and how often each counts."""
    n = draw(st.integers(1, 30))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    spread = draw(st.sampled_from([0.3, 2.0, 30.0, 400.0]))
    log_knn = -spread * rng.random(n)
    log_knn[rng.random(n) < draw(st.sampled_from([0.0, 0.3, 0.9, 1.0]))] = -INF
    counts = rng.integers(1, 4, n).astype(np.float64)
    return log_knn, -draw(st.sampled_from([0.3, 5.0, 50.0])) * rng.random(n), counts


def likelihood(
    lmbda: Float64 | float, log_knn: Float64, log_lm: Float64, counts: Float64
) -> Float64:
    """Nats a token for each lambda, `[g]`, straight from the definition."""
    each = np.atleast_1d(lmbda)[:, None]
    with np.errstate(divide="ignore"):
        log_p = np.logaddexp(np.log(each) + log_knn, np.log1p(-each) + log_lm)
    result: Float64 = (counts * log_p).sum(axis=1) / counts.sum()
    return result


@given(tokens())
@settings(max_examples=100, deadline=None)
def test_bisection_finds_the_maximum(case: tuple[Float64, Float64, Float64]) -> None:
    found = best_lambda(*case)
    assert 0 <= found <= 1
    assert likelihood(found, *case)[0] >= likelihood(GRID, *case).max() - 1e-9
    nearby = np.clip([found - 1e-4, found + 1e-4], 0, 1)
    assert likelihood(found, *case)[0] >= likelihood(nearby, *case).max() - 1e-9


@given(tokens())
@settings(max_examples=60, deadline=None)
def test_em_agrees_with_bisection(case: tuple[Float64, Float64, Float64]) -> None:
    log_knn, log_lm, counts = case
    weights = best_weights(np.stack([log_knn, log_lm], axis=1), counts)
    assert weights.sum() == pytest.approx(1)
    assert likelihood(weights[0], *case)[0] == pytest.approx(
        likelihood(best_lambda(*case), *case)[0], abs=1e-6
    )


@given(tokens(), st.sampled_from([0.02, 0.5, 0.9]), st.sampled_from([0.5, 10.0, 1e4]))
@settings(max_examples=60, deadline=None)
def test_a_prior_is_that_many_tokens_more(
    case: tuple[Float64, Float64, Float64], prior: float, strength: float
) -> None:
    found = best_lambda(*case, prior=prior, strength=strength)

    def penalised(lmbda: Float64) -> Float64:
        belief = strength * (prior * np.log(lmbda) + (1 - prior) * np.log1p(-lmbda))
        return np.asarray(likelihood(lmbda, *case) * case[2].sum() + belief)

    inner = GRID[1:-1]
    assert penalised(np.array([found]))[0] >= penalised(inner).max() - 1e-7 * max(1, strength)


def test_few_tokens_stay_near_the_prior() -> None:
    """One token that only one side thinks possible, against ten that say 0.3."""
    for_it, against_it = np.array([0.0]), np.array([-INF])
    sure = np.array([-600.0])
    assert best_lambda(for_it, sure, prior=0.3, strength=10) == pytest.approx(4 / 11)
    assert best_lambda(against_it, sure, prior=0.3, strength=10) == pytest.approx(3 / 11)
    many = best_lambda(np.repeat(for_it, 10_000), np.repeat(sure, 10_000), prior=0.3, strength=10)
    assert many > 0.999
    nothing = np.empty(0)
    assert best_lambda(nothing, nothing, prior=0.3, strength=10) == pytest.approx(0.3)


@pytest.mark.parametrize("prior", [0.0, 1.0, np.nextafter(1.0, 0)])
def test_a_prior_at_the_end(prior: float) -> None:
    """All tokens together may say 1: a bucket that agrees must not divide by zero."""
    agreeing = (np.zeros(5), np.full(5, -3.0))[:: 1 if prior else -1]
    assert best_lambda(*agreeing, prior=prior, strength=10.0) == pytest.approx(round(prior))


@given(tokens())
@settings(max_examples=40, deadline=None)
def test_counts_repeat_tokens(case: tuple[Float64, Float64, Float64]) -> None:
    log_knn, log_lm, counts = case
    times = counts.astype(int)
    repeated = np.repeat(log_knn, times), np.repeat(log_lm, times)
    assert best_lambda(*case) == pytest.approx(best_lambda(*repeated), abs=1e-9)
    both = best_weights(np.stack([log_knn, log_lm], axis=1), counts)
    again = best_weights(np.stack(repeated, axis=1))
    assert both == pytest.approx(again, abs=1e-6)


def test_the_ends() -> None:
    likely, unlikely, impossible = np.array([-1.0]), np.array([-2.0]), np.array([-INF])
    assert best_lambda(likely, unlikely) == 1.0
    assert best_lambda(unlikely, likely) == 0.0
    assert best_lambda(impossible, likely) == 0.0
    assert best_lambda(likely, impossible) == 1.0
    assert best_lambda(np.empty(0), np.empty(0)) == 0.0
    assert best_lambda(likely, np.array([-2000.0])) == 1.0
    half = np.log([0.5, 1e-300]), np.log([1e-300, 0.5])
    assert best_lambda(*half) == pytest.approx(0.5)


def test_tokens_that_say_nothing() -> None:
    """Nobody thinks them possible, or they do not count: as if they were not there."""
    log_knn, log_lm = np.array([-1.0, -4.0, -2.0]), np.array([-3.0, -1.0, -2.5])
    expected = best_lambda(log_knn, log_lm)
    assert 0 < expected < 1
    more = np.append(log_knn, [-INF, -INF, 0.0]), np.append(log_lm, [-INF, -1.0, -9.0])
    counts = np.array([1.0, 1.0, 1.0, 1.0, 0.0, 0.0])
    assert best_lambda(*more, counts) == pytest.approx(expected)
    weights = best_weights(np.stack(more, axis=1), counts)
    assert weights[0] == pytest.approx(expected, abs=1e-4)
    for nothing in (np.empty((0, 2)), np.full((3, 2), -INF)):
        assert best_weights(nothing).tolist() == [0.5, 0.5]
    assert best_weights(np.zeros((2, 4)), np.zeros(2)).tolist() == [0.25] * 4


def test_three_components_against_a_grid(rng: np.random.Generator) -> None:
    steps = [(i / 50, j / 50) for i, j in product(range(51), repeat=2) if i + j <= 50]
    grid = np.array([(a, b, max(0.0, 1 - a - b)) for a, b in steps])
    for spread in (0.5, 3.0, 20.0):
        log_p = -spread * rng.random((40, 3))
        log_p[rng.random((40, 3)) < 0.2] = -INF
        log_p = log_p[np.isfinite(log_p).any(axis=1)]
        p = np.exp(log_p)
        weights = best_weights(log_p)
        assert weights.sum() == pytest.approx(1)
        assert (weights >= 0).all()
        with np.errstate(divide="ignore"):
            everywhere = np.log(grid @ p.T).mean(axis=1)
        assert np.log(p @ weights).mean() >= everywhere.max() - 1e-6
        # Kuhn-Tucker: no component would gain by a larger weight, and those in use are in balance
        pull = (p / (p @ weights)[:, None]).mean(axis=0)
        assert (pull <= 1 + 1e-4).all()
        assert pull[weights > 1e-3] == pytest.approx(1, abs=1e-3)
