"""(torch) Neighbours into logits: the mixture of some rows, in place, on the logits' own device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from knnlm_store.interpolation import Float64, mix, token_log_probs
from knnlm_store.mixture import Evidence, Mixture
from knnlm_store.models import to_float64
from knnlm_store.several import Answered, Weighed, weigh
from knnlm_store.values import Neighbours


def mix_rows(logits: Tensor, found: Neighbours, mixture: Mixture) -> int:
    """Mix what one datastore found into rows of logits, as `mix_parts` does."""
    return mix_parts(logits, [Answered(found, mixture, 1.0)])


def mix_parts(logits: Tensor, parts: Sequence[Answered]) -> int:
    """Mix rows of logits, float32 `[q, v]`, in place; gives how many changed.

    A row with lambda 0 or without a neighbour is not touched. -inf stays -inf.
    """
    scale = logits.logsumexp(-1, keepdim=True)  # [q, 1]
    entropy, top = entropy_and_top(logits, scale)
    evidences = [_evidence(logits, scale, part.found, entropy, top) for part in parts]
    weighed = weigh([part[1:] for part in parts], evidences)
    rows = np.flatnonzero(weighed.lmbda > 0)
    if not len(rows):
        return 0
    weighed = weighed[rows]
    tokens, values = _values(weighed)
    with np.errstate(divide="ignore"):
        rest = _on(logits, np.log1p(-weighed.lmbda)[:, None].astype(np.float32))
    written, new = _on(logits, tokens), _on(logits, values.astype(np.float32))
    if len(rows) == len(logits):
        logits.add_(rest).scatter_(1, written, new + scale)
    else:
        picked = _on(logits, rows)
        logits[picked] = (logits[picked] + rest).scatter_(1, written, new + scale[picked])
    return len(rows)


def _values(weighed: Weighed) -> tuple[Any, Float64]:
    """Tokens to write, `[q, n]`, and log p of each in the mixture.

    Places without a neighbour repeat the first one with: every write is a true value.
    """
    log_knn = token_log_probs(weighed.log_shares, weighed.tokens)
    values = mix(log_knn, weighed.log_lm, weighed.lmbda[:, None])
    known = weighed.tokens >= 0
    place = np.where(known, np.arange(known.shape[1]), known.argmax(axis=1)[:, None])
    return (
        np.take_along_axis(weighed.tokens, place, axis=1),
        np.take_along_axis(values, place, axis=1),
    )


def _evidence(
    logits: Tensor, scale: Tensor, found: Neighbours, entropy: Float64, top: Float64
) -> Evidence:
    tokens = np.where((found.tokens < 0) | (found.tokens >= logits.shape[1]), -1, found.tokens)
    at_tokens = logits.gather(1, _on(logits, np.maximum(tokens, 0))) - scale  # [q, k]
    # float64 only on the host: not every device has it
    log_lm = np.where(tokens < 0, -np.inf, at_tokens.cpu().numpy().astype(np.float64))
    return Evidence.of(replace(found, tokens=tokens), log_lm, entropy, top)


def _on(logits: Tensor, array: Any) -> Tensor:
    return torch.from_numpy(array).to(logits.device)


def entropy_and_top(logits: Tensor, scale: Tensor) -> tuple[Float64, Float64]:
    """Entropy of p_LM in nats and the log of its largest probability, both float64 `[q]`.

    logits: `[q, v]`; scale: their logsumexp, `[q, 1]`.
    """
    log_p = logits - scale
    # 0 * -inf is 0 here: a suppressed token adds nothing
    entropy = -(log_p.exp() * log_p.clamp_min(-1e4)).sum(-1)
    return to_float64(entropy), to_float64(log_p.max(-1).values)
