"""(torch) One pass over text: what the model made of each token, what the datastore found."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

import numpy as np

from knnlm_store.corpus import Document, Problem
from knnlm_store.datastore import Datastore
from knnlm_store.errors import CorpusError
from knnlm_store.ingest import digest_of
from knnlm_store.mixture import Evidence
from knnlm_store.models import LanguageModel
from knnlm_store.scoring import Scored, score_batch
from knnlm_store.tuning.sample import Sample, joined
from knnlm_store.values import Int64
from knnlm_store.windows import Window, batches, windows


class Reading:
    """What a pass met besides tokens.

    names: of the documents, in order. digests: of their texts, by name. problems: what could not
    be read.
    """

    def __init__(self) -> None:
        self.names: list[str] = []
        self.digests: dict[str, str] = {}
        self.problems: list[Problem] = []
        self.bytes_read = 0
        self.tokens = 0


def cached(
    corpus: Iterable[Document | Problem],
    model: LanguageModel,
    store: Datastore,
    k: int,
    reading: Reading,
    *,
    most: int,
    batch_tokens: int | None = None,
    progress: Callable[[Reading], None] = lambda _: None,
) -> Sample:
    """Score at most `most` tokens of a corpus and find k neighbours of each.

    Rows come in the order of the documents. Raises CorpusError if there was nothing to score,
    and what the backend raises.
    """
    parts: list[Sample] = []
    places: list[Int64] = []
    stream = _windows(corpus, model, reading, most)
    for batch in batches(stream, batch_tokens or model.window):
        scored = score_batch(model, batch)
        found = store.search(scored.keys, k)
        owners = [np.full(len(w.targets), w.owner, np.int64) for w in batch.windows]
        parts.append(_part(scored, _compact(scored.evidence(found)), np.concatenate(owners)))
        places.append(np.concatenate([np.arange(w.new, w.end) for w in batch.windows]))
        progress(reading)
    if not parts:
        raise CorpusError("There was no text to score.", hint="Name files that hold text.")
    sample = joined(parts)  # the parts carry no names, so their documents' numbers stand
    order = np.lexsort((np.concatenate(places), sample.documents))
    return replace(sample[order], names=tuple(reading.names))


def _windows(
    corpus: Iterable[Document | Problem], model: LanguageModel, reading: Reading, most: int
) -> Iterator[Window[int]]:
    """Cut documents into windows, until there are `most` tokens."""
    for item in corpus:
        if isinstance(item, Problem):
            reading.problems.append(item)
            continue
        tokens = model.encode(item.text)[: most - reading.tokens]
        reading.names.append(item.id)  # one may stand twice
        reading.digests[item.id] = digest_of(item)
        reading.bytes_read += item.size
        reading.tokens += len(tokens)
        owner = len(reading.names) - 1
        yield from windows(owner, model.document_start, tokens, model.window)
        if reading.tokens >= most:
            return


def _compact(evidence: Evidence) -> Evidence:
    """Halve what is kept of many rows; a token has at most 32 bits, a logarithm needs no more."""
    return replace(
        evidence,
        tokens=evidence.tokens.astype(np.int32),
        log_lm=evidence.log_lm.astype(np.float32),
    )


def _part(scored: Scored, evidence: Evidence, documents: Int64) -> Sample:
    return Sample(scored.log_probs, scored.targets, documents, evidence)
