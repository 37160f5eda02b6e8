"""The records of an archive: what a namespace holds besides bytes, a line of JSON each, and their index.

Records come in the order in which they can be made: bases, adapters, versions from the oldest on,
aliases, policies.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from google.protobuf.json_format import MessageToDict, ParseDict, ParseError

from graft.archive.tar import INDEX, ArchiveReader, ArchiveWriter, Member, refused
from graft.digests import digest_bytes, is_digest
from graft.errors import GraftError
from graft.names import namespace_name
from graft.registry.v1 import registry_service_pb2 as pb

FORMAT, FORMAT_VERSION = "graft-archive", 1
_CHUNK_BYTES = 4 * 1024 * 1024
_MOST_INDEX_BYTES = 16 * 1024 * 1024
_MOST_LINE_BYTES = 16 * 1024 * 1024
_MOST_MEMBER_BYTES = _CHUNK_BYTES + _MOST_LINE_BYTES
KINDS: dict[str, type[pb.Base | pb.Adapter | pb.Version | pb.Alias | pb.AliasPolicy]] = {
    "base": pb.Base,
    "adapter": pb.Adapter,
    "version": pb.Version,
    # One record for each move, oldest first.
    "alias": pb.Alias,
    "policy": pb.AliasPolicy,
}
Resource = pb.Base | pb.Adapter | pb.Version | pb.Alias | pb.AliasPolicy


@dataclass(frozen=True, slots=True)
class Index:
    """The first member: whose archive it is, and the digests of all its records."""

    namespace: str
    counts: dict[str, int]
    records: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> bytes:
        """The same bytes for the same content."""
        body = {"format": FORMAT, "version": FORMAT_VERSION, "namespace": self.namespace}
        full = {**body, "counts": self.counts, "records": self.records}
        return json.dumps(full, sort_keys=True, indent=1).encode()


def pack(resources: Iterable[Resource]) -> Iterator[bytes]:
    """Resources as the contents of members of some MiB each."""
    lines: list[bytes] = []
    size_bytes = 0
    for resource in resources:
        line = _line(resource)
        lines.append(line)
        size_bytes += len(line)
        if size_bytes >= _CHUNK_BYTES:
            yield b"".join(lines)
            lines, size_bytes = [], 0
    if lines:
        yield b"".join(lines)


def member_name(number: int) -> str:
    """The name of the records' member of that number, from 1."""
    return f"records/{number:08d}.jsonl"


def write_index(writer: ArchiveWriter, index: Index) -> str:
    """Writes the index; answers its digest, which is the archive's."""
    data = index.to_json()
    writer.add(INDEX, data)
    return digest_bytes(data)


def read_index(reader: ArchiveReader) -> tuple[Index, str]:
    """The index and its digest. Raises ARCHIVE_REFUSED."""
    member = reader.next()
    if member is None or member.name != INDEX:
        raise refused(f"it does not begin with {INDEX}")
    data = reader.read(member, _MOST_INDEX_BYTES)
    body = _object(data, INDEX)
    if body.get("format") != FORMAT:
        raise refused("it is no archive of a namespace")
    if body.get("version") != FORMAT_VERSION:
        raise refused(
            f"its format is of version {body.get('version')!r}, this graft reads {FORMAT_VERSION}",
            "Import it with the graft that exported it, or a newer one.",
        )
    namespace, counts, records = body.get("namespace"), body.get("counts"), body.get("records")
    names = [member_name(number + 1) for number in range(len(records or ()))]
    if (
        not isinstance(namespace, str)
        or not isinstance(counts, dict)
        or not isinstance(records, dict)
        or sorted(records) != names
        or not all(isinstance(one, str) and is_digest(one) for one in records.values())
    ):
        raise refused(f"its {INDEX} is malformed")
    try:
        namespace_name(namespace)
    except GraftError as error:
        raise refused(error.message) from None
    return Index(namespace, counts, records), digest_bytes(data)


def copy_records(reader: ArchiveReader, index: Index, spool: BinaryIO) -> Member | None:
    """Verifies all records and writes them to spool; answers the member after them."""
    for name in sorted(index.records):
        member = reader.next()
        if member is None or member.name != name:
            raise refused(f"{name} is missing")
        if digest_bytes(data := reader.read(member, _MOST_MEMBER_BYTES)) != index.records[name]:
            raise refused(f"{name} has other bytes than the index says")
        spool.write(data)
    return reader.next()


def read_records(spool: BinaryIO) -> Iterator[Resource]:
    """The resources that copy_records() wrote."""
    spool.seek(0)
    while line := spool.readline(_MOST_LINE_BYTES + 1):
        if len(line) > _MOST_LINE_BYTES or not line.endswith(b"\n"):
            raise refused("it has a record that is too long or cut off")
        yield _parse(line)


def _line(resource: Resource) -> bytes:
    (kind,) = (kind for kind, type_ in KINDS.items() if isinstance(resource, type_))
    body = {"kind": kind, kind: MessageToDict(resource, preserving_proto_field_name=True)}
    return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


def _parse(line: bytes) -> Resource:
    body = _object(line, "a record")
    kind = body.get("kind")
    if not isinstance(kind, str) or kind not in KINDS or set(body) != {"kind", kind}:
        raise refused(
            f"it has a record of kind {str(kind)[:80]!r}",
            "Import it with the graft that exported it, or a newer one.",
        )
    try:
        return ParseDict(body[kind], KINDS[kind]())
    except (ParseError, RecursionError, AttributeError, TypeError) as error:
        raise refused(
            f"a record of kind {kind} is not what this graft knows: {str(error)[:200]}",
            "Import it with the graft that exported it, or a newer one.",
        ) from None


def _object(data: bytes, what: str) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise refused(f"{what} is not a JSON object")
    return value
