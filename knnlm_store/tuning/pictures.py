"""The numbers behind the pictures of a report."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from knnlm_store.interpolation import Float64, mix, token_log_probs
from knnlm_store.mixture import Fixed, Mixture
from knnlm_store.policies import Bucketed, nearest
from knnlm_store.tuning.likelihood import best_lambda
from knnlm_store.tuning.sample import Sample
from knnlm_store.values import Int64

if TYPE_CHECKING:  # it trains gates, and so needs torch
    from knnlm_store.tuning.choice import Choice

_STEPS = (0.25, 0.35, 0.5, 0.7, 1.0, 1.4, 2.0, 2.8, 4.0, 5.6)  # relative to the data's own
_LAMBDAS = np.arange(21) / 20
_BINS = 10
_ROWS = 4096  # worked on at once
_SAME = 1e-4  # nats between two readings of one probability
_OPEN = (0.04, 0.25)  # how wide the last bucket, which is open, may be drawn: shares of the others
_Z = 1.96  # standard errors: 95 in 100


@dataclass(frozen=True, slots=True)
class Landscape:
    """Perplexity of the text that was fitted to, under one lambda for all tokens.

    lambdas `[m]`, temperatures `[t]`, perplexity `[t, m]`, inf where a token was impossible. best:
    lambda of each temperature, `[t]`, at_best: its perplexity, `[t]`. chosen: lambda, temperature
    and perplexity of the fixed policy, as it was fitted. All float64.
    """

    lambdas: Float64
    temperatures: Float64
    perplexity: Float64
    best: Float64
    at_best: Float64
    plain: float
    chosen: tuple[float, float, float] | None


@dataclass(frozen=True, slots=True)
class Buckets:
    """Lambda by squared distance of the nearest neighbour, in the b buckets of the bucketed policy.

    bounds: ascending, `[b + 1]`; the outer two are where a picture should end, for the last bucket
    has no end. counts: tokens of the text that was fitted to, and foreign ones,
    int64 `[b]`. lambdas: `[b]`. centres: mean nearest distance, and means: mean lambda by family,
    of the former tokens, `[b]`, nan in a bucket without any. fixed: the one lambda, if fitted.
    """

    bounds: Float64
    counts: Int64
    foreign: Int64
    lambdas: Float64
    centres: Float64
    means: dict[str, Float64]
    fixed: float | None


@dataclass(frozen=True, slots=True)
class Reliability:
    """How often the likeliest token came, by how likely it was said to be.

    predicted: mean probability, observed: share that came, low and high: 95 % interval of it
    (Wilson), float64 `[10]`, nan in an empty bin. counts: int64 `[10]`. error: mean absolute
    difference, weighted by counts (expected calibration error).
    """

    name: str
    predicted: Float64
    observed: Float64
    low: Float64
    high: Float64
    counts: Int64
    error: float


@dataclass(frozen=True, slots=True)
class Pictures:
    """All that is drawn. reliability: of the plain model, then of what was chosen, if anything."""

    landscape: Landscape
    buckets: Buckets | None
    reliability: tuple[Reliability, ...]


def pictures(
    home: Sample,
    choices: list[Choice],
    picked: Choice | None,
    start_temperature: float,
    *,
    measured: Sample | None = None,
    foreign: Sample | None = None,
) -> Pictures:
    """Work out the numbers; `choices` as fitted on `home` and `foreign`, not empty.

    measured: text that reliability is read off, better not the one that was fitted to.
    """
    measured = home if measured is None else measured
    mixtures = {choice.family: choice.mixture for choice in choices}
    seen = [reliability("plain", *plain_first(measured))]
    if picked is not None:
        seen.append(reliability(picked.family, *mixed_first(measured, picked.mixture)))
    near = home.nearest(choices[0].mixture.k)
    return Pictures(
        landscape(near, mixtures.get("fixed"), start_temperature),
        buckets(near, foreign, mixtures),
        tuple(seen),
    )


def landscape(sample: Sample, fixed: Mixture | None, start: float) -> Landscape:
    """Perplexity over lambda and temperature, for a sample that has its k neighbours."""
    temperatures = {start * step for step in _STEPS} | ({fixed.temperature} if fixed else set())
    there = sample.evidence.found > 0  # elsewhere lambda is 0, whatever it is
    rows, best, at_best, chosen = [], [], [], None
    for temperature in sorted(temperatures):
        log_knn = np.where(there, sample.log_knn(temperature), sample.log_lm)
        rows.append(_perplexities(log_knn, sample.log_lm, _LAMBDAS))
        best.append(best_lambda(log_knn, sample.log_lm))
        at_best.append(_perplexities(log_knn, sample.log_lm, np.array(best[-1:]))[0])
        if fixed and isinstance(fixed.policy, Fixed) and temperature == fixed.temperature:
            lmbda = fixed.policy.lmbda
            here = _perplexities(log_knn, sample.log_lm, np.array([lmbda]))[0]
            chosen = (lmbda, temperature, float(here))
    return Landscape(
        _LAMBDAS,
        np.array(sorted(temperatures)),
        np.array(rows),
        np.array(best),
        np.array(at_best),
        float(_perplexities(log_knn, sample.log_lm, np.zeros(1))[0]),
        chosen,
    )


def _perplexities(log_knn: Float64, log_lm: Float64, lambdas: Float64) -> Float64:
    nats = -mix(log_knn[:, None], log_lm[:, None], lambdas[None]).mean(axis=0)
    result: Float64 = np.exp(np.where(nats > 700, np.inf, nats))
    return result


def buckets(sample: Sample, foreign: Sample | None, mixtures: dict[str, Mixture]) -> Buckets | None:
    """What the policies do in each bucket; None if there is no bucketed one."""
    policy = mixtures["bucketed"].policy if "bucketed" in mixtures else None
    if not isinstance(policy, Bucketed):
        return None
    near = nearest(sample.evidence.distances)
    there = np.isfinite(near)
    far = np.empty(0) if foreign is None else nearest(foreign.evidence.distances)
    far = far[np.isfinite(far)]
    number = len(policy.lambdas)
    place = np.searchsorted(policy.edges, near[there], side="right")
    outside = np.searchsorted(policy.edges, far, side="right")
    fixed = mixtures["fixed"].policy if "fixed" in mixtures else None
    return Buckets(
        _bounds(policy.edges, np.concatenate([near[there], far])),
        np.bincount(place, minlength=number),
        np.bincount(outside, minlength=number),
        policy.lambdas,
        _means(near[there], place, number),
        {
            name: _means(lambdas_of(sample, mixtures[name])[there], place, number)
            for name in ("learned", "ratio")
            if name in mixtures
        },
        fixed.lmbda if isinstance(fixed, Fixed) else None,
    )


def _means(values: Float64, place: Int64, number: int) -> Float64:
    """Mean of the values at each of `number` places; nan at one without any."""
    counts = np.bincount(place, minlength=number)
    result = np.full(number, np.nan)
    np.divide(np.bincount(place, values, number), counts, out=result, where=counts > 0)
    return result


def _bounds(edges: Float64, near: Float64) -> Float64:
    """Give the buckets' bounds, with ends that no lone far token decides."""
    first = float(edges[0]) if len(edges) else 0.0
    last = float(edges[-1]) if len(edges) else first
    low = min(float(near.min(initial=np.inf)), first)
    high = float(near.max(initial=last))
    least, most = (last + (share * (last - low) or 1.0) for share in _OPEN)
    return np.array([low, *edges, min(max(high, least), most)])


