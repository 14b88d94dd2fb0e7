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

import numpy as np
import torch
from torch import Tensor

from knnlm_store.corpus import Document, Problem
from knnlm_store.datastore import Datastore
from knnlm_store.errors import CorpusError
from knnlm_store.interpolation import Float64, Mixture, drop_impossible, mix, target_log_probs
from knnlm_store.models import LanguageModel, to_numpy
from knnlm_store.values import Float32, Int64, Neighbours
from knnlm_store.windows import Batch, Window, batches, windows

_LOGIT_CELLS = 64 * 1024 * 1024  # float32 logits turned into log-probabilities at once: 256 MB


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
    store: Datastore,
    mixture: Mixture,
    *,
    batch_tokens: int | None = None,
    progress: Callable[[Evaluation], None] = lambda _: None,
) -> Evaluation:
    """Score every token of a corpus under the plain model and under the mixture.

    The searches of a forward pass are one batch. Raises CorpusError if nothing could be scored,
    and what the backend raises: an evaluation never falls back to the plain model.
    """
    started = time.monotonic()
    result = Evaluation()
    stream = _windows(corpus, model, result)
    for batch in batches(stream, batch_tokens or model.window):
        keys, log_probs, at_tokens = _forward(model, batch)
        neighbours = store.search(keys, mixture.k)
        targets = np.concatenate([w.targets for w in batch.windows])
        mixed = score(neighbours, targets, log_probs, at_tokens(neighbours.tokens), mixture)
        result.scores.tokens += len(targets)
        result.scores.plain_nll -= float(log_probs.sum())
        result.scores.mixture_nll -= float(mixed.sum())
        result.seconds = time.monotonic() - started
        progress(result)
    if not result.scores.tokens:
        raise CorpusError("There was no text to score.", hint="Name files that hold text.")
    return result


def score(
    neighbours: Neighbours,
    targets: Int64,
    target_log_lm: Float64,
    neighbour_log_lm: Float64,
    mixture: Mixture,
) -> Float64:
    """Log p of each target under the mixture, float64 `[q]`.

    targets: int64 `[q]`. target_log_lm: log p_LM of the targets, `[q]`. neighbour_log_lm: log
    p_LM of the neighbours' tokens, `[q, k]`.
    """
    distances = drop_impossible(neighbours, neighbour_log_lm)
    log_knn = target_log_probs(distances, neighbours.tokens, targets, mixture.temperature)
    lmbda = np.where(np.isfinite(distances).any(axis=1), mixture.lmbda(neighbours), 0.0)
    return mix(log_knn, target_log_lm, lmbda)


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


Lookup = Callable[[Int64], Float64]


@torch.inference_mode()
def _forward(model: LanguageModel, batch: Batch[None]) -> tuple[Float32, Float64, Lookup]:
    """Run a batch: keys `[q, d]`, log p_LM of the targets `[q]`, and of any tokens `[q, k]`.

    The q rows are the new positions of each window, window after window.
    """
    input_ids, mask = model.tensors(batch)
    width = input_ids.shape[1]
    keep = width - min(w.new - w.begin for w in batch.windows)
    with model.tap.private():
        logits, hidden = _logits_and_hidden(model, input_ids, mask, keep)
    rows = [
        (row, window.new - window.begin, window.end - window.begin)
        for row, window in enumerate(batch.windows)
    ]
    shift = width - logits.shape[1]
    picked = torch.cat([logits[row, a - shift : b - shift] for row, a, b in rows])
    keys = to_numpy(torch.cat([hidden[row, a:b] for row, a, b in rows]))
    totals = _log_totals(picked)
    targets = torch.from_numpy(np.concatenate([w.targets for w in batch.windows]))
    at_targets = _gather(picked, targets[:, None].to(picked.device)) - totals

    def at_tokens(tokens: Int64) -> Float64:
        known = torch.from_numpy(np.clip(tokens, 0, picked.shape[1] - 1)).to(picked.device)
        found = _to_float64(_gather(picked, known) - totals)
        return np.where((tokens < 0) | (tokens >= picked.shape[1]), -np.inf, found)

    return keys, _to_float64(at_targets)[:, 0], at_tokens


def _logits_and_hidden(
    model: LanguageModel, input_ids: Tensor, mask: Tensor | None, keep: int
) -> tuple[Tensor, Tensor]:
    options = {"logits_to_keep": keep} if model.model._supports_logits_to_keep() else {}
    output = model.model(
        input_ids=input_ids, attention_mask=mask, use_cache=False, return_dict=True, **options
    )
    hidden = model.tap.take(len(input_ids))
    missing = input_ids.shape[1] - hidden.shape[1]
    if missing:  # lm_head_input is cut by logits_to_keep as well
        hidden = torch.nn.functional.pad(hidden, (0, 0, missing, 0))
    return output.logits, hidden


def _log_totals(logits: Tensor) -> Tensor:
    """Logsumexp of each row in float32, in pieces: `[q, v]` to `[q, 1]`."""
    rows = max(1, _LOGIT_CELLS // logits.shape[1])
    pieces = [torch.logsumexp(part.float(), -1, keepdim=True) for part in torch.split(logits, rows)]
    return torch.cat(pieces)


def _gather(logits: Tensor, tokens: Tensor) -> Tensor:
    return logits.gather(1, tokens).float()


def _to_float64(values: Tensor) -> Float64:
    array: Float64 = values.cpu().numpy().astype(np.float64)
    return array
