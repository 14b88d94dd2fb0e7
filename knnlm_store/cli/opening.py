"""What eval and generate mix in: one datastore, several pooled, or several blended by weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from knnlm_store.cli import common, output
from knnlm_store.cli.settling import ALL, Part, settle_each, settler
from knnlm_store.errors import CorpusError, UsageError

if TYPE_CHECKING:
    from knnlm_store.corpus import Corpus, ReadOptions
    from knnlm_store.datastore import Datastore
    from knnlm_store.mixture import Mixture
    from knnlm_store.models import LanguageModel
    from knnlm_store.several import Blend, Searchable
    from knnlm_store.values import Location


class Blending(NamedTuple):
    """Weights of a blend as the user gave them, or the text to fit them to."""

    weights: list[float] | None
    text: Corpus | None


def read_blending(
    stores: int, weights: str | None, text: list[str] | None, reading: ReadOptions | None = None
) -> Blending | None:
    """Read --blend and --blend-from, for so many datastores; None is no blend."""
    from knnlm_store.corpus import Corpus, ReadOptions

    if weights is None and not text:
        return None
    option = "--blend-from" if weights is None else "--blend"
    if weights is not None and text:
        raise UsageError(
            "--blend gives the weights that --blend-from would fit.", hint="Leave one of them out."
        )
    if stores < 2:
        raise UsageError(
            f"{option} needs more than one datastore.",
            hint=f"Add another --store, or leave {option} out.",
        )
    if text:
        if "-" in text:
            raise UsageError(
                "--blend-from does not read standard input.", hint="Name a folder or a file."
            )
        return Blending(None, Corpus(text, reading or ReadOptions()))
    return Blending(_numbers(weights or "", stores), None)


def _numbers(text: str, stores: int) -> list[float]:
    try:
        weights = [float(each) for each in text.split(",")]
    except ValueError:
        raise UsageError(
            f"--blend takes numbers with commas between them, not {text!r}.",
            hint="For example: --blend 0.6,0.3",
        ) from None
    if len(weights) != stores:
        raise UsageError(
            f"--blend names {len(weights)} weights for {stores} datastores.",
            hint="Give one for each --store, in their order.",
        )
    return weights


@dataclass(slots=True)
class Opened:
    """Datastores in use.

    parts: one; or one for each datastore of a blend; or, of the same source, one for each policy
    to compare. weights: of a blend, None where there is none or before `fit`. text: to fit to.
    """

    stores: tuple[Datastore, ...]
    parts: tuple[Part, ...]
    weights: list[float] | None = None
    text: Corpus | None = None

    @property
    def blends(self) -> bool:
        """Whether each datastore has its own weight."""
        return self.weights is not None or self.text is not None

    @property
    def source(self) -> Searchable | Blend:
        """What is mixed in."""
        from knnlm_store.several import Blend

        if self.weights is None:
            return self.parts[0].source
        return Blend(self.pairs, self.weights)

    @property
    def pairs(self) -> list[tuple[Searchable, Mixture]]:
        """Sources with their mixtures."""
        return [(part.source, part.mixture) for part in self.parts]

    @property
    def mixture(self) -> Mixture | None:
        """How `source` is mixed in; a blend has its own."""
        return None if self.blends else self.parts[0].mixture

    @property
    def compared(self) -> dict[str, Part]:
        """The policies to compare, by name; none where there is but one."""
        several = not self.blends and len(self.parts) > 1
        return {part.mixture.policy.name: part for part in self.parts} if several else {}

    def load(self, name: str, **options: Any) -> LanguageModel:
        """Load the model that the first was written by; refuse it where the others do not fit."""
        model = common.load_model_for(self.stores[0], name, **options)
        for store in self.stores[1:]:
            store.require(model.manifest())
        return model

    def announce(self) -> None:
        """Say what was chosen for the user, each thing once."""
        lines = [
            f"{part.source.location}: {line}" if self.blends else line
            for part in self.parts
            for line in part.told()
        ]
        for line in dict.fromkeys(lines):
            output.say(line)

    def fit(self, model: LanguageModel, batch_tokens: int) -> None:
        """Fit the weights of a blend to its text, if it has one, and say them."""
        if self.text is None:
            return
        from knnlm_store.blending import fit_blend

        problems: list[Any] = []
        try:
            with output.status("fitting the weights"):
                text = common.noting(self.text, problems)
                weights = fit_blend(text, model, self.pairs, batch_tokens=batch_tokens)
        except CorpusError:
            output.tell_problems(problems)  # they are why
            raise
        output.tell_problems(problems)
        self.weights = weights.tolist()
        named = [f"{s.location} {w:.3f}" for s, w in zip(self.stores, self.weights, strict=True)]
        plain = max(0.0, 1 - sum(self.weights))
        output.say(f"weights fitted: {', '.join(named)}, plain model {plain:.3f}")

    def report(self) -> dict[str, Any]:
        """Say which datastores these are and how they are mixed in, as a JSON-able object."""
        stores = [_describe(store) for store in self.stores]
        if self.weights is not None:
            parts = zip(stores, self.weights, self.parts, strict=True)
            stores = [s | {"weight": w, "settings": part.settings()} for s, w, part in parts]
            return {"stores": stores, "weights_from": "user" if self.text is None else "text"}
        one = {"store": stores[0]} if len(stores) == 1 else {}
        settings = {} if self.compared else {"settings": self.parts[0].settings()}
        return one | {"stores": stores} | settings


@contextmanager
def opened(
    where: Sequence[Location],
    *,
    k: int | None,
    temperature: float | None,
    lmbda: float | None,
    policies: list[str] | None = None,
    blending: Blending | None = None,
) -> Iterator[Opened]:
    """Open datastores for a with block, and settle how their neighbours are mixed in."""
    from knnlm_store.datastore import Datastore
    from knnlm_store.several import Blend, Pool

    names = list(dict.fromkeys(policies or []))
    with ExitStack() as stack:
        stores = tuple(stack.enter_context(Datastore.open(each)) for each in where)
        if blending is None:
            source = stores[0] if len(stores) == 1 else Pool(stores)
            settled = settle_each(settler(source, k, temperature), names, lmbda)
            yield Opened(stores, tuple(Part(source, each) for each in settled))
            return
        if len(names) > 1 or ALL in names:
            raise UsageError(
                "Policies are not compared in a blend: its weights suit one of them.",
                hint="Name one --policy, or compare without --blend and --blend-from.",
            )
        policy = names[0] if names else None
        parts = [
            Part(store, settler(store, k, temperature)(lmbda=lmbda, policy=policy))
            for store in stores
        ]
        result = Opened(stores, tuple(parts), *blending)
        if blending.weights is not None:
            Blend(result.pairs, blending.weights)  # told before a model is loaded
        yield result


def _describe(store: Datastore) -> dict[str, Any]:
    where = store.location
    return {"uri": str(where), "name": where.name, "entries": store.backend.count()}
