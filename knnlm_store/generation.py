"""(torch) The mixture inside a Hugging Face model's own forward pass.

One hook captures the key, one on the top-level model replaces its logits by
log p + logsumexp(LM logits), so that the scale stays the model's. Whatever calls the model,
`generate()` in any mode or a plain forward, gets the mixture; nothing is patched.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from knnlm_store.attribution import Explanation
from knnlm_store.errors import ModelError
from knnlm_store.explaining import TOP, explain
from knnlm_store.fallback import TIMEOUT, Outages
from knnlm_store.in_use import InUse
from knnlm_store.keys import run_eagerly
from knnlm_store.memories import Memories, Opening, Row, Source
from knnlm_store.mixing import mix_parts
from knnlm_store.mixture import Mixture
from knnlm_store.models import LanguageModel, to_numpy
from knnlm_store.outputs import align, place_of_logits, replaced
from knnlm_store.several import Answered
from knnlm_store.values import Int64

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

    def __init__(self, language_model: LanguageModel, *, domains: str | Path | None = None) -> None:
        self.language_model = language_model
        self._domains = domains
        self.counters = Counters()
        self._used = InUse()
        self._on = self._is_detached = False
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
        language_model.tap.attach()  # it may be the one that `before` took off
        self._layers = _layers(model)
        self._handle = model.register_forward_hook(self._after_forward, with_kwargs=True)

    @classmethod
    def attach(
        cls,
        model: Any,
        tokenizer: Any,
        *,
        key: str = "last_ffn_input",
        domains: str | Path | None = None,
    ) -> KnnLM:
        """Put the hooks on a loaded model; it stays plain until `use`.

        domains: the file that names datastores, by default as domains.find finds it.
        """
        return cls(LanguageModel.wrap(model, tokenizer, key=key), domains=domains)

    def use(
        self,
        store: Source,
        mixture: Mixture | None = None,
        *,
        timeout: float | None = TIMEOUT,
        fallback: bool = True,
    ) -> Self:
        """Mix this datastore in from the next forward pass on; several are pooled, or a Blend.

        store: open, or a URI, or the name of a domain, which is looked up now, with its settings.
        mixture: how; by default as the datastore was calibrated, or else from its distances; of a
        pool never as calibrated, and at the median temperature. timeout: seconds that a step
        waits for a remote datastore (longer in proportion above 16 rows); None waits for ever.
        fallback: a step whose search fails or is late is the plain model's, bit for bit, and
        counted; in a blend only the part that failed is. False raises instead. Raises
        StoreMismatch if another model wrote the datastore or not all of a pool share a key space,
        UsageError for a bad timeout; what was in use then stays in use. What was opened by name is
        closed after the next switch, once no step is in the middle of it.
        """
        return self._switch(self._opening(timeout, fallback).everywhere(store, mixture))

    def use_rows(
        self,
        rows: Sequence[Row],
        *,
        timeout: float | None = TIMEOUT,
        fallback: bool = True,
    ) -> Self:
        """Mix into each row of a batch its own datastore from the next forward pass on.

        rows: what `use` takes, or that and a mixture as a pair, or None for the plain model, one
        for each prompt of a batch; beams and returned sequences of a prompt use the prompt's. A
        datastore is searched once a step, however many rows name it. A forward pass whose batch is
        no multiple of the rows raises UsageError. The rest is as in `use`.
        """
        return self._switch(self._opening(timeout, fallback).by_row(rows))

    @contextmanager
    def using(
        self,
        store: Source,
        mixture: Mixture | None = None,
        *,
        timeout: float | None = TIMEOUT,
        fallback: bool = True,
    ) -> Iterator[Self]:
        """`use` for a with block, after which all is as it was, switched on or off.

        What the block opened, by name, is closed as after `use`.
        """
        mine = self._opening(timeout, fallback).everywhere(store, mixture)
        before, was_on = self._used.swap(mine), self._on
        try:
            yield self.on()
        finally:
            self._used.switch(before)
            self._turn(was_on)

    def _opening(self, timeout: float | None, fallback: bool) -> Opening:
        manifest = self.language_model.manifest()
        return Opening(manifest, self.counters, self._domains, timeout=timeout, fallback=fallback)

    def _switch(self, memories: Memories) -> Self:
        self._used.switch(memories)
        return self.on()

    def on(self) -> Self:
        """Mix again what `use` named last."""
        if self._used.now is None:
            raise _nothing_in_use()
        self._turn(True)
        return self

    def off(self) -> Self:
        """Be the plain model, bit for bit."""
        self._turn(False)
        return self

    def _turn(self, on: bool) -> None:
        """Switch, unless detached: the hook for keys may be another's by then."""
        if not self._is_detached:
            self._on = self.language_model.tap.following = on

    def explain(
        self,
        what: str | Sequence[int] | Int64 | Tensor,
        start: int = 1,
        *,
        top: int = TOP,
        without: Iterable[str] = (),
    ) -> Explanation:
        """Explain a text, or token ids from `start` on, by what `use` named last, on or off.

        what: a text, or the ids of one sequence, `[n]` or `[1, n]`, such as `generate` gives;
        `start` is then the length of its prompt. The rest is as in `explaining.explain`. Raises
        ModelError where nothing is in use, UsageError where rows have memories of their own or
        what is in use is the plain model.
        """
        if isinstance(what, Tensor):
            what = (what[0] if what.ndim == 2 and len(what) == 1 else what).cpu().numpy()
        with self._used.holding() as used:
            if used is None:
                raise _nothing_in_use()
            lm, blend = self.language_model, used.blend()
            return explain(lm, blend, None, what, start, top=top, without=without)

    def detach(self) -> None:
        """Take the hooks off the model; this object is not used afterwards."""
        if self._is_detached:
            return
        self.off()
        self._is_detached = True
        self._used.end()
        self._handle.remove()
        self.language_model.tap.remove()

    # -- the step ------------------------------------------------------------------------------

    @run_eagerly
    def _after_forward(
        self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> Any:
        if not self._on or self._stands_aside():
            return None
        if model.training and torch.is_grad_enabled():
            raise ModelError(
                "The mixture has no gradient, and the model is in training mode.",
                hint="Call off() before training, or model.eval().",
            )
        place = place_of_logits(output, kwargs)
        logits: Tensor = output[place]
        input_ids = kwargs.get("input_ids", args[0] if args else None)
        hidden = align(self.language_model.tap.take(len(logits)), logits, kwargs)
        wanted = self._wanted(input_ids, logits, kwargs)
        with self.counters.lock:
            self.counters.steps += 1
        with torch.no_grad(), self._used.holding() as used:
            mixed = None if used is None else self._mix(used, logits, hidden, wanted)
        return None if mixed is None else replaced(model, output, place, mixed, kwargs)

    def _stands_aside(self) -> bool:
        """Whether this pass is our own, or a draft by the model's first layers."""
        model = self.language_model.model
        return self.language_model.tap.is_private or _layers(model) != self._layers

    def _mix(self, used: Memories, logits: Tensor, hidden: Tensor, wanted: Tensor) -> Tensor | None:
        """Mix logits `[b, t, v]` by keys `[b, t, d]` where wanted, bool `[b, t]`.

        None where nothing is mixed: the logits are the plain model's.
        """
        owners = used.owners(len(logits))
        wanted = wanted & torch.from_numpy(owners >= 0)[:, None]
        if not wanted.any():
            return None
        queries = to_numpy(hidden[wanted.to(hidden.device)])
        places = wanted.flatten().nonzero()[:, 0]  # [q]
        answers = used.search(queries, owners[places.numpy() // wanted.shape[1]])
        if not answers:
            return None
        mixed: Tensor = logits.to(torch.float32, copy=True).flatten(0, 1)
        done = sum(_mix_at(mixed, places[answer.rows], answer.parts) for answer in answers)
        with self.counters.lock:
            self.counters.searched += sum(len(answer.rows) for answer in answers)
            self.counters.mixed += done
        return mixed.reshape(logits.shape) if done else None

    def _wanted(self, input_ids: Tensor | None, logits: Tensor, kwargs: dict[str, Any]) -> Tensor:
        """Positions to search, bool `[b, t]`: neither padding nor rows that have finished."""
        wanted = torch.ones(logits.shape[:2], dtype=torch.bool)
        mask = kwargs.get("attention_mask")
        if input_ids is None:
            return wanted
        if isinstance(mask, Tensor) and mask.shape == input_ids.shape and mask.shape[1] > 1:
            wanted &= align(mask[:, :, None].cpu(), logits, kwargs)[:, :, 0].bool()
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


def _mix_at(logits: Tensor, places: Tensor, parts: list[Answered]) -> int:
    """Mix rows `places`, int64 `[q]` ascending, of float32 `[n, v]`, a piece at a time."""
    done, step = 0, max(1, _LOGIT_CELLS // logits.shape[1])
    for start in range(0, len(places), step):
        piece = slice(start, start + step)
        some = [part._replace(found=part.found[piece]) for part in parts]
        if len(places) == len(logits):  # a view, so that nothing is copied twice
            done += mix_parts(logits[piece], some)
        else:
            at = places[piece].to(logits.device)
            picked = logits[at]
            done += mix_parts(picked, some)
            logits[at] = picked
    return done


def _nothing_in_use() -> ModelError:
    return ModelError("No datastore is in use.", hint="Call use(STORE) first.")


def _layers(model: Any) -> Any:
    return getattr(model.config.get_text_config(), "num_hidden_layers", None)
