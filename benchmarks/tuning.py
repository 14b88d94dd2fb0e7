"""What `tune` reaches on real text: at home, where the datastore is the wrong one, and pooled.

Documents up to TOKENS of TRAIN go into an exact datastore (int8 keys, the model's transform);
policies are fitted on 15 thousand tokens of VALID. TEST is only scored: whole at home, its first 8
thousand tokens in the datastores of the other corpora. Hidden states are kept.

Run: python -m benchmarks.tuning [--point lm_head_input] NAME=TRAIN:TOKENS:VALID:TEST ...
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.common import report
from benchmarks.states import FFN, States, even, states
from benchmarks.stores import model_transform, sample_of, store_of
from knnlm_store.calibration import DEFAULT_K
from knnlm_store.corpus import Corpus
from knnlm_store.datastore import Datastore
from knnlm_store.keys import POINTS
from knnlm_store.memories import mixture_for
from knnlm_store.mixture import Mixture
from knnlm_store.several import Pool, Searchable
from knnlm_store.tuning.choice import best, choose, choose_k
from knnlm_store.tuning.foreign import foreign_text
from knnlm_store.tuning.known import NEAR, without_known
from knnlm_store.tuning.sample import Sample, joined
from knnlm_store.tuning.tune import MOST, MOST_FOREIGN, TOLERANCE

FITTED_ON, SCORED_WRONG = MOST, 8_000


@dataclass(frozen=True, slots=True)
class Text:
    """A corpus in three parts."""

    name: str
    train: States
    valid: States
    test: States

    @classmethod
    def read(cls, described: str) -> Text:
        """Read what NAME=TRAIN:TOKENS:VALID:TEST names."""
        name, _, places = described.partition("=")
        train, tokens, valid, test = places.split(":")
        return cls(
            name,
            states(train, Corpus([train]), int(tokens), for_store=True),
            states(valid, Corpus([valid]), FITTED_ON, even=True),
            states(test, Corpus([test])),
        )


def perplexities(sample: Sample, mixtures: Mapping[str, Mixture]) -> dict[str, float]:
    """Give the plain model's perplexity, and each mixture's."""
    return {"plain": _perplexity(sample.log_lm)} | {
        name: _perplexity(sample.log_p(mixture)) for name, mixture in mixtures.items()
    }


def _perplexity(log_p: np.ndarray[Any, np.dtype[np.float64]]) -> float:
    return float(np.exp(-log_p.mean()))


def fitted(
    home: Sample, foreign: Sample | None, k: int, untuned: Mixture
) -> tuple[dict[str, Mixture], dict[str, Any]]:
    """Fit every family at one k: mixtures by name, with the untuned one, and what was chosen."""
    choices = choose(home, foreign, k, untuned.temperature)
    chosen = best(choices, float(-home.log_lm.mean()))
    mixtures = {choice.family: choice.mixture for choice in choices}
    about = {
        choice.family: {
            "temperature": choice.mixture.temperature,
            "valid": float(np.exp(choice.home)),
            "share": choice.share,
            "foreign_percent": {
                source: 100 * float(np.expm1(harm)) for source, harm in choice.harms.items()
            },
        }
        for choice in choices
    }
    if chosen is not None:
        mixtures["chosen"] = chosen.mixture
    return mixtures | {"untuned": untuned}, about


def alone(text: Text, store: Datastore, point: str) -> tuple[dict[str, Mixture], dict[str, Any]]:
    """Fit to one datastore, at the k that the rule finds and at the largest."""
    untuned = mixture_for(store)
    home = sample_of(store, text.valid, point=point)
    foreign = _foreign(store, untuned, point)
    k, by_k = choose_k(home, untuned.temperature, TOLERANCE)
    mixtures: dict[str, Mixture] = {}
    figures: dict[str, Any] = {"k": k, "fixed_by_k": by_k, "fitted": {}}
    for each in sorted({k, DEFAULT_K}):
        made, about = fitted(home, foreign, each, untuned)
        mixtures |= {f"{name}@{each}": mixture for name, mixture in made.items()}
        figures["fitted"][each] = about
    return mixtures, figures


def pooled(texts: Sequence[Text], pool: Pool, point: str) -> tuple[dict[str, Mixture], Any]:
    """Fit to all as one, on text of all."""
    share = MOST // len(texts)
    valid = [even(text.valid, share) for text in texts]
    home = joined([sample_of(pool, text, point=point) for text in valid])
    untuned = mixture_for(pool)
    return fitted(home, _foreign(pool, untuned, point), DEFAULT_K, untuned)


def _foreign(store: Searchable, untuned: Mixture, point: str) -> Sample | None:
    """Find neighbours of foreign text, less what the datastore holds of it."""
    text = states("foreign", foreign_text(), MOST_FOREIGN)
    return without_known(sample_of(store, text, point=point), NEAR * untuned.temperature)[0]


def main() -> None:
    """Print what each policy does to each text."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--point", choices=POINTS, default=FFN)
    parser.add_argument("corpora", nargs="+", metavar="NAME=TRAIN:TOKENS:VALID:TEST")
    asked = parser.parse_args()
    point, texts = asked.point, [Text.read(each) for each in asked.corpora]
    stores = [store_of(text.train, model_transform(point), point) for text in texts]
    figures: dict[str, Any] = {}
    for text, store in zip(texts, stores, strict=True):
        mixtures, about = alone(text, store, point)
        scored = {"test": text.test} | {
            other.name: other.test[:SCORED_WRONG] for other in texts if other is not text
        }
        figures[text.name] = about | {
            name: perplexities(sample_of(store, each, point=point), mixtures)
            for name, each in scored.items()
        }
    if len(texts) > 1:
        pool = Pool(stores)
        mixtures, about = pooled(texts, pool, point)
        figures["pool"] = {"fitted": about} | {
            text.name: perplexities(sample_of(pool, text.test, point=point), mixtures)
            for text in texts
        }
    report("tuning", {"point": point, **figures})


if __name__ == "__main__":
    main()
