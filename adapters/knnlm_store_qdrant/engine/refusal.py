"""The errors that a request is answered with, in Qdrant's HTTP codes and wording."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager

from pydantic import BaseModel

WAL_FULL = "No space left on device: WAL buffer size exceeds available disk space"
_WRONG_INPUT = ("Vector dimension error", "Not existing vector name", "Wrong input", "Bad request")


class Refused(Exception):
    """A request that is answered with an error: HTTP `status` and a sentence."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def wrong(message: str) -> Refused:
    """Make the error of a request that cannot be right."""
    return Refused(400, f"Wrong input: {message}")


def failed(message: str) -> Refused:
    """Make the error of a request that was right and could not be served."""
    return Refused(500, f"Service internal error: {message}")


def no_collection(name: str) -> Refused:
    """Make the error of a collection that is not there."""
    return Refused(404, f"Not found: Collection `{name}` doesn't exist!")


def only(given: BaseModel | None, allowed: Collection[str], where: str = "") -> None:
    """Raise Refused if `given` sets a field that is not in `allowed`."""
    for name in given.model_fields_set if given is not None else ():
        if name not in allowed and getattr(given, name) is not None:
            raise wrong(f"the embedded engine does not offer `{where}{name}`")


@contextmanager
def translating() -> Iterator[None]:
    """Raise what the engine's types reject as an error of the request."""
    try:
        yield
    except (TypeError, ValueError, OverflowError) as error:
        raise wrong(str(error).splitlines()[0][:300]) from error


@contextmanager
def engine() -> Iterator[None]:
    """Raise errors of the engine, which are bare Exceptions, as Refused."""
    try:
        yield
    except Refused:
        raise
    except Exception as error:
        text = str(error)
        if text.startswith(_WRONG_INPUT):
            raise wrong(text.removeprefix("Wrong input: ")) from error
        if "os error 28" in text or "No space left" in text:
            raise failed(WAL_FULL) from error
        raise failed(text) from error
