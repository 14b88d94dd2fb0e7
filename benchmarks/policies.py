"""What a policy costs a decoding step: time of `mix_rows` under each, over a plain forward step.

A row of 49,152 logits with random neighbours; the step is one token of SmolLM2-135M with a cache.
Run: python -m benchmarks.policies
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch

from benchmarks.common import language_model, report, timed
from knnlm_store.features import NAMES
from knnlm_store.gate import Gate, Likeness
from knnlm_store.mixing import mix_rows
from knnlm_store.mixture import Fixed, LambdaPolicy, Mixture
from knnlm_store.policies import Bucketed, Ratio
from knnlm_store.values import Neighbours

KS, REPEATS, DIMENSIONS = (128, 256, 1024), 30, 256


def gate(rng: np.random.Generator) -> Gate:
    """A gate of the size that `tune` fits, with weights drawn at random."""
    read = len(NAMES) + 1
    widths = (read, 64, 64, 5)
    layers = tuple((rng.normal(size=shape) / 8, np.zeros(shape[1])) for shape in pairwise(widths))
    likeness = Likeness(rng.normal(size=DIMENSIONS), 0.0)
    return Gate(5.0, np.zeros(read), np.ones(read), layers, (0.5, 1.0, 2.0, 4.0), likeness)


def neighbours(rng: np.random.Generator, k: int) -> Neighbours:
    """One row of k neighbours whose tokens repeat as they do in text."""
    distances = np.sort(rng.gamma(9.0, 10.0, (1, k)).astype(np.float32), axis=1)
    tokens = (rng.zipf(1.3, (1, k)) % 49_152).astype(np.int64)
    blank = np.zeros_like(tokens)
    queries = rng.normal(size=(1, DIMENSIONS)).astype(np.float32)
    return Neighbours(distances, tokens, blank, blank, queries=queries)


@torch.inference_mode()
def step_seconds() -> float:
    """Median seconds of one cached decoding step."""
    model = language_model().model
    cache = model(input_ids=torch.arange(1, 65)[None], use_cache=True).past_key_values
    token = torch.tensor([[5]])
    times = [
        timed(lambda: model(input_ids=token, past_key_values=cache, use_cache=True))
        for _ in range(REPEATS)
    ]
    return float(np.median(times))


def main() -> None:
    """Print each policy's cost over the fixed one's, as a share of a step."""
    rng = np.random.default_rng(0)
    step = step_seconds()
    edges = np.linspace(40, 90, 31)
    policies: dict[str, LambdaPolicy] = {
        "fixed": Fixed(0.25),
        "ratio": Ratio(),
        "bucketed": Bucketed(edges, np.full(32, 0.3)),
        "learned": gate(rng),
    }
    logits = torch.from_numpy(rng.normal(0, 3, (1, 49_152)).astype(np.float32))
    shares: dict[str, dict[str, float]] = {}
    for k in KS:
        found = neighbours(rng, k)
        seconds = {
            name: float(
                np.median(
                    [
                        timed(mix_rows, logits.clone(), found, Mixture(k, 5.0, policy))
                        for _ in range(REPEATS)
                    ]
                )
            )
            for name, policy in policies.items()
        }
        shares[f"k{k}"] = {"mixing": seconds["fixed"] / step} | {
            name: (value - seconds["fixed"]) / step for name, value in seconds.items()
        }
    report("policies", {"step_ms": 1000 * step, "share_of_a_step": shares})


if __name__ == "__main__":
    main()
