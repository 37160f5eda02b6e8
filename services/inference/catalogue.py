"""What the registry has told so far: adapters, their versions, and where their aliases point.

Knows nothing of engines. Applying the same change twice does nothing, so a replay is harmless.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from services.inference.domain import (
    AdapterSeen,
    AdapterVersion,
    AliasSeen,
    Change,
    Gone,
    Returned,
    Snapshot,
)


@dataclass(slots=True)
class AdapterEntry:
    """One adapter: its base, the number of its newest version, versions seen, aliases by id."""

    name: str
    base: str
    latest: int = 0
    versions: dict[int, AdapterVersion] = field(default_factory=dict)
    aliases: dict[str, AliasSeen] = field(default_factory=dict)

    def known(self, name: str) -> AdapterVersion | None:
        """One of its versions by resource name, where it was seen."""
        return self.versions.get(int(name.rpartition("/")[2]))


class Catalogue:
    """The newest known state of one namespace."""

    def __init__(self) -> None:
        self._adapters: dict[str, AdapterEntry] = {}

    @property
    def adapters(self) -> Mapping[str, AdapterEntry]:
        """By resource name."""
        return self._adapters

    def load(self, snapshot: Snapshot) -> Iterator[AliasSeen]:
        """Takes a snapshot in; yields the aliases that are new or moved by it."""
        for adapter in snapshot.adapters:
            self.apply(adapter)
        for alias in snapshot.aliases:
            if self.apply(alias):
                yield alias

    def apply(self, change: Change) -> bool:
        """Takes a change in; returns whether it said anything new."""
        match change:
            case AdapterSeen():
                entry = self._adapters.setdefault(
                    change.name, AdapterEntry(change.name, change.base)
                )
                entry.base = change.base
                entry.latest = max(entry.latest, change.latest)
                return True
            case AdapterVersion():
                entry = self._adapters.setdefault(change.adapter, AdapterEntry(change.adapter, ""))
                new = change.number > entry.latest
                entry.latest = max(entry.latest, change.number)
                entry.versions[change.number] = change
                return new
            case AliasSeen():
                entry = self._adapters.setdefault(change.adapter, AdapterEntry(change.adapter, ""))
                known = entry.aliases.get(change.alias)
                if known is not None and known.revision >= change.revision:
                    return False
                entry.aliases[change.alias] = change
                return known is None or known.etag != change.etag or known.version != change.version
            case Gone():
                return self._forget(change)
            case Returned():
                return True

    def rewind(self, snapshot: Snapshot) -> list[AdapterEntry]:
        """Forgets versions that a registry lost in a restore; the adapters that had some."""
        lost: list[AdapterEntry] = []
        for adapter in snapshot.adapters:
            entry = self._adapters.get(adapter.name)
            if entry is not None and entry.latest > adapter.latest:
                entry.latest = adapter.latest
                for number in [one for one in entry.versions if one > adapter.latest]:
                    del entry.versions[number]
                lost.append(entry)
        return lost

    def missing(self, snapshot: Snapshot) -> list[Gone]:
        """What is known and is not in a newer snapshot."""
        adapters = {adapter.name for adapter in snapshot.adapters}
        aliases = {(alias.adapter, alias.alias) for alias in snapshot.aliases}
        found: list[Gone] = []
        for name, entry in self._adapters.items():
            if name in adapters:
                found += [Gone(name, one) for one in entry.aliases if (name, one) not in aliases]
            elif entry.base:
                found.append(Gone(name))
        return found

    def _forget(self, gone: Gone) -> bool:
        if not gone.alias:
            return self._adapters.pop(gone.adapter, None) is not None
        entry = self._adapters.get(gone.adapter)
        return entry is not None and entry.aliases.pop(gone.alias, None) is not None
