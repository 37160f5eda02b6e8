"""The registry's messages as this service's domain has them."""

from __future__ import annotations

from graft.common.v1.common_pb2 import File
from graft.digests import digest_message
from graft.registry.v1 import registry_service_pb2 as pb
from graft.rollout_messages import number_of, rollout_of

from services.inference.bases.domain import BaseVersion
from services.inference.domain import (
    AdapterFile,
    AdapterSeen,
    AdapterVersion,
    AliasSeen,
    Change,
    Event,
    Gone,
    Returned,
)


def adapter_seen(adapter: pb.Adapter) -> AdapterSeen:
    """An adapter of the registry."""
    return AdapterSeen(adapter.name, adapter.base, adapter.latest_version)


def alias_seen(alias: pb.Alias) -> AliasSeen:
    """An alias of the registry."""
    adapter, _, name = alias.name.partition("/aliases/")
    return AliasSeen(
        adapter,
        name,
        alias.version,
        alias.revision,
        tuple((number_of(one.version), one.weight_percent) for one in alias.canaries),
        rollout_of(alias.rollout) if alias.HasField("rollout") else None,
        alias.etag,
        alias.reason,
    )


def adapter_version(version: pb.Version) -> AdapterVersion:
    """A version of the registry."""
    manifest = version.manifest
    return AdapterVersion(
        name=version.name,
        adapter=version.name.partition("/versions/")[0],
        number=version.number,
        digest=version.digest,
        base_fingerprint=manifest.base_fingerprint,
        peft_type=manifest.peft_type,
        rank=manifest.rank,
        files=_files(version),
        manifest_digest=digest_message(manifest),
        envelopes=tuple(one.envelope_json for one in version.signatures),
    )


def base_version(version: pb.Version) -> BaseVersion:
    """A base's version of the registry."""
    manifest = version.manifest
    return BaseVersion(
        name=version.name,
        digest=version.digest,
        fingerprint=manifest.fingerprint.digest,
        files=_files(version),
    )


def _files(version: pb.Version) -> tuple[AdapterFile, ...]:
    return tuple(
        AdapterFile(file.path, file.digest, file.size_bytes) for file in version.manifest.files
    )


def event(message: pb.WatchResponse) -> Event:
    """A change of the registry; what does not concern adapters counts as a bookmark."""
    time_s = message.time.seconds + message.time.nanos / 1e9
    changed = message.WhichOneof("change")
    change: Change | None = None
    if changed in ("version", "alias") and not of_adapter(getattr(message, changed).name):
        # Of a base: neither is a name that a request may use.
        return Event(message.revision, time_s, None)
    ended = message.change_type in (pb.CHANGE_TYPE_DELETED, pb.CHANGE_TYPE_PURGED)
    match changed:
        case "adapter" if ended:
            change = Gone(message.adapter.name)
        case "adapter" if message.change_type == pb.CHANGE_TYPE_UNDELETED:
            change = Returned(message.adapter.name)
        case "adapter":
            change = adapter_seen(message.adapter)
        case "alias" if ended:
            adapter, _, alias = message.alias.name.partition("/aliases/")
            change = Gone(adapter, alias)
        case "version" if ended:
            pass  # No name means it, or its adapter is deleted too.
        case "version":
            change = adapter_version(message.version)
        case "alias":
            change = alias_seen(message.alias)
    return Event(message.revision, time_s, change)


def of_adapter(name: str) -> bool:
    """Whether a version or an alias is an adapter's, and not a base's."""
    return name.split("/")[2:3] == ["adapters"]


def file_message(file: AdapterFile) -> File:
    """A file as the blob client takes it."""
    return File(path=file.path, digest=file.digest, size_bytes=file.size_bytes)
