"""A calibration: fitted mixtures, kept in the datastore they were fitted for.

JSON, with arrays as base64 of their float64 bytes, so that what is read is what was written, to
the bit; nothing in it can run. A digest tells an edited one from one that `tune` wrote.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from knnlm_store.backend import Indexed
from knnlm_store.datastore import Datastore
from knnlm_store.errors import StoreCorrupt, StoreMismatch, UsageError
from knnlm_store.gate import Gate, Likeness
from knnlm_store.interpolation import Float64
from knnlm_store.mixture import Fixed, LambdaPolicy, Mixture
from knnlm_store.policies import Bucketed, Damped, Ratio

RECORD = "calibration"
PLAIN = "plain"
"""What is chosen where no policy pays: lambda 0."""
GROWTH = 0.2
"""Share by which a datastore may grow before its calibration is called old."""

_FORMAT, _WITHOUT = 3, 2  # with a likeness, and as programs before it read
_AGAIN = "Fit it again with knnlm-store tune, or do without it: --lmbda 0.25"
_PROBE = "calibration-probe"
_MODEL = ("model", "precision", "key", "tokenizer", "transform")


@dataclass(frozen=True, slots=True)
class Calibration:
    """Mixtures, one a family of policies, and what they were fitted on.

    chosen: the one to use. model: fields of the manifest it belongs to. index: how the backend
    searched, storage: how it kept keys; "" where an early version did not note it. entries: that
    the datastore held. figures: what was measured, for reports.
    """

    mixtures: Mapping[str, Mixture]
    chosen: str
    model: Mapping[str, str]
    index: str
    entries: int
    created: str
    figures: Mapping[str, Any] = field(default_factory=dict)
    storage: str = ""

    @classmethod
    def of(
        cls,
        store: Datastore,
        mixtures: Mapping[str, Mixture],
        chosen: str,
        created: str,
        figures: Mapping[str, Any],
    ) -> Calibration:
        """Describe mixtures that were just fitted on `store`."""
        return cls(
            mixtures,
            chosen,
            _identity(store),
            describe_index(store),
            store.backend.count(),
            created,
            figures,
            store.backend.spec().storage,
        )

    def write(self, store: Datastore) -> None:
        """Keep it in the datastore, in the place of an earlier one."""
        body: dict[str, Any] = {
            "format": _FORMAT if any(map(_has_likeness, self.mixtures.values())) else _WITHOUT,
            "mixtures": {name: _mixture_to_json(each) for name, each in self.mixtures.items()},
            "chosen": self.chosen,
            "model": dict(self.model),
            "index": self.index,
            "storage": self.storage,
            "entries": self.entries,
            "created": self.created,
            "figures": dict(self.figures),
        }
        text = json.dumps(body | {"digest": _digest(body)}, sort_keys=True)
        store.backend.put_records({RECORD: text.encode()})

    @classmethod
    def read(cls, store: Datastore) -> Calibration | None:
        """Read the datastore's calibration, if it has one.

        Raises StoreCorrupt if it was changed by hand, StoreMismatch if it belongs to another
        model or was written by a newer version.
        """
        value = store.backend.get_records([RECORD]).get(RECORD)
        if value is None:
            return None
        try:
            body = json.loads(value)
            digest = body.pop("digest")
            if body["format"] > _FORMAT:
                raise StoreMismatch(
                    f"The calibration of {store.location} was written by a newer version.",
                    field="calibration",
                    hint="Run: pip install --upgrade knnlm-store",
                )
            if digest != _digest(body):
                raise ValueError(digest)  # noqa: TRY301  one message for all that is wrong
            mixtures = {name: _mixture_from_json(v) for name, v in body["mixtures"].items()}
            names = ("chosen", "model", "index", "entries", "created", "figures")
            calibration = cls(mixtures, *(body[name] for name in names))
            calibration = replace(calibration, storage=body.get("storage", ""))
        except (KeyError, TypeError, ValueError, AttributeError, UsageError) as error:
            raise StoreCorrupt(
                f"The calibration of {store.location} is not what `tune` wrote.",
                hint=_AGAIN,
            ) from error
        calibration._require(store)
        return calibration

    @property
    def mixture(self) -> Mixture:
        """The mixture to use."""
        return self.mixtures[self.chosen]

    def _require(self, store: Datastore) -> None:
        for name, value in _identity(store).items():
            if self.model.get(name) != value:
                raise StoreMismatch(
                    f"The calibration of {store.location} was fitted for {name} "
                    f"{self.model.get(name)!r}, not {value!r}.",
                    field=name,
                    hint=_AGAIN,
                )

    def describe(self) -> str:
        """Say in a line what is used, and since when."""
        if self.mixture.is_plain:
            return f"the plain model, of {self.created}: the datastore did not pay"
        return (
            f"{self.chosen}, k {self.mixture.k}, temperature {self.mixture.temperature:.4g}, "
            f"of {self.created}"
        )

    def age(self, store: Datastore) -> str | None:
        """Say what changed since, if it is enough to fit again; None if not."""
        entries = store.backend.count()
        if entries > (1 + GROWTH) * self.entries:
            return (
                f"{store.location} has grown from {self.entries:,} to {entries:,} entries since it "
                "was calibrated; knnlm-store tune fits it again."
            )
        index, storage = describe_index(store), store.backend.spec().storage
        if _kind(index) != _kind(self.index) or self.storage not in ("", storage):
            was = f"{self.index}, {self.storage or 'unknown'} keys"
            return (
                f"{store.location} was searched otherwise when it was calibrated ({was}; now "
                f"{index}, {storage} keys); knnlm-store tune fits it again."
            )
        return None


def describe_index(store: Datastore) -> str:
    """Say how the backend searches."""
    backend = store.backend
    return backend.describe_index() if isinstance(backend, Indexed) else "exact"


def _kind(index: str) -> str:
    """Cut off what an index covers, which grows with the datastore."""
    return index.partition(" ")[0]


def require_writable(store: Datastore) -> None:
    """Raise what the backend raises where a calibration could not be kept; leaves nothing."""
    store.backend.put_records({_PROBE: b"{}"})
    store.backend.delete_records([_PROBE])


def _mixture_to_json(mixture: Mixture) -> dict[str, Any]:
    policy = policy_to_json(mixture.policy)
    return {"k": mixture.k, "temperature": mixture.temperature, "policy": policy}


def _mixture_from_json(values: Mapping[str, Any]) -> Mixture:
    policy = policy_from_json(values["policy"])
    return Mixture(int(values["k"]), float(values["temperature"]), policy)


def policy_to_json(policy: LambdaPolicy) -> dict[str, Any]:
    """Give one of our policies as a JSON-able object. Raises TypeError for others."""
    match policy:
        case Fixed(lmbda=lmbda):
            return {"name": policy.name, "lmbda": lmbda}
        case Ratio(alpha=alpha, tau=tau):
            return {"name": policy.name, "alpha": alpha, "tau": tau}
        case Bucketed(edges=edges, lambdas=lambdas):
            return {"name": policy.name, "edges": _text(edges), "lambdas": _text(lambdas)}
        case Damped(policy=inner, share=share):
            return {"name": "damped", "share": share, "policy": policy_to_json(inner)}
        case Gate():
            return {
                "name": policy.name,
                "temperature": policy.temperature,
                "centre": _text(policy.centre),
                "spread": _text(policy.spread),
                "scales": list(policy.scales),
                "layers": [
                    {"shape": list(weights.shape), "weights": _text(weights), "bias": _text(bias)}
                    for weights, bias in policy.layers
                ],
                "likeness": _likeness_to_json(policy.likeness),
            }
    raise TypeError(f"A calibration cannot keep a policy of type {type(policy).__name__}.")


def policy_from_json(values: Mapping[str, Any]) -> LambdaPolicy:
    """Rebuild a policy; raises KeyError, TypeError or ValueError for what is none."""
    match values["name"]:
        case "fixed":
            return Fixed(float(values["lmbda"]))
        case "ratio":
            return Ratio(float(values["alpha"]), float(values["tau"]))
        case "bucketed":
            return Bucketed(_array(values["edges"]), _array(values["lambdas"]))
        case "damped":
            return Damped(policy_from_json(values["policy"]), float(values["share"]))
        case "learned":
            layers = tuple(
                (_array(each["weights"]).reshape(each["shape"]), _array(each["bias"]))
                for each in values["layers"]
            )
            return Gate(
                float(values["temperature"]),
                _array(values["centre"]),
                _array(values["spread"]),
                layers,
                tuple(float(scale) for scale in values["scales"]),
                _likeness_from_json(values.get("likeness")),
            )
    raise ValueError(values["name"])


def _has_likeness(mixture: Mixture) -> bool:
    policy = mixture.policy
    inner = policy.policy if isinstance(policy, Damped) else policy
    return isinstance(inner, Gate) and inner.likeness is not None


def _likeness_to_json(likeness: Likeness | None) -> dict[str, Any] | None:
    if likeness is None:
        return None
    return {"direction": _text(likeness.direction), "offset": likeness.offset}


def _likeness_from_json(values: Mapping[str, Any] | None) -> Likeness | None:
    """Rebuild it; a calibration of format 2 has none."""
    if values is None:
        return None
    return Likeness(_array(values["direction"]), float(values["offset"]))


def _identity(store: Datastore) -> dict[str, str]:
    return {name: getattr(store.manifest, name) for name in _MODEL}


def _digest(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _text(values: Float64) -> str:
    return base64.b64encode(np.ascontiguousarray(values, "<f8").tobytes()).decode()


def _array(text: str) -> Float64:
    return np.frombuffer(base64.b64decode(text, validate=True), "<f8").astype(np.float64)
