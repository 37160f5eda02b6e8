"""What a registry must answer, kept in dictionaries: adapters, versions and aliases of one namespace."""

from __future__ import annotations

from dataclasses import dataclass, field

from graft.errors import Reason

Split = tuple[int, tuple[tuple[int, float], ...]]


@dataclass(slots=True)
class VersionModel:
    """A version by the seed that makes its manifest another; state is live, deleted or purged."""

    seed: int
    state: str = "live"


@dataclass(slots=True)
class AdapterModel:
    """An adapter with its versions by number, and where each alias has pointed, oldest first."""

    deleted: bool = False
    versions: dict[int, VersionModel] = field(default_factory=dict)
    aliases: dict[str, Split] = field(default_factory=dict)
    history: dict[str, list[Split]] = field(default_factory=dict)

    def named(self) -> set[int]:
        """Numbers that an alias or a canary names."""
        return {
            number
            for version, canaries in self.aliases.values()
            for number in (version, *(one for one, _ in canaries))
        }


class Refused(Exception):
    """The registry must refuse with this reason."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason)
        self.reason = reason


class RegistryModel:
    """Every method does what the registry must do, or raises Refused and changes nothing."""

    def __init__(self) -> None:
        self.adapters: dict[str, AdapterModel] = {}
        self._requests: dict[str, tuple[str, int, int]] = {}

    def create_adapter(self, name: str) -> None:
        """A name is given once."""
        if name in self.adapters:
            raise Refused(Reason.ALREADY_EXISTS)
        self.adapters[name] = AdapterModel()

    def commit(self, name: str, seed: int, request_id: str) -> int:
        """The number of the committed version."""
        if request_id in self._requests:
            at, before, number = self._requests[request_id]
            if (at, before) != (name, seed):
                raise Refused(Reason.REQUEST_ID_REUSED)
            return number
        adapter = self._live(name)
        known = [number for number, one in adapter.versions.items() if one.seed == seed]
        if known and adapter.versions[known[0]].state != "live":
            raise Refused(Reason.DELETED)
        number = known[0] if known else len(adapter.versions) + 1
        adapter.versions.setdefault(number, VersionModel(seed))
        self._requests[request_id] = (name, seed, number)
        return number

    def move(self, name: str, alias: str, split: Split, expected: int | None) -> Split:
        """Where the alias points then."""
        adapter = self._live(name)
        now = adapter.aliases.get(alias)
        if expected is not None and expected != (now[0] if now else 0):
            raise Refused(Reason.ALIAS_MOVED)
        return self._point(adapter, alias, split)

    def rollback(self, name: str, alias: str) -> Split:
        """The whole state before the last move comes back."""
        adapter = self._live(name)
        if alias not in adapter.aliases:
            raise Refused(Reason.ALIAS_NOT_FOUND)
        if len(adapter.history[alias]) < 2:
            raise Refused(Reason.NO_PREVIOUS_VERSION)
        return self._point(adapter, alias, adapter.history[alias][-2])

    def delete_alias(self, name: str, alias: str) -> None:
        """Its history stays."""
        adapter = self.adapters.get(name)
        if adapter is None or alias not in adapter.aliases:
            raise Refused(Reason.ALIAS_NOT_FOUND)
        adapter.history[alias].append(adapter.aliases.pop(alias))

    def delete_version(self, name: str, number: int) -> None:
        """Refused while something names it."""
        adapter, version = self._version(name, number)
        if version.state == "purged":
            raise Refused(Reason.DELETED)
        if version.state == "deleted":
            return
        if adapter.deleted:
            raise Refused(Reason.DELETED)
        if number in adapter.named():
            raise Refused(Reason.IN_USE)
        version.state = "deleted"

    def undelete_version(self, name: str, number: int) -> None:
        """What is not purged comes back."""
        adapter, version = self._version(name, number)
        if version.state == "purged":
            raise Refused(Reason.DELETED)
        if version.state == "deleted":
            if adapter.deleted:
                raise Refused(Reason.DELETED)
            version.state = "live"

    def purge_version(self, name: str, number: int) -> None:
        """Only what is deleted is purged."""
        _, version = self._version(name, number)
        if version.state == "live":
            raise Refused(Reason.NOT_DELETED)
        version.state = "purged"

    def set_deleted(self, name: str, deleted: bool) -> None:
        """Deletes or undeletes an adapter."""
        if name not in self.adapters:
            raise Refused(Reason.ADAPTER_NOT_FOUND)
        self.adapters[name].deleted = deleted

    def _point(self, adapter: AdapterModel, alias: str, split: Split) -> Split:
        for number in (split[0], *(one for one, _ in split[1])):
            if number not in adapter.versions:
                raise Refused(Reason.VERSION_NOT_FOUND)
            if adapter.versions[number].state != "live":
                raise Refused(Reason.DELETED)
        if adapter.aliases.get(alias) != split:
            adapter.aliases[alias] = split
            adapter.history.setdefault(alias, []).append(split)
        return split

    def _live(self, name: str) -> AdapterModel:
        if name not in self.adapters:
            raise Refused(Reason.ADAPTER_NOT_FOUND)
        if self.adapters[name].deleted:
            raise Refused(Reason.DELETED)
        return self.adapters[name]

    def _version(self, name: str, number: int) -> tuple[AdapterModel, VersionModel]:
        adapter = self.adapters.get(name)
        if adapter is None or number not in adapter.versions:
            raise Refused(Reason.VERSION_NOT_FOUND)
        return adapter, adapter.versions[number]
