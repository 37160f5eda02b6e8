"""What the trainer can do: its methods, objectives and chat templates, asked of the trainer itself."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from graft.connection import Connection
from graft.trainer.v1 import methods_pb2 as pb

_PEER = "the trainer"


@dataclass(frozen=True, slots=True)
class Setting:
    """A setting of a method or objective. default: as in a spec, or in words; "" when it is required."""

    name: str
    default: str
    required: bool


@dataclass(frozen=True, slots=True)
class Method:
    """How a base gets parameters that are trained.

    Args:
        kind: its name in a spec.
        title: its name in the field.
        source: the paper.
        summary: what it does.
        learning_rate: peak, where neither spec nor objective says one.
        learning_rate_source: where that comes from.
        settings: its own.
        quantizations: of the base, that it trains on.
        quantization_note: why not on others.
        default_quantization: of the base; "none" when it is not quantized.
        gradient_checkpointing: whether it goes with it.
        checkpointing_note: why not.
        packing: whether several rows may share a sequence.
        packing_note: why not.
        uses: what can be done with the result.
        makes_base: whether the result is a version of a base.
        refused_objectives: objectives that cannot use it, each with the reason.
    """

    kind: str
    title: str
    source: str
    summary: str
    learning_rate: float
    learning_rate_source: str
    settings: Sequence[Setting]
    quantizations: Sequence[str]
    quantization_note: str
    default_quantization: str
    gradient_checkpointing: bool
    checkpointing_note: str
    packing: bool
    packing_note: str
    uses: Sequence[str]
    makes_base: bool
    refused_objectives: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Objective:
    """What trained parameters are optimized for.

    Args:
        kind: its name in a spec.
        title: its name in the field.
        source: the paper.
        summary: what it does.
        needs: rows that it learns from.
        settings: its own.
        adapter_learning_rate: peak with an adapter; None for the method's own.
        full_learning_rate: peak with all parameters; None for the method's own.
        learning_rate_source: where these come from.
        packing: whether several rows may share a sequence.
        packs_by_default: whether they do where the spec says nothing.
        streaming: whether it can read its data while it trains.
        refused_methods: methods that it cannot use, each with the reason.
    """

    kind: str
    title: str
    source: str
    summary: str
    needs: str
    settings: Sequence[Setting]
    adapter_learning_rate: float | None
    full_learning_rate: float | None
    learning_rate_source: str
    packing: bool
    packs_by_default: bool
    streaming: bool
    refused_methods: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """A chat template that dataset.chat_template can name. tools: whether it has a place for them."""

    name: str
    title: str
    source: str
    tools: bool


@dataclass(frozen=True, slots=True)
class Methods:
    """All that can be named in a spec; the usual ones first."""

    methods: Sequence[Method]
    objectives: Sequence[Objective]
    chat_templates: Sequence[ChatTemplate]


async def list_methods(connection: Connection) -> Methods:
    """Asks the trainer. Raises GraftError UNAVAILABLE."""
    stub = connection.trainer
    found = await connection.call(stub.ListMethods, pb.ListMethodsRequest(), _PEER)
    return Methods(
        methods=[_method(one) for one in found.methods],
        objectives=[_objective(one) for one in found.objectives],
        chat_templates=[
            ChatTemplate(one.name, one.title, one.source, one.tools) for one in found.chat_templates
        ],
    )


def _method(message: pb.MethodDescription) -> Method:
    return Method(
        kind=message.kind,
        title=message.title,
        source=message.source,
        summary=message.summary,
        learning_rate=message.learning_rate,
        learning_rate_source=message.learning_rate_source,
        settings=_settings(message.settings),
        quantizations=list(message.quantizations),
        quantization_note=message.quantization_note,
        default_quantization=message.default_quantization,
        gradient_checkpointing=message.gradient_checkpointing,
        checkpointing_note=message.checkpointing_note,
        packing=message.packing,
        packing_note=message.packing_note,
        uses=list(message.uses),
        makes_base=message.makes_base,
        refused_objectives=_refusals(message.refused_objectives),
    )


def _objective(message: pb.ObjectiveDescription) -> Objective:
    with_adapter, with_all = None, None
    if message.HasField("adapter_learning_rate"):
        with_adapter = message.adapter_learning_rate
    if message.HasField("full_learning_rate"):
        with_all = message.full_learning_rate
    return Objective(
        kind=message.kind,
        title=message.title,
        source=message.source,
        summary=message.summary,
        needs=message.needs,
        settings=_settings(message.settings),
        adapter_learning_rate=with_adapter,
        full_learning_rate=with_all,
        learning_rate_source=message.learning_rate_source,
        packing=message.packing,
        packs_by_default=message.packs_by_default,
        streaming=message.streaming,
        refused_methods=_refusals(message.refused_methods),
    )


def _settings(messages: Iterable[pb.SettingDescription]) -> list[Setting]:
    return [Setting(one.name, one.default_value, one.required) for one in messages]


def _refusals(messages: Iterable[pb.Refusal]) -> dict[str, str]:
    return {one.kind: one.reason for one in messages}
