"""FAISS adapter: a datastore in a local folder."""
