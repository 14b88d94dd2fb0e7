"""What eval and generate mix in: one datastore, several pooled, or several blended by weights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from knnlm_store.cli import common, output
from knnlm_store.cli.settling import ALL, Part, settle_each, settler
from knnlm_store.errors import CorpusError, UsageError

if TYPE_CHECKING:
    from knnlm_store.corpus import Corpus, Document, Problem, ReadOptions
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
    if weights is None and not text:
        return None
    option = "--blend-from" if weights is None else "--blend"
    if weights is not None and text:
        raise UsageError(
            "--blend gives the weights that --blend-from would fit.", hint="Leave one of them out."
        )
    _require_several(stores, option, f"Add another --store, or leave {option} out.")
    if text:
        return Blending(None, _text("--blend-from", text, reading))
    return Blending(_numbers(weights or "", stores), None)


def read_tuning(
    stores: int, text: list[str] | None, reading: ReadOptions | None = None, **said: Any
) -> Corpus | None:
    """Read --tune-from, for so many datastores; None where a pool is not fitted.

    said: values of the options that would decide what is fitted.
    """
    if not text:
        return None
    for name, value in said.items():
        if value not in (None, []):
            option = "--" + name.replace("_", "-")
            raise UsageError(
                f"--tune-from fits one mixture of all datastores; {option} decides it otherwise.",
                hint=f"Leave --tune-from or {option} out.",
            )
    _require_several(
        stores, "--tune-from", "One is fitted with knnlm-store tune, which keeps what it finds."
    )
    return _text("--tune-from", text, reading)


def _require_several(stores: int, option: str, hint: str) -> None:
    if stores < 2:
        raise UsageError(f"{option} needs more than one datastore.", hint=hint)


def _text(option: str, text: list[str], reading: ReadOptions | None) -> Corpus:
    from knnlm_store.corpus import Corpus, ReadOptions

    if "-" in text:
        raise UsageError(f"{option} does not read standard input.", hint="Name a folder or a file.")
    return Corpus(text, reading or ReadOptions())


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
    to compare. weights: of a blend, None where there is none or before `fit`. text: to fit them
    to. tuning: text to fit a pool's mixture to. k: of that, None if it is to be fitted as well.
    """

    stores: tuple[Datastore, ...]
    parts: tuple[Part, ...]
    weights: list[float] | None = None
    text: Corpus | None = None
    tuning: Corpus | None = None
    k: int | None = None

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
        """Say what was chosen for the user, each thing once; `fit` says what it finds itself."""
        if self.tuning is not None:
            return
        lines = [
            f"{part.source.location}: {line}" if self.blends else line
            for part in self.parts
            for line in part.told()
        ]
        for line in dict.fromkeys(lines):
            output.say(line)

    def fit(self, model: LanguageModel, batch_tokens: int) -> None:
        """Fit a blend's weights or a pool's mixture to its text, if it has one, and say them."""
        text = self.tuning or self.text
        if text is None:
            return
        problems: list[Any] = []
        noted = common.noting(text, problems)
        try:
            with output.status("fitting the mixture" if self.tuning else "fitting the weights"):
                fit = self._fit_pool if self.tuning else self._fit_weights
                told = fit(noted, model, batch_tokens)
        except CorpusError:
            output.tell_problems(problems)  # they are why
            raise
        output.tell_problems(problems)
        output.say(told)

    def _fit_weights(
        self, text: Iterable[Document | Problem], model: LanguageModel, batch_tokens: int
    ) -> str:
        from knnlm_store.blending import fit_blend

        self.weights = fit_blend(text, model, self.pairs, batch_tokens=batch_tokens).tolist()
        named = [f"{s.location} {w:.3f}" for s, w in zip(self.stores, self.weights, strict=True)]
        plain = max(0.0, 1 - sum(self.weights))
        return f"weights fitted: {', '.join(named)}, plain model {plain:.3f}"

    def _fit_pool(
        self, text: Iterable[Document | Problem], model: LanguageModel, batch_tokens: int
    ) -> str:
        from knnlm_store.calibration import Settled
        from knnlm_store.several import Pool
        from knnlm_store.tuning.pooling import fit_pool

        pool = self.parts[0].source
        assert isinstance(pool, Pool)
        mixture = fit_pool(text, model, pool, k=self.k, batch_tokens=batch_tokens)
        self.parts = (Part(pool, Settled(mixture)),)
        if mixture.is_plain:
            return "no policy helps this text: the plain model is used"
        return (
            f"fitted to the pool: {mixture.policy.name} policy, k {mixture.k}, temperature "
            f"{mixture.temperature:.4g}"
        )

    def report(self) -> dict[str, Any]:
        """Say which datastores these are and how they are mixed in, as a JSON-able object."""
        stores = [_describe(store) for store in self.stores]
        if self.weights is not None:
            parts = zip(stores, self.weights, self.parts, strict=True)
            stores = [s | {"weight": w, "settings": part.settings()} for s, w, part in parts]
            return {"stores": stores, "weights_from": "user" if self.text is None else "text"}
        one = {"store": stores[0]} if len(stores) == 1 else {}
        settings = {} if self.compared else {"settings": self.parts[0].settings()}
        if self.tuning is not None:
            settings["settings"]["temperature_from"] = "text"
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
    tuning: Corpus | None = None,
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
            parts = tuple(Part(source, each) for each in settled)
            yield Opened(stores, parts, tuning=tuning, k=k)
            return
        if len(names) > 1 or ALL in names:
            raise UsageError(
                "Policies are not compared in a blend: its weights suit one of them.",
                hint="Name one --policy, or compare without --blend and --blend-from.",
            )
        policy = names[0] if names else None
        parts = tuple(
            Part(store, settler(store, k, temperature)(lmbda=lmbda, policy=policy))
            for store in stores
        )
        result = Opened(stores, parts, *blending)
        if blending.weights is not None:
            Blend(result.pairs, blending.weights)  # told before a model is loaded
        yield result


def _describe(store: Datastore) -> dict[str, Any]:
    where = store.location
    return {"uri": str(where), "name": where.name, "entries": store.backend.count()}
