"""What the groups of RPCs share."""

from __future__ import annotations

from dataclasses import dataclass

from graft.registry.v1 import registry_service_pb2 as pb
from graft.registry.v1 import registry_service_pb2_grpc as rpc

from services.registry.catalogue.base import Catalogue
from services.registry.catalogue.lives import Lives
from services.registry.catalogue.lookup import VersionLookup
from services.registry.commit import VersionCommitter
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
    """

    catalogue: Catalogue
    committer: VersionCommitter
    feed: ChangeFeed
    lives: Lives
    lookup: VersionLookup[pb.Version]


class RpcGroup(rpc.RegistryServiceServicer):
    """Some of the RPCs of RegistryService."""

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
