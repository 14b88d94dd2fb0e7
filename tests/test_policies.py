"""Policies, and what they see: rules for odd evidence, and the same numbers wherever they act."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from knnlm_store.errors import UsageError
from knnlm_store.evaluation import score
from knnlm_store.interpolation import Float64, mix
from knnlm_store.mixing import entropy_and_top, mix_rows
from knnlm_store.mixture import Evidence, Fixed, LambdaPolicy, Mixture
from knnlm_store.policies import Bucketed, Damped, Ratio, damped, near_over_far, nearest
from knnlm_store.tuning.sample import Sample
from knnlm_store.values import Neighbours
from tests.tuning_support import MIXTURES, dense, evidence, near_and_far, neighbours

INF = float("inf")


def bucketed(edges: list[float], lambdas: list[float]) -> Bucketed:
    return Bucketed(np.array(edges, float), np.array(lambdas, float))


# -- buckets --------------------------------------------------------------------------------------


def test_buckets_by_nearest_distance() -> None:
    """An edge belongs to the bucket above it; a row without a neighbour to none."""
    policy = bucketed([1.0, 4.0], [0.9, 0.5, 0.1])
    rows = evidence([[0.0, 9], [0.999, 9], [1.0, 9], [3.9, 9], [4.0, 9], [1e30, INF]])
    assert policy(rows)[:, 0].tolist() == [0.9, 0.9, 0.5, 0.5, 0.1, 0.1]
    assert bucketed([], [0.3])(rows)[:, 0].tolist() == [0.3] * 6
    nothing = evidence([[INF, INF]])
    assert policy(nothing).shape == (1, 1)
    assert Mixture(2, 1.0, policy).weigh(nothing)[0].tolist() == [0.0]
    assert policy(evidence(np.empty((0, 3)))).shape == (0, 1)


@pytest.mark.parametrize(
    ("edges", "lambdas", "message"),
    [
        ([1.0], [0.5], "1 edges part 2 buckets"),
        ([], [], "0 edges part 1 buckets"),
        ([1.0], [0.5, 1.5], r"must lie in 0\.\.1"),
        ([1.0], [-0.1, 0.5], r"must lie in 0\.\.1"),
        ([1.0], [0.5, float("nan")], r"must lie in 0\.\.1"),
        ([2.0, 1.0], [0.1, 0.2, 0.3], "must ascend"),
        ([1.0, 1.0], [0.1, 0.2, 0.3], "must ascend"),
    ],
)
def test_bad_buckets(edges: list[float], lambdas: list[float], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        bucketed(edges, lambdas)


# -- ratio ----------------------------------------------------------------------------------------


def test_ratio_by_hand() -> None:
    """1 - sigmoid((d_1 / d_k - alpha) / tau), over the neighbours that are there."""
    rows = evidence([[1.0, 2, 4], [1.0, 2, INF], [3.0, 3, 3], [0.0, 1, 5]])
    expected = [1 / (1 + np.exp((r - 0.2) / 0.1)) for r in (0.25, 0.5, 1.0, 0.0)]
    assert Ratio(0.2, 0.1)(rows)[:, 0] == pytest.approx(expected, rel=1e-12)


def test_exact_duplicates_by_the_hundred() -> None:
    """All at distance zero: as near as can be, and no 0 / 0."""
    rows = evidence(np.zeros((2, 1024)))
    assert near_over_far(rows).tolist() == [0.0, 0.0]
    (lmbda, _) = Ratio()(rows)[:, 0]
    assert lmbda == pytest.approx(1 / (1 + np.exp(-2)))
    assert Ratio(tau=1e-3)(rows)[0, 0] == pytest.approx(1.0)


def test_one_neighbour_or_none() -> None:
    """One neighbour stands out from nothing; without any nothing is trusted."""
    rows = evidence([[5.0, INF], [0.0, INF], [INF, INF]])
    assert near_over_far(rows).tolist() == [1.0, 0.0, 1.0]
    lmbda, log_shares = Mixture(2, 1.0, Ratio()).weigh(rows)
    assert lmbda[0] < 0.001
    assert lmbda[1] > 0.8
    assert lmbda[2] == 0
    assert log_shares[:2].tolist() == [[0, -INF]] * 2
    nowhere = evidence(np.empty((2, 0)))
    assert near_over_far(nowhere).tolist() == [1.0, 1.0]
    assert nearest(nowhere.distances).tolist() == [INF, INF]


@pytest.mark.parametrize("tau", [0.0, -1.0, float("nan")])
def test_bad_tau(tau: float) -> None:
    with pytest.raises(UsageError, match="tau must be above 0"):
        Ratio(0.2, tau)


@given(
    st.lists(st.floats(0, 2.0**20, width=32) | st.just(INF), min_size=1, max_size=6),
    st.floats(-5, 5),
    st.floats(1e-6, 10),
)
@settings(max_examples=120, deadline=None)
def test_lambda_lies_in_0_to_1(distances: list[float], alpha: float, tau: float) -> None:
    rows = evidence([sorted(distances)])
    policies: list[LambdaPolicy] = [Ratio(alpha, tau), bucketed([1.0], [1.0, 0.25]), Fixed(1.0)]
    for policy in policies:
        lmbda, log_shares = Mixture(len(distances), 1.0, policy).weigh(rows)
        assert 0 <= lmbda[0] <= 1
        if np.isfinite(distances).any():
            assert np.exp(log_shares).sum() == pytest.approx(1)
        else:
            assert lmbda[0] == 0


# -- damping --------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", MIXTURES)
def test_a_damped_policy_mixes_its_mixture_with_the_model(
    family: str, rng: np.random.Generator
) -> None:
    sample = near_and_far(rng)
    mixture = replace(MIXTURES[family], temperature=1.0)
    for share in (0.0, 0.3, 1.0):
        less = replace(mixture, policy=damped(mixture.policy, share))
        expected = mix(sample.log_p(mixture), sample.log_lm, np.asarray(share))
        np.testing.assert_allclose(sample.log_p(less), expected, rtol=1e-12)
        assert less.policy.name == family
        assert less.policy.scales == mixture.policy.scales
        assert type(less.policy) is type(mixture.policy) or family in ("ratio", "learned")
    assert damped(mixture.policy, 1.0) is mixture.policy
    with pytest.raises(UsageError, match=r"a share in 0\.\.1, not 1\.1"):
        Damped(mixture.policy, 1.1)


# -- evidence -------------------------------------------------------------------------------------


def test_what_the_model_rules_out_comes_last() -> None:
    """It counts as not found, wherever it stood; the others keep their order."""
    found = neighbours([[1.0, 2, 3, 4], [1, 2, 3, INF]], [[7, 8, 9, 7], [5, 6, 5, -1]])
    log_lm = np.array([[-INF, -1, -2, -INF], [-3, -4, -3, -INF]])
    rows = Evidence.of(found, log_lm, np.array([0.5, 0.6]), np.array([-1.0, -2.0]))
    assert rows.distances.tolist() == [[2, 3, INF, INF], [1, 2, 3, INF]]
    assert rows.tokens[0, :2].tolist() == [8, 9]
    assert rows.tokens[1].tolist() == [5, 6, 5, -1]
    assert rows.log_lm.tolist() == [[-1, -2, -INF, -INF], [-3, -4, -3, -INF]]
    assert rows.found.tolist() == [2, 3]
    assert near_over_far(rows) == pytest.approx([2 / 3, 1 / 3])


def test_parts_of_evidence() -> None:
    rows = evidence([[1.0, 2, 3], [4, 5, INF], [6, 7, 8]])
    assert len(rows) == 3
    picked = rows[np.array([2, 0])]
    assert picked.distances[:, 0].tolist() == [6, 1]
    assert len(picked.entropy) == len(picked.top) == 2
    assert rows.nearest(2).distances.tolist() == [[1, 2], [4, 5], [6, 7]]
    assert rows.nearest(2).tokens.shape == rows.nearest(2).log_lm.shape == (3, 2)


# -- anybody's policy ------------------------------------------------------------------------------


@dataclass
class Doubtful:
    """Another's policy: two temperatures, by distance and by how sure the model is."""

    name: str = "doubtful"
    scales: tuple[float, ...] = (0.5, 3.0)

    def __call__(self, evidence: Evidence) -> Float64:
        first = 0.6 / (1 + nearest(evidence.distances))
        return np.stack([first, 0.4 * np.exp(evidence.top)], axis=1)


