"""Which k, which temperature, which policy: fitted on some documents, judged on others."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from knnlm_store.mixture import Fixed, Mixture
from knnlm_store.policies import Bucketed
from knnlm_store.tuning.choice import _STEPS, FAMILIES, Choice, best, choose, choose_k
from knnlm_store.tuning.judging import HARM
from knnlm_store.tuning.sample import Sample, joined
from tests.tuning_support import made, near_and_far, one_thread

INF = float("inf")


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture
def home(rng: np.random.Generator) -> Sample:
    return near_and_far(rng)


# -- k --------------------------------------------------------------------------------------------


def at_place(rng: np.random.Generator, place: int, k: int) -> Sample:
    """Tokens that stand at one place of their neighbours only, all being as near."""
    sample = made(rng, 400, near=1.0, right=0.0, k=k, log_lm=-7.0)
    tokens = sample.evidence.tokens.copy()
    tokens[::2, place] = sample.targets[::2]
    near = np.ones_like(sample.evidence.distances)
    return replace(sample, evidence=replace(sample.evidence, tokens=tokens, distances=near))


def by_grid(sample: Sample, k: int) -> float:
    near = sample.nearest(k)
    lambdas = np.linspace(0, 0.999, 400)[:, None]
    p = lambdas * np.exp(near.log_knn(1.0)) + (1 - lambdas) * np.exp(near.log_lm)
    return float(np.exp(-np.log(p).mean(axis=1)).min())


def test_the_smallest_k_that_does(rng: np.random.Generator) -> None:
    sample = joined([at_place(rng, 3, 70), at_place(rng, 20, 70)])
    k, perplexities = choose_k(sample, 1.0, 0.005)
    assert list(perplexities) == [8, 16, 32, 64, 70]
    for each, perplexity in perplexities.items():
        assert perplexity == pytest.approx(by_grid(sample, each), rel=1e-3)
    lowest = min(perplexities.values())
    within = [each for each, value in perplexities.items() if value <= 1.005 * lowest]
    assert k == within[0] == 32
    assert choose_k(at_place(rng, 20, 70), 1.0, 0.005)[0] == 32
    assert choose_k(at_place(rng, 69, 70), 1.0, 0.0)[0] == 70
    assert choose_k(at_place(rng, 69, 70), 1.0, 1e9)[0] == 8


def test_a_k_below_8(rng: np.random.Generator) -> None:
    assert choose_k(made(rng, 50, near=1, right=0.5, k=3), 1.0, 0.005)[0] == 3
    assert list(choose_k(made(rng, 50, near=1, right=0.5, k=8), 1.0, 0.005)[1]) == [8]


def test_neighbours_that_never_help(rng: np.random.Generator) -> None:
    """No k is worse than the plain model, and the smallest will do."""
    k, perplexities = choose_k(made(rng, 100, near=1, right=0, k=40), 1.0, 0.005)
    assert k == 8
    assert list(perplexities.values()) == pytest.approx([np.exp(3.0)] * 4)


# -- what is tried --------------------------------------------------------------------------------


def test_every_family_is_fitted_and_judged(home: Sample) -> None:
    """Those that see distances beat the one that does not; a gate needs more text than this."""
    choices = choose(home, None, 8, 1.0)
    assert [choice.family for choice in choices] == ["fixed", "bucketed", "ratio"]
    assert {choice.harm for choice in choices} == {0.0}
    by_name = {choice.family: choice for choice in choices}
    assert by_name["bucketed"].home < by_name["fixed"].home - 0.2
    for choice in choices:
        assert choice.mixture.k == 8
        assert choice.mixture.policy.name == choice.family
        assert choice.share == 1.0
        assert choice.log_p.shape == (600,)
        assert -choice.log_p.mean() == pytest.approx(choice.home, rel=1e-12)
        on_all = -home.log_p(choice.mixture).mean()
        assert choice.home == pytest.approx(on_all, abs=0.1)
    picked = best(choices, 3.0)
    assert picked is not None
    assert picked.family == "bucketed"


def test_the_temperature_is_found(rng: np.random.Generator) -> None:
    """The nearest is right and the others are not: the lower the sharper."""
    sample = made(rng, 400, near=1, right=0.0)
    tokens = sample.evidence.tokens.copy()
    tokens[:, 0] = sample.targets
    distances = np.tile(np.array([1] + [3] * 7, np.float32), (400, 1))
    sharp = replace(sample, evidence=replace(sample.evidence, tokens=tokens, distances=distances))
    (fixed, *_) = choose(sharp, None, 8, 1.0)
    assert fixed.mixture.temperature == min(_STEPS)
    same = np.argsort(rng.random((400, 8)), axis=1)
    tokens = np.take_along_axis(tokens, same, axis=1)  # now any of them may be right
    flat = replace(sharp, evidence=replace(sharp.evidence, tokens=tokens))
    assert choose(flat, None, 8, 1.0)[0].mixture.temperature == max(_STEPS)


def test_a_gate_keeps_silent_on_foreign_text() -> None:
    """Only the model's own doubt tells them apart; a fixed lambda cannot."""
    rng = np.random.default_rng(3)
    home = made(rng, 2000, near=1.0, right=0.8, entropy=3.0, agreed=True)
    foreign = made(rng, 500, near=1.0, right=0.0, entropy=2.7, agreed=True)
    choices = choose(home, foreign, 8, 1.0)
    assert [choice.family for choice in choices] == list(FAMILIES)
    by_name = {choice.family: choice for choice in choices}
    assert by_name["fixed"].harm > 0.5
    gate = by_name["learned"]
    assert gate.harm < 0.05
    assert gate.home < 1.5
    assert best(choices, 3.0) is gate


