"""(torch) Perplexity of the plain model and of the mixture, in one pass over held-out text.

Every token is scored once, at the position where it is new (see windows.py). Only the target's
probability and the neighbours' tokens are touched; no distribution over the vocabulary is built
beyond the logits themselves.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from knnlm_store.blending import score_blend
from knnlm_store.corpus import Document, Problem
from knnlm_store.errors import CorpusError, UsageError
from knnlm_store.interpolation import Float64, mix, target_log_probs
from knnlm_store.mixture import Evidence, Mixture
from knnlm_store.models import LanguageModel
from knnlm_store.scoring import score_batch
from knnlm_store.several import Blend, Searchable
from knnlm_store.values import Int64
from knnlm_store.windows import Window, batches, windows


@dataclass
class Scores:
    """Sums over scored tokens, and the perplexities that follow from them."""

    tokens: int = 0
    words: int = 0
    bytes: int = 0
    plain_nll: float = 0.0
    mixture_nll: float = 0.0

    def json(self) -> dict[str, Any]:
        """Give counts, and for both models nll (nats) and perplexity per token, word and byte."""
        counts = {"tokens": self.tokens, "words": self.words, "bytes": self.bytes}
        both = {"plain": self.plain_nll, "mixture": self.mixture_nll}
        return counts | {name: self._perplexities(nll) for name, nll in both.items()}

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
    started = time.monotonic()
    blend = _blend(store, mixture)
    result = Evaluation()
    stream = _windows(corpus, model, result)
    for batch in batches(stream, batch_tokens or model.window):
        scored = score_batch(model, batch)
        mixed = score_blend(scored, blend)
        result.scores.tokens += len(scored.targets)
        result.scores.plain_nll -= float(scored.log_probs.sum())
        result.scores.mixture_nll -= float(mixed.sum())
        result.seconds = time.monotonic() - started
        progress(result)
    if not result.scores.tokens:
        raise CorpusError("There was no text to score.", hint="Name files that hold text.")
    return result


def _blend(store: Searchable | Blend, mixture: Mixture | None) -> Blend:
    if isinstance(store, Blend) and mixture is None:
        return store
    if isinstance(store, Blend) or mixture is None:
        raise UsageError("A datastore is evaluated with a mixture, a blend with its own.")
    return Blend([(store, mixture)], [1.0])


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
