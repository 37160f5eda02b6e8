"""The seam of the catalogue: what exists, durably, with every change in one global order.

Every mutation stores its event, with the next revision, in its own transaction, and returns only
when that is on the medium. Listings are by key: a page costs the same wherever it begins.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from graft.rollout_policy import Rollout, RolloutReport

from services.registry.domain import (
    Adapter,
    Alias,
    Base,
    BaseContent,
    Condition,
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
    description: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class NewVersion:
    """A verified version to be committed; it gets the next number of its parent.

    content is what a version of a base is; None for an adapter's.
    """

    parent: str
    digest: str
    manifest: Manifest
    report: Report
    description: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    content: BaseContent | None = None


@dataclass(frozen=True, slots=True)
class NewSignature:
    """A well-formed signature of a manifest's digest, to be stored beside its version."""

    key_id: str
    envelope_json: str
    manifest_digest: str


@dataclass(frozen=True, slots=True)
class AliasMove:
    """A move of an alias, under the conditions that are not None.

    expected_version is the number that it must name now, 0 for an alias that must not exist.
    version None means back to where it was before, or, where take_out names canaries, as it is but
    without them, for the reason in report where a limit was passed; or, with advance, one step on in its
    rollout. canaries are (number, weight in percent). gate must hold besides the alias' policy;
    validate_only changes nothing; rollout None leaves it as it is, an empty one ends it.
    """

    name: str
    version: int | None
    expected_version: int | None
    etag: str | None
    actor: str
    reason: str
    canaries: tuple[tuple[int, float], ...] = ()
    gate: tuple[Condition, ...] = ()
    validate_only: bool = False
    rollout: Rollout | None = None
    take_out: tuple[int, ...] = ()
    report: RolloutReport | None = None
    advance: bool = False


@dataclass(frozen=True, slots=True)
class EventFilter:
    """Which events are wanted; None and () for all.

    parent is the full name of an adapter or a base, with all that belongs to it. kinds are words of
    WatchRequest.kinds.
    """

    namespace: str | None = None
    parent: str | None = None
    kinds: frozenset[str] = frozenset()


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
    async def create_base(self, new: NewBase) -> Base:
        """Records a base, or answers the stored one of the same fingerprint. Raises ALREADY_EXISTS."""

    @abstractmethod
    async def get_base(self, name: str) -> Base:
        """The base of that name."""

    @abstractmethod
    async def base_content(self, base: str, fingerprint: str) -> BaseContent | None:
        """What of a base has that fingerprint: itself, or a version of it; None for neither."""

    @abstractmethod
    async def find_committed(self, parent: str, key: RequestKey) -> Version | None:
        """What an earlier commit under this key made."""

    @abstractmethod
    async def commit_version(self, new: NewVersion, key: RequestKey | None) -> Version:
        """Stores a version, or answers the stored one of the same digest.

        Raises VERSION_REFUSED when a file's blob is not there any more.
        """

    @abstractmethod
    async def get_version(self, parent: str, number: int) -> Version:
        """The version of that number of an adapter or a base."""

    @abstractmethod
    async def get_version_by_alias(self, alias: str) -> Version:
        """The version that an alias names now."""

    @abstractmethod
    async def sign_version(self, parent: str, number: int, new: NewSignature) -> Version:
        """Stores a signature, once. Raises SIGNATURE_INVALID when it is of another digest, DELETED."""

    @abstractmethod
    async def get_alias(self, name: str) -> Alias:
        """The alias of that name."""

    @abstractmethod
    async def list_aliases(self, namespace: str, parent: str | None) -> tuple[Sequence[Alias], int]:
        """Aliases of an adapter or a base, or of the whole namespace, and the revision they were read at."""

    @abstractmethod
    async def move_alias(self, move: AliasMove, key: RequestKey | None = None) -> Alias:
        """Compare-and-set, behind the alias' policy and gate.

        Raises ALIAS_MOVED naming both versions, NO_PREVIOUS_VERSION, NO_ROLLOUT, PROTECTED, GATE_REFUSED naming
        the condition and both numbers. An alias that is already so stays as it is and makes no event.
        """

    @abstractmethod
    async def delete_alias(self, name: str, etag: str | None, reason: str) -> Alias:
        """Removes an alias; its history stays. Raises ALIAS_MOVED, PROTECTED."""

    @abstractmethod
    async def list_alias_history(self, name: str, limit: int, after: str | None) -> Page[Alias]:
        """The alias as it was after each move, newest first."""

    @abstractmethod
    async def events(
        self, after: int, limit: int, which: EventFilter | None = None
    ) -> Sequence[Event]:
        """Stored events after a revision, in order, as many as are stored up to limit.

        Raises REVISION_COMPACTED when some after that revision are not kept any more.
        """

    @abstractmethod
    async def compact(self, before: datetime, keep: int) -> int:
        """Lets go of the events and request keys from before a time, but of none of the last events.

        Args:
            before: what is as old or older goes.
            keep: so many last events stay, however old.

        Returns:
            The last revision whose event is not kept any more.
        """

    @abstractmethod
    async def revision(self) -> int:
        """Revision of the last change."""

    @abstractmethod
    async def counts(self) -> Mapping[str, int]:
        """How many "adapters", "bases" and "versions" there are that are not purged."""

    @abstractmethod
    async def close(self) -> None:
        """Ends running transactions and lets go of the database."""
