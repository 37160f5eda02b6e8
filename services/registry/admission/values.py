"""Finds NaN and infinity in tensors by their bits, chunk by chunk, without torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from services.registry.admission.header import DTYPE_BYTES, Tensor
from services.registry.errors import refused

CHECK = "finite-values"
# A float is NaN or infinite when all bits of its exponent are set (IEEE 754; bfloat16 likewise).
_EXPONENT: dict[str, Any] = {
    "F64": np.uint64(0x7FF0_0000_0000_0000),
    "F32": np.uint32(0x7F80_0000),
    "F16": np.uint16(0x7C00),
    "BF16": np.uint16(0x7F80),
}
_WORD: dict[int, np.dtype[Any]] = {8: np.dtype("<u8"), 4: np.dtype("<u4"), 2: np.dtype("<u2")}


class FiniteScan:
    """Takes the tensors' bytes in order, in chunks of any size.

    Args:
        tensors: in the order of their bytes, without gaps.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._tensors = tensors
        self._index = 0
        self._position = tensors[0].begin
        # A chunk may end in the middle of a number.
        self._rest = b""

    def feed(self, chunk: bytes) -> None:
        """Checks the next bytes.

        Raises:
            GraftError: VERSION_REFUSED, naming the tensor and the element.
        """
        data = self._rest + chunk if self._rest else chunk
        taken = 0
        while self._index < len(self._tensors):
            tensor = self._tensors[self._index]
            width = DTYPE_BYTES[tensor.dtype]
            usable = min(len(data) - taken, tensor.end - self._position) // width * width
            _check(tensor, memoryview(data)[taken : taken + usable], self._position, width)
            taken += usable
            self._position += usable
            if self._position < tensor.end:
                break
            self._index += 1
        self._rest = data[taken:]

    @property
    def done(self) -> bool:
        """Whether all bytes of all tensors were seen."""
        return self._index == len(self._tensors)


def _check(tensor: Tensor, data: memoryview, position: int, width: int) -> None:
    mask = _EXPONENT[tensor.dtype]
    bad = (np.frombuffer(data, dtype=_WORD[width]) & mask) == mask
    if bad.any():
        element = (position - tensor.begin) // width + int(bad.argmax())
        where = [int(index) for index in np.unravel_index(element, tensor.shape)]
        raise refused(
            CHECK,
            f"tensor {tensor.name}: the value at {where} is NaN or infinite",
            "The training diverged: use a smaller learning rate, or an earlier checkpoint.",
            tensor=tensor.name,
        )
