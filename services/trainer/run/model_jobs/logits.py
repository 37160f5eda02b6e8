"""Logits on held-out rows, kept on disk for another process, and how far two sets of them are apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

# What logits may take on disk: fewer tokens are compared of a large vocabulary.
_MOST_BYTES = 256 * 1024 * 1024
_SMALLEST = 1e-9
Logits = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Distance:
    """How far logits are from others.

    Attributes:
        relative_rms: root mean square of the differences, over the standard deviation of the others.
        largest: the largest difference, over the same.
        top1_agreement: share of the positions whose most probable token is the same.
        positions: how many were compared.
    """

    relative_rms: float
    largest: float
    top1_agreement: float
    positions: int

    def as_dict(self) -> dict[str, float]:
        """By name, for JSON."""
        return asdict(self)


def fitting(rows: Sequence[Sequence[int]], vocabulary: int) -> list[list[int]]:
    """The first rows whose logits have room."""
    left = max(_MOST_BYTES // (4 * vocabulary), 2)
    kept = []
    for row in rows:
        if left < 2:
            break
        kept.append(list(row[:left]))
        left -= len(kept[-1])
    return kept


def logits_of(model: Any, rows: Sequence[Sequence[int]]) -> Logits:
    """What a model says after every token of the rows, [tokens, vocabulary]; each row by itself, without dropout.

    Layers of bitsandbytes stay as they are: one forward pass in evaluation mode would repack them.
    """
    from services.trainer.run.trainers.common import without_dropout

    said = []
    with torch.no_grad(), without_dropout(model):
        for row in rows:
            ids = torch.tensor([list(row)], device=model.device)
            logits = model(input_ids=ids, use_cache=False).logits[0, -len(row) :]
            said.append(logits.float().cpu().numpy())
    return np.concatenate(said)


def write_probe(path: Path, rows: Sequence[Sequence[int]], logits: Logits) -> None:
    """Keeps rows and logits for the process that compares."""
    lengths = np.array([len(row) for row in rows])
    ids = np.concatenate([np.array(row, dtype=np.int64) for row in rows])
    np.savez(path, ids=ids, lengths=lengths, logits=logits)


def read_probe(path: Path) -> tuple[list[list[int]], Logits]:
    """What write_probe() kept."""
    with np.load(path) as known:
        ends = np.cumsum(known["lengths"])[:-1]
        rows = [part.tolist() for part in np.split(known["ids"], ends)]
        return rows, known["logits"]


def distance(found: Logits, known: Logits) -> Distance:
    """How far found is from known; numbers that are none count as infinitely far."""
    difference = found.astype(np.float64) - known
    spread = max(float(known.std(dtype=np.float64)), _SMALLEST)
    relative = float(np.sqrt(np.mean(difference**2))) / spread
    largest = float(np.abs(difference).max()) / spread
    if not np.isfinite(relative):
        relative = largest = float("inf")
    agreement = float(np.mean(found.argmax(-1) == known.argmax(-1)))
    return Distance(relative, largest, agreement, len(known))
