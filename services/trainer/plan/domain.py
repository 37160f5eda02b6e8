"""What a plan is made of."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes at the peak of training, by what they are for; see PlannedMemory in plan.proto."""

    weights_bytes: int
    adapter_bytes: int
    gradients_bytes: int
    optimizer_bytes: int
    activations_bytes: int
    overhead_bytes: int

    @property
    def total_bytes(self) -> int:
        """All of it."""
        return (
            self.weights_bytes
            + self.adapter_bytes
            + self.gradients_bytes
            + self.optimizer_bytes
            + self.activations_bytes
            + self.overhead_bytes
        )


@dataclass(frozen=True, slots=True)
class Hardware:
    """What a job would run on.

    Args:
        name: for people.
        memory_bytes: that a job can have.
        cuda: whether it is a card.
        tflops: of dense bfloat16, as published; 0 where it is not known.
        here: whether it is the machine that plans, so that a probe can tell its speed.
    """

    name: str
    memory_bytes: int
    cuda: bool
    tflops: float
    here: bool


@dataclass(frozen=True, slots=True)
class DataFigures:
    """What the plan must know of the data.

    Args:
        rows: that are trained on; 0 where it is not known.
        tokens: of one pass.
        longest_tokens: of the longest sequence of a batch.
        learned_share: of a full batch's tokens, those that have a loss.
        sequences: of one pass, in the unit of micro_batch_size; 0 where it is not known.
        p95_tokens: that 95 of 100 rows do not exceed.
        mean_tokens: of a row.
    """

    rows: int
    tokens: int
    longest_tokens: int
    learned_share: float
    sequences: int
    p95_tokens: int
    mean_tokens: float


@dataclass(frozen=True, slots=True)
class Change:
    """A change of the spec that lowers memory, with the memory after it and those before it."""

    fields: tuple[str, ...]
    cost: str
    memory: Memory
    fits: bool


@dataclass(frozen=True, slots=True)
class Plan:
    """What a job takes; see plan.proto."""

    fits: bool
    trained_parameters: int
    total_parameters: int
    memory: Memory
    hardware: Hardware
    data: DataFigures
    total_steps: int
    tokens_per_second: float
    seconds: float
    time_source: str
    probe_peak_bytes: int
    changes: tuple[Change, ...]
    notes: tuple[str, ...]