def lambdas_of(sample: Sample, mixture: Mixture) -> Float64:
    """Lambda of each token under a mixture, float64 `[n]`."""
    parts = [np.empty(0)]
    for rows in _pieces(sample):
        evidence = sample.evidence[rows].nearest(mixture.k)
        total = np.minimum(mixture.policy(evidence).sum(axis=1), 1.0)
        parts.append(np.where(evidence.found > 0, total, 0.0))
    return np.concatenate(parts)


def plain_first(sample: Sample) -> tuple[Float64, NDArray[np.bool_]]:
    """Probability of the model's likeliest token, `[n]`, and whether it came.

    Nobody noted which token that was, but that the one that came was as likely says enough.
    """
    top = sample.evidence.top
    return np.exp(top), sample.log_lm >= top - _SAME


def mixed_first(sample: Sample, mixture: Mixture) -> tuple[Float64, NDArray[np.bool_]]:
    """Probability of a mixture's likeliest token, `[n]`, and whether it came.

    It is one of the neighbours' tokens, or else the model's likeliest: all others gained nothing.
    """
    log_p, hits = [np.empty(0)], [np.empty(0, np.bool_)]
    for rows in _pieces(sample):
        part = sample[rows].nearest(mixture.k)
        first, hit = _first(part, *mixture.weigh(part.evidence))
        log_p.append(first)
        hits.append(hit)
    return np.exp(np.concatenate(log_p)), np.concatenate(hits)


def _first(
    sample: Sample, lmbda: Float64, log_weights: Float64
) -> tuple[Float64, NDArray[np.bool_]]:
    evidence, rows = sample.evidence, np.arange(len(sample))
    log_knn = token_log_probs(log_weights, evidence.tokens)
    log_p = mix(log_knn, evidence.log_lm.astype(np.float64), lmbda[:, None])
    place = log_p.argmax(axis=1)
    with np.errstate(divide="ignore"):
        elsewhere = np.log1p(-lmbda) + evidence.top
    by_neighbour = log_p[rows, place] > elsewhere
    models_own = sample.log_lm >= evidence.top - _SAME
    hit = np.where(by_neighbour, evidence.tokens[rows, place] == sample.targets, models_own)
    return np.maximum(log_p[rows, place], elsewhere), hit


def reliability(name: str, predicted: Float64, came: NDArray[np.bool_]) -> Reliability:
    """Sort tokens into bins of equal width by predicted probability."""
    place = np.clip((predicted * _BINS).astype(np.int64), 0, _BINS - 1)
    counts = np.bincount(place, minlength=_BINS)

    said = _means(predicted, place, _BINS)
    observed = _means(came.astype(np.float64), place, _BINS)
    low, high = _wilson(observed, counts)
    apart = np.nansum(counts * np.abs(said - observed))
    return Reliability(name, said, observed, low, high, counts, float(apart / max(len(came), 1)))


def _wilson(share: Float64, counts: Int64) -> tuple[Float64, Float64]:
    n = np.where(counts > 0, counts, np.nan)
    middle = (share + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
    half = _Z * np.sqrt(share * (1 - share) / n + _Z**2 / (4 * n**2)) / (1 + _Z**2 / n)
    return middle - half, middle + half


def _pieces(sample: Sample) -> Iterator[slice]:
    return (slice(start, start + _ROWS) for start in range(0, len(sample), _ROWS))
