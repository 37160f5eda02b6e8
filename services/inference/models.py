"""The names that a request may use now, with the versions that they mean."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from graft.names import DEFAULT_ALIAS, ModelReference, version_name

from services.inference.catalogue import AdapterEntry, Catalogue
from services.inference.domain import AdapterVersion, Base
from services.inference.residency import Residency
from services.inference.residents import State
from services.inference.swaps import NEWEST, Swaps


@dataclass(frozen=True, slots=True)
class Model:
    """A name; version and digest are empty for the base, digest also where it is not known yet.

    engine is the name of the one that computes it; empty where its version's kind is not known yet.
    blend is what it is made of, as its parts' versions with their weights; empty where it is none.
    """

    reference: str
    version: str
    digest: str
    resident: bool
    engine: str = ""
    blend: str = ""


class Models:
    """Lists what can be asked: the base, then each adapter with its aliases, and what is loaded, also of blends."""

    def __init__(
        self, base: Base, catalogue: Catalogue, swaps: Swaps, residency: Residency
    ) -> None:
        self._base, self._catalogue = base, catalogue
        self._swaps, self._residency = swaps, residency

    def list(self) -> Iterator[Model]:
        """The base first, then adapters by name, then the blends that are loaded."""
        base = str(ModelReference(self._base.namespace, self._base.base_id))
        yield Model(base, "", "", True, self._residency.engine_of(None))
        loaded = {
            each.version.name: each.version.digest
            for each in self._residency.instances()
            if each.state is State.READY
        }
        for name in sorted(self._catalogue.adapters):
            entry = self._catalogue.adapters[name]
            if entry.base in ("", self._base.name) and entry.latest:
                for model in self._of(entry, loaded):
                    version = entry.known(model.version)
                    if version is not None:
                        model = replace(model, engine=self._residency.engine_of(version))
                    yield model
        for reference, blend in sorted(self._blends(), key=lambda each: each[0]):
            engine = self._residency.engine_of(blend)
            yield Model(reference, blend.name, blend.digest, True, engine, reference)

    def _blends(self) -> Iterator[tuple[str, AdapterVersion]]:
        for each in self._residency.instances():
            if each.version.blend is not None and each.state is State.READY:
                yield each.version.reference, each.version

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
        known = entry.known(name)
        digest = "" if known is None else known.digest
        return Model(str(reference), name, digest, name in loaded)
