"""What a worker on a CPU holds beside its live tensors, because malloc does not reuse all that was freed.

Measured with glibc 2.36: the heap grows with every byte that a step allocates, and not only with those that it
needs at once; where each tensor is mapped by itself, it does not. The likely cause is that a freed aligned tensor
leaves a gap into which the next of its size does not fit. The shares were fitted on the grid of `python -m bench
plan`; docs/plan.md says what else was tried.
"""

from __future__ import annotations

from dataclasses import dataclass

# Of all bytes that the tensors of a step ask for.
_KEPT_SHARE = 0.1
# With gradient checkpointing a step asks for more, and more of it fits into what is free.
_KEPT_SHARE_RECOMPUTED = 0.065
# What the first step brings with it, whatever its size: threads, kernels and their caches.
_FIRST_STEP_BYTES = 45_000_000
# Asked for per byte of a quantized base's layers as they are computed with, forward and backward together.
_DEQUANTIZED = 25
# Asked for by the 8-bit optimizer, per number.
_EIGHT_BIT_BYTES = 24


@dataclass(frozen=True, slots=True)
class Asked:
    """What a step asks the allocator for.

    Args:
        heaped_bytes: all tensors of its forward and backward passes that are not mapped by themselves.
        dequantized_bytes: of a quantized base's layers, as they are computed with; 0 for others.
        eight_bit_numbers: whose optimizer state has 8 bits.
        recomputed: whether there is gradient checkpointing.
    """

    heaped_bytes: int
    dequantized_bytes: int
    eight_bit_numbers: int
    recomputed: bool


def kept_bytes(asked: Asked) -> int:
    """What the process holds at its peak beside libraries, model, optimizer and live tensors."""
    heaped = (
        asked.heaped_bytes
        + _DEQUANTIZED * asked.dequantized_bytes
        + _EIGHT_BIT_BYTES * asked.eight_bit_numbers
    )
    share = _KEPT_SHARE_RECOMPUTED if asked.recomputed else _KEPT_SHARE
    return _FIRST_STEP_BYTES + int(share * heaped)
