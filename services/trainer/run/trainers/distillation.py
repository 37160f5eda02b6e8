"""Distillation on the data's own answers: our fine-tuning with TRL's divergence in place of the cross-entropy.

TRL's DistillationTrainer learns on answers that the student samples, and takes no rows of tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from graft.errors import GraftError
from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

from services.trainer.objectives.base import Run
from services.trainer.objectives.distillation import DistillationConfig, not_a_teacher
from services.trainer.run.isolation import check_isolation
from services.trainer.run.trainers.heads import Head, hidden_states, read_head
from services.trainer.run.trainers.sft import SupervisedTrainer
from services.trainer.spec import BaseSpec
from services.trainer.tokens import IGNORED


class DistillationTrainer(SupervisedTrainer):
    """The loss of a learned token is its divergence, plus sft_weight times its cross-entropy, in nats."""

    def __init__(self, run: Run, config: DistillationConfig) -> None:
        self._config = config
        super().__init__(run)
        try:
            teacher = run.load_base(
                BaseSpec(
                    source=config.teacher,
                    name="teacher",
                    quantization="none",
                    dtype=run.spec.base.dtype,
                )
            )
        except GraftError as error:
            raise not_a_teacher(error) from None
        self._teacher = teacher.requires_grad_(False).eval()
        if run.spec.hyperparameters.packing:
            check_isolation(self._teacher, "teacher")

    def batch_loss(
        self, model: Any, inputs: dict[str, torch.Tensor], learned_tokens: torch.Tensor
    ) -> torch.Tensor:
        """The summed loss of a batch over the number of learned tokens of the whole step."""
        divergence, cross_entropy = self._losses(model, inputs)
        count = max(int((inputs["labels"][:, 1:] != IGNORED).sum()), 1)
        figures = {"divergence": float(divergence.detach()) / count}
        if self._config.sft_weight:
            figures["sft_loss"] = float(cross_entropy.detach()) / count
        self.graft_run.progress.add_figures(figures)
        return self._weighted(divergence, cross_entropy) / learned_tokens.clamp(min=1)

    def eval_loss(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """The summed loss of a held-out batch."""
        return self._weighted(*self._losses(self.model, inputs))

    def _weighted(self, divergence: torch.Tensor, cross_entropy: torch.Tensor) -> torch.Tensor:
        if not self._config.sft_weight:
            return divergence
        return divergence + self._config.sft_weight * cross_entropy

    def _losses(
        self, model: Any, inputs: dict[str, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The summed divergence and cross-entropy of the learned tokens, in nats."""
        # Position i predicts token i + 1; the last position predicts nothing.
        targets = inputs["labels"].roll(-1, dims=1)
        targets[:, -1] = IGNORED
        learned = targets != IGNORED
        own_forward = self.graft_run.method.uses_own_forward()
        student = hidden_states(model, inputs, own_forward)[learned]
        with torch.no_grad():
            teacher = hidden_states(self._teacher, inputs, False)[learned]
        ours, theirs = read_head(model), read_head(self._teacher)
        divergence = self._divergence(student, ours, teacher, theirs)
        if not self._config.sft_weight:
            return divergence, divergence.new_zeros(())
        return divergence, ours.cross_entropy(student, targets[learned])

    def _divergence(
        self, student: torch.Tensor, ours: Head, teacher: torch.Tensor, theirs: Head
    ) -> torch.Tensor:
        # Of one tokenizer, but one may have more rows behind its last token, which nothing ever is.
        rows = min(ours.weight.shape[0], theirs.weight.shape[0])
        per_token, _ = ChunkedDivergenceFunction.apply(
            student.to(ours.weight.dtype),
            ours.weight[:rows],
            ours.bias_of(rows),
            teacher.to(theirs.weight.dtype),
            theirs.weight[:rows],
            theirs.bias_of(rows),
            self._config.beta,
            self._config.temperature,
            ours.scale,
            ours.softcap,
            theirs.scale,
            theirs.softcap,
        )
        total: torch.Tensor = per_token.sum()
        return total
