"""IA3: a vector of scales per targeted module, at its output, or for feedforward modules at its input."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from services.registry.admission.kinds.base import Expected, Kind, bad_field, names
from services.registry.admission.modules import BaseModules
from services.registry.admission.selectors import Selector

_PREFIX, _SUFFIX = "base_model.model.", ".ia3_l"


class Ia3(Kind):
    """Scales."""

    peft_type = "IA3"
    method = "ia3"

    def expected(self, config: Mapping[str, Any], base: BaseModules, base_config: str) -> Expected:
        targets = names(config, "target_modules")
        inner = names(config, "feedforward_modules") if config.get("feedforward_modules") else []
        if not targets:
            raise bad_field("target_modules", targets, "It names at least one module.")
        if not set(inner) <= set(targets):
            raise bad_field("feedforward_modules", inner, "They are some of target_modules.")
        if config.get("modules_to_save"):
            raise bad_field(
                "modules_to_save", config["modules_to_save"], "Train without modules_to_save."
            )
        wanted = Selector(dict.fromkeys(targets, None))
        scaled_inside = Selector(dict.fromkeys(inner, None))
        tensors: dict[str, tuple[int, ...]] = {}
        used = set()
        for path, module in base.adaptable():
            found = wanted.find(path)
            if found is None:
                continue
            used.add(found)
            at_input = scaled_inside.find(path) is not None
            size = (1, module.in_features) if at_input else (module.out_features, 1)
            tensors[f"{_PREFIX}{path}{_SUFFIX}"] = size
        for target in targets:
            if target not in used:
                raise bad_field(
                    "target_modules", target, "The base has no such module: leave it out."
                )
        ends = sorted({name.removesuffix(_SUFFIX).rpartition(".")[2] for name in tensors})
        return Expected(tensors, ends, f"{len(tensors)} modules are scaled")
