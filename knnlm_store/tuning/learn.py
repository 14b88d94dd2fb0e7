"""(torch) Training a gate: seconds on a CPU."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

from knnlm_store.gate import FAR, Gate
from knnlm_store.interpolation import Float64
from knnlm_store.tuning.likeness import fit_likeness
from knnlm_store.tuning.table import Table
from knnlm_store.values import Int64

SCALES = (0.5, 1.0, 2.0, 4.0)
"""Multiples of the temperature that a gate chooses among."""

_HIDDEN, _BATCH, _ROUNDS = 64, 512, 24
_RATE, _DECAY = 3e-3, 1e-3
_LEAST_SPREAD = 1e-3


def learn(table: Table, rows: Int64, temperature: float, seed: int = 0) -> Gate:
    """Fit a gate to some tokens by maximum likelihood; the same input gives the same gate."""
    seen = table.features(temperature)[rows]
    likeness, told = fit_likeness(table, rows, seed)
    if likeness is not None:
        seen = np.column_stack([seen, told])
    centre, spread = seen.mean(axis=0), np.maximum(seen.std(axis=0), _LEAST_SPREAD)
    parts = [table.sample.log_lm, *(table.log_knn(temperature * scale) for scale in SCALES)]
    log_parts = np.stack([part[rows] for part in parts], axis=1)
    shares = table.counts[rows] / table.counts[rows].mean()
    x = np.clip((seen - centre) / spread, -FAR, FAR)
    network = _trained(_narrow(x), _narrow(log_parts), _narrow(shares), seed)
    layers = tuple(
        (_wide(layer.weight.T), _wide(layer.bias))
        for layer in network
        if isinstance(layer, nn.Linear)
    )
    return Gate(temperature, centre, spread, layers, SCALES, likeness)


def _trained(x: Tensor, log_parts: Tensor, shares: Tensor, seed: int) -> nn.Sequential:
    """Train in one thread: with so small a network the others only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _descended(x, log_parts, shares, torch.Generator().manual_seed(seed))
    finally:
        torch.set_num_threads(threads)


def _descended(
    x: Tensor, log_parts: Tensor, shares: Tensor, generator: torch.Generator
) -> nn.Sequential:
    network = _network(x.shape[1], log_parts.shape[1], generator)
    steps = max(1, -(-len(x) // _BATCH)) * _ROUNDS
    optimiser = torch.optim.AdamW(network.parameters(), _RATE, weight_decay=_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, _RATE, steps)
    log_parts = log_parts.clamp_min(-1e4)  # the gradient of -inf is no number
    for _ in range(_ROUNDS):
        for rows in torch.split(torch.randperm(len(x), generator=generator), _BATCH):
            log_weights = network(x[rows]).log_softmax(-1)
            log_p = (log_weights + log_parts[rows]).logsumexp(-1)
            loss = -(shares[rows] * log_p).mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    return network


def _network(inputs: int, outputs: int, generator: torch.Generator) -> nn.Sequential:
    widths = [inputs, _HIDDEN, _HIDDEN, outputs]
    layers: list[nn.Module] = []
    for wide, narrow in pairwise(widths):
        # drawn from our own generator alone: nobody else's numbers change
        layer: nn.Linear = nn.utils.skip_init(nn.Linear, wide, narrow)  # type: ignore[no-untyped-call]
        with torch.no_grad():
            layer.weight.normal_(0, wide**-0.5, generator=generator)
            layer.bias.zero_()
        layers += [layer, nn.Tanh()]
    return nn.Sequential(*layers[:-1])


def _narrow(values: Float64) -> Tensor:
    return torch.from_numpy(values.astype(np.float32))


def _wide(values: Tensor) -> Float64:
    array: Float64 = values.detach().numpy().astype(np.float64)
    return np.ascontiguousarray(array)
