"""All that can be named in a spec, as messages: methods, objectives and chat templates. Nothing is decided here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from types import MappingProxyType
from typing import Any

from graft.trainer.v1 import job_spec_pb2
from graft.trainer.v1 import methods_pb2 as pb

from services.trainer.chat_templates import named_template, template_names
from services.trainer.methods import METHODS, Method
from services.trainer.objectives import OBJECTIVES, Objective

# Objectives' settings without a default, with something that can be parsed in their place.
_REQUIRED: dict[str, dict[str, Any]] = {
    "grpo": {"rewards": [job_spec_pb2.RewardFunction(length=job_spec_pb2.Length(max_tokens=1))]},
    "distillation": {"teacher": "a model's folder or a hub id"},
}
# What settings without a number or word of their own mean when they are left out.
_LEFT_OUT = {
    "target_modules": "all-linear",
    "frozen_modules": "none",
    "initial_text": "embeddings drawn from the vocabulary",
    "encoder_hidden_size": "the base's hidden size",
}
_IA3_LEFT_OUT = {
    "target_modules": "keys, values and the MLP's last layer",
    "feedforward_modules": "the MLP's last layer",
}


def list_methods() -> pb.ListMethodsResponse:
    """Everything, in the order in which it is registered."""
    return pb.ListMethodsResponse(
        methods=[_method(one) for one in METHODS.values()],
        objectives=[_objective(one) for one in OBJECTIVES.values()],
        chat_templates=[_template(name) for name in template_names()],
    )


def _method(method: type[Method[Any]]) -> pb.MethodDescription:
    info = method.info
    message = getattr(job_spec_pb2.MethodSpec(), info.kind)
    return pb.MethodDescription(
        kind=info.kind,
        title=info.title,
        source=info.source,
        summary=info.summary,
        learning_rate=info.learning_rate,
        learning_rate_source=info.learning_rate_source,
        settings=_settings(
            message,
            asdict(method.parse(message)),
            left_out=_IA3_LEFT_OUT if info.kind == "ia3" else _LEFT_OUT,
        ),
        quantizations=sorted(info.quantizations),
        quantization_note=info.quantization_note,
        default_quantization=info.default_quantization,
        gradient_checkpointing=info.gradient_checkpointing,
        checkpointing_note=info.checkpointing_note,
        packing=info.packing,
        packing_note=info.packing_note,
        uses=sorted(info.uses),
        makes_base=info.makes_base,
        refused_objectives=[
            pb.Refusal(kind=kind, reason=objective.info.refused_methods[info.kind])
            for kind, objective in OBJECTIVES.items()
            if info.kind in objective.info.refused_methods
        ],
    )


def _objective(objective: type[Objective[Any]]) -> pb.ObjectiveDescription:
    info = objective.info
    required = _REQUIRED.get(info.kind, {})
    message = type(getattr(job_spec_pb2.ObjectiveSpec(), info.kind))(**required)
    return pb.ObjectiveDescription(
        kind=info.kind,
        title=info.title,
        source=info.source,
        summary=info.summary,
        needs=info.needs,
        settings=_settings(message, asdict(objective.parse(message)), required),
        adapter_learning_rate=info.adapter_learning_rate,
        full_learning_rate=info.full_learning_rate,
        learning_rate_source=info.learning_rate_source,
        packing=info.packing,
        packs_by_default=info.packs_by_default,
        streaming=info.streaming,
        neftune_note=info.neftune_note,
        refused_methods=[
            pb.Refusal(kind=kind, reason=why) for kind, why in info.refused_methods.items()
        ],
    )


def _settings(
    message: Any,
    parsed: dict[str, Any],
    required: Mapping[str, Any] = MappingProxyType({}),
    left_out: Mapping[str, str] = MappingProxyType({}),
) -> Iterator[pb.SettingDescription]:
    """The message's fields in their order, with what parsing made of those that were left out."""
    for field in message.DESCRIPTOR.fields:
        if field.name in required:
            yield pb.SettingDescription(name=field.name, required=True)
            continue
        given = parsed[field.name]
        words = left_out.get(field.name, "") if given in (0, "", ()) else _in_words(given)
        yield pb.SettingDescription(name=field.name, default_value=words or _in_words(given))


def _in_words(value: Any) -> str:
    """As it would stand in a spec."""
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value).lower()


def _template(name: str) -> pb.ChatTemplateDescription:
    found = named_template(name)
    return pb.ChatTemplateDescription(
        name=found.name, title=found.title, source=found.source, tools=found.tools
    )
