"""Every error a user can meet, drawn as a tree.

KnnlmError
|-- UsageError            a parameter or argument that cannot be right
|-- UnknownBackend        no adapter of that name, or two of them
|-- MissingDependency     a library of an extra is not installed
|-- ModelError            the language model or its tokenizer cannot serve
|-- CorpusError           nothing readable where a corpus was promised
`-- StoreError
    |-- StoreNotFound
    |-- StoreExists
    |-- StoreMismatch     another model, tokenizer, key point or format wrote the datastore
    |-- StoreCorrupt
    |-- StoreNotWritable  permission, or a read-only file system
    |-- StorageFull
    |-- InvalidEntries    wrong dimension, dtype or shape; NaN or inf; an id twice
    `-- BackendUnavailable  transient: the same call may succeed later

An error is one sentence; `hint` is the next command or step to try. `retryable` says whether
the same call may succeed unchanged.
"""

from __future__ import annotations


class KnnlmError(Exception):
    """Base of every error this package raises on purpose."""

    retryable: bool = False

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class UsageError(KnnlmError):
    """A parameter that cannot be right, whatever the state of the datastore."""


class UnknownBackend(KnnlmError):
    """No installed adapter answers to the name, or more than one does."""


class MissingDependency(KnnlmError):
    """A library that an extra would have installed is missing."""

    @classmethod
    def of(cls, library: str, extra: str) -> MissingDependency:
        """Name the missing library and the command that installs it."""
        return cls(f"{library} is not installed.", hint=f"Run: pip install 'knnlm-store[{extra}]'")


class ModelError(KnnlmError):
    """The language model or its tokenizer cannot be loaded or cannot serve."""


class CorpusError(KnnlmError):
    """Nothing readable where a corpus was promised."""


class StoreError(KnnlmError):
    """Base of the errors about a datastore."""


class StoreNotFound(StoreError):
    """No datastore under this name."""


class StoreExists(StoreError):
    """The name is taken."""


class StoreMismatch(StoreError):
    """The datastore was written by something else; `field` names what differs."""

    def __init__(self, message: str, *, field: str, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.field = field


class StoreCorrupt(StoreError):
    """Files or records of the datastore cannot be what was written."""


class StoreNotWritable(StoreError):
    """No permission to write, or a read-only file system."""


class StorageFull(StoreError):
    """No space left for what was to be written; what was committed before is intact."""


class InvalidEntries(StoreError):
    """Entries or queries that no datastore may hold; nothing was written."""


class BackendUnavailable(StoreError):
    """The backend did not answer in time or refused for now."""

    retryable = True
