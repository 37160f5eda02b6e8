"""What a lineage tells of each thing in it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from graft.digests import digest_bytes
from graft.names import version_name
from sqlalchemy import select, tuple_
from sqlalchemy.ext.asyncio import AsyncConnection

from services.registry.catalogue import rows
from services.registry.catalogue.tables import adapters, bases, versions
from services.registry.domain import Life, Version

_AT_ONCE = 100
_METRICS = 16
_NAMESPACE = "namespaces/[^/]+"
_PATTERNS = (
    ("version", re.compile(rf"{_NAMESPACE}/(adapters|bases)/[^/]+/versions/[0-9]{{1,18}}")),
    ("adapter", re.compile(rf"{_NAMESPACE}/adapters/[^/]+")),
    ("base", re.compile(rf"{_NAMESPACE}/bases/[^/]+")),
    ("job", re.compile(rf"{_NAMESPACE}/jobs/[^/]+")),
    ("data", re.compile(rf"{_NAMESPACE}/data/.+", re.DOTALL)),
)


class Kind(StrEnum):
    """What something in a lineage is."""

    VERSION = "version"
    ADAPTER = "adapter"
    BASE = "base"
    JOB = "job"
    DATA = "data"
    SOURCE = "source"


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """Something in a lineage; facts are empty for what the registry does not keep."""

    name: str
    kind: Kind
    facts: Mapping[str, str]
    deleted: bool = False


def kind_of(name: str) -> Kind:
    """What a name is of; any other is a place outside."""
    for kind, pattern in _PATTERNS:
        if pattern.fullmatch(name):
            return Kind(kind)
    return Kind.SOURCE


async def read_facts(connection: AsyncConnection, names: Sequence[str]) -> list[NodeFacts]:
    """The nodes of names, in their order."""
    found: dict[str, NodeFacts] = {}
    for index in range(0, len(names), _AT_ONCE):
        some = names[index : index + _AT_ONCE]
        found |= await _versions(connection, [one for one in some if kind_of(one) is Kind.VERSION])
        found |= await _models(connection, some)
    return [found.get(name) or NodeFacts(name, kind_of(name), {}) for name in names]


async def _versions(connection: AsyncConnection, names: Sequence[str]) -> dict[str, NodeFacts]:
    keys = [(name.partition("/versions/")[0], int(name.rpartition("/")[2])) for name in names]
    if not keys:
        return {}
    query = select(versions).where(tuple_(versions.c.parent, versions.c.number).in_(keys))
    found: dict[str, NodeFacts] = {}
    for row in await connection.execute(query):
        version = rows.version_of(row)
        name = version_name(version.parent, version.number)
        facts = _said(_of_version(version), version.life)
        found[name] = NodeFacts(name, Kind.VERSION, facts, version.life.deleted)
    return found


def _of_version(version: Version) -> dict[str, str]:
    manifest, lineage = version.manifest, version.manifest.lineage
    facts = {
        "digest": version.digest,
        "method": manifest.method,
        "rank": str(manifest.rank or ""),
        "quantization": manifest.quantization,
        "size_bytes": str(manifest.size_bytes),
        "create_time": version.create_time.isoformat(),
        "description": version.description,
        "attempt": str(lineage.attempt or ""),
        "data_rows": str(lineage.data_rows or ""),
        "seed": str(lineage.seed if lineage.job else ""),
        "spec_digest": digest_bytes(lineage.spec_json.encode()) if lineage.spec_json else "",
        "libraries": ", ".join(f"{name} {one}" for name, one in sorted(lineage.library_versions.items())),
    }  # fmt: skip
    for metric, value in sorted(lineage.metrics.items())[:_METRICS]:
        facts[f"metrics.{metric}"] = f"{value:.6g}"
    return facts


async def _models(connection: AsyncConnection, names: Sequence[str]) -> dict[str, NodeFacts]:
    found: dict[str, NodeFacts] = {}
    of_adapters = select(adapters).where(adapters.c.name.in_(names))
    for row in await connection.execute(of_adapters):
        adapter = rows.adapter_of(row)
        facts = {
            "base": adapter.base,
            "latest_version": str(adapter.latest_version),
            "create_time": adapter.create_time.isoformat(),
            "description": adapter.description,
        }
        found[adapter.name] = NodeFacts(
            adapter.name, Kind.ADAPTER, _said(facts, adapter.life), adapter.life.deleted
        )
    columns = [one for one in bases.c if one.name not in ("config_json", "modules")]
    for row in await connection.execute(select(*columns).where(bases.c.name.in_(names))):
        base = rows.base_of(row, whole=False)
        facts = {
            "fingerprint": base.fingerprint.digest,
            "source": base.source,
            "create_time": base.create_time.isoformat(),
            "description": base.description,
        }
        found[base.name] = NodeFacts(
            base.name, Kind.BASE, _said(facts, base.life), base.life.deleted
        )
    return found


def _said(facts: Mapping[str, str], life: Life) -> dict[str, str]:
    """Without what is empty, and with the end where there is one."""
    told = {name: value for name, value in facts.items() if value}
    if life.deleted:
        told["state"] = "deleted" if life.purge_time is None else "purged"
    return told
