"""A whole namespace as one file: written by export.py, taken in by restore.py.

The file is a plain tar: `index.json`, then `records/{number}.jsonl`, then `blobs/{sha256}`. The index
holds the digest of every file of records, a record that of its manifest, a manifest those of its
files: who knows the digest of the index knows everything that is in the archive.
"""

from __future__ import annotations

from graft.archive.export import export_namespace
from graft.archive.restore import Restored, import_namespace
from graft.archive.summary import Summary

__all__ = ["Restored", "Summary", "export_namespace", "import_namespace"]
