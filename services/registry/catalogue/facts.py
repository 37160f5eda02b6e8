"""What of a version can be found: its files, metrics, labels and what it was made from, as rows."""

from __future__ import annotations

import math
from typing import Any

from graft.names import version_name

from services.registry.catalogue.change import Change
from services.registry.catalogue.models import add_labels
from services.registry.catalogue.tables import lineage_edges, version_metrics
from services.registry.domain import Kind, Version


def file_rows(version: Version) -> list[dict[str, Any]]:
    """Which blobs a new version needs. They are stored at once: a purge or a collection may come
    next in the same transaction, and has to see it."""
    key = {"parent": version.parent, "number": version.number}
    digests = sorted({file.digest for file in version.manifest.files})
    return [{**key, "digest": digest} for digest in digests]


def add_facts(change: Change, namespace: str, version: Version) -> None:
    """Notes all other rows of a new version."""
    key = {"parent": version.parent, "number": version.number}
    manifest = version.manifest
    change.add(
        version_metrics,
        [
            {**key, "namespace": namespace, "metric": metric, "value": value}
            for metric, value in manifest.lineage.metrics.items()
            # Nothing can be sorted by a NaN.
            if not math.isnan(value)
        ],
    )
    add_labels(change, namespace, version.parent, version.number, version.labels)
    result = version_name(version.parent, version.number)
    change.add(
        lineage_edges,
        [
            {"result": result, "relation": relation, "source": source, "namespace": namespace}
            for relation, source in sorted(set(_sources(namespace, version)))
        ],
    )


def _sources(namespace: str, version: Version) -> list[tuple[str, str]]:
    """(relation, name) of everything that a version was made from; see LineageEdge."""
    lineage, manifest = version.manifest.lineage, version.manifest
    # A version of a base is one of its parent; only an adapter is made for a base.
    found = [] if manifest.kind is Kind.BASE else [("base", manifest.base)]
    if lineage.job:
        found.append(("job", lineage.job))
    if lineage.data_digest:
        found.append(("data", f"namespaces/{namespace}/data/{lineage.data_digest}"))
    found += [("parent", name) for name in lineage.parent_versions]
    found += [("source", name) for name in lineage.sources]
    return found
