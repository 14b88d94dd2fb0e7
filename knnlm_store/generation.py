"""(torch) The mixture inside a Hugging Face model's own forward pass.

One hook captures the key, one on the top-level model replaces its logits by
log p + logsumexp(LM logits), so that the scale stays the model's. Whatever calls the model,
`generate()` in any mode or a plain forward, gets the mixture; nothing is patched.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from knnlm_store.calibration import default_mixture
from knnlm_store.datastore import Datastore
from knnlm_store.errors import ModelError
from knnlm_store.fallback import TIMEOUT, Guard, Outages
from knnlm_store.interpolation import Fixed, Mixture, drop_impossible, mix, token_log_probs
from knnlm_store.keys import run_eagerly
from knnlm_store.models import LanguageModel, to_numpy
from knnlm_store.values import Neighbours

_LOSS_ARGUMENTS = ("num_items_in_batch", "ignore_index", "shift_labels")
_LOGIT_CELLS = 64 * 1024 * 1024  # float32 logits mixed at once: 256 MB


@dataclass
class Counters(Outages):
    """What the hook did since it was attached: forward passes, rows searched, rows mixed."""

    steps: int = 0
    searched: int = 0
    mixed: int = 0


class _PerThread(threading.local):
    """Rows of this thread's last decoding step that were fed padding, bool `[b]`."""

    padded: Tensor | None = None


