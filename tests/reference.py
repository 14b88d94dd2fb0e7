"""The mixture again, written to be obviously right: no cache, no batch tricks, dense, float64."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from knnlm_store.values import Entries


def dense_mixture(
    logits: NDArray[Any],
    query: NDArray[Any],
    entries: Entries,
    k: int,
    temperature: float,
    lmbda: float,
) -> NDArray[np.float64]:
    """log p over the vocabulary for one position, by brute force: logits `[v]`, query `[d]`."""
    wide = logits.astype(np.float64)
    log_lm: NDArray[np.float64] = wide - np.logaddexp.reduce(wide)
    if lmbda == 0 or not len(entries):
        return log_lm
    distances = ((entries.keys.astype(np.float64) - query.astype(np.float64)) ** 2).sum(1)
    p_knn = np.zeros(len(logits))
    nearest = np.argsort(distances, kind="stable")[:k]
    weights = np.exp(-(distances[nearest] - distances[nearest].min()) / temperature)
    for token, weight in zip(entries.tokens[nearest], weights, strict=True):
        if not np.isneginf(log_lm[token]):
            p_knn[token] += weight
    p = lmbda * p_knn / p_knn.sum() + (1 - lmbda) * np.exp(log_lm)
    with np.errstate(divide="ignore"):
        log_p: NDArray[np.float64] = np.log(p)
    return log_p


def reference_model(
    model: Any, path: str, entries: Entries, k: int, temperature: float, lmbda: float
) -> Any:
    """A copy of a plain model whose forward pass gives the reference mixture's log p as logits.

    It never uses a cache: every step reads the whole prefix. Call generate with use_cache=False.
    """
    twin = copy.deepcopy(model)
    seen: list[Tensor] = []
    twin.get_submodule(path).register_forward_pre_hook(
        lambda _module, args, kwargs: seen.append(args[0] if args else kwargs["hidden_states"]),
        with_kwargs=True,
    )
    plain = twin.forward

    def forward(
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        **_: Any,
    ) -> Any:
        seen.clear()
        kept = {} if position_ids is None else {"position_ids": position_ids}
        output = plain(input_ids, attention_mask=attention_mask, use_cache=False, **kept)
        hidden = seen[0].reshape(*input_ids.shape, -1).numpy()
        mixed = output.logits.clone()
        for row in range(len(input_ids)):
            mixed[row, -1] = torch.from_numpy(
                dense_mixture(
                    output.logits[row, -1].numpy(), hidden[row, -1], entries, k, temperature, lmbda
                )
            )
        output.logits = mixed
        return output

    twin.forward = forward
    return twin
