"""Qdrant's own engine in a child process, spoken to over loopback HTTP: `qdrant:PATH/NAME`.

`child` starts and stops that process; the rest is what runs inside it: a thin REST front over
qdrant-edge-py, whose requests are parsed with qdrant-client's own models. It serves what an
adapter needs of collections, points, payload indexes and aliases. It is one node without gRPC,
TLS, roles, replication, strict mode, snapshots, named and sparse vectors: asked for one of
those it answers 400 or 501 and says so.
"""

from knnlm_store_qdrant.engine.child import Endpoint, acquire

__all__ = ["Endpoint", "acquire"]
