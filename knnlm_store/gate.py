"""A learned gate: a small network that reads a row's features and weighs model and neighbours."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import TypeAlias

import numpy as np

from knnlm_store.errors import UsageError
from knnlm_store.features import NAMES, features
from knnlm_store.interpolation import Float64
from knnlm_store.mixture import Evidence

Layer: TypeAlias = tuple[Float64, Float64]

FAR = 5.0  # standard deviations: the network never saw more, and is not asked to guess


@dataclass(frozen=True, slots=True, eq=False)
class Gate:
    """Softmax over the model and p_kNN at several temperatures.

    temperature: in whose units features measure distances. centre, spread: of the features where
    it was fitted, float64 `[f]`. layers: weights `[in, out]` and biases `[out]`, with tanh
    between. scales: multiples of the mixture's temperature, one for each output but the first,
    which is the model's.
    """

    temperature: float
    centre: Float64
    spread: Float64
    layers: tuple[Layer, ...]
    scales: tuple[float, ...]
    name: str = field(default="learned", init=False)

    def __post_init__(self) -> None:
        widths = [len(NAMES), *(len(bias) for _, bias in self.layers)]
        shapes = [weights.shape for weights, _ in self.layers]
        fits = shapes == list(pairwise(widths))
        if not fits or widths[-1] != len(self.scales) + 1:
            raise UsageError("The layers of this gate do not fit its features and outputs.")
        if not (self.centre.shape == self.spread.shape == (len(NAMES),)):
            raise UsageError(f"A gate reads {len(NAMES)} features.")

    def __call__(self, evidence: Evidence) -> Float64:
        """Give the weight of each neighbour distribution, `[q, len(scales)]`."""
        return self.weigh(features(evidence, self.temperature))

    def weigh(self, table: Float64) -> Float64:
        """Give the weights for rows whose features, `[q, f]`, are known already."""
        x = (table - self.centre) / self.spread
        x = np.clip(x, -FAR, FAR)
        for number, (weights, bias) in enumerate(self.layers):
            x = (np.tanh(x) if number else x) @ weights + bias
        x = np.exp(x - x.max(axis=1, keepdims=True))
        shares: Float64 = x[:, 1:] / x.sum(axis=1, keepdims=True)
        return shares
