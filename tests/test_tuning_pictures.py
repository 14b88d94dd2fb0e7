"""The pictures of `tune --report`: their numbers are those of the fit."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from knnlm_store.mixture import Fixed, Mixture
from knnlm_store.policies import Bucketed, nearest
from knnlm_store.tuning.pictures import buckets, lambdas_of, mixed_first, plain_first, reliability
from knnlm_store.tuning.report import render

pytest.importorskip("torch")  # the families are fitted with it

from tests.report_support import START, Case, K, marks


@pytest.fixture(scope="module")
def case() -> Case:
    return Case()


def test_landscape_is_the_perplexity_of_fixed_mixtures(case: Case) -> None:
    cells = marks(render(case.tuned, case.pictures), "cell")
    assert len(cells) >= 21 * 10
    for cell in cells[::17]:
        policy = Fixed(float(cell["lambda"]))
        log_p = case.home.log_p(Mixture(K, float(cell["temperature"]), policy))
        assert float(cell["perplexity"]) == pytest.approx(np.exp(-log_p.mean()), rel=1e-9)
    assert {cell["perplexity"] for cell in cells if cell["lambda"] == "1.0"} == {"inf"}
    plain = np.exp(-case.home.log_lm.mean())
    for cell in cells:
        assert ("better" in cell["class"]) == (float(cell["perplexity"]) <= plain)


def test_ring_is_where_the_fixed_policy_was_fitted(case: Case) -> None:
    (ring,) = marks(render(case.tuned, case.pictures), "ring")
    mixture = case.mixture("fixed")
    assert isinstance(mixture.policy, Fixed)
    assert float(ring["lambda"]) == mixture.policy.lmbda
    assert float(ring["temperature"]) == mixture.temperature
    perplexity = np.exp(-case.home.log_p(mixture).mean())
    assert float(ring["perplexity"]) == pytest.approx(perplexity, rel=1e-9)
    row = [
        float(cell["perplexity"])
        for cell in marks(render(case.tuned, case.pictures), "cell")
        if cell["temperature"] == ring["temperature"]
    ]
    assert float(ring["perplexity"]) <= min(row) + 1e-9  # no lambda on the map is better


def test_steps_and_bars_are_the_buckets(case: Case) -> None:
    page, policy = render(case.tuned, case.pictures), case.mixture("bucketed").policy
    assert isinstance(policy, Bucketed)
    assert [float(m["lambda"]) for m in marks(page, "hot")] == policy.lambdas.tolist()
    for kind, sample in (("own", case.home), ("foreign", case.foreign)):
        near = nearest(sample.evidence.distances)
        edges = [-np.inf, *policy.edges, np.inf]
        counts = [int(((near >= low) & (near < high)).sum()) for low, high in pairwise(edges)]
        assert [int(m["count"]) for m in marks(page, kind)] == counts
        assert sum(counts) == len(sample) - 5


@pytest.mark.parametrize("kind", ["own", "foreign"])
def test_heights_of_bars_are_counts(case: Case, kind: str) -> None:
    bars = marks(render(case.tuned, case.pictures), kind)
    counts = np.array([int(m["count"]) for m in bars])
    heights = np.array([float(m["height"]) for m in bars])
    assert len(set(counts)) > 3
    shown = case.pictures.buckets
    assert shown is not None
    highest = max(shown.counts.max(), shown.foreign.max())
    np.testing.assert_allclose(heights, 84 * counts / highest, atol=0.02)  # pixels


def test_a_token_on_an_edge_is_in_the_farther_bucket(case: Case) -> None:
    """As the policy has it; and none beyond the edges is lost."""
    edges = np.sort(nearest(case.home.evidence.distances)[[10, 20, 30]])
    policy = Bucketed(edges, np.array([0.1, 0.2, 0.3, 0.4]))
    shown = buckets(case.home, None, {"bucketed": Mixture(K, START, policy)})
    assert shown is not None
    found = case.home.evidence.found > 0
    used = policy(case.home.evidence)[found, 0]
    assert shown.counts.tolist() == [int((used == value).sum()) for value in policy.lambdas]
    assert shown.foreign.tolist() == [0] * 4
    assert (np.diff(shown.bounds) > 0).all()
    assert shown.bounds[1:-1].tolist() == edges.tolist()


def test_tokens_at_distance_zero_get_a_bar_that_can_be_seen(case: Case) -> None:
    distances = case.home.evidence.distances.copy()
    distances[100:200, 0] = 0.0
    sample = replace(case.home, evidence=replace(case.home.evidence, distances=distances))
    policy = Bucketed(np.array([1e-9, 20.0]), np.array([0.9, 0.5, 0.1]))
    shown = buckets(sample, None, {"bucketed": Mixture(K, START, policy)})
    first = marks(render(case.tuned, replace(case.pictures, buckets=shown)), "own")[0]
    assert int(first["count"]) == 100
    assert float(first["width"]) >= 1
    assert float(first["height"]) > 10


def test_dots_are_the_mean_lambdas_of_buckets(case: Case) -> None:
    page, policy = render(case.tuned, case.pictures), case.mixture("bucketed").policy
    assert isinstance(policy, Bucketed)
    place = np.searchsorted(policy.edges, nearest(case.home.evidence.distances), side="right")
    for family in ("learned", "ratio"):
        dots = [m for m in marks(page, "dot") if m.get("family") == family]
        assert len(dots) > 4
        weights = case.mixture(family).policy(case.home.evidence).sum(axis=1)
        found = case.home.evidence.found > 0
        for mark in dots:
            rows = (place == int(mark["bucket"])) & found
            assert float(mark["lambda"]) == pytest.approx(weights[rows].mean(), rel=1e-9)


def test_lambda_is_0_where_nothing_was_found(case: Case) -> None:
    assert (lambdas_of(case.home, case.mixture("fixed"))[:5] == 0).all()
    assert (lambdas_of(case.home, case.mixture("fixed"))[5:] > 0).all()


@pytest.mark.parametrize("family", ["fixed", "ratio", "learned"])
def test_likeliest_token_is_that_of_the_whole_vocabulary(case: Case, family: str) -> None:
    """Against the dense mixture over all tokens, which a tune never sees."""
    mixture, evidence = case.mixture(family), case.home.evidence
    lmbda, log_weights = mixture.weigh(evidence)
    p = (1 - lmbda[:, None]) * np.exp(case.log_lm)
    rows = np.broadcast_to(np.arange(len(p))[:, None], evidence.tokens.shape)
    there = evidence.tokens >= 0
    share = lmbda[:, None] * np.exp(log_weights)
    np.add.at(p, (rows[there], evidence.tokens[there]), share[there])
    predicted, came = mixed_first(case.home, mixture)
    np.testing.assert_allclose(predicted, p.max(axis=1), rtol=1e-9)
    assert (came == (p.argmax(axis=1) == case.home.targets)).all()
    assert 0 < came.mean() < 1


def test_likeliest_token_of_the_plain_model(case: Case) -> None:
    predicted, came = plain_first(case.home)
    np.testing.assert_allclose(predicted, np.exp(case.log_lm).max(axis=1))
    assert (came == (case.log_lm.argmax(axis=1) == case.home.targets)).all()
    same = mixed_first(case.home, Mixture(K, START, Fixed(0.0)))
    np.testing.assert_allclose(same[0], predicted)
    assert (same[1] == came).all()


def test_reliability_is_drawn_as_counted(case: Case) -> None:
    page = render(case.tuned, case.pictures)
    predicted, came = mixed_first(case.test, case.picked.mixture)
    dots = [m for m in marks(page, "dot") if m.get("name") == "learned"]
    assert sum(int(m["count"]) for m in dots) == len(case.test)
    apart = 0.0
    for mark in dots:
        number = int(float(mark["predicted"]) * 10)
        rows = (predicted >= number / 10) & (predicted < (number + 1) / 10)
        assert int(mark["count"]) == rows.sum()
        assert float(mark["predicted"]) == pytest.approx(predicted[rows].mean())
        assert float(mark["observed"]) == pytest.approx(came[rows].mean())
        apart += rows.sum() * abs(predicted[rows].mean() - came[rows].mean())
    assert case.pictures.reliability[1].error == pytest.approx(apart / len(came))
    assert {m["name"] for m in marks(page, "dot") if "name" in m} == {"plain", "learned"}


def test_calibrated_predictions_lie_on_the_line() -> None:
    rng = np.random.default_rng(0)
    predicted = rng.random(200_000)
    straight = reliability("a", predicted, rng.random(200_000) < predicted)
    crooked = reliability("a", predicted, rng.random(200_000) < predicted**2)
    assert straight.error < 0.01 < 0.1 < crooked.error
    assert (straight.low <= straight.observed).all()
    assert (straight.observed <= straight.high).all()


def test_certainty_is_in_the_last_bin_and_empty_bins_stay_empty() -> None:
    seen = reliability("a", np.array([1.0, 1.0]), np.array([True, False]))
    assert seen.counts.tolist() == [0] * 9 + [2]
    assert seen.observed[-1] == 0.5
    assert np.isnan(seen.observed[:-1]).all()


def test_gains_are_those_of_the_groups(case: Case) -> None:
    bars = [m for m in marks(render(case.tuned, case.pictures), "bar") if "group" in m]
    drawn = {m["group"]: (float(m["gain"]), int(m["tokens"])) for m in bars}
    groups = case.tuned.groups["frequency"]
    assert groups["never seen"]["tokens"] == 0
    assert drawn == {
        name: (values["gain"], values["tokens"])
        for name, values in groups.items()
        if values["tokens"]
    }
