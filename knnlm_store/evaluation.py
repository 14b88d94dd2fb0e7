"""(torch) Perplexity of the plain model and of the mixture, in one pass over held-out text.

Every token is scored once, at the position where it is new (see windows.py). Only the target's
probability and the neighbours' tokens are touched; no distribution over the vocabulary is built
beyond the logits themselves.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from knnlm_store.blending import as_blend, score_blend
from knnlm_store.corpus import Document, Problem
from knnlm_store.errors import CorpusError, UsageError
from knnlm_store.interpolation import Float64, mix, target_log_probs
from knnlm_store.mixture import Evidence, Mixture
from knnlm_store.models import LanguageModel
from knnlm_store.scoring import Scored, score_batch
from knnlm_store.several import Blend, Searchable
from knnlm_store.values import Int64
from knnlm_store.windows import Window, batches, windows

NOTICED = 0.01
"""Nats of a token, 1 % of its probability: less is neither help nor hurt."""


@dataclass
class PolicyScores:
    """Sums over scored tokens under one of several mixtures."""

    nll: float = 0.0
    helped: int = 0
    hurt: int = 0

    def add(self, log_p: Float64, log_lm: Float64) -> None:
        """Count tokens: log p of each in the mixture and in the plain model, both `[q]`."""
        self.nll -= float(log_p.sum())
        self.helped += int((log_p > log_lm + NOTICED).sum())
        self.hurt += int((log_p < log_lm - NOTICED).sum())


@dataclass
class Scores:
    """Sums over scored tokens, and the perplexities that follow from them.

    policies: of `compare`, by name, in the place of one mixture.
    """

    tokens: int = 0
    words: int = 0
    bytes: int = 0
    plain_nll: float = 0.0
    mixture_nll: float = 0.0
    policies: dict[str, PolicyScores] = field(default_factory=dict)

    def json(self) -> dict[str, Any]:
        """Give counts, and for both models nll (nats) and perplexity per token, word and byte.

        Where policies were compared they stand in the mixture's place, each with the shares of
        tokens that it made likelier and unlikelier by over 1 %.
        """
        report: dict[str, Any] = {"tokens": self.tokens, "words": self.words, "bytes": self.bytes}
        report["plain"] = self._perplexities(self.plain_nll)
        if not self.policies:
            return report | {"mixture": self._perplexities(self.mixture_nll)}
        n = max(1, self.tokens)
        report["policies"] = {
            name: self._perplexities(each.nll) | {"helped": each.helped / n, "hurt": each.hurt / n}
            for name, each in self.policies.items()
        }
        return report

    def _perplexities(self, nll: float) -> dict[str, float]:
        units = {"": self.tokens, "_per_word": self.words, "_per_byte": self.bytes}
        return {"nll": nll} | {
            f"perplexity{unit}": _exp(nll / max(1, n)) for unit, n in units.items()
        }


def _exp(x: float) -> float:
    return math.exp(x) if x < 700 else math.inf


@dataclass
class Evaluation:
    """Result of an evaluation."""

    scores: Scores = field(default_factory=Scores)
    documents: int = 0
    seconds: float = 0.0
    problems: list[Problem] = field(default_factory=list)
    bytes_read: int = 0

    def json(self) -> dict[str, Any]:
        """Give the result as one JSON-able object."""
        return self.scores.json() | {
            "documents": self.documents,
            "seconds": self.seconds,
            "problems": [asdict(p) for p in self.problems],
        }


def evaluate(
    corpus: Iterable[Document | Problem],
    model: LanguageModel,
    store: Searchable | Blend,
    mixture: Mixture | None = None,
    *,
    batch_tokens: int | None = None,
    progress: Callable[[Evaluation], None] = lambda _: None,
) -> Evaluation:
    """Score every token of a corpus under the plain model and under the mixture.

    mixture: how a datastore or a pool is mixed in; a blend has its own, and takes none.
    The searches of a forward pass are one batch. Raises CorpusError if nothing could be scored,
    and what the backend raises: an evaluation never falls back to the plain model.
    """
    blend = as_blend(store, mixture)
    result = Evaluation()
    for scored in _passes(corpus, model, result, batch_tokens, progress):
        result.scores.mixture_nll -= float(score_blend(scored, blend).sum())
    return result


def compare(
    corpus: Iterable[Document | Problem],
    model: LanguageModel,
    store: Searchable,
    mixtures: Mapping[str, Mixture],
    *,
    batch_tokens: int | None = None,
    progress: Callable[[Evaluation], None] = lambda _: None,
) -> Evaluation:
    """Score every token of a corpus under several mixtures, in one pass and one search a batch.

    Each is scored as `evaluate` would: on its own k nearest of those that the largest k found.
    mixtures: by name, at least one. The rest is as in `evaluate`.
    """
    if not mixtures:
        raise UsageError("There is no mixture to compare.", hint="Name at least one.")
    result = Evaluation()
    result.scores.policies = {name: PolicyScores() for name in mixtures}
    sizes = {mixture.k for mixture in mixtures.values()}
    for scored in _passes(corpus, model, result, batch_tokens, progress):
        found = store.search(scored.keys, max(sizes))
        # cut before the model's view is added: what it rules out counts among the k, as elsewhere
        evidences = {k: scored.evidence(found.padded(k)) for k in sizes}
        for name, mixture in mixtures.items():
            mixed = score(evidences[mixture.k], scored.targets, scored.log_probs, mixture)
            result.scores.policies[name].add(mixed, scored.log_probs)
    return result


def _passes(
    corpus: Iterable[Document | Problem],
    model: LanguageModel,
    result: Evaluation,
    batch_tokens: int | None,
    progress: Callable[[Evaluation], None],
) -> Iterator[Scored]:
    """Run the plain model over a corpus, and count; the caller adds its own between passes."""
    started = time.monotonic()
    for batch in batches(_windows(corpus, model, result), batch_tokens or model.window):
        scored = score_batch(model, batch)
        result.scores.tokens += len(scored.targets)
        result.scores.plain_nll -= float(scored.log_probs.sum())
        yield scored
        result.seconds = time.monotonic() - started
        progress(result)
    if not result.scores.tokens:
        raise CorpusError("There was no text to score.", hint="Name files that hold text.")


def score(evidence: Evidence, targets: Int64, target_log_lm: Float64, mixture: Mixture) -> Float64:
    """Log p of each target under the mixture, float64 `[q]`.

    targets: int64 `[q]`. target_log_lm: log p_LM of the targets, `[q]`.
    """
    lmbda, log_weights = mixture.weigh(evidence)
    return mix(target_log_probs(log_weights, evidence.tokens, targets), target_log_lm, lmbda)


def _windows(
    corpus: Iterable[Document | Problem], model: LanguageModel, result: Evaluation
) -> Iterator[Window[None]]:
    for item in corpus:
        if isinstance(item, Problem):
            result.problems.append(item)
            continue
        result.documents += 1
        result.bytes_read += item.size
        result.scores.words += len(item.text.split())
        result.scores.bytes += len(item.text.encode("utf-8", "surrogatepass"))
        yield from windows(None, model.document_start, model.encode(item.text), model.window)
