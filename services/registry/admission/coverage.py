"""Are all layers there that the configuration says? What PEFT would have made is compared with what is.

PEFT adapts a target in every layer that has it, so tensors of some layers only are a cut file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from services.registry.admission.adapter_config import AdapterConfig
from services.registry.admission.modules import BaseModules
from services.registry.admission.pairs import PREFIX, Pair
from services.registry.admission.selectors import layer_of
from services.registry.errors import refused

CHECK = "layer-coverage"


@dataclass(frozen=True, slots=True)
class _Line:
    """A module that repeats in layers: as the adapter and as the base write what is around the number."""

    before: str
    after: str
    kind: str

    def path(self, layer: int) -> str:
        return f"{self.before}.{layer}.{self.after}"


def check_coverage(pairs: Sequence[Pair], config: AdapterConfig, base: BaseModules) -> str:
    """Which layers are covered, in words.

    Raises:
        GraftError: VERSION_REFUSED, naming the layer and the tensor that is missing.
    """
    covered = _covered(pairs, base)
    found: set[int] = set().union(*covered.values()) if covered else set()
    for layer in sorted((config.layers.wanted or frozenset()) - found):
        raise refused(
            CHECK,
            f"adapter_config.json says layer {layer} in layers_to_transform, but no tensor is of it",
            "Save the whole adapter, or correct layers_to_transform.",
            layer=layer,
        )
    if config.every_layer:
        for line, layers in sorted(covered.items(), key=lambda one: one[0].kind):
            _check_line(line, layers, config, base)
    return _described(covered, base, config)


def _covered(pairs: Sequence[Pair], base: BaseModules) -> dict[_Line, set[int]]:
    covered: dict[_Line, set[int]] = {}
    for pair in pairs:
        before, layer, after = layer_of(pair.module)
        kind = base.kind_of(pair.module)
        if layer is not None and kind is not None:
            covered.setdefault(_Line(before, after, kind), set()).add(layer)
    return covered


def _check_line(line: _Line, layers: set[int], config: AdapterConfig, base: BaseModules) -> None:
    for layer in base.layers_of(line.kind):
        path = line.path(layer)
        if layer in layers or not _is_meant(path, config):
            continue
        tensor = f"{PREFIX}{path}.lora_A.weight"
        raise refused(
            CHECK,
            f"tensor {tensor}: it is missing: layer {layer} of the base has {path}, which "
            f"adapter_config.json targets as in layer {min(layers)}",
            "Save the whole adapter, or say its layers in layers_to_transform.",
            tensor=tensor,
            layer=layer,
        )


def _is_meant(path: str, config: AdapterConfig) -> bool:
    return (
        (config.targets is None or config.targets.find(path) is not None)
        and config.excluded.find(path) is None
        and config.in_layers(path)
    )


def _described(covered: dict[_Line, set[int]], base: BaseModules, config: AdapterConfig) -> str:
    if not covered:
        return "no module that is adapted repeats in layers"
    found: set[int] = set().union(*covered.values())
    of = {layer for line in covered for layer in base.layers_of(line.kind)}
    text = f"layers {ranges(sorted(found))}: {len(found)} of {len(of)}"
    if config.layers.wanted is not None:
        return f"{text}, as layers_to_transform says"
    return text if config.every_layer else f"{text}; a pattern chose them"


def ranges(numbers: Sequence[int]) -> str:
    """Ascending numbers in short: 0-3, 7."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][1] == number - 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)
