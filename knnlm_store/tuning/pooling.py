"""(torch) A mixture for datastores that are searched as one, fitted on text and kept nowhere."""

from __future__ import annotations

from collections.abc import Iterable

from knnlm_store.corpus import Document, Problem
from knnlm_store.errors import CorpusError
from knnlm_store.memories import mixture_for
from knnlm_store.mixture import Fixed, Mixture
from knnlm_store.models import LanguageModel
from knnlm_store.several import Pool
from knnlm_store.tuning import tune
from knnlm_store.tuning.cache import Reading, cached
from knnlm_store.tuning.choice import best, choose, choose_k
from knnlm_store.tuning.foreign import foreign_text
from knnlm_store.tuning.known import NEAR, without_known
from knnlm_store.tuning.sample import Sample


def fit_pool(
    texts: Iterable[Document | Problem],
    model: LanguageModel,
    pool: Pool,
    *,
    k: int | None = None,
    most: int = tune.MOST,
    batch_tokens: int | None = None,
    seed: int = 0,
) -> Mixture:
    """Find k, temperature and policy as `tune` does for one datastore.

    Take text of every kind that the pool is for, in none of its datastores. k: that many, instead
    of the fewest that do. Lambda is 0 where nothing helps. Raises CorpusError for too little text,
    and what a backend raises.
    """
    untuned = mixture_for(pool)
    entries = sum(store.backend.count() for store in pool.stores)
    looked_up = max(1, min(k or untuned.k, entries))

    def read(texts: Iterable[Document | Problem], most: int) -> Sample:
        return cached(
            texts, model, pool, looked_up, Reading(), most=most, batch_tokens=batch_tokens
        )

    home = read(texts, most)
    if len(home) < tune.LEAST:
        raise CorpusError(
            f"The text has {len(home)} tokens; fitting needs at least {tune.LEAST}.",
            hint="Name more text that is in none of the datastores.",
        )
    seen = read(foreign_text(), tune.MOST_FOREIGN)
    foreign, _ = without_known(seen, NEAR * untuned.temperature)
    if k is None:
        looked_up, _ = choose_k(home, untuned.temperature, tune.TOLERANCE)
    choices = choose(home, foreign, looked_up, untuned.temperature, seed)
    picked = best(choices, float(-home.log_lm.mean()))
    if picked is None:
        return Mixture(looked_up, untuned.temperature, Fixed(0.0))
    return picked.mixture
