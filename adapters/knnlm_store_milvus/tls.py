"""Why a server with TLS cannot be reached: gRPC says of any certificate that nobody is there."""

from __future__ import annotations

import socket
import ssl
import time
from urllib.parse import urlsplit

from knnlm_store.errors import BackendUnavailable
from knnlm_store_milvus.place import DEFAULT_PORT, Place


def explained(failure: BackendUnavailable, place: Place, end: float) -> BackendUnavailable:
    """Give the error of a server that was not reached; a better one where TLS is the reason.

    For that it shakes hands anew, until `end` on the monotonic clock at the latest.
    """
    left = end - time.monotonic()
    secure = place.uri.startswith("https:") and left > 0
    return (_problem(place, left) if secure else None) or failure


def _problem(place: Place, seconds: float) -> BackendUnavailable | None:
    server = urlsplit(place.uri)
    address = (server.hostname or "", server.port or DEFAULT_PORT)
    context = ssl.create_default_context(cafile=place.ca or None)
    try:
        with socket.create_connection(address, seconds) as plain:
            context.wrap_socket(plain, server_hostname=address[0]).close()
    except ssl.SSLCertVerificationError as error:
        return _lasting(
            f"The certificate of Milvus at {place.label} is not trusted: {error.verify_message}.",
            "Name the file of the authority that signed it in KNNLM_MILVUS_CA.",
        )
    except ssl.SSLError as error:
        return _lasting(
            f"Milvus at {place.label} does not speak TLS as expected ({error.reason}).",
            "Write milvuss:// for a server with TLS, milvus:// for one without.",
        )
    except OSError:
        return None
    return None


def _lasting(said: str, hint: str) -> BackendUnavailable:
    failure = BackendUnavailable(said, hint=hint)
    failure.retryable = False  # it will not change by itself
    return failure
