"""The scales of one layer's inputs and outputs, one set for each adapter slot: what DoRA and IA3 are beside LoRA.

Plain torch on fixed memory, so that a captured CUDA graph reads what was written later. Knows nothing of
vLLM. A scale is kept as what it is above 1: bfloat16 has few digits, and most scales are close to 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class Rows:
    """What one adapter changes of one layer, of this rank's part of it; None where it changes nothing.

    Attributes:
        output: scale - 1 of each output feature, [out].
        shift: what is added to the scaled output, [out].
        input: scale - 1 of each input feature, [in].
    """

    output: torch.Tensor | None = None
    shift: torch.Tensor | None = None
    input: torch.Tensor | None = None


class LayerScales:
    """Buffers of a layer, a shift only beside an output's scale. Their last row is the one without a scale, which the slot -1 (no adapter) means.

    Args:
        slots: how many adapters there may be at once.
        outputs: features of the layer's output.
        inputs: features of its input; 0 where the input is never scaled.
        biased: whether the layer has a bias, which a scale may have to leave out, or to take in.

    Attributes:
        outputs: slots that have a scale of the output.
        inputs: slots that have one of the input.
    """

    def __init__(
        self,
        slots: int,
        outputs: int,
        inputs: int,
        *,
        biased: bool,
        dtype: torch.dtype,
        device: torch.device | str,
    ) -> None:
        def buffer(features: int) -> torch.Tensor:
            return torch.zeros(slots + 1, features, dtype=dtype, device=device)

        # vLLM may call in inference mode, and writes adapters outside of it, too.
        with torch.inference_mode(False):
            self.output = buffer(outputs)
            self.shift = buffer(outputs) if biased else None
            self.input = buffer(inputs) if inputs else None
        self.outputs: frozenset[int] = frozenset()
        self.inputs: frozenset[int] = frozenset()

    def write(self, slot: int, rows: Rows | None) -> None:
        """A slot holds another adapter from now on: nothing of the one before is left."""
        rows = rows or Rows()
        for buffer, row, there in (
            (self.output, rows.output, self.outputs),
            (self.shift, rows.shift, self.outputs),
            (self.input, rows.input, self.inputs),
        ):
            if buffer is None:
                assert row is None, "a layer without a bias or without such an input"
            elif row is None:
                # Most adapters have no scales, and took their slot from one without.
                if slot in there:
                    buffer[slot].zero_()
            else:
                buffer[slot].copy_(row)
        self.outputs = _marked(self.outputs, slot, rows.output is not None)
        self.inputs = _marked(self.inputs, slot, rows.input is not None)


def scale(y: torch.Tensor, above: torch.Tensor, shift: torch.Tensor | None) -> torch.Tensor:
    """y * (1 + above) + shift. Nothing in it depends on what the data is.

    Args:
        y: [..., features].
        above: [tokens, features], a row of LayerScales for each token of y.
        shift: of the same shape.
    """
    flat = y.flatten(0, -2)
    scaled = torch.addcmul(flat, flat, above.to(y.dtype))
    if shift is not None:
        scaled = scaled + shift.to(y.dtype)
    return scaled.view_as(y)


def _marked(before: frozenset[int], slot: int, there: bool) -> frozenset[int]:
    return before | {slot} if there else before - {slot}
