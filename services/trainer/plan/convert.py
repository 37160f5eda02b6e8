"""The only place where a plan's values become the contract's messages."""

from __future__ import annotations

from typing import Any

from google.protobuf.json_format import MessageToDict
from graft.trainer.v1 import plan_pb2 as pb

from services.trainer.plan.domain import Change, Hardware, Memory, Plan


def plan_message(plan: Plan) -> pb.Plan:
    """The plan as the contract has it."""
    message = pb.Plan(
        trained_parameters=plan.trained_parameters,
        total_parameters=plan.total_parameters,
        hardware=_hardware(plan.hardware),
        memory=_memory(plan.memory),
        fits=plan.fits,
        changes=[_change(one) for one in plan.changes],
        data=_data(plan),
        notes=plan.notes,
        measured_peak_bytes=plan.probe_peak_bytes,
    )
    if plan.tokens_per_second > 0:
        message.time.CopyFrom(
            pb.TimePlan(
                tokens_per_second=plan.tokens_per_second,
                seconds_per_step=plan.seconds / max(plan.total_steps, 1),
                total_seconds=plan.seconds,
                source=plan.time_source,
            )
        )
    return message


def as_json(message: pb.Plan | pb.Recommendation) -> dict[str, Any]:
    """A message as JSON's values."""
    found: dict[str, Any] = MessageToDict(message, preserving_proto_field_name=True)
    return found


def _hardware(hardware: Hardware) -> pb.Hardware:
    return pb.Hardware(
        name=hardware.name,
        memory_bytes=hardware.memory_bytes,
        here=hardware.here,
        source=getattr(hardware, "source", ""),
    )


def _memory(memory: Memory) -> pb.MemoryPlan:
    return pb.MemoryPlan(
        weights_bytes=memory.weights_bytes,
        adapter_bytes=memory.adapter_bytes,
        gradients_bytes=memory.gradients_bytes,
        optimizer_bytes=memory.optimizer_bytes,
        activations_bytes=memory.activations_bytes,
        overhead_bytes=memory.overhead_bytes,
        total_bytes=memory.total_bytes,
    )


def _change(change: Change) -> pb.Change:
    settings = []
    for setting in change.fields:
        field, _, value = setting.partition(" = ")
        settings.append(pb.Setting(field=field, value=value))
    return pb.Change(
        settings=settings, cost=change.cost, memory=_memory(change.memory), fits=change.fits
    )


def _data(plan: Plan) -> pb.DataPlan:
    data = plan.data
    return pb.DataPlan(
        rows=data.rows,
        sequences=data.sequences,
        tokens=data.tokens,
        longest_tokens=data.longest_tokens,
        total_steps=plan.total_steps,
        total_tokens=round(plan.seconds * plan.tokens_per_second),
        measured=data.rows > 0,
    )