class KnnLM:
    """A memory attached to a model once, to be switched on, off and over between calls.

    Attaching again replaces what was attached before. The mixture is for inference: a model in
    training mode refuses it.
    """

    def __init__(self, language_model: LanguageModel) -> None:
        self.language_model = language_model
        self.counters = Counters()
        self._store: Datastore | None = None
        self._used: tuple[Guard, Mixture] | None = None
        self._on = False
        self._thread = _PerThread()
        model = language_model.model
        if getattr(model, "_compiled_call_impl", None) or hasattr(model, "_compiled_call"):
            raise ModelError(
                "The model is compiled already: hooks added now would be ignored.",
                hint="Attach the datastore first, then compile.",
            )
        for hook in list(model._forward_hooks.values()):
            if isinstance(before := getattr(hook, "__self__", None), KnnLM):
                before.detach()
        self._layers = _layers(model)
        self._handle = model.register_forward_hook(self._after_forward, with_kwargs=True)

    @classmethod
    def attach(cls, model: Any, tokenizer: Any, *, key: str = "last_ffn_input") -> KnnLM:
        """Put the hooks on a loaded model; it stays plain until `use`."""
        return cls(LanguageModel.wrap(model, tokenizer, key=key))

    def use(
        self,
        store: Datastore | str,
        mixture: Mixture | None = None,
        *,
        timeout: float | None = TIMEOUT,
        fallback: bool = True,
    ) -> Self:
        """Mix this datastore in from the next forward pass on.

        mixture: how; by default k 1024, lambda 0.25 and the datastore's own temperature. timeout:
        seconds that a step waits for a remote datastore (longer in proportion above 16 rows); None
        waits for ever. fallback: a step whose search fails or is late is the plain model's, bit
        for bit, and counted; False raises instead. Raises StoreMismatch if another model wrote the
        datastore, UsageError for a bad timeout; what was in use then stays in use.
        """
        opened = Datastore.open(store) if isinstance(store, str) else store
        try:
            guard = Guard(opened, self.counters, timeout=timeout, fallback=fallback)
            opened.require(self.language_model.manifest())
            mixture = mixture or default_mixture(opened)
        except BaseException:
            if opened is not store:
                opened.close()
            raise
        self._store, self._used = opened, (guard, mixture)
        return self.on()

    def on(self) -> Self:
        """Mix again what `use` named last."""
        if self._store is None:
            raise ModelError("No datastore is in use.", hint="Call use(STORE) first.")
        self._on = self.language_model.tap.following = True
        return self

    def off(self) -> Self:
        """Be the plain model, bit for bit."""
        self._on = self.language_model.tap.following = False
        return self

    def detach(self) -> None:
        """Take the hooks off the model; this object is not used afterwards."""
        self.off()
        self._store = self._used = None
        self._handle.remove()
        self.language_model.tap.remove()

    # -- the step ------------------------------------------------------------------------------

    @run_eagerly
    def _after_forward(
        self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> Any:
        used = self._used  # this pass keeps it, whatever another thread switches to
        if not self._on or used is None or self._stands_aside():
            return None
        if model.training and torch.is_grad_enabled():
            raise ModelError(
                "The mixture has no gradient, and the model is in training mode.",
                hint="Call off() before training, or model.eval().",
            )
        place = _place_of_logits(output, kwargs)
        logits: Tensor = output[place]
        input_ids = kwargs.get("input_ids", args[0] if args else None)
        hidden = _align(self.language_model.tap.take(len(logits)), logits, kwargs)
        wanted = self._wanted(input_ids, logits, kwargs)
        with self.counters.lock:
            self.counters.steps += 1
        with torch.no_grad():
            mixed = self._mix(*used, logits, hidden, wanted)
        if mixed is None:
            return None
        return _replace(model, output, place, mixed, kwargs)

    def _stands_aside(self) -> bool:
        """Whether this pass is our own, or a draft by the model's first layers."""
        model = self.language_model.model
        return self.language_model.tap.is_private or _layers(model) != self._layers

    def _mix(
        self, guard: Guard, mixture: Mixture, logits: Tensor, hidden: Tensor, wanted: Tensor
    ) -> Tensor | None:
        """Mix logits `[b, t, v]` by keys `[b, t, d]` where wanted, bool `[b, t]`.

        None where nothing is mixed: the logits are the plain model's.
        """
        if not wanted.any() or mixture.policy == Fixed(0.0):
            return None
        queries = to_numpy(hidden[wanted.to(hidden.device)])
        found = guard.search(queries, mixture.k)
        if found is None:
            return None
        mixed: Tensor = logits.to(torch.float32, copy=True).flatten(0, 1)
        rows = wanted.flatten().nonzero()[:, 0].to(logits.device)
        step = max(1, _LOGIT_CELLS // mixed.shape[1])
        done = 0
        for start in range(0, len(rows), step):
            part = slice(start, start + step)
            if len(rows) == len(mixed):  # a view, so that nothing is copied twice
                done += mix_rows(mixed[part], found[part], mixture)
            else:
                picked = mixed[rows[part]]
                done += mix_rows(picked, found[part], mixture)
                mixed[rows[part]] = picked
        with self.counters.lock:
            self.counters.searched += len(queries)
            self.counters.mixed += done
        return mixed.reshape(logits.shape) if done else None

    def _wanted(self, input_ids: Tensor | None, logits: Tensor, kwargs: dict[str, Any]) -> Tensor:
        """Positions to search, bool `[b, t]`: neither padding nor rows that have finished."""
        wanted = torch.ones(logits.shape[:2], dtype=torch.bool)
        mask = kwargs.get("attention_mask")
        if input_ids is None:
            return wanted
        if isinstance(mask, Tensor) and mask.shape == input_ids.shape and mask.shape[1] > 1:
            wanted &= _align(mask[:, :, None].cpu(), logits, kwargs)[:, :, 0].bool()
        before, self._thread.padded = self._thread.padded, self._padded(input_ids, kwargs)
        now = self._thread.padded
        # generate() feeds padding to rows that have ended; one such token may be real
        if before is not None and now is not None and before.shape == now.shape:
            wanted &= ~(before & now)[:, None]
        return wanted

    def _padded(self, input_ids: Tensor, kwargs: dict[str, Any]) -> Tensor | None:
        """Rows whose one new token is padding, bool `[b]`; None outside decoding."""
        config = getattr(self.language_model.model, "generation_config", None)
        pad = getattr(config, "pad_token_id", None)
        cache = kwargs.get("past_key_values")
        if pad is None or cache is None or input_ids.shape[1] != 1 or len(input_ids) == 1:
            return None
        if int(cache.get_seq_length()) <= 1:  # the first token of a new sequence
            return None
        return torch.eq(input_ids[:, 0], pad).cpu()


def _layers(model: Any) -> Any:
    return getattr(model.config.get_text_config(), "num_hidden_layers", None)


def mix_rows(logits: Tensor, found: Neighbours, mixture: Mixture) -> int:
    """Mix rows of logits, float32 `[q, v]`, in place; gives how many changed.

    A row with lambda 0 or without a neighbour is not touched. -inf stays -inf.
    """

    def on_device(array: Any) -> Tensor:
        return torch.from_numpy(array).to(logits.device)

    tokens = np.where((found.tokens < 0) | (found.tokens >= logits.shape[1]), -1, found.tokens)
    scale = logits.logsumexp(-1, keepdim=True)  # [q, 1]
    at_tokens = logits.gather(1, on_device(np.maximum(tokens, 0))) - scale  # [q, k]
    # float64 only on the host: not every device has it
    lm = np.where(tokens < 0, -np.inf, at_tokens.cpu().numpy().astype(np.float64))
    distances = drop_impossible(found, lm)
    lmbda = np.where(np.isfinite(distances).any(axis=1), mixture.lmbda(found), 0.0)
    rows = np.flatnonzero(lmbda > 0)
    if not len(rows):
        return 0
    log_knn = token_log_probs(distances[rows], tokens[rows], mixture.temperature)
    values = mix(log_knn, lm[rows], lmbda[rows][:, None])
    # places without a neighbour repeat the nearest one, so that every write is a true value
    nearest = distances[rows].argmin(axis=1)[:, None]
    place = np.where(np.isfinite(distances[rows]), np.arange(distances.shape[1]), nearest)
    with np.errstate(divide="ignore"):
        rest = on_device(np.log1p(-lmbda[rows])[:, None].astype(np.float32))
    values = np.take_along_axis(values, place, axis=1).astype(np.float32)
    written = on_device(np.take_along_axis(tokens[rows], place, axis=1))
    if len(rows) == len(logits):
        logits.add_(rest).scatter_(1, written, on_device(values) + scale)
    else:
        picked = on_device(rows)
        logits[picked] = (logits[picked] + rest).scatter_(
            1, written, on_device(values) + scale[picked]
        )
    return len(rows)


def _align(values: Tensor, logits: Tensor, kwargs: dict[str, Any]) -> Tensor:
    """Cut values of every input, `[b, t, x]`, to the positions that the logits are for."""
    if values.shape[1] == logits.shape[1]:
        return values
    keep = kwargs.get("logits_to_keep")
    if isinstance(keep, Tensor):
        return values[:, keep.to(values.device)]
    return values[:, -logits.shape[1] :]


def _place_of_logits(output: Any, kwargs: dict[str, Any]) -> Any:
    if not isinstance(output, tuple):
        return "logits"
    return 1 if kwargs.get("labels") is not None else 0


def _replace(model: Any, output: Any, place: Any, logits: Tensor, kwargs: dict[str, Any]) -> Any:
    """Put the mixture into the output, and a loss that belongs to it."""
    labels = kwargs.get("labels")
    loss = None
    if labels is not None:
        vocabulary = model.config.get_text_config().vocab_size
        given = {n: kwargs[n] for n in _LOSS_ARGUMENTS if n in kwargs}
        loss = model.loss_function(logits=logits, labels=labels, vocab_size=vocabulary, **given)
    if place == "logits":
        output.logits = logits
        if loss is not None:
            output.loss = loss
        return output
    head = () if loss is None else (loss,)
    return (*head, logits, *output[place + 1 :])
