"""In which order GRPO asks its prompts."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch


class GroupOrder(torch.utils.data.Sampler[int]):
    """The order of prompts in each epoch: random, every prompt once per answer, in groups that make a step.

    The same seed and epoch give the same order, whatever came before. The last step is filled up from the
    epoch's first prompts, so that none is left out and every step has as many answers.

    Args:
        rows: how many prompts there are.
        prompts_per_step: of each optimizer step.
        generations: answers per prompt.
        repeats: how often TRL takes a step's prompts; it samples answers to them the first time alone.
        seed: of the run.
    """

    def __init__(
        self, rows: int, prompts_per_step: int, generations: int, repeats: int, seed: int
    ) -> None:
        self._rows = rows
        self._per_step = prompts_per_step
        self._generations = generations
        self._repeats = repeats
        self._seed = seed
        self._epoch = 0

    def begin_epoch(self, epoch: int) -> None:
        """Sets the epoch that the next iteration is for."""
        self._epoch = epoch

    def _steps(self) -> int:
        return -(-self._rows // self._per_step)

    def __len__(self) -> int:
        return self._steps() * self._per_step * self._generations * self._repeats

    def __iter__(self) -> Iterator[int]:
        order = np.random.default_rng((self._seed, self._epoch)).permutation(self._rows)
        filled = np.resize(order, (self._steps(), self._per_step))
        answers = np.repeat(filled, self._generations, axis=1)
        return iter(np.repeat(answers, self._repeats, axis=0).reshape(-1).tolist())
