"""Looks into the files of an adapter that the transformers engine is to load, by the registry's own rules.

The registry has let nothing else in; the bytes that are about to be loaded are checked once more. Needs no torch.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from pathlib import Path
from typing import BinaryIO

from graft.bases import read_modules
from graft.errors import GraftError, Reason

from services.inference.engines.vllm_inspection import Inspection
from services.registry.admission import adapter_config, files
from services.registry.admission.dtypes import ADAPTER_DTYPES
from services.registry.admission.header import (
    LENGTH_BYTES,
    PREFIX_BYTES,
    HeaderRules,
    Tensor,
    header_length,
    parse_header,
)
from services.registry.admission.kinds import KINDS, check_common, compare
from services.registry.admission.limits import Limits
from services.registry.admission.modules import BaseModules
from services.registry.admission.values import FiniteScan
from services.registry.domain import Module

_CHUNK_BYTES = 1024 * 1024
_KEPT = 4096
_ANY = float("inf")


class KindInspection:
    """Adapters of every kind, for one base.

    Args:
        base: its folder.
    """

    def __init__(self, base: Path) -> None:
        self._base, limits = base, Limits()
        self._rules = HeaderRules(
            files.WEIGHTS, frozenset(ADAPTER_DTYPES), limits.max_header_bytes, limits.max_tensors
        )
        self._low_rank = Inspection(base, _ANY)
        self._sound: OrderedDict[Path, None] = OrderedDict()

    def check(self, name: str, folder: Path) -> None:
        """Reads all of the weights, once for a folder: call it in a thread.

        Raises:
            GraftError: ADAPTER_UNUSABLE, naming the field or the tensor.
        """
        if folder in self._sound:
            return
        try:
            self._check(name, folder)
        except GraftError as error:
            if error.reason is Reason.ADAPTER_UNUSABLE:
                raise
            raise _unusable(name, error.message, error.next_step, **error.metadata) from None
        except OSError as error:
            raise _unusable(name, str(error), "Ask again: its files are fetched anew.") from None
        self._sound[folder] = None
        if len(self._sound) > _KEPT:
            self._sound.popitem(last=False)

    def _check(self, name: str, folder: Path) -> None:
        config = adapter_config.read_config((folder / files.CONFIG).read_bytes())
        kind = KINDS.get(str(config.get("peft_type")))
        if kind is None:
            self._low_rank.check(name, folder)
            return
        check_common(config)
        modules = _modules(self._base)
        path = folder / files.WEIGHTS
        with path.open("rb") as weights:
            tensors = self._header(weights, path.stat().st_size)
            if modules is not None:
                text = (self._base / "config.json").read_text("utf-8")
                compare(tensors, kind.expected(config, modules, text))
            _scan(weights, tensors)

    def _header(self, weights: BinaryIO, size_bytes: int) -> list[Tensor]:
        prefix = weights.read(PREFIX_BYTES)
        length = header_length(prefix, size_bytes, self._rules)
        weights.seek(LENGTH_BYTES)
        return parse_header(weights.read(length), size_bytes, self._rules)


def _modules(base: Path) -> BaseModules | None:
    """The base's matrices; None where its files do not show them, and the engine alone can tell."""
    try:
        if "quantization_config" in json.loads((base / "config.json").read_bytes()):
            return None
        return BaseModules(
            [Module(each.path, each.in_features, each.out_features) for each in read_modules(base)]
        )
    except (GraftError, OSError, ValueError):
        return None


def _scan(weights: BinaryIO, tensors: list[Tensor]) -> None:
    scan = FiniteScan(tensors)
    weights.seek(tensors[0].begin)
    while chunk := weights.read(_CHUNK_BYTES):
        scan.feed(chunk)
    scan.largest()


def _unusable(name: str, why: str, next_step: str, **metadata: str) -> GraftError:
    return GraftError(
        Reason.ADAPTER_UNUSABLE,
        f"{name} cannot be served: {why}",
        next_step=next_step or "Commit a version that was trained on this base.",
        **metadata,
    )
