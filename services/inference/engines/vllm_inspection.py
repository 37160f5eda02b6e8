"""Looks into an adapter's files before vLLM does, for what vLLM takes without a word and computes wrongly.

vLLM 0.32 takes NaN, another base's shapes, layers that do not exist, half a pair and a rank that is not
the tensors'. The registry lets none of that in; its checks are run again here, on the bytes that are
about to be loaded, so that an endpoint is safe from whatever sends them. LoRA, DoRA and IA3 are known.
Needs neither torch nor vLLM.
"""

from __future__ import annotations

import json
import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from graft.bases import read_modules
from graft.errors import GraftError, Reason

from services.registry.admission import adapter_config, coverage, dora, files, pairs
from services.registry.admission.adapter_config import AdapterConfig
from services.registry.admission.dtypes import ADAPTER_DTYPES
from services.registry.admission.header import (
    LENGTH_BYTES,
    PREFIX_BYTES,
    HeaderRules,
    Tensor,
    header_length,
    parse_header,
)
from services.registry.admission.kinds import check_common, compare
from services.registry.admission.kinds.ia3 import Ia3
from services.registry.admission.limits import Limits
from services.registry.admission.modules import BaseModules
from services.registry.admission.pairs import Pair
from services.registry.admission.values import FiniteScan
from services.registry.domain import Module

_CHUNK_BYTES = 1024 * 1024
_KEPT = 4096


class Inspection:
    """The adapters of one engine.

    Args:
        base: folder of the base; its weight matrices are compared where its files show them.
        max_value: largest number of the type that the engine computes in.
    """

    def __init__(self, base: Path, max_value: float) -> None:
        self._base, self._max_value = base, max_value
        self._limits = limits = Limits()
        self._rules = HeaderRules(
            files.WEIGHTS, frozenset(ADAPTER_DTYPES), limits.max_header_bytes, limits.max_tensors
        )
        self._modules = _modules(base)
        # A folder is named by its digest and never changes.
        self._sound: OrderedDict[Path, None] = OrderedDict()

    def check(self, name: str, folder: Path) -> None:
        """Reads all of the weights, once for a folder: call it in a thread.

        Raises:
            GraftError: ADAPTER_UNUSABLE, naming the field or the tensor.
        """
        if folder in self._sound:
            return
        try:
            self._check(folder)
        except GraftError as error:
            raise GraftError(
                Reason.ADAPTER_UNUSABLE,
                f"{name} cannot be served: {error.message}",
                next_step=error.next_step
                or "Train it again, or commit another version; docs/served-kinds.md says what is served.",
                **error.metadata,
            ) from None
        self._sound[folder] = None
        if len(self._sound) > _KEPT:
            self._sound.popitem(last=False)

    def _check(self, folder: Path) -> None:
        given = adapter_config.read_config((folder / files.CONFIG).read_bytes())
        path = folder / files.WEIGHTS
        scales_alone = given.get("peft_type") == Ia3.peft_type
        config = None if scales_alone else adapter_config.lora_config(given)
        found: Sequence[Pair] = ()
        with path.open("rb") as weights:
            tensors = self._header(weights, path.stat().st_size)
            if config is None:
                self._compare_scales(tensors, given)
            else:
                found = self._compare(tensors, config)
            largest = _scan(weights, tensors)
        for pair in found:
            assert config is not None, "only a LoRA has pairs"
            largest[pair.up.name] *= max(1.0, _scale(pair, config))
        self._check_range(largest)

    def _header(self, weights: BinaryIO, size_bytes: int) -> list[Tensor]:
        prefix = weights.read(PREFIX_BYTES)
        length = header_length(prefix, size_bytes, self._rules)
        weights.seek(LENGTH_BYTES)
        return parse_header(weights.read(length), size_bytes, self._rules)

    def _compare(self, tensors: Sequence[Tensor], config: AdapterConfig) -> list[Pair]:
        rest, magnitudes, _ = dora.set_apart(tensors, config)
        found = pairs.pair_up(rest)
        modules = self._modules or _as_adapted(found)
        pairs.check_pairs(found, config, modules, str(self._base), self._limits)
        if config.dora:
            dora.check_magnitudes(magnitudes, found, modules)
        pairs.check_targets(found, config, modules, str(self._base))
        coverage.check_coverage(found, config, modules)
        return found

    def _compare_scales(self, tensors: Sequence[Tensor], given: Mapping[str, Any]) -> None:
        check_common(given)
        compare(tensors, Ia3().expected(given, self._modules or _as_scaled(tensors), ""))

    def _check_range(self, largest: Mapping[str, float]) -> None:
        """What is finite in the file may be infinite in the engine's type; vLLM multiplies lora_B by the scale."""
        for name, top in largest.items():
            if top > self._max_value:
                raise GraftError(
                    Reason.ADAPTER_UNUSABLE,
                    f"tensor {name}: it has values up to {top:.6g} with its scale, and the "
                    f"engine's numbers end at {self._max_value:.6g}",
                    next_step="The training diverged: use a smaller learning rate, or an earlier "
                    "checkpoint.",
                    tensor=name,
                )


def _scale(pair: Pair, config: AdapterConfig) -> float:
    found = config.alphas.find(pair.module)
    alpha = config.alpha if found is None else config.alphas.values[found]
    return alpha / (math.sqrt(pair.rank) if config.rslora else pair.rank)


def _scan(weights: BinaryIO, tensors: Sequence[Tensor]) -> dict[str, float]:
    scan = FiniteScan(tensors)
    weights.seek(tensors[0].begin)
    while chunk := weights.read(_CHUNK_BYTES):
        scan.feed(chunk)
    return scan.largest()


def _as_adapted(found: Sequence[Pair]) -> BaseModules:
    """What the base would have to be for these pairs: then they are held against each other alone."""
    return BaseModules(
        [Module(each.module, (0, *each.down.shape)[-1], (*each.up.shape, 0)[0]) for each in found]
    )


def _as_scaled(tensors: Sequence[Tensor]) -> BaseModules:
    """What the base would have to be for these scales; compare() refuses names that are none."""
    found = []
    for tensor in tensors:
        rows, columns = (*tensor.shape, 0, 0)[:2]
        path = tensor.name.removeprefix(pairs.PREFIX).removesuffix(".ia3_l")
        found.append(Module(path, columns, rows))
    return BaseModules(found)


def _modules(base: Path) -> BaseModules | None:
    """The base's matrices; None where its files do not show them as an adapter means them."""
    try:
        config = json.loads((base / "config.json").read_bytes())
        if not isinstance(config, dict) or "quantization_config" in config:
            return None
        return BaseModules(
            [Module(each.path, each.in_features, each.out_features) for each in read_modules(base)]
        )
    except (GraftError, OSError, ValueError):
        # An engine may have been given weights by other means, or none but random ones.
        return None
