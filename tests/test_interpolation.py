"""Sparse mixing against a dense float64 reference, on cases that hypothesis makes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from knnlm_store.errors import UsageError
from knnlm_store.evaluation import score
from knnlm_store.interpolation import neighbour_log_weights, token_log_probs
from knnlm_store.mixing import mix_rows
from knnlm_store.mixture import Evidence, Fixed, Mixture
from knnlm_store.values import Neighbours

INF = np.float32(np.inf)


@st.composite
def cases(draw: st.DrawFn) -> tuple[np.ndarray, Neighbours, Mixture]:
    """Logits [q, v] with -inf in places, and neighbours with duplicates, padding and strangers."""
    rows, vocabulary, k = draw(st.integers(1, 4)), draw(st.integers(2, 12)), draw(st.integers(1, 9))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    logits = rng.normal(0, draw(st.sampled_from([0.1, 3.0, 30.0])), (rows, vocabulary))
    logits = logits.astype(np.float32)
    suppressed = rng.random((rows, vocabulary)) < draw(st.sampled_from([0.0, 0.4]))
    suppressed[:, rng.integers(vocabulary)] = False
    logits[suppressed] = -INF
    scale = draw(st.sampled_from([0.0, 1.0, 1e4]))
    distances = np.sort(rng.random((rows, k)).astype(np.float32) * np.float32(scale), axis=1)
    # ids beyond the logits happen where a tokenizer grew after the model was made
    tokens = rng.integers(0, vocabulary + 2, (rows, k))
    for row in range(rows):
        padding = draw(st.integers(0, k))
        if padding:
            distances[row, -padding:], tokens[row, -padding:] = INF, -1
    blank = np.zeros_like(tokens)
    mixture = Mixture(
        k,
        draw(st.sampled_from([0.01, 1.0, 200.0])),
        Fixed(draw(st.sampled_from([0.0, 0.25, 0.9, 1.0]))),
    )
    return logits, Neighbours(distances, tokens, blank, blank), mixture


def fixed_lambda(mixture: Mixture) -> float:
    assert isinstance(mixture.policy, Fixed)
    return mixture.policy.lmbda


def dense(logits: np.ndarray, found: Neighbours, mixture: Mixture) -> np.ndarray:
    """Equations 2 and 3 of Khandelwal et al., word by word, over the whole vocabulary."""
    result = np.empty(logits.shape)
    for row, values in enumerate(logits.astype(np.float64)):
        p_lm = np.exp(values - values.max())
        p_lm /= p_lm.sum()
        usable = [
            (float(d), int(t))
            for d, t in zip(found.distances[row], found.tokens[row], strict=True)
            if np.isfinite(d) and t < len(values) and np.isfinite(values[t])
        ]
        lmbda = fixed_lambda(mixture) if usable else 0.0
        p_knn = np.zeros(len(values))
        for d, t in usable:
            p_knn[t] += np.exp(-(d - min(usable)[0]) / mixture.temperature)
        if usable:
            p_knn /= p_knn.sum()
        result[row] = lmbda * p_knn + (1 - lmbda) * p_lm
    return result


@settings(max_examples=400, deadline=None)
@given(cases())
def test_sparse_equals_dense(case: tuple[np.ndarray, Neighbours, Mixture]) -> None:
    logits, found, mixture = case
    expected = dense(logits, found, mixture)
    mixed = torch.from_numpy(logits.copy())
    mix_rows(mixed, found, mixture)
    np.testing.assert_allclose(mixed.double().softmax(-1).numpy(), expected, atol=3e-6)
    assert (np.isneginf(mixed.numpy()) >= np.isneginf(logits)).all()
    if mixture.policy == Fixed(0.0):
        assert mixed.numpy().tobytes() == logits.tobytes()


@settings(max_examples=200, deadline=None)
@given(cases(), st.integers(0, 10))
def test_scoring_equals_dense(case: tuple[np.ndarray, Neighbours, Mixture], seed: int) -> None:
    logits, found, mixture = case
    targets = np.random.default_rng(seed).integers(0, logits.shape[1], len(logits))
    wide = logits.astype(np.float64)
    log_lm = wide - np.logaddexp.reduce(wide, axis=1, keepdims=True)
    known = np.where((found.tokens < 0) | (found.tokens >= logits.shape[1]), 0, found.tokens)
    at = np.take_along_axis(log_lm, known, axis=1)
    at[(found.tokens < 0) | (found.tokens >= logits.shape[1])] = -np.inf
    rows = np.arange(len(logits))
    blank = np.zeros(len(logits))
    evidence = Evidence.of(found, at, blank, blank)
    scores = score(evidence, targets, log_lm[rows, targets], mixture)
    expected = dense(logits, found, mixture)[rows, targets]
    np.testing.assert_allclose(np.exp(scores), expected, atol=1e-9)


def test_lambda_one_gives_minus_infinity_elsewhere() -> None:
    logits = torch.tensor([[1.0, 2.0, 3.0]])
    blank = np.zeros((1, 2), np.int64)
    found = Neighbours(np.array([[1.0, 1.0]], np.float32), np.array([[0, 0]]), blank, blank)
    mix_rows(logits, found, Mixture(2, 1.0, Fixed(1.0)))
    assert torch.isneginf(logits[0, 1:]).all()
    torch.testing.assert_close(logits.softmax(-1)[0, 0], torch.tensor(1.0))


def test_far_neighbours_do_not_underflow() -> None:
    """exp(-d/T) is 0 in any float here; its logarithm is not."""
    weights = neighbour_log_weights(np.array([[1e4, 1e4 + 50]], np.float32), 0.01)
    log_p = token_log_probs(weights, np.array([[3, 4]], np.int64))
    np.testing.assert_allclose(log_p[0], [0.0, -5000.0], atol=1e-6)


def test_duplicates_share_their_tokens_probability() -> None:
    tokens = np.array([[5, 2, 5, 2]], np.int64)
    log_p = token_log_probs(neighbour_log_weights(np.zeros((1, 4), np.float32), 1.0), tokens)
    np.testing.assert_allclose(np.exp(log_p), 0.5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"k": 0}, "k must be at least 1, not 0."),
        ({"temperature": 0.0}, "The temperature must be above 0, not 0.0."),
        ({"temperature": -2.0}, "The temperature must be above 0, not -2.0."),
        ({"temperature": float("nan")}, "The temperature must be above 0, not nan."),
        ({"lmbda": 1.5}, "lambda must lie in 0..1, not 1.5."),
        ({"lmbda": -0.1}, "lambda must lie in 0..1, not -0.1."),
    ],
)
def test_bad_settings(arguments: dict[str, Any], message: str) -> None:
    values = {"k": 8, "temperature": 1.0, "lmbda": 0.5} | arguments
    with pytest.raises(UsageError) as caught:
        Mixture(values["k"], values["temperature"], Fixed(values["lmbda"]))
    assert str(caught.value) == message
