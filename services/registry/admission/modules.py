"""A base's modules by path and by layer, made ready once and used for every version of its adapters."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence

from services.registry.admission.selectors import layer_of
from services.registry.domain import BaseContent, Module

_KEPT_BASES = 32


class BaseModules:
    """Modules of one base.

    Args:
        modules: as recorded.
    """

    def __init__(self, modules: Sequence[Module]) -> None:
        self._modules: Mapping[str, Module] = {module.path: module for module in modules}
        layers: dict[str, list[int]] = {}
        for module in modules:
            before, layer, after = layer_of(module.path)
            if layer is not None:
                layers.setdefault(f"{before}.*.{after}", []).append(layer)
        self._layers = {kind: sorted(found) for kind, found in layers.items()}

    def __len__(self) -> int:
        return len(self._modules)

    def find(self, path: str) -> Module | None:
        """The module that an adapter means by a path."""
        # Some checkpoints leave out the model's own prefix ("transformer.h.0" is stored as "h.0").
        for candidate in (path, path.partition(".")[2], f"model.{path}"):
            if candidate in self._modules:
                return self._modules[candidate]
        return None

    def adaptable(self) -> Iterator[tuple[str, Module]]:
        """Every module by the path that an adapter means it by."""
        yield from self._modules.items()

    def layers_path(self) -> str:
        """The path of the decoder's layers, as the transformers library has it: "model.layers"."""
        kinds = sorted(self._layers, key=lambda kind: -len(self._layers[kind]))
        return kinds[0].partition(".*.")[0] if kinds else "model.layers"

    def has_named(self, name: str) -> bool:
        """Whether any module is what a target means."""
        name = name.removeprefix("^")
        return self.find(name) is not None or any(
            path.endswith(f".{name}") for path in self._modules
        )

    def kind_of(self, path: str) -> str | None:
        """A module's path without its layer's number, as the base has it; None without a layer."""
        module = self.find(path)
        if module is None:
            return None
        before, layer, after = layer_of(module.path)
        return None if layer is None else f"{before}.*.{after}"

    def layers_of(self, kind: str) -> Sequence[int]:
        """The layers that have it, ascending."""
        return self._layers.get(kind, ())


class ModulesCache:
    """The last few bases' modules: a base of 10,000 takes longer to make ready than to be used."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[str, str, int], BaseModules] = OrderedDict()

    def of(self, base: BaseContent) -> BaseModules:
        """The base's modules."""
        key = (base.name, base.fingerprint.digest, len(base.modules))
        found = self._kept.get(key)
        if found is None:
            found = self._kept[key] = BaseModules(base.modules)
            if len(self._kept) > _KEPT_BASES:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return found
