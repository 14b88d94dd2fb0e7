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
from knnlm_store.values import Float32

Layer: TypeAlias = tuple[Float64, Float64]

FAR = 5.0  # standard deviations: the network never saw more, and is not asked to guess


@dataclass(frozen=True, slots=True, eq=False)
class Likeness:
    """How much queries are like those of the text that a gate is for, and unlike others.

    direction: in the datastore's key space, float64 `[d]`. The more, the more alike.
    """

    direction: Float64
    offset: float

    def __call__(self, queries: Float32 | None) -> Float64:
        """Rate queries, float32 `[q, d]`: float64 `[q]`; UsageError for none or another d."""
        if queries is None or queries.shape[1:] != self.direction.shape:
            given = "none" if queries is None else str(queries.shape[1])
            raise UsageError(
                f"This gate reads queries of {len(self.direction)} dimensions, not {given}."
            )
        told: Float64 = queries @ self.direction + self.offset
        return told


@dataclass(frozen=True, slots=True, eq=False)
class Gate:
    """Softmax over the model and p_kNN at several temperatures.

    temperature: in whose units features measure distances. centre, spread: of the features where
    it was fitted, float64 `[f]`. layers: weights `[in, out]` and biases `[out]`, with tanh
    between. scales: multiples of the mixture's temperature, one for each output but the first,
    which is the model's. likeness: the last feature; None where no foreign text was seen.
    """

    temperature: float
    centre: Float64
    spread: Float64
    layers: tuple[Layer, ...]
    scales: tuple[float, ...]
    likeness: Likeness | None = None
    name: str = field(default="learned", init=False)

    def __post_init__(self) -> None:
        read = len(NAMES) + (self.likeness is not None)
        widths = [read, *(len(bias) for _, bias in self.layers)]
        shapes = [weights.shape for weights, _ in self.layers]
        fits = shapes == list(pairwise(widths))
        if not fits or widths[-1] != len(self.scales) + 1:
            raise UsageError("The layers of this gate do not fit its features and outputs.")
        if not (self.centre.shape == self.spread.shape == (read,)):
            raise UsageError(f"This gate reads {read} features.")

    def __call__(self, evidence: Evidence) -> Float64:
        """Give the weight of each neighbour distribution, `[q, len(scales)]`."""
        return self.weigh(features(evidence, self.temperature), evidence.queries)

    def weigh(self, table: Float64, queries: Float32 | None = None) -> Float64:
        """Give the weights for rows whose features, `[q, len(NAMES)]`, are known already.

        queries: as in Evidence; only a gate with a likeness looks at them.
        """
        if self.likeness is not None:
            table = np.column_stack([table, self.likeness(queries)])
        x = (table - self.centre) / self.spread
        x = np.clip(x, -FAR, FAR)
        for number, (weights, bias) in enumerate(self.layers):
            x = (np.tanh(x) if number else x) @ weights + bias
        x = np.exp(x - x.max(axis=1, keepdims=True))
        shares: Float64 = x[:, 1:] / x.sum(axis=1, keepdims=True)
        return shares
