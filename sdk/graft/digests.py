"""SHA-256 digests in the one form that the contract uses, and the canonical JSON that they are taken of."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
CHUNK_BYTES = 1024 * 1024


def is_digest(text: str) -> bool:
    """Whether text is "sha256:" and 64 lower-case hexadecimal digits."""
    return _DIGEST.fullmatch(text) is not None


def digest_bytes(data: bytes) -> str:
    """Digest of data, as "sha256:{hex}"."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def digest_file(path: Path) -> str:
    """Digest of a file's bytes, read in chunks of 1 MiB."""
    hasher = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            hasher.update(chunk)
    return "sha256:" + hasher.hexdigest()


def canonical_json(message: Message) -> bytes:
    """A protobuf message as JSON that is the same wherever it is made: sorted keys, no spaces, UTF-8.

    Fields without a value are left out, so that a field added to the contract later changes no digest.
    """
    as_dict = MessageToDict(message, preserving_proto_field_name=True)
    return json.dumps(as_dict, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def digest_message(message: Message) -> str:
    """Digest of a message's canonical JSON."""
    return digest_bytes(canonical_json(message))


def audit_digest(
    before: str,
    *,
    number: int,
    namespace: str,
    time_us: int,
    actor: str,
    method: str,
    resource: str,
    request_id: str,
    detail: str,
) -> str:
    """Digest of an entry of the audit log, chained to that of the entry before it.

    Args:
        before: the digest of the entry before; empty for the first.
        number: of the entry, from 1.
        namespace: its id, not its name.
        time_us: microseconds since 1970.
        actor, method, resource, request_id: as in AuditEntry.
        detail: detail_json as it is stored, byte for byte.
    """
    entry = {
        "number": number,
        "namespace": namespace,
        "time_us": time_us,
        "actor": actor,
        "method": method,
        "resource": resource,
        "request_id": request_id,
        "detail": detail,
    }
    text = json.dumps([before, entry], sort_keys=True, separators=(",", ":"))
    return digest_bytes(text.encode())
