"""Maps from hidden states to keys that are learned: by the likelihood of tokens under the mixture.

Starts from a transform; of each query the nearest candidates under that are looked at throughout.
A quarter of the queries is not learned from; the map that does best on it is kept.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.states import States, spread
from knnlm_store import exact
from knnlm_store.transform import Transform
from knnlm_store.values import Float32

CANDIDATES, ROWS, ROUNDS, RATE = 256, 64, 6, {"weights": 0.02, "projection": 3e-4}
QUERIES = 4_000


@dataclass(frozen=True, slots=True)
class Lesson:
    """Queries and their candidates.

    hidden: hidden states to search in, float32 `[n, d]`. near: rows of it, int64 `[q, c]`. asked:
    hidden states of queries, `[q, d]`. right: whether a candidate has the query's token, bool
    `[q, c]`. log_lm: log p_LM of the query's token, `[q]`.
    """

    hidden: Tensor
    near: Tensor
    asked: Tensor
    right: Tensor
    log_lm: Tensor


class Metric(nn.Module):
    """Squared distance of mapped hidden states, as p_kNN at a lambda."""

    def __init__(self, start: Transform, kind: str, temperature: float) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.from_numpy(start.matrix), requires_grad=kind != "weights")
        self.log_scales = nn.Parameter(
            torch.zeros(start.dimension), requires_grad=kind == "weights"
        )
        self.log_temperature = nn.Parameter(torch.tensor(float(np.log(temperature))))
        self.logit = nn.Parameter(torch.tensor(-1.0))

    def mapped(self) -> Tensor:
        """The map's matrix, `[d, m]`."""
        return self.matrix * self.log_scales.exp()

    def forward(self, lesson: Lesson, rows: Tensor) -> Tensor:
        """Mean of minus log p of the tokens of some queries."""
        matrix = self.mapped()
        used, place = torch.unique(lesson.near[rows], return_inverse=True)
        keys, queries = lesson.hidden[used] @ matrix, lesson.asked[rows] @ matrix
        distances = (keys[place] - queries[:, None]).square().sum(-1)  # [r, c]
        shares = (-distances / self.log_temperature.exp()).log_softmax(-1)
        log_knn = shares.masked_fill(~lesson.right[rows], -1e4).logsumexp(-1)
        mine = nn.functional.logsigmoid(self.logit) + log_knn
        models = nn.functional.logsigmoid(-self.logit) + lesson.log_lm[rows]
        return -torch.logaddexp(mine, models).mean()


def learned_map(start: Transform, kind: str, keys: States, queries: States) -> Transform:
    """Learn `weights` of a transform's components, or a whole `projection`."""
    lesson, temperature = _lesson(start, keys, queries)
    torch.manual_seed(0)
    metric = Metric(start, kind, temperature)
    owners = spread(queries, QUERIES).documents
    held = torch.from_numpy(np.flatnonzero(owners % 4 == 3))
    shown = torch.from_numpy(np.flatnonzero(owners % 4 != 3))
    optimiser = torch.optim.Adam(metric.parameters(), RATE[kind])
    best, kept = _loss(metric, lesson, held), copy.deepcopy(metric)
    for _ in range(ROUNDS):
        for rows in torch.split(shown[torch.randperm(len(shown))], ROWS):
            optimiser.zero_grad()
            metric(lesson, rows).backward()
            optimiser.step()
        loss = _loss(metric, lesson, held)
        if loss < best:
            best, kept = loss, copy.deepcopy(metric)
    return Transform(start.mean, kept.mapped().detach().numpy())


@torch.no_grad()
def _loss(metric: Metric, lesson: Lesson, rows: Tensor) -> float:
    parts = [float(metric(lesson, part)) * len(part) for part in torch.split(rows, ROWS)]
    return sum(parts) / max(1, len(rows))


def _lesson(start: Transform, keys: States, queries: States) -> tuple[Lesson, float]:
    asked = spread(queries, QUERIES)
    hidden: Float32 = keys.last_ffn_input - start.mean
    mapped: Float32 = hidden @ start.matrix
    wanted: Float32 = asked.last_ffn_input - start.mean
    distances, near = exact.nearest(wanted @ start.matrix, [(0, mapped, None)], CANDIDATES)
    temperature = float(np.median(np.partition(distances, 9, axis=1)[:, 9])) / 10
    right = keys.targets[near] == asked.targets[:, None]
    return Lesson(
        torch.from_numpy(hidden),
        torch.from_numpy(near),
        torch.from_numpy(wanted),
        torch.from_numpy(right),
        torch.from_numpy(asked.log_lm.astype(np.float32)),
    ), temperature
