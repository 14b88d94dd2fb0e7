"""(torch) One pass over text: what the model made of each token, what the datastore found."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

import numpy as np

from knnlm_store.comparing import digest_of
from knnlm_store.corpus import Document, Problem
from knnlm_store.errors import CorpusError
from knnlm_store.mixture import Evidence
from knnlm_store.models import LanguageModel
from knnlm_store.scoring import Scored, score_batch
from knnlm_store.several import Searchable
from knnlm_store.tuning.draw import shares
from knnlm_store.tuning.sample import Sample, joined
from knnlm_store.values import Int64
from knnlm_store.windows import Window, batches, windows

LARGEST = 1024
"""Dimensions above which queries are not kept: a likeness fitted to them would take minutes."""

_READ = 100  # times what is looked at: text beyond that is not even read


class Reading:
    """What a pass met besides tokens.

    names: of the documents that are looked at, in order. digests: of their texts, by name.
    problems: what could not be read. bytes_read, tokens: of these documents, so far. documents,
    available: how many documents there were, and tokens in them; of a corpus that is_cut, in the
    part that was read.
    """

    def __init__(self) -> None:
        self.names: list[str] = []
        self.digests: dict[str, str] = {}
        self.problems: list[Problem] = []
        self.bytes_read = 0
        self.tokens = 0
        self.documents = 0
        self.available = 0
        self.is_cut = False


def cached(
    corpus: Iterable[Document | Problem],
    model: LanguageModel,
    store: Searchable,
    k: int,
    reading: Reading,
    *,
    most: int,
    batch_tokens: int | None = None,
    progress: Callable[[Reading], None] = lambda _: None,
) -> Sample:
    """Score at most `most` tokens of a corpus, an even share of each document (see draw.py).

    Finds k neighbours of each. Rows come in the order of the documents. Of a corpus without end
    100 times as much is read. Raises CorpusError if there was nothing to score, and what the
    backend raises.
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
    """Cut each document's share into windows."""
    documents = list(_encoded(corpus, model, reading, most))
    lengths = np.array([len(tokens) for _, tokens in documents], np.int64)
    for (item, tokens), share in zip(documents, shares(lengths, most).tolist(), strict=True):
        if not share:
            continue
        reading.names.append(item.id)  # one may stand twice
        reading.digests[item.id] = digest_of(item)
        reading.bytes_read += item.size
        reading.tokens += share
        owner = len(reading.names) - 1
        yield from windows(owner, model.document_start, tokens[:share], model.window)


def _encoded(
    corpus: Iterable[Document | Problem], model: LanguageModel, reading: Reading, most: int
) -> Iterator[tuple[Document, Int64]]:
    """Read documents, until there is more than enough to draw from."""
    for item in corpus:
        if reading.available >= _READ * most:
            reading.is_cut = True
            return
        if isinstance(item, Problem):
            reading.problems.append(item)
            continue
        tokens = model.encode(item.text)
        reading.documents += 1
        reading.available += len(tokens)
        yield item, tokens


def _compact(evidence: Evidence) -> Evidence:
    """Keep less of many rows: a token has at most 32 bits, a logarithm needs no more.

    Queries are left out where they are large.
    """
    queries = evidence.queries
    return replace(
        evidence,
        tokens=evidence.tokens.astype(np.int32),
        log_lm=evidence.log_lm.astype(np.float32),
        queries=None if queries is None or queries.shape[1] > LARGEST else queries,
    )


def _part(scored: Scored, evidence: Evidence, documents: Int64) -> Sample:
    return Sample(scored.log_probs, scored.targets, documents, evidence)
