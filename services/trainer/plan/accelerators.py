"""Cards and their published figures, for plans for another machine than this one."""

from __future__ import annotations

from dataclasses import dataclass

from graft.errors import GraftError, Reason

from services.trainer.plan.domain import Hardware

_GIB = 1024**3


@dataclass(frozen=True, slots=True)
class Accelerator:
    """A card's data sheet.

    Args:
        name: as people call it.
        memory_gib: of the card.
        tflops: dense, without sparsity: bfloat16, float16 where it has no bfloat16.
        bandwidth_gb_s: of its memory.
        source: where the figures stand.
    """

    name: str
    memory_gib: int
    tflops: float
    bandwidth_gb_s: int
    source: str


ACCELERATORS = (
    Accelerator("T4", 16, 65.0, 320, "NVIDIA T4 data sheet (float16)"),
    Accelerator("V100", 32, 125.0, 900, "NVIDIA V100 data sheet (SXM2, float16)"),
    Accelerator("L4", 24, 121.0, 300, "NVIDIA L4 data sheet"),
    Accelerator("A10G", 24, 70.0, 600, "NVIDIA A10G product brief"),
    Accelerator("L40S", 48, 362.0, 864, "NVIDIA L40S data sheet"),
    Accelerator("A100-40GB", 40, 312.0, 1555, "NVIDIA A100 data sheet"),
    Accelerator("A100", 80, 312.0, 2039, "NVIDIA A100 data sheet (SXM)"),
    Accelerator("H100", 80, 989.0, 3350, "NVIDIA H100 data sheet (SXM)"),
    Accelerator("H200", 141, 989.0, 4800, "NVIDIA H200 data sheet (SXM)"),
    Accelerator("RTX3090", 24, 71.0, 936, "NVIDIA GA102 white paper"),
    Accelerator("RTX4090", 24, 165.2, 1008, "NVIDIA Ada white paper"),
)


def find_accelerator(name: str) -> Hardware:
    """A card of the table, however its name is spelled.

    Raises:
        GraftError: INVALID_REQUEST, when it is not there.
    """
    for card in ACCELERATORS:
        if _plain(card.name) == _plain(name):
            return Hardware(card.name, card.memory_gib * _GIB, True, card.tflops, here=False)
    raise GraftError(
        Reason.INVALID_REQUEST,
        f"There is no accelerator {name!r} in the table",
        next_step=f"Name one of {', '.join(card.name for card in ACCELERATORS)}.",
    )


def _plain(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())
