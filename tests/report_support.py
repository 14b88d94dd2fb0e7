"""A fit of every family to made-up text, and what a test reads of its report."""

from __future__ import annotations

from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import numpy as np
import pytest

from knnlm_store.calibrated import Calibration
from knnlm_store.features import NAMES
from knnlm_store.gate import Gate
from knnlm_store.interpolation import Float64
from knnlm_store.mixture import Evidence, Mixture
from knnlm_store.tuning.figures import by_group, summary
from knnlm_store.tuning.pictures import pictures
from knnlm_store.tuning.sample import Sample

pytest.importorskip("torch")  # the families are fitted with it

from knnlm_store.tuning.choice import Choice, choose
from knnlm_store.tuning.tune import Tuned

START, K, VOCABULARY = 10.0, 8, 40
HOSTILE = "</title><script src=http://evil.example/x.js></script>&\"'\x00\udcff\u202e.txt"


def a_sample(seed: int, n: int = 600, near: float = 30.0) -> tuple[Sample, Float64]:
    """Tokens that come from memory where it is near; also log p_LM of the whole vocabulary."""
    rng = np.random.default_rng(seed)
    log_lm = rng.normal(size=(n, VOCABULARY)) * 3
    log_lm -= np.log(np.exp(log_lm).sum(axis=1, keepdims=True))
    first = rng.gamma(4, near / 4, size=n)
    remembered = rng.integers(0, VOCABULARY, n)
    drawn = (np.exp(log_lm).cumsum(axis=1) > rng.random((n, 1))).argmax(axis=1)
    targets = np.where(rng.random(n) < np.exp(-first / near), remembered, drawn)
    distances = np.sort(first[:, None] + rng.exponential(20, size=(n, K)), axis=1)
    tokens = rng.integers(0, VOCABULARY, (n, K))
    tokens = np.where(rng.random((n, K)) < 0.5, remembered[:, None], tokens)
    distances[:5], tokens[:5] = np.inf, -1  # nothing was found
    rows = np.arange(n)
    at_tokens = np.where(tokens < 0, -np.inf, log_lm[rows[:, None], tokens])
    evidence = Evidence(
        distances.astype(np.float32),
        tokens,
        at_tokens,
        -(np.exp(log_lm) * log_lm).sum(axis=1),
        log_lm.max(axis=1),
    )
    documents = np.sort(rng.integers(0, 12, n))
    return Sample(log_lm[rows, targets], targets, documents, evidence, ("a",) * 12), log_lm


def a_gate(temperature: float) -> Gate:
    """Weights at random, two neighbour distributions."""
    layer = np.random.default_rng(3).normal(size=(len(NAMES), 3)) / 4, np.zeros(3)
    zeros, ones = np.zeros(len(NAMES)), np.ones(len(NAMES))
    return Gate(temperature, zeros, ones, (layer,), (1.0, 4.0))


class Case:
    """A fit, with all that a report needs."""

    def __init__(self) -> None:
        self.home, self.log_lm = a_sample(0)
        self.foreign, _ = a_sample(1, 300, near=120.0)
        self.test, _ = a_sample(2)
        self.choices = choose(self.home, self.foreign, K, START)
        self.choices.append(Choice("learned", Mixture(K, START, a_gate(START)), 2.0, 0.0))
        self.picked = self.choices[-1]
        self.pictures = pictures(
            self.home,
            self.choices,
            self.picked,
            START,
            measured=self.test,
            foreign=self.foreign,
        )
        self.tuned = self._tuned()

    def _tuned(self) -> Tuned:
        log_p = self.test.log_p(self.picked.mixture)
        near = self.test.evidence.distances[:, 0]
        some = {"near": near < 20, "far": near >= 20, "never seen": near < 0}
        tuned = Tuned(k={4: 9.5, K: 9.25}, tokens={"valid": 600, "foreign": 300, "test": 600})
        tuned.groups = {"frequency": by_group(log_p, self.test.log_lm, some)}
        plain = float(np.exp(-self.home.log_lm.mean()))
        test = summary(self.test.log_lm, self.test.log_lm)
        tuned.rows = {"plain": {"valid": {"perplexity": plain}, "test": test}}
        for choice in self.choices:
            tuned.rows[choice.family] = {
                "valid": {"perplexity": float(np.exp(choice.home))},
                "foreign_over_plain": float(np.exp(choice.harm)),
                "test": summary(self.test.log_p(choice.mixture), self.test.log_lm),
            }
        mixtures = {choice.family: choice.mixture for choice in self.choices}
        identity = {"model": "a/model", "precision": "float32"}
        tuned.calibration = Calibration(mixtures, "learned", identity, "flat", 900, "now", {})
        return tuned

    def mixture(self, family: str) -> Mixture:
        return next(each.mixture for each in self.choices if each.family == family)


def marks(page: str, kind: str) -> list[dict[str, str]]:
    """Data attributes of the marks of a class; raises ParseError for a page that is not XML."""
    found = []
    for element in ElementTree.fromstring(page).iter():
        if kind in element.get("class", "").split() and any("data-" in k for k in element.attrib):
            found.append({k.removeprefix("data-"): v for k, v in element.items()})
    return found


def the_text(element: Element) -> str:
    return "".join(element.itertext())