@st.composite
def cases(draw: st.DrawFn) -> tuple[np.ndarray[Any, Any], Neighbours, float]:
    """Logits [q, v] with -inf in places; neighbours with padding and tokens beyond the logits."""
    rows, width, k = draw(st.integers(1, 4)), draw(st.integers(2, 9)), draw(st.integers(1, 7))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    logits = rng.normal(0, draw(st.sampled_from([0.5, 5.0])), (rows, width)).astype(np.float32)
    suppressed = rng.random((rows, width)) < draw(st.sampled_from([0.0, 0.4]))
    suppressed[:, rng.integers(width)] = False
    logits[suppressed] = -np.inf
    scale = np.float32(draw(st.sampled_from([0.0, 1.0, 50.0])))
    distances = np.sort(rng.random((rows, k)).astype(np.float32) * scale, axis=1)
    tokens = rng.integers(0, width + 2, (rows, k))
    for row in range(rows):
        if padding := draw(st.integers(0, k)):
            distances[row, -padding:], tokens[row, -padding:] = np.inf, -1
    blank = np.zeros_like(tokens)
    return logits, Neighbours(distances, tokens, blank, blank), draw(st.sampled_from([0.1, 20.0]))


def seen(logits: np.ndarray[Any, Any], found: Neighbours) -> tuple[Evidence, Float64]:
    """The evidence of rows, and log p_LM over the vocabulary, `[q, v]`."""
    wide = logits.astype(np.float64)
    log_p = wide - np.logaddexp.reduce(wide, axis=1, keepdims=True)
    known = (found.tokens >= 0) & (found.tokens < logits.shape[1])
    at_tokens = np.take_along_axis(log_p, np.where(known, found.tokens, 0), axis=1)
    tensor = torch.from_numpy(logits)
    views = entropy_and_top(tensor, tensor.logsumexp(-1, keepdim=True))
    return Evidence.of(found, np.where(known, at_tokens, -np.inf), *views), log_p


