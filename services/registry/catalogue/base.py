"""The seam of the catalogue: what exists, durably, with every change in one global order.

Every mutation stores its event, with the next revision, in its own transaction, and returns only
when that is on the medium. Listings are by key: a page costs the same wherever it begins.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from services.registry.domain import (
    Adapter,
    Alias,
    Base,
    Event,
    Fingerprint,
    Manifest,
    Module,
    Page,
    Report,
    Version,
)


@dataclass(frozen=True, slots=True)
class RequestKey:
    """Makes a repeated request answer what the first did (AIP-155).

    request_hash tells another body under the same id apart.
    """

    request_id: str
    request_hash: str


@dataclass(frozen=True, slots=True)
class NewAdapter:
    """An adapter to be created."""

    name: str
    base: str
    description: str
    labels: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class NewBase:
    """A base to be recorded."""

    name: str
    source: str
    fingerprint: Fingerprint
    config_json: str
    modules: Sequence[Module]


@dataclass(frozen=True, slots=True)
class NewVersion:
    """A verified version to be committed; it gets the adapter's next number."""

    adapter: str
    digest: str
    manifest: Manifest
    report: Report


@dataclass(frozen=True, slots=True)
class AliasMove:
    """A move of an alias, under the conditions that are not None.

    expected_version is the number that it must name now, 0 for an alias that must not exist.
    version None means back to where it was before.
    """

    name: str
    version: int | None
    expected_version: int | None
    etag: str | None
    actor: str
    reason: str


class Catalogue(ABC):
    """Adapters, bases, versions, aliases and the events of their changes.

    Methods raise GraftError: *_NOT_FOUND for what is named and absent, REQUEST_ID_REUSED where a
    RequestKey's id was used with another hash.
    """

    @abstractmethod
    async def create_adapter(self, new: NewAdapter, key: RequestKey | None) -> Adapter:
        """Creates an adapter of a recorded base. Raises BASE_NOT_FOUND, ALREADY_EXISTS."""

    @abstractmethod
    async def get_adapter(self, name: str) -> Adapter:
        """The adapter of that name."""

    @abstractmethod
    async def list_adapters(self, namespace: str, limit: int, after: str | None) -> Page[Adapter]:
        """Adapters of a namespace, by name."""

    @abstractmethod
    async def create_base(self, new: NewBase) -> Base:
        """Records a base, or answers the stored one of the same fingerprint. Raises ALREADY_EXISTS."""

    @abstractmethod
    async def get_base(self, name: str) -> Base:
        """The base of that name."""

    @abstractmethod
    async def list_bases(self, namespace: str, limit: int, after: str | None) -> Page[Base]:
        """Bases of a namespace, by name, without modules and config_json."""

    @abstractmethod
    async def find_committed(self, adapter: str, key: RequestKey) -> Version | None:
        """What an earlier commit under this key made."""

    @abstractmethod
    async def commit_version(self, new: NewVersion, key: RequestKey | None) -> Version:
        """Stores a version, or answers the stored one of the same digest."""

    @abstractmethod
    async def get_version(self, adapter: str, number: int) -> Version:
        """The adapter's version of that number."""

    @abstractmethod
    async def get_version_by_alias(self, alias: str) -> Version:
        """The version that an alias names now."""

    @abstractmethod
    async def list_versions(self, adapter: str, limit: int, after: str | None) -> Page[Version]:
        """The adapter's versions, newest first."""

    @abstractmethod
    async def get_alias(self, name: str) -> Alias:
        """The alias of that name."""

    @abstractmethod
    async def list_aliases(
        self, namespace: str, adapter: str | None
    ) -> tuple[Sequence[Alias], int]:
        """Aliases of an adapter, or of the whole namespace, and the revision they were read at."""

    @abstractmethod
    async def move_alias(self, move: AliasMove) -> Alias:
        """Compare-and-set. Raises ALIAS_MOVED naming both versions, NO_PREVIOUS_VERSION.

        An alias that already names the version stays as it is and makes no event.
        """

    @abstractmethod
    async def list_alias_history(self, name: str, limit: int, after: str | None) -> Page[Alias]:
        """The alias as it was after each move, newest first."""

    @abstractmethod
    async def events(self, after: int, limit: int, namespace: str | None) -> Sequence[Event]:
        """Stored events after a revision, in order; of one namespace or of all."""

    @abstractmethod
    async def revision(self) -> int:
        """Revision of the last change."""

    @abstractmethod
    async def counts(self) -> Mapping[str, int]:
        """How many "adapters", "bases" and "versions" there are."""

    @abstractmethod
    async def close(self) -> None:
        """Ends running transactions and lets go of the database."""
