"""What cannot go together in a spec: refused before anything runs, with the reason and what works instead."""

from __future__ import annotations

from typing import TYPE_CHECKING

from graft.errors import GraftError

from services.trainer.fields import invalid_field, one_of
from services.trainer.formats import Conversation, PlainText
from services.trainer.methods import METHODS, MethodInfo
from services.trainer.objectives import OBJECTIVES, ObjectiveInfo
from services.trainer.quantization import Quantization

if TYPE_CHECKING:
    from services.trainer.spec.job import JobSpec


def check_combinations(spec: JobSpec) -> None:
    """Checks that the parts of a spec go together.

    Every optimizer goes with every method and objective.

    Raises:
        GraftError: INVALID_SPEC, naming the field, the reason and the nearest thing that works.
    """
    method, objective = METHODS[spec.method.kind].info, OBJECTIVES[spec.objective.kind].info
    _check_method(method, objective)
    _check_quantization(spec.base.quantization, method)
    _check_memory(spec, method, objective)
    _check_noise(spec, method, objective)
    _check_streaming(spec, objective)
    _check_turns(spec, objective)
    _check_processes(spec, objective)
    _check_best(spec)
    OBJECTIVES[spec.objective.kind].check(spec.objective, spec)


def _check_best(spec: JobSpec) -> None:
    dataset = spec.dataset
    if spec.checkpointing.keep_best and not (dataset.eval_fraction or dataset.eval_sources):
        field = "use_best" if spec.checkpointing.use_best else "keep_best"
        raise invalid_field(
            f"checkpointing.{field}",
            getattr(spec.checkpointing, field),
            "left out where nothing is evaluated: which checkpoint is best is found by an evaluation",
            "Set dataset.eval_fraction or dataset.eval_sources.",
        )


def _check_method(method: MethodInfo, objective: ObjectiveInfo) -> None:
    why = objective.refused_methods.get(method.kind)
    if why is None:
        return
    works = [kind for kind in METHODS if kind not in objective.refused_methods]
    raise invalid_field(
        "method",
        method.kind,
        f"{one_of(works)} for {objective.title}: {why}",
        f"Use method {works[0]}, or objective sft with {method.title}.",
    )


def _check_quantization(quantization: Quantization, method: MethodInfo) -> None:
    works = sorted(method.quantizations)
    if quantization != "none" and quantization not in works:
        other = f"set it to {one_of(works)}, " if works else ""
        raise invalid_field(
            "base.quantization",
            quantization,
            f"{one_of(['none', *works])} with {method.title}: {method.quantization_note}",
            f"Leave base.quantization out, {other}or use method qlora.",
        )
    if quantization == "none" and method.default_quantization != "none":
        raise invalid_field(
            "base.quantization",
            quantization,
            f"nf4, fp4 or int8 with {method.title}",
            "Leave base.quantization out for nf4, or use method lora for a base that is not quantized.",
        )


def _check_memory(spec: JobSpec, method: MethodInfo, objective: ObjectiveInfo) -> None:
    hyper = spec.hyperparameters
    if hyper.gradient_checkpointing and not method.gradient_checkpointing:
        raise invalid_field(
            "hyperparameters.gradient_checkpointing",
            True,
            f"left out with {method.title}: {method.checkpointing_note}",
            "Leave it out and lower micro_batch_size with more gradient_accumulation_steps, or use method lora.",
        )
    if not hyper.packing:
        return
    if not objective.packing:
        raise invalid_field(
            "hyperparameters.packing",
            True,
            f"left out, because {objective.title} does not pack: its rows are compared or sampled one by one",
            "Leave it out: with group_by_length, rows of like length share a batch.",
        )
    if not method.packing:
        raise invalid_field(
            "hyperparameters.packing",
            True,
            f"left out, because {method.title} cannot pack: {method.packing_note}",
            "Leave it out, so that rows of like length share a batch, or use method lora.",
        )


def _check_noise(spec: JobSpec, method: MethodInfo, objective: ObjectiveInfo) -> None:
    alpha, why, beside = spec.hyperparameters.neftune_alpha, objective.neftune_note, objective.title
    if not why and spec.method.input_tokens:
        why, beside = "its learned embeddings would be given noise, too", method.title
    if alpha and why:
        raise invalid_field(
            "hyperparameters.neftune_alpha",
            alpha,
            f"left out with {beside}: {why}",
            "Leave it out; a method's own dropout goes with every objective.",
        )


def _check_streaming(spec: JobSpec, objective: ObjectiveInfo) -> None:
    if not spec.dataset.streaming:
        return
    if not objective.streaming:
        raise invalid_field(
            "dataset.streaming",
            True,
            f"left out, because {objective.title} reads its data at once",
            "Leave it out, with dataset.max_rows where the set is larger than memory.",
        )
    if not spec.hyperparameters.max_steps:
        raise invalid_field(
            "hyperparameters.max_steps",
            0,
            "above 0 with dataset.streaming, whose length is unknown",
            "Set hyperparameters.max_steps to how long it shall train.",
        )


def _check_processes(spec: JobSpec, objective: ObjectiveInfo) -> None:
    """Checks that an objective which one process trains is not given to several."""
    resources = spec.resources
    processes = resources.nodes * max(1, resources.processes_per_node)
    if processes > 1 and not objective.several_processes:
        raise alone_only(objective.title, processes)


def alone_only(title: str, processes: int) -> GraftError:
    """The error of an objective that several processes shall train, and cannot."""
    return invalid_field(
        "resources",
        f"{processes} processes",
        f"one process with {title}, whose answers are sampled and compared in one",
        "Leave out resources.nodes and resources.processes_per_node, with resources.slots 1.",
    )


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
