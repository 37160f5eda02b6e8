"""AdaLoRA as PEFT saves it: A, B and singular values, whose ranks rank_pattern says by what was kept."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from services.registry.admission.adapter_config import AdapterConfig, lora_config
from services.registry.admission.kinds.base import Expected, Kind, bad_field, whole_number
from services.registry.admission.kinds.targets import as_recorded, targeted
from services.registry.admission.modules import BaseModules
from services.registry.admission.pairs import PREFIX

_MAX_RANK = 512
_PATTERN, _E = "rank_pattern", ".lora_E"
_STEPS = ("tinit", "tfinal", "deltaT", "total_step")


class AdaLora(Kind):
    """Low-rank updates as singular value decompositions; Graft's own results are plain LoRAs."""

    peft_type = "ADALORA"
    method = "adalora"

    def expected(self, config: Mapping[str, Any], base: BaseModules, base_config: str) -> Expected:
        first = whole_number(config, "init_r", _MAX_RANK)
        as_lora = lora_config({**config, "peft_type": "LORA", "r": first, _PATTERN: {}})
        self._check_settings(config, as_lora)
        modules = {
            path: module
            for path, module in targeted(config, base).items()
            if as_lora.in_layers(path)
        }
        ranks = _ranks(config, first, base)
        for path in ranks.keys() - modules.keys():
            raise bad_field(_PATTERN, path, "It is no target module: leave it out.")
        if ranks and len(ranks) < len(modules):
            missing = min(modules.keys() - ranks.keys())
            raise bad_field(_PATTERN, ranks, f"It must have {missing}{_E} too, or nothing.")
        tensors: dict[str, tuple[int, ...]] = {}
        for path, module in modules.items():
            rank = ranks.get(path, first)
            tensors[f"{PREFIX}{path}.lora_A"] = (rank, module.in_features)
            tensors[f"{PREFIX}{path}.lora_B"] = (module.out_features, rank)
            tensors[f"{PREFIX}{path}{_E}"] = (rank, 1)
        return Expected(
            tensors,
            sorted({path.rpartition(".")[2] for path in modules}),
            f"{len(modules)} modules of ranks up to {first}, {sum(ranks.values())} kept in all"
            if ranks
            else f"{len(modules)} modules of rank {first}",
            rank=max(ranks.values(), default=first),
            alpha=as_lora.alpha,
        )

    def _check_settings(self, config: Mapping[str, Any], as_lora: AdapterConfig) -> None:
        """What PEFT would not load."""
        for field in ("use_dora", "use_rslora", "loftq_config", "alpha_pattern"):
            if config.get(field):
                raise bad_field(field, config[field], "AdaLoRA has none: leave it out.")
        for field in _STEPS:
            value = config.get(field, 1)
            if type(value) is not int or value < 0:
                raise bad_field(field, value, "It is a whole number, 0 or more.")
        end = config.get("total_step", 0) - config.get("tfinal", 0)
        if config.get("tinit", 0) >= end:
            raise bad_field("total_step", config.get("total_step"), "It is above tinit + tfinal.")


def _ranks(config: Mapping[str, Any], first: int, base: BaseModules) -> dict[str, int]:
    """How many singular values each module kept, by its path as the base has it."""
    pattern = config.get(_PATTERN) or {}
    if not isinstance(pattern, dict):
        raise bad_field(_PATTERN, pattern, "It is an object of lists, or null.")
    ranks: dict[str, int] = {}
    for name, kept in pattern.items():
        if (
            not isinstance(kept, list)
            or len(kept) != first
            or {type(one) for one in kept} != {bool}
        ):
            raise bad_field(
                f"{_PATTERN}[{name[:200]!a}]", kept, f"It is {first} times true or false."
            )
        path = as_recorded(name.removesuffix(_E), base)
        if path in ranks or not name.endswith(_E):
            raise bad_field(_PATTERN, name, f"Every module is there once, by its path and {_E}.")
        ranks[path] = sum(kept)
    return ranks
