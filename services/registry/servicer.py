"""RegistryService: its groups of RPCs, put together."""

from __future__ import annotations

from services.registry.rpcs.aliases import AliasRpcs
from services.registry.rpcs.approvals import ApprovalRpcs
from services.registry.rpcs.lineage import LineageRpcs
from services.registry.rpcs.lives import LifeRpcs
from services.registry.rpcs.models import ModelRpcs
from services.registry.rpcs.signatures import SignatureRpcs
from services.registry.rpcs.versions import VersionRpcs
from services.registry.rpcs.watch import WatchRpcs


class RegistryServicer(
    ModelRpcs, VersionRpcs, LifeRpcs, SignatureRpcs, AliasRpcs, ApprovalRpcs, LineageRpcs, WatchRpcs
):
    """Answers RegistryService. Each group takes a request apart, asks, and puts the answer together."""
