"""Finds NaN, infinity and the largest value of every tensor by bits, chunk by chunk, without torch.

Without its sign bit a float compares as a whole number does, so one maximum tells both.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from services.registry.admission.dtypes import FLOATS, Float, value_of
from services.registry.admission.header import Tensor
from services.registry.errors import refused

CHECK = "finite-values"


class FiniteScan:
    """Takes the tensors' bytes in order, in chunks of any size; whole numbers pass unseen.

    Args:
        tensors: in the order of their bytes, without gaps.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._tensors = [tensor for tensor in tensors if tensor.end > tensor.begin]
        self._tops = [0] * len(self._tensors)
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
        view, taken = memoryview(data), 0
        while self._index < len(self._tensors):
            used = self._feed_run(view[taken:])
            taken += used
            if not used:
                break
        self._rest = data[taken:]

    def _feed_run(self, data: memoryview) -> int:
        """Checks the numbers of one format that data begins with; answers how many bytes they have."""
        dtype = self._tensors[self._index].dtype
        form = FLOATS.get(dtype)
        width = form.width_bytes if form else 1
        last, starts = self._index, [0]
        while last + 1 < len(self._tensors) and self._tensors[last + 1].dtype == dtype:
            start_bytes = self._tensors[last + 1].begin - self._position
            if start_bytes + width > len(data):
                break
            last += 1
            starts.append(start_bytes // width)
        end_bytes = min(len(data), self._tensors[last].end - self._position) // width * width
        if form and end_bytes:
            self._note(form, data[:end_bytes], starts)
        self._position += end_bytes
        self._index = last + (self._position == self._tensors[last].end)
        return end_bytes

    def _note(self, form: Float, data: memoryview, starts: list[int]) -> None:
        words = np.frombuffer(data, dtype=form.unsigned)
        # The largest without a sign is the farthest below zero, the largest with one above.
        below = np.maximum.reduceat(words, starts) & form.unsigned.type(form.magnitude)
        above = np.maximum.reduceat(words.view(form.signed), starts)
        for offset, found in enumerate(zip(below.tolist(), above.tolist(), strict=True)):
            top = max(found)
            if top >= form.not_finite:
                self._refuse(self._index + offset, form, words, starts[offset])
            if top > self._tops[self._index + offset]:
                self._tops[self._index + offset] = top

    def _refuse(self, index: int, form: Float, words: np.ndarray[Any, Any], start: int) -> None:
        tensor = self._tensors[index]
        magnitudes = words[start:] & form.unsigned.type(form.magnitude)
        at = start + int((magnitudes >= form.not_finite).argmax())
        element = (self._position - tensor.begin) // form.width_bytes + at
        where = [int(one) for one in np.unravel_index(element, tensor.shape)]
        raise refused(
            CHECK,
            f"tensor {tensor.name}: the value at {where} is NaN or infinite",
            "The training diverged: use a smaller learning rate, or an earlier checkpoint.",
            tensor=tensor.name,
        )

    @property
    def done(self) -> bool:
        """Whether all bytes of all tensors were seen."""
        return self._index == len(self._tensors)

    def largest(self) -> dict[str, float]:
        """The largest absolute value of every float tensor, by name."""
        return {
            tensor.name: value_of(tensor.dtype, top)
            for tensor, top in zip(self._tensors, self._tops, strict=True)
            if tensor.dtype in FLOATS
        }
