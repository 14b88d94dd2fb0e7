"""(torch) A blend on text: how likely it finds it, and the weights that suit it best."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from knnlm_store.corpus import Document, Problem
from knnlm_store.errors import CorpusError, UsageError
from knnlm_store.interpolation import Float64, mix, target_log_probs
from knnlm_store.mixture import Mixture
from knnlm_store.models import LanguageModel
from knnlm_store.scoring import Scored, score_batch
from knnlm_store.several import Answered, Blend, Searchable, weigh
from knnlm_store.tuning.likelihood import best_weights
from knnlm_store.windows import Window, batches, windows


def fit_blend(
    corpus: Iterable[Document | Problem],
    model: LanguageModel,
    parts: Sequence[tuple[Searchable, Mixture]],
    *,
    batch_tokens: int | None = None,
) -> Float64:
    """Find the weights, float64 `[m]`, under which a text is most likely, in one pass over it.

    The plain model stands beside the parts with a weight of its own, 1 - sum: on this text no
    blend is worse than the plain model or any part alone. Take text that is neither in the
    datastores nor scored later. Raises CorpusError if there is none, and what a backend raises.
    """
    blend = Blend(parts, np.zeros(len(parts)))  # its weights are not looked at
    rows = []
    for batch in batches(_windows(corpus, model), batch_tokens or model.window):
        scored = score_batch(model, batch)
        answers = [part._replace(weight=1.0) for part in blend.search(scored.keys)]
        each = [score_parts(scored, [part]) for part in answers]
        rows.append(np.stack([*each, scored.log_probs], axis=1))
    if not rows:
        raise CorpusError("There was no text to fit on.", hint="Name files that hold text.")
    return best_weights(np.concatenate(rows))[:-1]


def as_blend(source: Searchable | Blend, mixture: Mixture | None) -> Blend:
    """Give what is mixed in as a blend; a datastore or a pool is one of a single part."""
    if isinstance(source, Blend) and mixture is None:
        return source
    if isinstance(source, Blend) or mixture is None:
        raise UsageError("A datastore needs a mixture; a blend has its own.")
    return Blend([(source, mixture)], [1.0])


def score_blend(scored: Scored, blend: Blend) -> Float64:
    """Log p of each target under a blend, float64 `[q]`."""
    return score_parts(scored, blend.search(scored.keys))


def score_parts(scored: Scored, parts: Sequence[Answered]) -> Float64:
    """Log p of each target, float64 `[q]`, where the parts found this."""
    weighed = weigh([part[1:] for part in parts], [scored.evidence(p.found) for p in parts])
    log_knn = target_log_probs(weighed.log_shares, weighed.tokens, scored.targets)
    return mix(log_knn, scored.log_probs, weighed.lmbda)


def _windows(corpus: Iterable[Document | Problem], model: LanguageModel) -> Iterator[Window[None]]:
    for item in corpus:
        if isinstance(item, Document):
            yield from windows(None, model.document_start, model.encode(item.text), model.window)
