"""IA3: a vector of scales per targeted module, at its output, or for feedforward modules at its input."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from services.registry.admission.kinds.base import Expected, Kind, bad_field, names
from services.registry.admission.kinds.targets import named, targeted
from services.registry.admission.modules import BaseModules
from services.registry.admission.pairs import PREFIX

_SUFFIX = ".ia3_l"


class Ia3(Kind):
    """Scales."""

    peft_type = "IA3"
    method = "ia3"

    def expected(self, config: Mapping[str, Any], base: BaseModules, base_config: str) -> Expected:
        inner = names(config, "feedforward_modules") if config.get("feedforward_modules") else []
        modules = targeted(config, base)
        if not set(inner) <= set(config["target_modules"]):
            raise bad_field("feedforward_modules", inner, "They are some of target_modules.")
        scaled_inside = named(inner, base)
        tensors: dict[str, tuple[int, ...]] = {}
        for path, module in modules.items():
            at_input = scaled_inside.find(path) is not None
            size = (1, module.in_features) if at_input else (module.out_features, 1)
            tensors[f"{PREFIX}{path}{_SUFFIX}"] = size
        ends = sorted({path.rpartition(".")[2] for path in modules})
        return Expected(tensors, ends, f"{len(tensors)} modules are scaled")
