"""Which map from hidden states to keys is best: a fixed lambda over exact search, k 1024.

Temperature and lambda are fitted on 3 thousand validation tokens; perplexity is that of 5 thousand
test tokens, both from everywhere in the text, in a datastore of int8 keys. The maps: principal
components divided by their variance to several powers, at both key points; fitted on the text that
ships, on the datastore's own keys, on other corpora; and maps learned by the likelihood of
validation tokens (learning.py).

Run: python -m benchmarks.keyspaces powers|sources|learned NAME=TRAIN:TOKENS:VALID:TEST ...
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np

from benchmarks.common import report
from benchmarks.learning import learned_map
from benchmarks.states import FFN, HEAD, States, spread
from benchmarks.stores import model_transform
from benchmarks.tuning import Text
from knnlm_store import exact
from knnlm_store.interpolation import Float64, mix
from knnlm_store.mixture import Evidence
from knnlm_store.transform import POWER, Transform, fit
from knnlm_store.tuning.likelihood import best_lambda
from knnlm_store.tuning.sample import Sample
from knnlm_store.values import Float32, Int64, Spec
from knnlm_store_faiss.datafiles import Codec

K, VALID, TEST, QUERIES = 1024, 3_000, 5_000, 1024
POWERS = (0.0, 0.15, 0.2, 0.25, 0.3, 0.5)
_FINE = np.exp(np.linspace(np.log(0.15), np.log(6), 15))  # times the data's own temperature

Map: TypeAlias = Callable[[Float32], Float32]


def searched(keys: Float32, queries: Float32, k: int) -> tuple[Float32, Int64]:
    """Distances and rows of the k nearest of each query, nearest first, `[q, k]`."""
    norms = exact.squared_norms(keys)
    distances, rows = [], []
    for start in range(0, len(queries), QUERIES):
        d, r = exact.nearest(queries[start : start + QUERIES], [(0, keys, norms)], k)
        order = np.argsort(d, axis=1)
        distances.append(np.maximum(np.take_along_axis(d, order, axis=1), 0))
        rows.append(np.take_along_axis(r, order, axis=1))
    return np.concatenate(distances), np.concatenate(rows)


def rounded(keys: Float32) -> Float32:
    """Give keys as int8 storage keeps them."""
    codec = Codec(Spec(keys.shape[1], "int8"))
    return codec.decode(codec.encode(keys))


def perplexity(text: Text, key_map: Map, point: str = FFN, storage: str = "int8") -> float:
    """Fit a fixed lambda and a temperature on validation text, score test text."""
    keys = key_map(text.train.at(point))
    keys = rounded(keys) if storage == "int8" else keys
    valid, test = (
        _sample(keys, text.train.targets, part, key_map(part.at(point)))
        for part in (spread(text.valid, VALID), spread(text.test, TEST))
    )
    temperature, lmbda = fixed(valid)
    return float(np.exp(-_mixed(test, temperature, lmbda).mean()))


def fixed(sample: Sample) -> tuple[float, float]:
    """Find the temperature and the lambda under which tokens are most likely, on a fine grid."""
    own = float(np.median(sample.evidence.distances[:, 9])) / 10

    def tried() -> Iterator[tuple[float, float, float]]:
        for temperature in own * _FINE:
            log_knn = sample.log_knn(temperature)
            lmbda = best_lambda(log_knn, sample.log_lm)
            yield float(_mix(log_knn, sample.log_lm, lmbda).mean()), temperature, lmbda

    return max(tried())[1:]


def _mixed(sample: Sample, temperature: float, lmbda: float) -> Float64:
    return _mix(sample.log_knn(temperature), sample.log_lm, lmbda)


def _mix(log_knn: Float64, log_lm: Float64, lmbda: float) -> Float64:
    return mix(log_knn, log_lm, np.full(len(log_lm), lmbda))


def _sample(keys: Float32, tokens: Int64, text: States, queries: Float32) -> Sample:
    """Find neighbours; what the model makes of them is left out."""
    distances, rows = searched(keys, queries, K)
    blank = np.zeros((len(text), 0))
    view = Evidence(distances, tokens[rows].astype(np.int32), blank, text.entropy, text.top)
    return Sample(text.log_lm, text.targets, text.documents, view)


def powers(texts: Sequence[Text]) -> Iterator[tuple[str, float]]:
    """Try powers of the variance at both key points, on the text that ships."""
    for point in (FFN, HEAD):
        for text in texts:
            for power in POWERS:
                key_map = _powered(model_transform(point), power)
                yield f"{text.name} {point} {power}", perplexity(text, key_map, point)


def _powered(key_map: Transform, power: float) -> Transform:
    """Divide the same components by their variance to another power: their length tells it."""
    lengths = np.linalg.norm(key_map.matrix, axis=0)
    return Transform(key_map.mean, key_map.matrix * lengths ** (power / POWER - 1))


def sources(texts: Sequence[Text]) -> Iterator[tuple[str, float]]:
    """Try texts to fit the transform on."""
    for text in texts:
        others = [t.train.last_ffn_input[:15_000] for t in texts if t is not text]
        yield f"{text.name} raw float16", perplexity(text, _half, storage="float16")
        for name, key_map in (
            ("as shipped", model_transform()),
            ("other corpora", fit(np.concatenate(others))),
            ("own keys", fit(text.train.last_ffn_input)),
        ):
            yield f"{text.name} {name}", perplexity(text, key_map)


def learned(texts: Sequence[Text]) -> Iterator[tuple[str, float]]:
    """Learn weights of components and whole projections on each text, try each on all."""
    start = model_transform()
    for kind in ("weights", "projection"):
        for teacher in texts:
            key_map = learned_map(start, kind, teacher.train, teacher.valid)
            for text in texts:
                yield f"{text.name} {kind} learned on {teacher.name}", perplexity(text, key_map)


def _half(hidden: Float32) -> Float32:
    return hidden.astype(np.float16).astype(np.float32)


def main(what: str, *corpora: str) -> None:
    """Print perplexities by what was tried."""
    tried = {"powers": powers, "sources": sources, "learned": learned}[what]
    figures: dict[str, Any] = {}
    for name, value in tried([Text.read(each) for each in corpora]):
        print(f"{name}: {value:.4f}", file=sys.stderr, flush=True)
        figures[name] = value
    report(f"keyspaces {what}", {"perplexity": figures})


if __name__ == "__main__":
    main(*sys.argv[1:])
