"""Compares an adapter's tensors with its configuration and its base: names, shapes, ranks, targets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from graft.errors import GraftError

from services.registry.admission.adapter_config import AdapterConfig
from services.registry.admission.header import Tensor
from services.registry.admission.limits import Limits
from services.registry.admission.modules import BaseModules
from services.registry.domain import Module
from services.registry.errors import refused

PREFIX = "base_model.model."
NAMES, LAYERS, SHAPES, RANKS, TARGETS = "tensor-names", "layers", "shapes", "ranks", "targets"
_SUFFIXES = (".lora_A.weight", ".lora_B.weight")


@dataclass(frozen=True, slots=True)
class Pair:
    """A module's two matrices: down is (rank, in_features), up is (out_features, rank)."""

    module: str
    down: Tensor
    up: Tensor

    @property
    def rank(self) -> int:
        """The rank that down has."""
        return self.down.shape[0]


def pair_up(tensors: Sequence[Tensor]) -> list[Pair]:
    """The pairs, by module; every tensor belongs to one.

    Raises:
        GraftError: VERSION_REFUSED.
    """
    halves: dict[str, dict[str, Tensor]] = {}
    for tensor in tensors:
        module, suffix = _split(tensor)
        halves.setdefault(module, {})[suffix] = tensor
    pairs = []
    for module, found in sorted(halves.items()):
        for suffix in _SUFFIXES:
            if suffix not in found:
                there = next(iter(found.values())).name
                missing = PREFIX + module + suffix
                raise refused(
                    NAMES,
                    f"tensor {missing}: it is missing, though {there} is there",
                    "Save the adapter again: every module needs lora_A and lora_B.",
                    tensor=missing,
                )
        pairs.append(Pair(module, *(found[suffix] for suffix in _SUFFIXES)))
    return pairs


def _split(tensor: Tensor) -> tuple[str, str]:
    for suffix in _SUFFIXES:
        if tensor.name.startswith(PREFIX) and tensor.name.endswith(suffix):
            module = tensor.name[len(PREFIX) : -len(suffix)]
            if module:
                return module, suffix
    hint = "Adapters have base_model.model.{module}.lora_A.weight and ...lora_B.weight only."
    why = "it is no matrix of a LoRA pair"
    if "lora_magnitude_vector" in tensor.name:
        why = "it belongs to DoRA, and adapter_config.json does not set use_dora"
        hint = "Save the adapter again, with the configuration it was trained with."
    elif "lora_embedding_" in tensor.name:
        why, hint = "it adapts an embedding, which cannot be served", "Leave embeddings out."
    elif ".base_layer." in tensor.name:
        why = "it is a weight of the base itself, which an adapter may not replace"
        hint = "Save with save_pretrained(..., save_embedding_layers=False)."
    elif tensor.name.endswith(".bias"):
        why, hint = "it is a bias, which cannot be served", 'Train with bias="none".'
    raise refused(NAMES, f"tensor {tensor.name}: {why}", hint, tensor=tensor.name)


def check_pairs(
    pairs: Sequence[Pair], config: AdapterConfig, base: BaseModules, base_name: str, limits: Limits
) -> None:
    """Holds every pair against the base's module, the configuration's rank and the limits.

    Raises:
        GraftError: VERSION_REFUSED, naming the tensor.
    """
    seen: dict[str, Pair] = {}
    for pair in pairs:
        module = base.find(pair.module)
        if module is not None and seen.setdefault(module.path, pair) is not pair:
            raise _wrong(
                NAMES, pair.down, f"{seen[module.path].down.name} is of the same module of the base"
            )
        if module is None:
            raise refused(
                LAYERS,
                f"tensor {pair.down.name}: the base {base_name} has no module {pair.module}",
                "It was trained for another base, or has more layers: train it on this one.",
                tensor=pair.down.name,
            )
        _check_shape(pair, module)
        _check_rank(pair, config.rank_of(pair.module), limits)


def _check_shape(pair: Pair, module: Module) -> None:
    for tensor, axis, features, word in (
        (pair.down, 1, module.in_features, "in_features"),
        (pair.up, 0, module.out_features, "out_features"),
    ):
        if len(tensor.shape) != 2 or 0 in tensor.shape:
            raise _wrong(SHAPES, tensor, f"its shape {list(tensor.shape)} is not a matrix")
        if tensor.shape[axis] != features:
            raise _wrong(
                SHAPES,
                tensor,
                f"its shape is {list(tensor.shape)}, but {module.path} of the base has "
                f"{features} {word}",
                "It was trained for another base: train it on this one.",
            )


def _check_rank(pair: Pair, rank: int, limits: Limits) -> None:
    for tensor, found in ((pair.down, pair.down.shape[0]), (pair.up, pair.up.shape[1])):
        if found != rank:
            raise _wrong(
                RANKS,
                tensor,
                f"its rank is {found}, but adapter_config.json says {rank}",
                "Correct r or rank_pattern in adapter_config.json: it must say what the tensors are.",
            )
        if found > limits.max_rank:
            raise _wrong(
                RANKS,
                tensor,
                f"its rank is {found}, and {limits.max_rank} is the most that is allowed",
                "Train with a smaller rank, or raise GRAFT_REGISTRY_MAX_RANK.",
            )


def check_targets(
    pairs: Sequence[Pair], config: AdapterConfig, base: BaseModules, base_name: str
) -> list[str]:
    """The target modules as found in the tensors, by their last name, sorted.

    Raises:
        GraftError: VERSION_REFUSED where they are not those of the configuration.
    """
    if config.targets is not None:
        used = {name for pair in pairs for name in config.targets.fitting(pair.module)}
        for target in config.targets.values:
            if target not in used:
                raise _unused_target(target, base, base_name)
    for pair in pairs:
        if config.targets is not None and config.targets.find(pair.module) is None:
            raise _wrong(
                TARGETS, pair.down, "target_modules of adapter_config.json does not name it"
            )
        if config.excluded.find(pair.module) is not None:
            raise _wrong(TARGETS, pair.down, "exclude_modules of adapter_config.json names it")
        if not config.in_layers(pair.module):
            raise _wrong(
                TARGETS,
                pair.down,
                "layers_to_transform of adapter_config.json does not name its layer",
            )
    return sorted({pair.module.rpartition(".")[2] for pair in pairs})


def _unused_target(target: str, base: BaseModules, base_name: str) -> GraftError:
    there = base.has_named(target)
    return refused(
        TARGETS,
        f"adapter_config.json targets {target!r}, but "
        + ("no tensor is of such a module" if there else f"{base_name} has no such module"),
        "Save the whole adapter, or correct target_modules."
        if there
        else "Leave it out of target_modules.",
        target=target,
    )


def _wrong(
    check: str,
    tensor: Tensor,
    why: str,
    next_step: str = "Save the adapter again, with the configuration it was trained with.",
) -> GraftError:
    return refused(check, f"tensor {tensor.name}: {why}", next_step, tensor=tensor.name)
