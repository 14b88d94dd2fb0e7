"""Tables of tokens, the families that are fitted to them, and samples put together."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from knnlm_store.features import features
from knnlm_store.mixture import Evidence, Fixed, LambdaPolicy, Mixture
from knnlm_store.policies import Bucketed, Ratio
from knnlm_store.tuning.families import fit_buckets
from knnlm_store.tuning.learn import learn
from knnlm_store.tuning.likelihood import best_lambda
from knnlm_store.tuning.sample import Sample, joined
from knnlm_store.tuning.table import Table
from tests.tuning_support import made, near_and_far, one_thread, table_of

INF = float("inf")


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture
def home(rng: np.random.Generator) -> Sample:
    return near_and_far(rng)


def test_a_table_scores_as_a_sample_does(home: Sample) -> None:
    """Simple policies see only a row's ends there, and a gate features that were kept."""
    rows = np.arange(len(home))[::-3].copy()
    for k in (1, 2, 5, 8):
        table = Table(home, k, np.ones(len(home), bool), 1.0)
        gate = learn(table, rows[:40], 3.0)
        policies: list[LambdaPolicy] = [
            Fixed(0.3),
            Ratio(0.6, 0.2),
            Bucketed(np.array([1.0, 5.0]), np.array([1.0, 0.2, 0.1])),
            gate,
        ]
        for policy in policies:
            mixture = Mixture(k, 2.0, policy)
            np.testing.assert_allclose(
                table.log_p_under(policy, 2.0, rows), home[rows].log_p(mixture), rtol=1e-9
            )
        direct = features(home.nearest(k).evidence, 3.0)
        np.testing.assert_allclose(table.features(3.0), direct)


def test_foreign_tokens_count_as_much_as_the_text(rng: np.random.Generator) -> None:
    both = made(rng, 350, near=1, right=0.5)
    counts = table_of(both, foreign=50).counts
    assert counts[:300].tolist() == [1.0] * 300
    assert counts[300:] == pytest.approx([6.0] * 50)
    assert table_of(both).counts.tolist() == [1.0] * 350


def test_buckets_are_fitted_by_distance(home: Sample) -> None:
    table = table_of(home)
    rows = np.arange(len(home))
    policy = fit_buckets(table, rows, 2.0, 8)
    found = rows[table.found]
    near, log_knn = table.nearest[found], table.log_knn(2.0)[found]
    assert len(policy.lambdas) == 8
    places = np.searchsorted(policy.edges, near, side="right")
    sizes = np.bincount(places)
    assert sizes.min() >= len(found) // 8 - 1
    overall = best_lambda(log_knn, home.log_lm[found])
    for b in range(8):
        expected = best_lambda(
            log_knn[places == b], home.log_lm[found][places == b], prior=overall, strength=10
        )
        assert policy.lambdas[b] == pytest.approx(expected)
    assert policy.lambdas[:3].min() > 0.7 > 0.3 > policy.lambdas[5:].max()


def test_equal_distances(rng: np.random.Generator) -> None:
    """They are never parted, though a quarter of a datastore may be copies of copies."""
    sample = made(rng, 90, near=1, right=0.5)
    for values in ([0.0], [0.0, 3.0], [1.0, 2.0, 2.0, 2.0, 9.0]):
        near = np.resize(np.array(values, np.float32), 90)[:, None]
        distances = np.repeat(near, 8, axis=1)
        table = table_of(replace(sample, evidence=replace(sample.evidence, distances=distances)))
        policy = fit_buckets(table, np.arange(90), 1.0, 16)
        assert len(policy.lambdas) == len(policy.edges) + 1
        in_use = np.unique(np.searchsorted(policy.edges, values, side="right"))
        assert len(in_use) == len(set(values))
        assert (len(policy.edges) == 0) == (len(values) == 1)
    found_none = fit_buckets(table, np.arange(0), 1.0, 16)
    assert found_none.lambdas == pytest.approx([0.0], abs=1e-15)


def test_neighbours_that_are_always_right(rng: np.random.Generator) -> None:
    """Lambda is 1 then, in every bucket."""
    table = table_of(made(rng, 200, near=1, right=1.0))
    policy = fit_buckets(table, np.arange(200), 1.0, 8)
    assert policy.lambdas == pytest.approx([1.0] * 8)


def test_joined_documents_stay_apart(rng: np.random.Generator) -> None:
    one, two = (made(rng, 6, near=1, right=1, documents=3) for _ in range(2))
    both = joined([one, two])
    assert both.documents.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    assert both.names == ("d0", "d1", "d2") * 2
    assert both.targets.tolist() == [*one.targets, *two.targets]
    assert both.evidence.distances[6:].tolist() == two.evidence.distances.tolist()
    assert isinstance(both.evidence, Evidence)
    picked = both[both.documents > 3]
    assert picked.targets.tolist() == two.targets[2:].tolist()
