"""Looks into a soft prompt's files before the engine takes them: shape, numbers, and whether it fits the context.

The registry admits only what is right for the base; its checks run again here on the bytes that are about
to be served. Needs neither torch nor vLLM.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from graft.errors import GraftError, Reason

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

_CHUNK_BYTES = 1024 * 1024
# One token of the request, and one of the answer.
_LEAST_LEFT = 2


class SoftInspection:
    """The soft prompts of one engine.

    Args:
        base_config: text of the base's config.json.
        max_value: largest number of the type that the engine computes in.
        max_context_tokens: of the engine.
    """

    def __init__(self, base_config: str, max_value: float, max_context_tokens: int) -> None:
        self._base_config, self._max_value = base_config, max_value
        self._max_context_tokens = max_context_tokens
        limits = Limits()
        self._rules = HeaderRules(
            files.WEIGHTS, frozenset(ADAPTER_DTYPES), limits.max_header_bytes, limits.max_tensors
        )

    def check(self, name: str, folder: Path) -> None:
        """Reads all of it: call it in a thread.

        Raises:
            GraftError: ADAPTER_UNUSABLE, naming the field or the tensor.
        """
        try:
            self._check(folder)
        except GraftError as error:
            raise GraftError(
                Reason.ADAPTER_UNUSABLE,
                f"{name} cannot be served: {error.message}",
                next_step=error.next_step or "Train it again on this service's base.",
                **error.metadata,
            ) from None

    def _check(self, folder: Path) -> None:
        config = adapter_config.read_config((folder / files.CONFIG).read_bytes())
        path = folder / files.WEIGHTS
        with path.open("rb") as weights:
            tensors = self._tensors(weights, path.stat().st_size, config)
            self._check_length(int(config["num_virtual_tokens"]))
            self._check_range(_scan(weights, tensors))

    def _tensors(
        self, weights: BinaryIO, size_bytes: int, config: Mapping[str, Any]
    ) -> list[Tensor]:
        """Its tensors, which are those that its configuration and the base ask for."""
        prefix = weights.read(PREFIX_BYTES)
        length = header_length(prefix, size_bytes, self._rules)
        weights.seek(LENGTH_BYTES)
        tensors = parse_header(weights.read(length), size_bytes, self._rules)
        check_common(config)
        kind = KINDS[str(config["peft_type"])]
        compare(tensors, kind.expected(config, BaseModules([]), self._base_config))
        return tensors

    def _check_length(self, tokens: int) -> None:
        if tokens + _LEAST_LEFT > self._max_context_tokens:
            raise GraftError(
                Reason.ADAPTER_UNUSABLE,
                f"its {tokens} virtual tokens leave no room for a prompt and an answer in the context of "
                f"{self._max_context_tokens} tokens",
                next_step="Raise GRAFT_INFERENCE_MAX_MODEL_LEN, or train it with fewer virtual tokens.",
                field="num_virtual_tokens",
            )

    def _check_range(self, largest: Mapping[str, float]) -> None:
        """What is finite in the file may be infinite in the engine's type."""
        for tensor, top in largest.items():
            if top > self._max_value:
                raise GraftError(
                    Reason.ADAPTER_UNUSABLE,
                    f"tensor {tensor}: it has values up to {top:.6g}, and the engine's numbers end at "
                    f"{self._max_value:.6g}",
                    next_step="The training diverged: use a smaller learning rate, or an earlier "
                    "checkpoint.",
                    tensor=tensor,
                )


def _scan(weights: BinaryIO, tensors: list[Tensor]) -> dict[str, float]:
    scan = FiniteScan(tensors)
    weights.seek(tensors[0].begin)
    while chunk := weights.read(_CHUNK_BYTES):
        scan.feed(chunk)
    return scan.largest()