@pytest.fixture
def few_candidates(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, values in {"BUCKETS": (8,), "ALPHAS": (0.2,), "TAUS": (0.1,)}.items():
        monkeypatch.setattr(f"knnlm_store.tuning.choice.{name}", values)


@pytest.mark.usefixtures("few_candidates")
def test_what_harms_is_damped_until_it_does_not(rng: np.random.Generator) -> None:
    """To the bound and no further; the policy that is kept is as much less as was judged."""
    home = made(rng, 600, near=1.0, right=0.6)
    foreign = made(rng, 300, near=1.0, right=0.05, agreed=True)
    fixed, bucketed, ratio = choose(home, foreign, 8, 1.0)
    assert fixed.share == 1.0
    assert fixed.harm > 10 * HARM
    for each in (bucketed, ratio):
        assert 0 < each.share < 1
        assert 0.99 * HARM < np.expm1(each.harm) <= HARM * (1 + 1e-9)
        assert each.home < 3.0
    as_kept = (foreign.log_lm - foreign.log_p(ratio.mixture)).mean()  # there is nothing to fit
    assert as_kept == pytest.approx(ratio.harm, rel=1e-6)
    assert isinstance(bucketed.mixture.policy, Bucketed)
    assert bucketed.mixture.policy.lambdas.max() < bucketed.share
    assert best([fixed, bucketed, ratio], 3.0) in (bucketed, ratio)


# -- the pick -------------------------------------------------------------------------------------


def choice(family: str, home: float, harm: float) -> Choice:
    return Choice(family, Mixture(1, 1.0, Fixed(0.1)), home, harm)


@pytest.mark.parametrize(
    ("choices", "expected"),
    [
        ([("a", 2.9, 0.0), ("b", 2.5, 0.0), ("c", 2.7, 0.0)], "b"),
        ([("a", 2.9, 0.0), ("b", 2.5, 0.02)], "a"),  # the better one does harm
        ([("a", 2.9, -0.1), ("b", 2.5, float(np.log1p(HARM)))], "b"),
        ([("a", 2.9, 0.3), ("b", 2.5, 0.4)], None),  # all do
        ([("a", 3.0, 0.0), ("b", 3.1, -1.0)], None),  # none pays
        ([("a", 3.0, 0.0), ("b", 2.9, 0.5)], None),
        ([("a", float("nan"), 0.0), ("b", INF, 0.0)], None),
        ([], None),
    ],
)
def test_the_best_without_harm(
    choices: list[tuple[str, float, float]], expected: str | None
) -> None:
    picked = best([choice(*each) for each in choices], 3.0)
    assert (picked.family if picked else None) == expected


def test_a_useless_datastore_gives_none(rng: np.random.Generator) -> None:
    home, foreign = made(rng, 300, near=1, right=0), made(rng, 300, near=1, right=0)
    assert best(choose(home, foreign, 8, 1.0), 3.0) is None


def test_a_gain_within_its_error_does_not_pay() -> None:
    some = [
        Choice("sure", Mixture(1, 1.0, Fixed(0.1)), 2.95, 0.0, margin=0.04),
        Choice("unsure", Mixture(1, 1.0, Fixed(0.1)), 2.90, 0.0, margin=0.11),
    ]
    picked = best(some, 3.0)
    assert picked is not None
    assert picked.family == "sure"
    assert best(some[1:], 3.0) is None


@pytest.mark.usefixtures("few_candidates")
def test_luck_does_not_pay() -> None:
    """Neighbours that are right as often as the model itself: some policy seems to gain."""
    home = made(np.random.default_rng(1), 300, near=1, right=0.06, documents=30)
    choices = choose(home, None, 8, 1.0)
    assert min(each.home for each in choices) < 3.0
    assert best(choices, 3.0) is None
