"""OperationsService: its groups of RPCs, put together."""

from __future__ import annotations

from services.registry.rpcs.audit import AuditRpcs
from services.registry.rpcs.operations import CollectionRpcs, LeaseRpcs, NamespaceRpcs


class OperationsServicer(LeaseRpcs, CollectionRpcs, NamespaceRpcs, AuditRpcs):
    """Answers OperationsService."""
