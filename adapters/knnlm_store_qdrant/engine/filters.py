"""From the filters of qdrant-client to those of the engine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import qdrant_edge as edge
from qdrant_client.http import models

from knnlm_store_qdrant.engine.refusal import Refused, only, translating, wrong

_FIELD = ("match", "range", "is_empty", "is_null")


def filter_of(given: models.Filter | None) -> edge.Filter | None:
    """Translate a filter; raises Refused for conditions that are not offered."""
    if given is None:
        return None
    with translating():
        return _filter(given)


def _filter(given: models.Filter) -> edge.Filter:
    least = None
    if given.min_should is not None:
        conditions = _conditions(given.min_should.conditions) or []
        least = edge.MinShould(conditions, given.min_should.min_count)
    return edge.Filter(
        must=_conditions(given.must),
        should=_conditions(given.should),
        must_not=_conditions(given.must_not),
        min_should=least,
    )


def _conditions(given: Any) -> list[Any] | None:
    """Translate one condition, a list of them, or None."""
    if given is None:
        return None
    return [_condition(each) for each in (given if isinstance(given, list) else [given])]


def _condition(given: Any) -> Any:
    translate = _CONDITIONS.get(type(given))
    if translate is None:
        raise wrong(f"the embedded engine does not offer {type(given).__name__}")
    return translate(given)


def _field(given: models.FieldCondition) -> edge.FieldCondition:
    only(given, ("key", *_FIELD), "filter.")
    if all(getattr(given, name) is None for name in _FIELD):
        raise Refused(422, "Validation error: At least one field condition must be specified")
    return edge.FieldCondition(
        given.key,
        match=_match(given.match),
        range=_range(given.range),
        is_empty=given.is_empty,
        is_null=given.is_null,
    )


def _match(given: Any) -> Any:
    if given is None:
        return None
    if isinstance(given, models.MatchValue):
        return edge.MatchValue(given.value)
    if isinstance(given, models.MatchAny):
        return edge.MatchAny(given.any)
    if isinstance(given, models.MatchExcept):
        return edge.MatchExcept(given.except_)
    raise wrong(f"the embedded engine does not offer {type(given).__name__}")


def _range(given: Any) -> edge.RangeFloat | None:
    if given is None:
        return None
    if not isinstance(given, models.Range):
        raise wrong("the embedded engine does not offer ranges of dates")
    return edge.RangeFloat(gte=given.gte, gt=given.gt, lte=given.lte, lt=given.lt)


_CONDITIONS: dict[type, Callable[[Any], Any]] = {
    models.Filter: _filter,
    models.FieldCondition: _field,
    models.HasIdCondition: lambda given: edge.HasIdCondition(set(given.has_id)),
    models.IsEmptyCondition: lambda given: edge.IsEmptyCondition(given.is_empty.key),
    models.IsNullCondition: lambda given: edge.IsNullCondition(given.is_null.key),
}
