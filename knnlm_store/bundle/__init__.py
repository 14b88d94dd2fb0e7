"""Bundles: a datastore as a folder of Parquet files, to be kept, handed on and imported elsewhere.

    bundle.json            what stands in the folder, with sizes and checksums
    entries-00000.parquet  entries in order of document and position, in shards
    documents.parquet      the catalog, in the same order of documents
    records.parquet        manifest, probe, key transform, calibration

A bundle is written whole or not at all, and checked in full before an import writes anything.
"""

from knnlm_store.bundle.checking import check
from knnlm_store.bundle.importing import import_bundle, open_bundle, require_target
from knnlm_store.bundle.writing import ExportReport, export_bundle

__all__ = [
    "ExportReport",
    "check",
    "export_bundle",
    "import_bundle",
    "open_bundle",
    "require_target",
]