@given(cases())
@settings(max_examples=60, deadline=None)
def test_one_policy_everywhere(case: tuple[np.ndarray[Any, Any], Neighbours, float]) -> None:
    """In generation, evaluation and tuning the same p, as a dense computation has it."""
    logits, found, temperature = case
    rows, width = logits.shape
    policies: list[LambdaPolicy] = [Doubtful(), Ratio(), bucketed([0.5], [0.7, 0.2]), Fixed(1.0)]
    for policy in policies:
        mixture = Mixture(found.distances.shape[1], temperature, policy)
        view, log_lm = seen(logits, found)
        expected = dense(logits, found, mixture, policy(view))
        mixed = torch.from_numpy(logits.copy())
        mix_rows(mixed, found, mixture)
        scale = torch.from_numpy(logits).logsumexp(-1, keepdim=True)
        np.testing.assert_allclose((mixed - scale).exp().numpy(), expected, atol=2e-6, rtol=2e-4)
        for target in range(width):
            targets = np.full(rows, target)
            sample = Sample(log_lm[:, target], targets, np.zeros(rows, np.int64), view)
            for log_p in (sample.log_p(mixture), score(view, targets, log_lm[:, target], mixture)):
                np.testing.assert_allclose(
                    np.exp(log_p), expected[:, target], atol=1e-12, rtol=1e-5
                )
