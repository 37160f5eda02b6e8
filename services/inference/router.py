"""What a request's model means: the base, or exactly one version. Asked once, when a request is admitted."""

from __future__ import annotations

from graft.blends import BlendReference, is_blend
from graft.errors import GraftError, Reason
from graft.names import DEFAULT_ALIAS, ModelReference, adapter_name, version_name

from services.inference.blends.recipes import Recipes, Resolve
from services.inference.catalogue import AdapterEntry, Catalogue
from services.inference.domain import AdapterVersion, Base
from services.inference.registry.base import Registry
from services.inference.rollout.controller import Rollouts
from services.inference.rollout.state import Routed
from services.inference.swaps import NEWEST, Swaps


class Router:
    """Resolves references by what serves now; asks the registry only for what it has not heard of."""

    def __init__(
        self,
        base: Base,
        catalogue: Catalogue,
        registry: Registry,
        swaps: Swaps,
        recipes: Recipes | None = None,
        rollouts: Rollouts | None = None,
    ) -> None:
        self._base, self._catalogue, self._recipes = base, catalogue, recipes
        self._registry, self._swaps, self._rollouts = registry, swaps, rollouts

    async def route(self, model: str, session_key: str) -> Routed:
        """What a model reference means for one request: of an alias with canaries, the key's part.

        Raises:
            GraftError: as resolve().
        """
        if is_blend(model):
            return Routed(await self._blend(model, lambda part: self._part(part, session_key)))
        version = await self.resolve(model)
        if version is None or self._rollouts is None:
            return Routed(version)
        return self._rollouts.route(model, self._base.namespace, version, session_key)

    async def _part(self, model: str, session_key: str) -> AdapterVersion | None:
        return (await self.route(model, session_key)).version

    async def resolve(self, model: str) -> AdapterVersion | None:
        """The version that a model reference means now; None is the base.

        Raises:
            GraftError: INVALID_REFERENCE, MODEL_NOT_FOUND, ADAPTER_NOT_FOUND, ALIAS_NOT_FOUND,
                VERSION_NOT_FOUND, WRONG_BASE, UNAVAILABLE; of a blend also those of Recipes.derive.
        """
        if is_blend(model):
            return await self._blend(model, self.resolve)
        reference = ModelReference.parse(model, self._base.namespace)
        if reference.namespace != self._base.namespace:
            raise GraftError(
                Reason.MODEL_NOT_FOUND,
                f"{model!r} is not of namespace {self._base.namespace!r}, which this service serves",
                next_step="Ask the service of that namespace, or call ListModels for the names here.",
            )
        plain = reference.alias is None and reference.version is None
        if plain and reference.name == self._base.base_id:
            return None
        adapter = adapter_name(reference.namespace, reference.name)
        entry = self._catalogue.adapters.get(adapter)
        if entry is not None:
            self._check_base(entry)
            found = await self._known(entry, reference)
            if found is not None:
                return found
        return await self._registry.find(reference)

    async def _blend(self, model: str, resolve: Resolve) -> AdapterVersion:
        blend = BlendReference.parse(model, self._base.namespace)
        if self._recipes is None:
            raise GraftError(
                Reason.NOT_SUPPORTED,
                f"{blend} is a blend, and this service answers none",
                next_step="Register it as a version (graft adapters blend), or set GRAFT_INFERENCE_BLENDS=true.",
            )
        return await self._recipes.derive(blend, resolve)

    async def _known(self, entry: AdapterEntry, reference: ModelReference) -> AdapterVersion | None:
        if reference.version is not None:
            if reference.version > entry.latest:
                return None
            return await self._swaps.describe(version_name(entry.name, reference.version))
        for alias in (reference.alias,) if reference.alias else (DEFAULT_ALIAS, NEWEST):
            key = entry.name, alias
            found = self._swaps.route(key)
            if found is not None:
                return found
            name = _named_by(entry, alias)
            if name is not None:
                version = await self._swaps.describe(name)
                # An event may have moved it meanwhile.
                current = _named_by(entry, alias)
                return self._swaps.adopt(key, version) if current == name else version
        return None

    def _check_base(self, entry: AdapterEntry) -> None:
        if entry.base and entry.base != self._base.name:
            raise GraftError(
                Reason.WRONG_BASE,
                f"{entry.name} belongs to {entry.base}, and this service serves {self._base.name}",
                next_step="Ask the service that serves its base; ListModels names what is served here.",
            )


def _named_by(entry: AdapterEntry, alias: str) -> str | None:
    if alias == NEWEST:
        return version_name(entry.name, entry.latest) if entry.latest else None
    seen = entry.aliases.get(alias)
    return None if seen is None else seen.version
