"""(torch) What a model's forward pass gives: where its logits are, and others in their place.

kwargs: of the forward pass.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

_LOSS_ARGUMENTS = ("num_items_in_batch", "ignore_index", "shift_labels")


def align(values: Tensor, logits: Tensor, kwargs: dict[str, Any]) -> Tensor:
    """Cut values of every input, `[b, t, x]`, to the positions that the logits are for."""
    if values.shape[1] == logits.shape[1]:
        return values
    keep = kwargs.get("logits_to_keep")
    if isinstance(keep, Tensor):
        return values[:, keep.to(values.device)]
    return values[:, -logits.shape[1] :]


def place_of_logits(output: Any, kwargs: dict[str, Any]) -> Any:
    """Key or index of the logits in an output."""
    if not isinstance(output, tuple):
        return "logits"
    return 1 if kwargs.get("labels") is not None else 0


def replaced(model: Any, output: Any, place: Any, logits: Tensor, kwargs: dict[str, Any]) -> Any:
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
