"""(torch) Corpus + keys -> entries -> datastore.

Documents flow through as a stream: read, compared with the catalog, tokenised, cut into windows,
run through the model as far as the key point, written behind the forward pass.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from knnlm_store import history
from knnlm_store.calibration import forget_temperature
from knnlm_store.catalog import Catalog
from knnlm_store.comparing import digest_of, metadata_of, step_for
from knnlm_store.corpus import Document, Problem
from knnlm_store.datastore import Datastore
from knnlm_store.documents import Change, DocumentRecord, Version
from knnlm_store.models import LanguageModel, to_numpy
from knnlm_store.retry import build_index, retrying
from knnlm_store.values import Int64
from knnlm_store.windows import Batch, Window, batches, windows
from knnlm_store.writer import DocumentWriter


@dataclass
class IngestReport:
    """What a run did. `tokens` counts new entries; `mended` documents a killed run had left.

    bytes_read: of the corpus that was dealt with. refused: those of the failed that another
    writer kept. begun: documents that were added, replaced, or are being.
    """

    added: int = 0
    replaced: int = 0
    skipped: int = 0
    failed: int = 0
    refused: int = 0
    tokens: int = 0
    bytes_read: int = 0
    seconds: float = 0.0
    mended: int = 0
    interrupted: bool = False
    index: str | None = None
    problems: list[Problem] = field(default_factory=list)
    begun: int = 0

    @property
    def in_hand(self) -> int:
        """Documents of which not all entries are handed to the writer yet."""
        return self.begun - self.added - self.replaced

    def json(self) -> dict[str, Any]:
        """Give the report as one JSON-able object."""
        counts = {name: getattr(self, name) for name in ("added", "replaced", "skipped", "failed")}
        rest = {k: v for k, v in asdict(self).items() if k not in (*counts, "begun")}
        return {"documents": counts, **rest}


@dataclass
class _Job:
    """A document on its way through; done when all its windows are written."""

    change: Change
    text_tokens: Int64
    open_windows: int = 0

    @property
    def version(self) -> Version:
        return self.change.document.version


@dataclass
class _Run:
    model: LanguageModel
    store: Datastore
    catalog: Catalog
    writer: DocumentWriter
    report: IngestReport
    stop: Callable[[], bool]
    begun: dict[str, tuple[bool, int]] = field(default_factory=dict)
    """Documents to whether they are new and their number of tokens."""

    def windows(self, corpus: Iterable[Document | Problem]) -> Iterator[Window[_Job]]:
        """Yield the windows of the documents that are new or changed."""
        for item in corpus:
            if self.stop():
                self.report.interrupted = True
                return
            if isinstance(item, Problem):
                self._note(item)
                continue
            job = self._job(item)
            if job is None:
                self.report.bytes_read += item.size
            else:
                self.writer.begin(job.change)
                yield from self._cut(job)

    def _note(self, problem: Problem) -> None:
        self.report.problems.append(problem)
        if problem.failed:
            self.report.failed += 1
        else:
            self.report.skipped += 1

    def _job(self, document: Document) -> _Job | None:
        """Decide what a document needs; None if nothing."""
        if document.id in self.begun:
            what = "A document of this id was read before; the first one is kept."
            self._note(Problem(document.id, what, failed=True))
            return None
        known = self.catalog.get(document.id)
        step, metadata = step_for(document, known), metadata_of(document, known)
        if known and step in ("keep", "change_metadata"):
            if step == "change_metadata":
                change = Change(replace(known, metadata=metadata), with_entries=False)
                self.writer.begin(change)
                self.writer.done(change)
            self.report.skipped += 1
            return None
        tokens = self.model.encode(document.text)
        if not len(tokens) and not known:
            self._note(Problem(document.id, "The document has no tokens.", failed=False))
            return None
        if not self.begun:  # now, for a killed run must not leave the old one behind
            retrying()(forget_temperature, self.store)
        digest, size = digest_of(document), document.size
        version = self.catalog.new_version(document.id, digest, len(tokens), size)
        record = DocumentRecord(document.source, document.name, metadata, version)
        self.begun[document.id] = known is None, len(tokens)
        self.report.begun += 1
        return _Job(Change(record), tokens)

    def _cut(self, job: _Job) -> Iterator[Window[_Job]]:
        cut = list(windows(job, self.model.document_start, job.text_tokens, self.model.window))
        job.open_windows = len(cut)
        if not cut:  # a document that became empty: its old entries go
            self._finish(job)
        yield from cut

    def process(self, batch: Batch[_Job]) -> None:
        """Run one forward pass and hand its new entries to the writer."""
        hidden = self.model.keys(batch)
        for row, window in enumerate(batch.windows):
            job = window.owner
            keys = to_numpy(hidden[row, window.new - window.begin : window.end - window.begin])
            self.writer.write(job.version, window.new, self.store.keys(keys), window.targets)
            self.report.tokens += len(window.targets)
            share = len(window.targets) / len(job.text_tokens)
            self.report.bytes_read += round(job.version.size * share)
            job.open_windows -= 1
            if not job.open_windows:
                self._finish(job)

    def _finish(self, job: _Job) -> None:
        self.writer.done(job.change)
        is_new, _ = self.begun[job.change.id]
        if is_new:
            self.report.added += 1
        else:
            self.report.replaced += 1

    def note_refused(self) -> None:
        """Take back what was counted of documents that another writer kept."""
        self.report.refused = len(self.writer.refused)
        for document in sorted(self.writer.refused):
            what = "Another process is writing this document; ingest it again afterwards."
            self._note(Problem(document, what, failed=True))
            if document in self.begun:
                is_new, tokens = self.begun[document]
                self.report.tokens -= tokens
                self.report.added -= is_new
                self.report.replaced -= not is_new
            else:
                self.report.skipped -= 1


def ingest(
    corpus: Iterable[Document | Problem],
    model: LanguageModel,
    store: Datastore,
    *,
    batch_tokens: int | None = None,
    progress: Callable[[IngestReport], None] = lambda _: None,
    stop: Callable[[], bool] = lambda: False,
    report: IngestReport | None = None,
) -> IngestReport:
    """Add the documents that are new, replace those that changed, skip the rest.

    batch_tokens: inputs of a forward pass, padding included, by default one window. `progress`
    is called after each forward pass; once `stop` gives True no new document is begun and those
    in hand are finished. report: one to fill in, that can be looked at meanwhile. Killed at any
    instant and run again, the datastore ends as if the run had not been killed. Raises what the
    backend raises once retries are used up.
    """
    started = time.monotonic()
    report = report or IngestReport()
    catalog = retrying()(Catalog, store.backend)
    report.mended = retrying()(catalog.recover)
    with DocumentWriter(store.backend, catalog) as writer:
        run = _Run(model, store, catalog, writer, report, stop)
        stream = run.windows(corpus)
        for batch in batches(stream, batch_tokens or model.window):
            run.process(batch)
            report.seconds = time.monotonic() - started
            progress(report)
    run.note_refused()
    if not report.interrupted:
        report.index = build_index(store.backend)
    if run.begun:  # a reader may have taken it meanwhile
        retrying()(forget_temperature, store)
    report.seconds = time.monotonic() - started
    history.note(
        store.backend,
        "ingest",
        report.seconds,
        added=report.added,
        replaced=report.replaced,
        entries=report.tokens,
    )
    return report
