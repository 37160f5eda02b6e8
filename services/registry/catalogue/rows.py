"""Domain values as rows and JSON columns, and back."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any, TypeVar

from graft.names import version_name
from graft.rollout_policy import Rollout, RolloutReport
from pydantic import TypeAdapter
from sqlalchemy import Row

from services.registry.domain import (
    Action,
    Adapter,
    Alias,
    AliasPolicy,
    Base,
    Canary,
    Event,
    Fingerprint,
    GateReport,
    Kind,
    Life,
    Manifest,
    Module,
    Report,
    Resource,
    Signature,
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
    "policy": AliasPolicy,
}
_WORDS = {kind: word for word, kind in _KINDS.items()}


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
    return _WORDS[type(resource)]


def name_of(resource: Resource) -> str:
    """A resource's name."""
    if isinstance(resource, Version):
        return version_name(resource.parent, resource.number)
    return resource.name


def parent_of(resource: Resource) -> str:
    """Name of the adapter or base that a resource is or belongs to."""
    return resource.name if isinstance(resource, Adapter | Base) else resource.parent


def load_resource(kind: str, text: str) -> Resource:
    """The resource of an event or a stored answer."""
    resource: Resource = _codec(_KINDS[kind]).validate_json(text)
    return resource


def life_of(row: AnyRow) -> Life:
    """The life of a row that has its columns."""
    return Life(
        etag=row.etag,
        actor=row.actor,
        delete_time=_time(row.delete_time_us),
        expire_time=_time(row.expire_time_us),
        purge_time=_time(row.purge_time_us),
    )


def life_row(life: Life) -> dict[str, Any]:
    """The columns of a life."""
    return {
        "etag": life.etag,
        "actor": life.actor,
        "delete_time_us": _us(life.delete_time),
        "expire_time_us": _us(life.expire_time),
        "purge_time_us": _us(life.purge_time),
    }


def ended(delete_time_us: int | None, purge_time_us: int | None) -> Life:
    """The life of something of which only its end was read."""
    return Life(delete_time=_time(delete_time_us), purge_time=_time(purge_time_us))


def _time(time_us: int | None) -> datetime | None:
    return None if time_us is None else from_us(time_us)


def _us(time: datetime | None) -> int | None:
    return None if time is None else to_us(time)


def adapter_of(row: AnyRow) -> Adapter:
    return Adapter(
        name=row.name,
        base=row.base,
        description=row.description,
        labels=load(row.labels, dict[str, str]),
        latest_version=row.latest_version,
        create_time=from_us(row.create_time_us),
        life=life_of(row),
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
        **life_row(adapter.life),
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
        description=row.description,
        labels=load(row.labels, dict[str, str]),
        latest_version=row.latest_version,
        life=life_of(row),
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
        "description": base.description,
        "labels": dump(dict(base.labels), dict[str, str]),
        "latest_version": base.latest_version,
        **life_row(base.life),
    }


def version_of(row: AnyRow) -> Version:
    return Version(
        parent=row.parent,
        number=row.number,
        digest=row.digest,
        manifest=load(row.manifest, Manifest),
        report=load(row.report, Report),
        create_time=from_us(row.create_time_us),
        description=row.description,
        labels=load(row.labels, dict[str, str]),
        life=life_of(row),
        signatures=tuple(load(row.signatures, list[Signature])),
    )


def version_row(version: Version, namespace: str) -> dict[str, Any]:
    manifest = version.manifest
    fingerprint = manifest.fingerprint
    return {
        "parent": version.parent,
        "number": version.number,
        "namespace": namespace,
        "kind": (manifest.kind or Kind.ADAPTER).value,
        "digest": version.digest,
        "base": manifest.base,
        "base_fingerprint": manifest.base_fingerprint,
        "fingerprint": "" if fingerprint is None else fingerprint.digest,
        "method": manifest.method,
        "rank": manifest.rank,
        "size_bytes": manifest.size_bytes,
        "manifest": dump(manifest, Manifest),
        "report": dump(version.report, Report),
        "signatures": dump(version.signatures, Sequence[Signature]),
        "create_time_us": to_us(version.create_time),
        "description": version.description,
        "labels": dump(dict(version.labels), dict[str, str]),
        **life_row(version.life),
    }


def alias_of(row: AnyRow) -> Alias:
    """An alias as it is, or as it was after a move."""
    return Alias(
        name=row.name,
        parent=row.parent,
        version=row.version,
        version_digest=row.version_digest,
        previous_version=row.previous_version,
        etag=row.etag,
        actor=row.actor,
        reason=row.reason,
        update_time=from_us(row.update_time_us),
        revision=row.revision,
        canaries=tuple(load(row.canaries, list[Canary])),
        gate_report=_optional(row.gate_report, GateReport),
        rollout=_optional(row.rollout, Rollout),
        rollout_report=_optional(row.rollout_report, RolloutReport),
        deleted=bool(getattr(row, "deleted", False)),
    )


def _optional(text: str, kind: type[T]) -> T | None:
    return None if text == "null" else load(text, kind)


def _dumped(value: object) -> str:
    return "null" if value is None else dump(value, type(value))


def alias_row(alias: Alias, namespace: str) -> dict[str, Any]:
    """The columns of both aliases and their moves; a move's deleted is apart."""
    return {
        "name": alias.name,
        "namespace": namespace,
        "parent": alias.parent,
        "version": alias.version,
        "version_digest": alias.version_digest,
        "previous_version": alias.previous_version,
        "etag": alias.etag,
        "actor": alias.actor,
        "reason": alias.reason,
        "update_time_us": to_us(alias.update_time),
        "revision": alias.revision,
        "canaries": dump(alias.canaries, Sequence[Canary]),
        "gate_report": _dumped(alias.gate_report),
        "rollout": _dumped(alias.rollout),
        "rollout_report": _dumped(alias.rollout_report),
    }


def event_of(row: AnyRow) -> Event:
    return Event(
        revision=row.revision,
        namespace=row.namespace,
        parent=row.parent,
        action=Action(row.action),
        time=from_us(row.time_us),
        resource=load_resource(row.kind, row.resource),
    )
