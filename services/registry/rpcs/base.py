"""What the groups of RPCs share."""

from __future__ import annotations

from dataclasses import dataclass

from graft.registry.v1 import registry_service_pb2 as pb
from graft.registry.v1 import registry_service_pb2_grpc as rpc

from services.registry.catalogue.approvals import Approvals
from services.registry.catalogue.base import Catalogue
from services.registry.catalogue.finding import Finder
from services.registry.catalogue.lineage import LineageGraph
from services.registry.catalogue.lives import Lives
from services.registry.catalogue.lookup import VersionLookup
from services.registry.catalogue.policies import Policies
from services.registry.catalogue.updates import Updates
from services.registry.commit import VersionCommitter
from services.registry.pages import PageTokens
from services.registry.watch import ChangeFeed


@dataclass(frozen=True, slots=True)
class Parts:
    """What RegistryService's answers are made with.

    Attributes:
        catalogue: what exists.
        committer: makes versions.
        feed: tells of changes.
        lives: ends and returns.
        lookup: what aliases name.
        finder: lists what exists.
        updates: changes what is said of it.
        lineage: what was made from what.
        tokens: lead from page to page.
        policies: what must hold before they move.
        approvals: who agrees.
    """

    catalogue: Catalogue
    committer: VersionCommitter
    feed: ChangeFeed
    lives: Lives
    lookup: VersionLookup[pb.Version]
    finder: Finder
    updates: Updates
    lineage: LineageGraph
    tokens: PageTokens
    policies: Policies
    approvals: Approvals


class RpcGroup(rpc.RegistryServiceServicer):
    """Some of the RPCs of RegistryService."""

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
