"""kNN language models whose memory lives in the vector store you already run.

    from knnlm_store import KnnLM

    lm = KnnLM.attach(model, tokenizer)
    lm.use("faiss:stores/law")
    model.generate(...)

Names are imported when they are first used, so that `import knnlm_store` needs neither torch nor
a vector store's library. Whoever writes a backend imports from `knnlm_store.backend`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from knnlm_store.attribution import Explanation
    from knnlm_store.blending import fit_blend
    from knnlm_store.corpus import Corpus, ReadOptions
    from knnlm_store.datastore import Datastore
    from knnlm_store.errors import KnnlmError
    from knnlm_store.evaluation import evaluate
    from knnlm_store.explaining import explain
    from knnlm_store.forgetting import forget
    from knnlm_store.generation import KnnLM
    from knnlm_store.mixture import Fixed, Mixture
    from knnlm_store.models import LanguageModel
    from knnlm_store.policies import Ratio
    from knnlm_store.several import Blend, Pool

    __version__: str
else:
    _HOMES = {
        "Blend": "several",
        "Corpus": "corpus",
        "Datastore": "datastore",
        "Explanation": "attribution",
        "Fixed": "mixture",
        "KnnLM": "generation",
        "KnnlmError": "errors",
        "LanguageModel": "models",
        "Mixture": "mixture",
        "Pool": "several",
        "Ratio": "policies",
        "ReadOptions": "corpus",
        "evaluate": "evaluation",
        "explain": "explaining",
        "fit_blend": "blending",
        "forget": "forgetting",
    }

    def __getattr__(name):  # noqa: ANN001, ANN202  type checkers read the imports above
        """Import a name on its first use (PEP 562)."""
        if name == "__version__":
            from importlib.metadata import version

            value = version("knnlm-store")
        elif name in _HOMES:
            from importlib import import_module

            value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
        else:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()[name] = value
        return value

    def __dir__():  # noqa: ANN202
        """List what can be imported from here."""
        return sorted({*globals(), *__all__})


__all__ = [
    "Blend",
    "Corpus",
    "Datastore",
    "Explanation",
    "Fixed",
    "KnnLM",
    "KnnlmError",
    "LanguageModel",
    "Mixture",
    "Pool",
    "Ratio",
    "ReadOptions",
    "__version__",
    "evaluate",
    "explain",
    "fit_blend",
    "forget",
]
