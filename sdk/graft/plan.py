"""Plans and recommendations: what a job would take on given hardware, and which job suits, asked of the trainer."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from google.protobuf.json_format import MessageToDict

from graft.connection import Connection
from graft.errors import GraftError, Reason
from graft.names import namespace_name
from graft.specs import SpecSource, TrainOptions, build_spec
from graft.trainer.v1 import plan_pb2 as pb
from graft.trainer.v1.job_spec_pb2 import JobSpec

_PEER = "the trainer"
# Data is read as a whole and steps are tried; the trainer has a limit of its own.
_TIMEOUT_S = 3600.0
# Nothing is made, so nobody needs to name it.
_NOBODY = "planned"
OnStage = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Hardware:
    """What a job would run on. here: whether it is the trainer's own machine."""

    name: str
    memory_bytes: int
    here: bool
    source: str


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Peak memory in bytes, by what it is for."""

    weights_bytes: int
    adapter_bytes: int
    gradients_bytes: int
    optimizer_bytes: int
    activations_bytes: int
    overhead_bytes: int
    total_bytes: int


@dataclass(frozen=True, slots=True)
class Change:
    """A change of the spec that lowers memory.

    Attributes:
        settings: fields of the spec, with their new values as YAML has them.
        cost: in words.
        memory: with it and with those before it.
        fits: whether the job fits then.
    """

    settings: Mapping[str, str]
    cost: str
    memory: MemoryPlan
    fits: bool


@dataclass(frozen=True, slots=True)
class DataPlan:
    """What a job reads: an epoch's rows, sequences and tokens, and the whole run's steps and tokens."""

    rows: int
    sequences: int
    tokens: int
    longest_tokens: int
    total_steps: int
    total_tokens: int


@dataclass(frozen=True, slots=True)
class TimePlan:
    """How long a job would take; source: "probe" or "table"."""

    tokens_per_second: float
    seconds_per_step: float
    total_seconds: float
    source: str


@dataclass(frozen=True, slots=True)
class Plan:
    """What a job would take.

    Attributes:
        trained_parameters: exact.
        total_parameters: of the adapted model, exact.
        changes: the cheapest that together make it fit; none when it fits, or nothing helps.
        time: None when it is not known.
        measured_peak_bytes: of the probe; 0 without one.
    """

    trained_parameters: int
    total_parameters: int
    hardware: Hardware
    memory: MemoryPlan
    fits: bool
    changes: Sequence[Change]
    data: DataPlan
    time: TimePlan | None
    notes: Sequence[str]
    measured_peak_bytes: int


@dataclass(frozen=True, slots=True)
class Choice:
    """A field of a recommended spec: its value, why, and where the rule comes from."""

    field: str
    value: str
    why: str
    source: str


@dataclass(frozen=True, slots=True)
class Recommendation:
    """A job that suits a base, some data and hardware.

    Attributes:
        spec: ready for train(), in the form of job_spec.proto.
        choices: why it is as it is.
        plan: what it would take.
    """

    spec: Mapping[str, Any]
    choices: Sequence[Choice]
    plan: Plan


async def plan(
    connection: Connection,
    namespace: str,
    spec: SpecSource | None,
    options: TrainOptions,
    *,
    accelerator: str,
    probe: bool,
    on_stage: OnStage | None,
) -> Plan:
    """Asks the trainer; see Client.plan."""
    request = pb.PlanJobRequest(
        parent=namespace_name(namespace),
        spec=_spec(spec, options),
        accelerator=accelerator,
        no_probe=not probe,
    )
    stream: AsyncGenerator[pb.PlanJobResponse, None] = connection.stream(
        connection.trainer.PlanJob, request, _PEER, timeout_s=_TIMEOUT_S
    )
    async with aclosing(stream) as updates:
        async for update in updates:
            if update.HasField("plan"):
                return _plan(update.plan)
            if on_stage is not None:
                on_stage(update.progress.stage)
    raise _without_result("plan")


async def recommend(
    connection: Connection,
    namespace: str,
    spec: SpecSource | None,
    options: TrainOptions,
    *,
    accelerator: str,
    on_stage: OnStage | None,
) -> Recommendation:
    """Asks the trainer; see Client.recommend."""
    request = pb.RecommendJobRequest(
        parent=namespace_name(namespace), spec=_spec(spec, options), accelerator=accelerator
    )
    stream: AsyncGenerator[pb.RecommendJobResponse, None] = connection.stream(
        connection.trainer.RecommendJob, request, _PEER, timeout_s=_TIMEOUT_S
    )
    async with aclosing(stream) as updates:
        async for update in updates:
            if update.HasField("recommendation"):
                return _recommendation(update.recommendation)
            if on_stage is not None:
                on_stage(update.progress.stage)
    raise _without_result("recommendation")


def _spec(spec: SpecSource | None, options: TrainOptions) -> JobSpec:
    if spec is not None:
        return build_spec(spec, options)
    if options.get("output_base"):
        return build_spec(None, options)
    if options.get("method") == "full":
        return build_spec(None, {"output_base": _NOBODY, **options})
    return build_spec(None, {"adapter": _NOBODY, **options})


def _without_result(what: str) -> GraftError:
    return GraftError(
        Reason.INTERNAL,
        f"The trainer ended without a {what}",
        next_step="Try it again; if it stays so, look into the trainer's log.",
    )


def _recommendation(message: pb.Recommendation) -> Recommendation:
    return Recommendation(
        spec=MessageToDict(message.spec, preserving_proto_field_name=True),
        choices=[Choice(one.field, one.value, one.why, one.source) for one in message.choices],
        plan=_plan(message.plan),
    )


def _plan(message: pb.Plan) -> Plan:
    hardware, data, time = message.hardware, message.data, message.time
    return Plan(
        trained_parameters=message.trained_parameters,
        total_parameters=message.total_parameters,
        hardware=Hardware(hardware.name, hardware.memory_bytes, hardware.here, hardware.source),
        memory=_memory(message.memory),
        fits=message.fits,
        changes=[_change(one) for one in message.changes],
        data=DataPlan(
            data.rows,
            data.sequences,
            data.tokens,
            data.longest_tokens,
            data.total_steps,
            data.total_tokens,
        ),
        time=TimePlan(
            time.tokens_per_second, time.seconds_per_step, time.total_seconds, time.source
        )
        if message.HasField("time")
        else None,
        notes=list(message.notes),
        measured_peak_bytes=message.measured_peak_bytes,
    )


def _change(message: pb.Change) -> Change:
    settings = {one.field: one.value for one in message.settings}
    return Change(settings, message.cost, _memory(message.memory), message.fits)


def _memory(message: pb.MemoryPlan) -> MemoryPlan:
    return MemoryPlan(
        weights_bytes=message.weights_bytes,
        adapter_bytes=message.adapter_bytes,
        gradients_bytes=message.gradients_bytes,
        optimizer_bytes=message.optimizer_bytes,
        activations_bytes=message.activations_bytes,
        overhead_bytes=message.overhead_bytes,
        total_bytes=message.total_bytes,
    )
