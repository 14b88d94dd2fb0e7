"""The weights of a blend, fitted on text."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from knnlm_store.blending import fit_blend, score_blend
from knnlm_store.corpus import Document, Problem
from knnlm_store.datastore import Datastore
from knnlm_store.errors import CorpusError, UsageError
from knnlm_store.evaluation import evaluate
from knnlm_store.mixture import Fixed, Mixture
from knnlm_store.models import LanguageModel
from knnlm_store.policies import Ratio
from knnlm_store.several import Blend, Pool, Searchable
from tests.several_support import HELD_OUT, TEXTS, filled, scored_of


@pytest.fixture
def stores(language_model: LanguageModel) -> list[Datastore]:
    return [filled(language_model, text) for text in TEXTS[:2]]


def test_fitted_weights_are_the_best_of_a_grid(
    language_model: LanguageModel, stores: list[Datastore]
) -> None:
    mixtures = [Mixture(8, 2.0, Fixed(0.999)), Mixture(4, 5.0, Ratio(alpha=2.0))]
    parts = list(zip(stores, mixtures, strict=True))
    text = " ".join([HELD_OUT, TEXTS[2]])
    lm = LanguageModel.wrap(language_model.model, language_model.tokenizer, window=256)
    weights = fit_blend([Document("h", "1", text, {}, 0)], lm, parts)
    assert (weights > 0.02).all()
    assert weights.sum() < 0.98  # every component has a part in this
    scored = scored_of(lm, text)

    def mean(weights: Any) -> float:
        return float(score_blend(scored, Blend(parts, weights)).mean())

    step = 0.05
    grid = {(i, j): mean([i * step, j * step]) for i in range(21) for j in range(21) if i + j <= 20}
    best = max(grid, key=grid.__getitem__)
    assert mean(weights) >= grid[best]
    assert mean(weights) - grid[best] < 1e-3  # and the grid comes near
    np.testing.assert_allclose(weights, np.array(best) * step, atol=2 * step)


def test_a_fit_takes_windows_as_evaluation_does(
    language_model: LanguageModel, stores: list[Datastore]
) -> None:
    """With one part the best weight is one number, which evaluation must agree on."""
    text: list[Document | Problem] = [
        Document("h", "1", HELD_OUT * 3, {}, 0),
        Problem("x", "It cannot be read.", True),
    ]
    sharp = Mixture(4, 2.0, Fixed(0.999))
    (weight,) = fit_blend(text, language_model, [(stores[0], sharp)])
    assert 0.02 < weight < 0.98

    def nll(weight: float) -> float:
        mixture = Mixture(4, 2.0, Fixed(0.999 * weight))
        return evaluate(text, language_model, stores[0], mixture).scores.mixture_nll

    assert nll(weight) < min(nll(weight - 0.02), nll(weight + 0.02))


def test_a_part_that_harms_gets_nothing(
    language_model: LanguageModel, stores: list[Datastore]
) -> None:
    """Lambda 1 without the token is impossible: the plain model must take over."""
    wrong = filled(language_model, "zzzzzzzzz")
    only = Mixture(4, 2.0, Fixed(1.0))
    weights = fit_blend(
        [Document("h", "1", HELD_OUT, {}, 0)], language_model, [(wrong, only), (wrong, only)]
    )
    assert (weights < 1e-6).all()


def test_nothing_to_fit_on(language_model: LanguageModel, stores: list[Datastore]) -> None:
    with pytest.raises(CorpusError, match=r"There was no text to fit on\."):
        fit_blend(
            [Document("h", "1", "", {}, 0)],
            language_model,
            [(stores[0], Mixture(8, 2.0, Fixed(0.5)))],
        )


def test_evaluation_takes_blends_and_pools(
    language_model: LanguageModel, stores: list[Datastore]
) -> None:
    text, mixture = [Document("h", "1", HELD_OUT, {}, 0)], Mixture(8, 2.0, Fixed(0.5))
    parts = [(store, mixture) for store in stores]

    def nll(store: Searchable | Blend, mixture: Mixture | None = None) -> float:
        return evaluate(text, language_model, store, mixture).scores.mixture_nll

    assert nll(Blend(parts, [0.0, 1.0])) == nll(stores[1], mixture)
    assert nll(Blend([(Pool(stores), mixture)], [1.0])) == nll(Pool(stores), mixture)
    best = nll(Blend(parts, fit_blend(text, language_model, parts)))
    assert best < min(nll(store, mixture) for store in stores)
    for store, wrong in ((stores[0], None), (Blend(parts, [0.0, 1.0]), mixture)):
        with pytest.raises(UsageError, match="a blend has its own"):
            nll(store, wrong)
