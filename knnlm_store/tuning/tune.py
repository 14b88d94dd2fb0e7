"""(torch) From held-out text to a calibration."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np

from knnlm_store.calibrated import PLAIN, Calibration, require_writable
from knnlm_store.calibration import DEFAULT_K, keep_temperature, stored_temperature
from knnlm_store.corpus import Document, Problem
from knnlm_store.datastore import Datastore
from knnlm_store.errors import CorpusError, UsageError
from knnlm_store.interpolation import Float64
from knnlm_store.mixture import Fixed, Mixture
from knnlm_store.models import LanguageModel
from knnlm_store.tuning.cache import Reading, cached
from knnlm_store.tuning.choice import LEARNT_FROM, Choice, best, choose, choose_k
from knnlm_store.tuning.figures import LARGEST, gains, summary
from knnlm_store.tuning.foreign import foreign_text, source_of
from knnlm_store.tuning.judging import HARM
from knnlm_store.tuning.known import NEAR, contamination, without_known
from knnlm_store.tuning.pictures import Pictures, pictures
from knnlm_store.tuning.sample import Sample

MOST, MOST_FOREIGN, MOST_TEST = 30_000, 32_000, 100_000
"""Tokens of each text that are looked at."""
LEAST = 500
"""Tokens of validation text below which nothing is fitted."""
TOLERANCE = 0.001
"""Perplexity, relative, that a smaller k may cost."""


@dataclass
class Tuned:
    """What `tune` found.

    calibration: written already; of the plain model where nothing pays. rows: what each family
    does to `valid` (held-out folds), to foreign text (the source that suffers most, and each), and
    to `test`. groups: gain of the chosen one by frequency and by overlap, on `measured`. tokens:
    that were looked at, by text; available: that there were. notes: what one might not expect.
    warnings: what makes the figures doubtful. pictures: for a report, if asked for.
    """

    calibration: Calibration | None = None
    rows: dict[str, dict[str, Any]] = field(default_factory=dict)
    groups: dict[str, dict[str, Any]] = field(default_factory=dict)
    k: dict[int, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    tokens: dict[str, int] = field(default_factory=dict)
    available: dict[str, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    pictures: Pictures | None = None

    @property
    def pays(self) -> bool:
        """Whether a policy was found that is better than the plain model."""
        return self.calibration is not None and self.calibration.chosen != PLAIN

    @property
    def measured(self) -> str:
        """Name of the text that helped, hurt and gains by group are of."""
        return "test" if "test" in self.tokens else "valid"

    def json(self) -> dict[str, Any]:
        """Give it as one JSON-able object."""
        chosen = self.calibration
        mixture = chosen.mixture if chosen and self.pays else None
        return {
            "chosen": chosen.chosen if chosen else None,
            "pays": self.pays,
            "k": mixture.k if mixture else None,
            "temperature": mixture.temperature if mixture else None,
            "policies": self.rows,
            "groups": self.groups,
            "measured": self.measured,
            "perplexity_by_k": {str(k): value for k, value in self.k.items()},
            "tokens": self.tokens,
            "available": self.available,
            "notes": self.notes,
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
    most_test: int = MOST_TEST,
    batch_tokens: int | None = None,
    progress: Callable[[str, Reading], None] = lambda *_: None,
    draw: bool = False,
    seed: int = 0,
) -> Tuned:
    """Fit k, temperature and a policy to `valid`, and keep them in the datastore.

    k: the largest that is tried. most, most_test: tokens of the two texts that are used. `test` is
    only scored, after everything is fitted. draw: work out the numbers of a report's pictures.
    Raises CorpusError for too little text, and what the backend raises, which leaves what was kept
    before; of an error while gains are counted, at the very end, the new calibration is kept.
    progress: hears of "valid", "foreign", "fit" and "test" as each begins, and of what was read.
    """
    tuned = Tuned()
    read = _Pass(model, store, _at_most(store, k), batch_tokens, progress, tuned)
    fit = _fit(read, valid, most, seed)
    scored = None if test is None else _scored(read, test, most_test, fit)
    tuned.calibration = _calibration(store, tuned, fit)
    tuned.calibration.write(store)
    if draw:
        tuned.pictures = pictures(
            fit.home, fit.choices, fit.picked, fit.start, measured=scored, foreign=fit.foreign
        )
    if fit.picked is not None:
        measured = fit.home if scored is None else scored
        log_p = fit.picked.log_p if scored is None else scored.log_p(fit.picked.mixture)
        tuned.groups = _groups(tuned, store, measured, log_p)
    return tuned


@dataclass(frozen=True, slots=True)
class _Fit:
    """Families fitted to text, the one that is best, and the temperature the search began at."""

    home: Sample
    foreign: Sample | None
    start: float
    k: int
    choices: list[Choice]
    picked: Choice | None


def _at_most(store: Datastore, k: int) -> int:
    """How many neighbours there can be; raises what would else be noticed after all the work."""
    entries = store.backend.count()
    if not entries:
        raise UsageError(
            f"{store.location} is empty.", hint="Fill it first with knnlm-store ingest."
        )
    require_writable(store)
    return min(k, entries)


def _fit(read: _Pass, valid: Texts, most: int, seed: int) -> _Fit:
    """Fit to validation text, and say what there is to say of it."""
    store, tuned = read.store, read.tuned
    home, reading = read("valid", valid, most)
    if len(home) < LEAST:
        raise CorpusError(
            f"The validation text has {len(home)} tokens; fitting needs at least {LEAST}.",
            hint="Name more text that is not in the datastore.",
        )
    start = stored_temperature(store) or keep_temperature(store)
    tuned.warnings += contamination(store, home, reading, "validation", NEAR * start)
    foreign = _foreign(read, NEAR * start)
    read.progress("fit", Reading())
    k, tuned.k = choose_k(home, start, TOLERANCE)
    choices = choose(home, foreign, k, start, seed)
    picked = best(choices, float(-home.log_lm.mean()))
    tuned.rows = _rows(choices, home)
    tuned.notes += _notes(home, picked)
    return _Fit(home, foreign, start, k, choices, picked)


@dataclass
class _Pass:
    """Reads texts, and notes in `tuned` what there was of each."""

    model: LanguageModel
    store: Datastore
    k: int
    batch_tokens: int | None
    progress: Callable[[str, Reading], None]
    tuned: Tuned

    def __call__(self, name: str, texts: Texts, most: int) -> tuple[Sample, Reading]:
        """Score at most `most` tokens of a text."""
        reading = Reading()
        self.progress(name, reading)
        try:
            sample = cached(
                texts,
                self.model,
                self.store,
                self.k,
                reading,
                most=most,
                batch_tokens=self.batch_tokens,
                progress=lambda r: self.progress(name, r),
            )
        finally:
            self.tuned.problems += reading.problems
        self.tuned.tokens[name] = len(sample)
        self.tuned.available[name] = reading.available
        if len(sample) < reading.available and name != "foreign":
            self.tuned.notes.append(_drawn(name, len(sample), reading))
        return sample, reading


def _drawn(name: str, tokens: int, reading: Reading) -> str:
    kind, first = {"valid": "validation"}.get(name, name), "the first " * reading.is_cut
    return (
        f"{tokens:,} of {first}{reading.available:,} tokens of the {kind} text were used, from "
        f"{len(reading.names):,} of {reading.documents:,} documents."
    )


def _foreign(read: _Pass, near: float) -> Sample | None:
    """Read foreign text, less what the datastore holds of it."""
    sample, _ = read("foreign", foreign_text(), MOST_FOREIGN)
    left, known = without_known(sample, near)
    if known:
        read.tuned.tokens["foreign"] = 0 if left is None else len(left)
        counts = Counter(map(source_of, known))
        named = ", ".join(f"{source} ({n})" for source, n in counts.items())
        read.tuned.notes.append(
            f"{len(known)} of {len(sample.names)} documents of foreign text are in the datastore "
            f"and were left out: {named}."
        )
    if left is None:
        read.tuned.warnings.append(
            "All foreign text is in the datastore; what other text suffers was not measured."
        )
    return left


def _rows(choices: list[Choice], home: Sample) -> dict[str, dict[str, Any]]:
    rows: dict[str, dict[str, Any]] = {PLAIN: {"valid": summary(home.log_lm, home.log_lm)}}
    for choice in choices:
        rows[choice.family] = {
            "k": choice.mixture.k,
            "temperature": choice.mixture.temperature,
            "share": choice.share,
            "valid": summary(choice.log_p, home.log_lm),
            "foreign_over_plain": float(np.exp(choice.harm)),
            "foreign": {name: float(np.exp(harm)) for name, harm in choice.harms.items()},
        }
    return rows


def _notes(home: Sample, picked: Choice | None) -> list[str]:
    notes = []
    if len(home) < LEARNT_FROM:
        notes.append(
            f"The learned policy was not tried: it needs {LEARNT_FROM:,} tokens of validation text."
        )
    if picked is not None and picked.share < 1:
        worst = max(picked.harms, key=lambda source: picked.harms[source])
        notes.append(
            f"The {picked.family} policy trusts neighbours {100 * picked.share:.0f} % as much as "
            f"fitted, so that no foreign text ({worst}) grows harder by over {100 * HARM:g} %."
        )
    return notes


def _scored(read: _Pass, test: Texts, most: int, fit: _Fit) -> Sample:
    """Read text that is only scored, under every family."""
    read.k = fit.k
    scored, reading = read("test", test, most)
    tuned = read.tuned
    tuned.warnings += contamination(read.store, scored, reading, "test", NEAR * fit.start)
    tuned.rows[PLAIN]["test"] = summary(scored.log_lm, scored.log_lm)
    for choice in fit.choices:
        tuned.rows[choice.family]["test"] = summary(scored.log_p(choice.mixture), scored.log_lm)
    return scored


def _calibration(store: Datastore, tuned: Tuned, fit: _Fit) -> Calibration:
    """What is kept: every family, for whoever asks for one, and which to use."""
    mixtures = {choice.family: choice.mixture for choice in fit.choices}
    if fit.picked is None:
        mixtures[PLAIN] = Mixture(fit.k, fit.start, Fixed(0.0))
    return Calibration.of(
        store,
        mixtures,
        fit.picked.family if fit.picked else PLAIN,
        datetime.now(UTC).isoformat(timespec="seconds"),
        {"policies": tuned.rows, "tokens": tuned.tokens},
    )


def _groups(
    tuned: Tuned, store: Datastore, measured: Sample, log_p: Float64
) -> dict[str, dict[str, Any]]:
    groups = gains(store.backend, measured, log_p)
    if not groups:
        tuned.notes.append(
            f"Gains by frequency and by overlap were not measured: the datastore has over "
            f"{LARGEST:,} entries."
        )
    return groups
