"""What cannot go together in a spec: refused before anything runs, with the reason and what works instead."""

from __future__ import annotations

from typing import TYPE_CHECKING

from services.trainer.fields import invalid_field, one_of
from services.trainer.formats import Conversation, PlainText
from services.trainer.methods import METHODS
from services.trainer.objectives import OBJECTIVES, ObjectiveInfo

if TYPE_CHECKING:
    from services.trainer.spec.job import JobSpec


def check_combinations(spec: JobSpec) -> None:
    """Checks that the parts of a spec go together.

    Raises:
        GraftError: INVALID_SPEC, naming the field, the reason and the nearest thing that works.
    """
    method, objective = METHODS[spec.method.kind].info, OBJECTIVES[spec.objective.kind].info
    hyper = spec.hyperparameters
    quantization = spec.base.quantization
    if quantization != "none" and quantization not in method.quantizations:
        raise invalid_field(
            "base.quantization",
            quantization,
            f"{one_of(['none', *sorted(method.quantizations)])} with {method.title}: {method.quantization_note}",
            "Leave base.quantization out, or use method qlora.",
        )
    if quantization == "none" and method.default_quantization != "none":
        raise invalid_field(
            "base.quantization",
            quantization,
            f"nf4, fp4 or int8 with {method.title}",
            "Leave base.quantization out for nf4, or use method lora for a base that is not quantized.",
        )
    if hyper.gradient_checkpointing and not method.gradient_checkpointing:
        raise invalid_field(
            "hyperparameters.gradient_checkpointing",
            True,
            f"left out with {method.title}: {method.checkpointing_note}",
        )
    if hyper.packing and not (method.packing and objective.packing):
        who = objective.title if method.packing else method.title
        raise invalid_field("hyperparameters.packing", True, f"left out, because {who} cannot pack")
    if spec.dataset.streaming and not objective.streaming:
        raise invalid_field(
            "dataset.streaming", True, f"left out, because {objective.title} reads its data at once"
        )
    if spec.dataset.streaming and not hyper.max_steps:
        raise invalid_field(
            "hyperparameters.max_steps",
            0,
            "above 0 with dataset.streaming, whose length is unknown",
        )
    if (why := objective.refused_methods.get(spec.method.kind)) is not None:
        raise invalid_field("method", spec.method.kind, f"another one for {objective.title}: {why}")
    _check_turns(spec, objective)
    OBJECTIVES[spec.objective.kind].check(spec.objective, spec)


def _check_turns(spec: JobSpec, objective: ObjectiveInfo) -> None:
    """Checks that what is said of turns is said to an objective that has some."""
    dataset = spec.dataset
    if dataset.loss_on != "assistant" and Conversation not in objective.contents:
        raise invalid_field(
            "dataset.loss_on",
            dataset.loss_on,
            f"left out, because {objective.title} has no such choice",
            "Leave it out, or use objective sft.",
        )
    if dataset.chat_template and objective.contents == (PlainText,):
        raise invalid_field(
            "dataset.chat_template",
            dataset.chat_template,
            f"left out, because {objective.title} learns text without turns",
            "Leave it out, or use objective sft.",
        )
