"""The names that a request may use now, with the versions that they mean."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from graft.names import DEFAULT_ALIAS, ModelReference, version_name

from services.inference.catalogue import AdapterEntry, Catalogue
from services.inference.domain import Base
from services.inference.residency import Residency
from services.inference.residents import State
from services.inference.swaps import NEWEST, Swaps


@dataclass(frozen=True, slots=True)
class Model:
    """A name; version and digest are empty for the base, digest also where it is not known yet."""

    reference: str
    version: str
    digest: str
    resident: bool


class Models:
    """Lists what can be asked: the base, then each adapter with its aliases, and what is loaded."""

    def __init__(
        self, base: Base, catalogue: Catalogue, swaps: Swaps, residency: Residency
    ) -> None:
        self._base, self._catalogue = base, catalogue
        self._swaps, self._residency = swaps, residency

    def list(self) -> Iterator[Model]:
        """The base first, then adapters by name."""
        yield Model(str(ModelReference(self._base.namespace, self._base.base_id)), "", "", True)
        loaded = {
            each.version.name: each.version.digest
            for each in self._residency.instances()
            if each.state is State.READY
        }
        for name in sorted(self._catalogue.adapters):
            entry = self._catalogue.adapters[name]
            if entry.base in ("", self._base.name) and entry.latest:
                yield from self._of(entry, loaded)

    def _of(self, entry: AdapterEntry, loaded: dict[str, str]) -> Iterator[Model]:
        namespace, adapter = entry.name.split("/")[1::2]
        default = DEFAULT_ALIAS if DEFAULT_ALIAS in entry.aliases else NEWEST
        yield self._model(ModelReference(namespace, adapter), entry, default, loaded)
        for alias in sorted(entry.aliases):
            yield self._model(ModelReference(namespace, adapter, alias), entry, alias, loaded)
        for number, version in sorted(entry.versions.items()):
            if version.name in loaded:
                reference = str(ModelReference(namespace, adapter, version=number))
                yield Model(reference, version.name, version.digest, True)

    def _model(
        self, reference: ModelReference, entry: AdapterEntry, alias: str, loaded: dict[str, str]
    ) -> Model:
        route = self._swaps.route((entry.name, alias))
        if route is not None:
            return Model(str(reference), route.name, route.digest, route.name in loaded)
        seen = entry.aliases.get(alias)
        name = version_name(entry.name, entry.latest) if seen is None else seen.version
        known = entry.versions.get(int(name.rpartition("/")[2]))
        digest = "" if known is None else known.digest
        return Model(str(reference), name, digest, name in loaded)
