"""Prompts, and how the user wants them continued."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from knnlm_store.cli import texts
from knnlm_store.errors import ModelError, UsageError
from knnlm_store.wording import counted

if TYPE_CHECKING:
    from knnlm_store.models import LanguageModel

_POSITIVE = {
    "sampling_temperature": "1 has no effect.",
    "repetition_penalty": "1 has no effect.",
    "search_timeout": "2 seconds is the default.",
}


@dataclass(frozen=True, slots=True)
class Asked:
    """How the user wants text made. Raises UsageError for what cannot be right."""

    max_new_tokens: int
    chat: bool
    sample: bool
    seed: int | None
    sampling_temperature: float | None
    top_p: float | None
    num_beams: int
    repetition_penalty: float
    search_timeout: float

    def __post_init__(self) -> None:
        for name in ("seed", "sampling_temperature", "top_p"):
            if getattr(self, name) is not None and not self.sample:
                option = "--" + name.replace("_", "-")
                raise UsageError(f"{option} needs --sample.", hint=f"Add --sample to {option}.")
        for name, hint in _POSITIVE.items():
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                option = "--" + name.replace("_", "-")
                raise UsageError(f"{option} must be above 0, not {value}.", hint=hint)
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise UsageError(
                f"--top-p must lie above 0 and up to 1, not {self.top_p}.", hint="Try --top-p 0.9."
            )

    @property
    def streams(self) -> bool:
        """Whether text can be shown as it is made: beams are chosen between at the end."""
        return self.num_beams == 1

    def options(self) -> dict[str, Any]:
        """Give the arguments of transformers' generate()."""
        chosen: dict[str, Any] = {
            "max_new_tokens": self.max_new_tokens,
            "do_sample": self.sample,
            "num_beams": self.num_beams,
            "repetition_penalty": self.repetition_penalty,
        }
        if not self.sample:
            return chosen | {"temperature": None, "top_p": None, "top_k": None}
        # the checkpoint's own sampling settings would narrow this silently
        return chosen | {
            "temperature": 1.0 if self.sampling_temperature is None else self.sampling_temperature,
            "top_p": 1.0 if self.top_p is None else self.top_p,
            "top_k": 0,
        }


def from_stdin() -> list[str]:
    """Read prompts, one a line. Raises UsageError where there is none."""
    hint = 'Name one, as in: knnlm-store generate --store STORE "The law", or pipe them in.'
    lines = texts.from_stdin("prompt", hint).splitlines()
    prompts = [line for line in lines if line.strip()]
    if not prompts:
        raise UsageError("There is no prompt.", hint=hint)
    return prompts


def ids_of(model: LanguageModel, prompt: str, asked: Asked) -> list[int]:
    """Tokens of a prompt: by the chat template, or as the beginning of a document."""
    ids = [model.document_start, *model.encode(prompt).tolist()]
    if asked.chat:
        if not getattr(model.tokenizer, "chat_template", None):
            raise ModelError(f"{model.name} has no chat template.", hint="Leave --chat out.")
        encoded = model.tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], add_generation_prompt=True, return_dict=True
        )
        ids = list(encoded["input_ids"])
    if model.limit is not None and len(ids) + asked.max_new_tokens > model.limit:
        raise UsageError(
            f"A prompt of {counted(len(ids), 'token')} and {asked.max_new_tokens} new ones exceed "
            f"the {model.limit} that {model.name} can read.",
            hint="Shorten the prompt, or lower --max-new-tokens.",
        )
    return ids
