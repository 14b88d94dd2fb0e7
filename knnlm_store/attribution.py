"""What an explanation is: for each token its probabilities, and the documents that made p_kNN.

Values only; explaining.py makes them, explained/ shows them. With the share w_i of neighbour i in
p_kNN (Khandelwal et al. 2020, eq. 2) and lambda of the token's mixture (eq. 3):

    p_kNN(y) = sum of w_i over neighbours whose token is y
    p(y) = lambda p_kNN(y) + (1 - lambda) p_LM(y)

A document's share is the part of that sum that its own entries make, so that the shares of a token
sum to p_kNN, and lambda times a share is what the document put into p. That is a contribution, not
an effect: without the document other neighbours would have come in its place. What it changed is
what an explanation `without` it shows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Passage:
    """Text of a document round one of its tokens, decoded from its entries."""

    before: str
    token: str
    after: str


@dataclass(frozen=True, slots=True)
class Hit:
    """An entry among the neighbours that holds the token: where, how far, and its share of p_kNN.

    position: index of the token in its document. distance: squared L2.
    """

    position: int
    distance: float
    share: float


@dataclass(frozen=True, slots=True)
class Source:
    """A document that put something into a token's p_kNN.

    document: its id, or None if the catalog does not have it (any more). store: URI of its
    datastore. share: of p_kNN, the sum over all its hits. hits: the largest, largest first.
    passage: round the first hit, None where nothing was read.
    """

    document: str | None
    store: str
    share: float
    hits: tuple[Hit, ...]
    passage: Passage | None = None


@dataclass(frozen=True, slots=True)
class TokenTrace:
    """One token: its probabilities, and the sources of p_kNN, largest share first.

    sources: the largest; other_share: of p_kNN, from documents that were left out. p_without: p
    as it would be without the documents that were asked about, None if none were. Where lambda is
    0, or no neighbour holds the token, p_knn is 0 and there are no sources.
    """

    token: int
    text: str
    p_lm: float
    p_knn: float
    lmbda: float
    p: float
    sources: tuple[Source, ...] = ()
    other_share: float = 0.0
    p_without: float | None = None

    @property
    def knn_share(self) -> float:
        """Part of p that came from the datastore, 0 to 1."""
        return self.lmbda * self.p_knn / self.p if self.p > 0 else 0.0


@dataclass(frozen=True, slots=True)
class Ranked:
    """What a document put into all explained tokens together.

    contribution: sum over tokens of lambda times its share, divided by p: in tokens, 1.0 for one
    token that it made alone. tokens: how many it had a share in.
    """

    document: str | None
    store: str
    contribution: float
    tokens: int


@dataclass(frozen=True, slots=True)
class Explanation:
    """A text, token by token.

    prompt: what stood before the first explained token. settings: of the mixture, JSON-able.
    documents: all that had a share, the largest contribution first. without: ids of documents as
    if they were not there.
    """

    prompt: str
    tokens: Sequence[TokenTrace]
    documents: Sequence[Ranked]
    settings: dict[str, Any] = field(default_factory=dict)
    without: tuple[str, ...] = ()

    def json(self) -> dict[str, Any]:
        """Give the explanation as one JSON-able object."""
        return asdict(self)
