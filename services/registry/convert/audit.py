"""Entries of the audit log as the contract has them."""

from __future__ import annotations

from graft.registry.v1 import operations_service_pb2 as pb

from services.registry.catalogue.audit import Entry
from services.registry.convert.messages import timestamp


def entry_message(entry: Entry) -> pb.AuditEntry:
    """An entry as the contract has it."""
    return pb.AuditEntry(
        number=entry.number,
        namespace=entry.namespace,
        time=timestamp(entry.time),
        actor=entry.actor,
        method=entry.method,
        resource=entry.resource,
        request_id=entry.request_id,
        detail_json=entry.detail_json,
        digest=entry.digest,
    )
