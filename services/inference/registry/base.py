"""What the inference service asks of the registry."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path

from graft.leases import LeaseKeeper
from graft.names import ModelReference
from graft.rollout_policy import RolloutReport

from services.inference.bases.domain import BaseReference, BaseVersion
from services.inference.domain import AdapterFile, AdapterVersion, Event, Snapshot


class Registry(ABC):
    """The catalogue of one namespace and the blobs behind it. Every call may raise UNAVAILABLE."""

    @abstractmethod
    async def record_base(self, folder: Path, name: str) -> str:
        """Makes sure that the registry knows the base in folder by this name; returns its fingerprint.

        Raises:
            GraftError: ALREADY_EXISTS when it knows another base by this name, NOT_A_MODEL.
        """

    @abstractmethod
    async def snapshot(self) -> Snapshot:
        """Everything there is, to begin with."""

    @abstractmethod
    def watch(self, after_revision: int) -> AsyncIterator[Event]:
        """Every change after a revision, in order; ends only by an error.

        Raises:
            GraftError: REVISION_COMPACTED: take a snapshot again.
        """

    @abstractmethod
    async def version(self, name: str) -> AdapterVersion:
        """One version by its resource name.

        Raises:
            GraftError: VERSION_NOT_FOUND, ADAPTER_NOT_FOUND.
        """

    @abstractmethod
    async def find(self, reference: ModelReference) -> AdapterVersion:
        """The version that a reference names now.

        Raises:
            GraftError: ADAPTER_NOT_FOUND, ALIAS_NOT_FOUND, VERSION_NOT_FOUND.
        """

    @abstractmethod
    async def base_version(self, reference: BaseReference) -> BaseVersion:
        """The version of a base that a reference names now.

        Raises:
            GraftError: BASE_NOT_FOUND, ALIAS_NOT_FOUND, VERSION_NOT_FOUND.
        """

    @abstractmethod
    async def fetch(self, file: AdapterFile, target: Path) -> None:
        """Fetches a blob to target.

        Raises:
            GraftError: BLOB_NOT_FOUND, DIGEST_MISMATCH.
        """

    @abstractmethod
    async def take_back(self, alias: str, etag: str, report: RolloutReport) -> None:
        """Takes a canary out of an alias, by its resource name, for the reason in the report.

        Raises:
            GraftError: ALIAS_MOVED when it is not as etag says, NO_ROLLOUT when it has no such canary.
        """

    @abstractmethod
    async def advance(self, alias: str, etag: str, reason: str) -> None:
        """Gives an alias' canary its next weight.

        Raises:
            GraftError: ALIAS_MOVED, NO_ROLLOUT when there is no next step, or not yet.
        """

    def lease(self, targets: Callable[[], Iterable[str]]) -> LeaseKeeper | None:
        """What keeps the versions that targets() names from collection; None where nothing collects."""
        return None

    @abstractmethod
    async def close(self) -> None:
        """Frees the connection."""
