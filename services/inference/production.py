"""What the production aliases of this base name: what a replica has to hold before it gets traffic.

On the engine as far as it has room, the last moved first; the rest on this machine's disk.
"""

from __future__ import annotations

from collections.abc import Callable

from graft.errors import Reason
from graft.names import DEFAULT_ALIAS

from services.inference.catalogue import Catalogue
from services.inference.domain import AliasSeen, Base

# The version itself is at fault: no replica could hold it, and waiting for it would keep all others away.
OF_THE_VERSION = frozenset(
    {
        Reason.ADAPTER_UNUSABLE,
        Reason.SIGNATURE_REQUIRED,
        Reason.SIGNATURE_INVALID,
        Reason.ADAPTER_NOT_FOUND,
        Reason.ALIAS_NOT_FOUND,
        Reason.VERSION_NOT_FOUND,
    }
)


class Production:
    """The production aliases of one base.

    Args:
        room: how many of them the engine is to hold.
        coming: whether a version, by name, is still on its way to the disk.
    """

    def __init__(
        self, base: Base, catalogue: Catalogue, room: int, coming: Callable[[str], bool]
    ) -> None:
        self._base, self._catalogue = base, catalogue
        self._room, self._coming = max(0, room), coming

    def references(self) -> list[str]:
        """What the engine is to hold, as model references."""
        return [_reference(alias) for alias in self._aliases()[: self._room]]

    def fetching(self) -> list[str]:
        """What is to be on the disk and is still on its way there, as model references."""
        rest = self._aliases()[self._room :]
        return [_reference(alias) for alias in rest if self._coming(alias.version)]

    def _aliases(self) -> list[AliasSeen]:
        found = (
            entry.aliases.get(DEFAULT_ALIAS)
            for entry in self._catalogue.adapters.values()
            if entry.base == self._base.name
        )
        return sorted(
            (alias for alias in found if alias is not None),
            key=lambda alias: alias.revision,
            reverse=True,
        )


def _reference(alias: AliasSeen) -> str:
    namespace, adapter = alias.adapter.split("/")[1::2]
    return f"{namespace}/{adapter}@{alias.alias}"
