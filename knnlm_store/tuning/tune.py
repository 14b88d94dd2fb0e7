"""(torch) From held-out text to a calibration."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np

from knnlm_store.calibrated import RECORD, Calibration
from knnlm_store.calibration import DEFAULT_K, keep_temperature, stored_temperature
from knnlm_store.corpus import Document, Problem
from knnlm_store.datastore import Datastore
from knnlm_store.errors import CorpusError, UsageError
from knnlm_store.models import LanguageModel
from knnlm_store.tuning.cache import Reading, cached
from knnlm_store.tuning.choice import Choice, best, choose, choose_k
from knnlm_store.tuning.figures import Contents, by_group, summary
from knnlm_store.tuning.foreign import foreign_text
from knnlm_store.tuning.pictures import Pictures, pictures
from knnlm_store.tuning.sample import Sample
from knnlm_store.values import Int64

MOST, MOST_FOREIGN = 30_000, 24_000
"""Tokens of each text that are looked at."""
LEAST = 500
"""Tokens of validation text below which nothing is fitted."""
TOLERANCE = 0.005
"""Perplexity, relative, that a smaller k may cost."""

_NEAR = 0.25  # of the temperature: an exact copy, but for the rounding of int8 keys
_COPIED = 0.05  # share of such keys that held-out text does not reach (measured: 0.003 to 0.01)
_BEGINNING = 16  # tokens of a document: many documents begin alike


@dataclass
class Tuned:
    """What `tune` found.

    calibration: written already; None where nothing pays, and then an earlier one is removed.
    rows: for each family what it does to `valid` (held-out folds), to foreign text, and to
    `test`. groups: gain of the chosen one by frequency and by overlap. warnings: what makes the
    figures doubtful. pictures: for a report, if asked for.
    """

    calibration: Calibration | None = None
    rows: dict[str, dict[str, Any]] = field(default_factory=dict)
    groups: dict[str, dict[str, Any]] = field(default_factory=dict)
    k: dict[int, float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    tokens: dict[str, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    pictures: Pictures | None = None

    def json(self) -> dict[str, Any]:
        """Give it as one JSON-able object."""
        chosen = self.calibration
        return {
            "chosen": chosen.chosen if chosen else None,
            "k": chosen.mixture.k if chosen else None,
            "temperature": chosen.mixture.temperature if chosen else None,
            "policies": self.rows,
            "groups": self.groups,
            "perplexity_by_k": {str(k): value for k, value in self.k.items()},
            "tokens": self.tokens,
            "warnings": self.warnings,
        }


Texts = Iterable[Document | Problem]


def tune(
    valid: Texts,
    model: LanguageModel,
    store: Datastore,
    *,
    test: Texts | None = None,
    k: int = DEFAULT_K,
    most: int = MOST,
    batch_tokens: int | None = None,
    progress: Callable[[str, Reading], None] = lambda *_: None,
    draw: bool = False,
    seed: int = 0,
) -> Tuned:
    """Fit k, temperature and a policy to `valid`, and keep them in the datastore.

    k: the largest that is tried. most: tokens of each text that are used. `test` is only scored,
    after everything is fitted. draw: work out the numbers of a report's pictures. Raises
    CorpusError for too little text, and what the backend raises; then the datastore is unchanged.
    """
    entries = store.backend.count()
    if not entries:
        raise UsageError(
            f"{store.location} is empty.", hint="Fill it first with knnlm-store ingest."
        )
    tuned, k = Tuned(), min(k, entries)

    def read(name: str, texts: Texts, tokens: int) -> tuple[Sample, Reading]:
        reading = Reading()
        try:
            sample = cached(
                texts,
                model,
                store,
                k,
                reading,
                most=tokens,
                batch_tokens=batch_tokens,
                progress=lambda r: progress(name, r),
            )
        finally:
            tuned.problems += reading.problems
        tuned.tokens[name] = len(sample)
        return sample, reading

    home, reading = read("valid", valid, most)
    if len(home) < LEAST:
        raise CorpusError(
            f"The validation text has {len(home)} tokens; fitting needs at least {LEAST}.",
            hint="Name more text that is not in the datastore.",
        )
    start = stored_temperature(store) or keep_temperature(store)
    tuned.warnings += contamination(store, home, reading, "validation", _NEAR * start)
    foreign, _ = read("foreign", foreign_text(), MOST_FOREIGN)
    k, tuned.k = choose_k(home, start, TOLERANCE)
    choices = choose(home, foreign, k, start, seed)
    plain = float(-home.log_lm.mean())
    picked = best(choices, plain)
    tuned.rows = _rows(choices, plain)
    scored: Sample | None = None
    if test is not None:
        scored, reading = read("test", test, most)
        tuned.warnings += contamination(store, scored, reading, "test", _NEAR * start)
        _score(tuned, choices, scored)
    measured = home if scored is None else scored
    if draw:
        tuned.pictures = pictures(home, choices, picked, start, measured=measured, foreign=foreign)
    if picked is None:
        store.backend.delete_records([RECORD])  # what was fitted before does not help either
    else:
        log_p = measured.log_p(picked.mixture)
        contents = Contents(store.backend)
        for name, groups in (
            ("frequency", contents.frequencies(measured)),
            ("overlap", contents.overlaps(measured)),
        ):
            tuned.groups[name] = by_group(log_p, measured.log_lm, groups)
        tuned.calibration = Calibration.of(
            store,
            {choice.family: choice.mixture for choice in choices},
            picked.family,
            datetime.now(UTC).isoformat(timespec="seconds"),
            {"policies": tuned.rows, "tokens": tuned.tokens},
        )
        tuned.calibration.write(store)
    return tuned


def _rows(choices: list[Choice], plain: float) -> dict[str, dict[str, Any]]:
    rows: dict[str, dict[str, Any]] = {"plain": {"valid": {"perplexity": float(np.exp(plain))}}}
    for choice in choices:
        rows[choice.family] = {
            "k": choice.mixture.k,
            "temperature": choice.mixture.temperature,
            "valid": {"perplexity": float(np.exp(choice.home))},
            "foreign_over_plain": float(np.exp(choice.harm)),
        }
    return rows


def _score(tuned: Tuned, choices: list[Choice], test: Sample) -> None:
    tuned.rows["plain"]["test"] = summary(test.log_lm, test.log_lm)
    for choice in choices:
        tuned.rows[choice.family]["test"] = summary(test.log_p(choice.mixture), test.log_lm)


def contamination(
    store: Datastore, sample: Sample, reading: Reading, what: str, near: float
) -> list[str]:
    """Say whether text that should be new to the datastore is in it.

    near: squared distance up to which a neighbour counts as a copy.
    """
    known = {document.version.digest: document.id for document in store.documents()}
    same = [name for name, digest in reading.digests.items() if digest in known]
    warnings = []
    if same:
        warnings.append(
            f"{len(same)} of {len(reading.digests)} {what} documents are in the datastore "
            f"({same[0]}); the figures flatter it."
        )
    deep = sample.evidence.distances[_places(sample) >= _BEGINNING, 0]
    zero = float((deep <= near).mean()) if len(deep) else 0.0
    if zero > _COPIED and not same:
        warnings.append(
            f"{100 * zero:.0f}% of the {what} tokens have an exact copy in the datastore; "
            "the figures flatter it."
        )
    return warnings


def _places(sample: Sample) -> Int64:
    """Place of each token in its document, int64 `[n]`."""
    _, first, owner = np.unique(sample.documents, return_index=True, return_inverse=True)
    places: Int64 = np.arange(len(sample)) - first[owner]
    return places
