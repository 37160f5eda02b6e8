"""Domain values as rows and JSON columns, and back."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any, TypeVar

from pydantic import TypeAdapter
from sqlalchemy import Row

from services.registry.domain import (
    Adapter,
    Alias,
    Base,
    Event,
    Fingerprint,
    Manifest,
    Module,
    Report,
    Resource,
    Version,
)

T = TypeVar("T")
AnyRow = Row[Any]
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_KINDS: Mapping[str, type[Resource]] = {
    "adapter": Adapter,
    "base": Base,
    "version": Version,
    "alias": Alias,
}


def to_us(time: datetime) -> int:
    """Microseconds since 1970."""
    return (time - _EPOCH) // timedelta(microseconds=1)


def from_us(time_us: int) -> datetime:
    """The time of so many microseconds since 1970."""
    return _EPOCH + timedelta(microseconds=time_us)


@cache
def _cached_codec(kind: Hashable) -> TypeAdapter[Any]:
    shape: Any = kind
    return TypeAdapter(shape)


def _codec(kind: Any) -> TypeAdapter[Any]:
    return _cached_codec(kind)


def dump(value: Any, kind: Any) -> str:
    """A value as JSON text."""
    return _codec(kind).dump_json(value).decode()


def load(text: str, kind: type[T]) -> T:
    """The value of JSON text that dump() wrote."""
    value: T = _codec(kind).validate_json(text)
    return value


def kind_of(resource: Resource) -> str:
    """The word for a resource's type in the tables."""
    return type(resource).__name__.lower()


def load_resource(kind: str, text: str) -> Resource:
    """The resource of an event or a stored answer."""
    resource: Resource = _codec(_KINDS[kind]).validate_json(text)
    return resource


def adapter_of(row: AnyRow) -> Adapter:
    return Adapter(
        name=row.name,
        base=row.base,
        description=row.description,
        labels=load(row.labels, dict[str, str]),
        latest_version=row.latest_version,
        create_time=from_us(row.create_time_us),
    )


def adapter_row(adapter: Adapter, namespace: str) -> dict[str, Any]:
    return {
        "name": adapter.name,
        "namespace": namespace,
        "base": adapter.base,
        "description": adapter.description,
        "labels": dump(dict(adapter.labels), dict[str, str]),
        "latest_version": adapter.latest_version,
        "create_time_us": to_us(adapter.create_time),
    }


def base_of(row: AnyRow, whole: bool = True) -> Base:
    """A base; without modules and configuration where the row was read without them."""
    return Base(
        name=row.name,
        source=row.source,
        fingerprint=load(row.fingerprint, Fingerprint),
        config_json=row.config_json if whole else "",
        modules=load(row.modules, list[Module]) if whole else (),
        create_time=from_us(row.create_time_us),
    )


def base_row(base: Base, namespace: str) -> dict[str, Any]:
    return {
        "name": base.name,
        "namespace": namespace,
        "source": base.source,
        "fingerprint": dump(base.fingerprint, Fingerprint),
        "config_json": base.config_json,
        "modules": dump(base.modules, Sequence[Module]),
        "create_time_us": to_us(base.create_time),
    }


def version_of(row: AnyRow) -> Version:
    return Version(
        adapter=row.adapter,
        number=row.number,
        digest=row.digest,
        manifest=load(row.manifest, Manifest),
        report=load(row.report, Report),
        create_time=from_us(row.create_time_us),
    )


def version_row(version: Version) -> dict[str, Any]:
    return {
        "adapter": version.adapter,
        "number": version.number,
        "digest": version.digest,
        "manifest": dump(version.manifest, Manifest),
        "report": dump(version.report, Report),
        "create_time_us": to_us(version.create_time),
    }


def alias_of(row: AnyRow) -> Alias:
    return Alias(
        name=row.name,
        adapter=row.adapter,
        version=row.version,
        version_digest=row.version_digest,
        previous_version=row.previous_version,
        etag=row.etag,
        actor=row.actor,
        reason=row.reason,
        update_time=from_us(row.update_time_us),
        revision=row.revision,
    )


def alias_row(alias: Alias, namespace: str) -> dict[str, Any]:
    row = asdict(alias)
    row["update_time_us"] = to_us(row.pop("update_time"))
    return {**row, "namespace": namespace}


def event_of(row: AnyRow) -> Event:
    return Event(
        revision=row.revision,
        namespace=row.namespace,
        time=from_us(row.time_us),
        resource=load_resource(row.kind, row.resource),
    )
