"""The base that an inference service serves: which one, another one while it serves, and cancelling that."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from graft import convert
from graft.connection import Connection
from graft.errors import GraftError, Reason
from graft.inference.v1 import bases_pb2 as pb

_PEER = "inference"
# A base is fetched, and an engine of many GiB starts.
_TIMEOUT_S = 24 * 3600.0


class SwitchStrategy(StrEnum):
    """How a new base takes the old one's place; auto is beside where memory allows, else replace."""

    AUTO = "auto"
    BESIDE = "beside"
    REPLACE = "replace"


class SwitchStage(StrEnum):
    """Where a switch is."""

    CHECKING = "CHECKING"
    FETCHING = "FETCHING"
    DRAINING = "DRAINING"
    STARTING = "STARTING"
    RETIRING = "RETIRING"
    RESTORING = "RESTORING"
    DONE = "DONE"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"


@dataclass(frozen=True, slots=True)
class BaseSwitch:
    """A change of the base at one moment; reason and next_step are set where it failed.

    needed_bytes and available_bytes are the memory that its engine is estimated to take, and that is free.
    """

    number: int
    stage: SwitchStage
    from_base: str
    to_base: str
    strategy: SwitchStrategy
    message: str
    reason: str
    next_step: str
    begin_time: datetime | None
    end_time: datetime | None
    needed_bytes: int
    available_bytes: int

    @property
    def over(self) -> bool:
        """Whether it has ended, however."""
        return self.stage in (SwitchStage.DONE, SwitchStage.FAILED, SwitchStage.CANCELLED)


@dataclass(frozen=True, slots=True)
class ServedBase:
    """What answers now; version and version_digest are None for a folder."""

    name: str
    fingerprint: str
    reference: str
    version: str | None
    version_digest: str | None
    quantization: str
    max_context_tokens: int
    ready: bool
    last_switch: BaseSwitch | None


class BaseService:
    """The base of the service at a client's inference address. Where that names several replicas, ask each."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def get(self) -> ServedBase:
        """Which base answers, and how its last change went."""
        stub = self._connection.inference
        return _served(await self._connection.call(stub.GetBase, pb.GetBaseRequest(), _PEER))

    async def switch(
        self,
        base: str,
        *,
        strategy: SwitchStrategy | str = SwitchStrategy.AUTO,
        quantization: str = "",
        dtype: str = "",
        validate_only: bool = False,
    ) -> AsyncGenerator[BaseSwitch, None]:
        """Serves another base; yields how that goes, up to its end. It goes on when this is left.

        Args:
            base: "bases/name", "bases/name@alias", "bases/name:7", or a folder on the service's machine.
            strategy: how.
            quantization: quantize while loading; empty for what the base says.
            dtype: "auto", "bfloat16", "float16" or "float32"; empty for the service's setting.
            validate_only: check everything and change nothing.

        Raises:
            GraftError: INVALID_REQUEST, IN_USE while another switch is under way. What fails later is
                the last one's reason; see failure_of().
        """
        request = pb.SwitchBaseRequest(
            base=base,
            strategy=_strategy(strategy),
            quantization=quantization,
            dtype=dtype,
            validate_only=validate_only,
        )
        stub = self._connection.inference
        stream = self._connection.stream(stub.SwitchBase, request, _PEER, timeout_s=_TIMEOUT_S)
        async with aclosing(stream):
            async for message in stream:
                yield _switch(message)

    async def cancel(self, number: int = 0) -> BaseSwitch:
        """Ends the switch under way; answers when the old base serves.

        Args:
            number: only this one; 0 for any.

        Raises:
            GraftError: INVALID_REQUEST where none is under way, IN_USE where the new base serves already.
        """
        stub, request = self._connection.inference, pb.CancelBaseSwitchRequest(number=number)
        call = self._connection.call(stub.CancelBaseSwitch, request, _PEER, timeout_s=600.0)
        return _switch(await call)


def failure_of(switch: BaseSwitch) -> GraftError | None:
    """Why a switch failed or was cancelled, as an error; None where it did neither."""
    if switch.stage is SwitchStage.CANCELLED:
        return GraftError(
            Reason.CANCELLED,
            f"The switch to {switch.to_base} was cancelled; {switch.from_base} serves",
            next_step="Switch again when it is wanted.",
        )
    if switch.stage is not SwitchStage.FAILED:
        return None
    known = switch.reason in Reason.__members__
    return GraftError(
        Reason(switch.reason) if known else Reason.INTERNAL,
        f"{switch.message}; {switch.from_base} serves as before",
        next_step=switch.next_step,
    )


def _strategy(strategy: SwitchStrategy | str) -> pb.SwitchStrategy.ValueType:
    try:
        chosen = SwitchStrategy(strategy)
    except ValueError:
        raise GraftError(
            Reason.INVALID_REQUEST,
            f"strategy is {strategy!r}, and there is none of that name",
            next_step=f"Use one of {', '.join(SwitchStrategy)}.",
        ) from None
    if chosen is SwitchStrategy.AUTO:
        return pb.SWITCH_STRATEGY_UNSPECIFIED
    return pb.SwitchStrategy.Value(f"SWITCH_STRATEGY_{chosen.name}")


def _served(message: pb.ServedBase) -> ServedBase:
    return ServedBase(
        name=message.name,
        fingerprint=message.fingerprint,
        reference=message.reference,
        version=message.version or None,
        version_digest=message.version_digest or None,
        quantization=message.quantization,
        max_context_tokens=message.max_context_tokens,
        ready=message.ready,
        last_switch=_switch(message.last_switch) if message.HasField("last_switch") else None,
    )


def _switch(message: pb.BaseSwitch) -> BaseSwitch:
    stage = pb.SwitchStage.Name(message.stage).removeprefix("SWITCH_STAGE_")
    strategy = pb.SwitchStrategy.Name(message.strategy).removeprefix("SWITCH_STRATEGY_").lower()
    return BaseSwitch(
        number=message.number,
        stage=SwitchStage(stage),
        from_base=message.from_base,
        to_base=message.to_base,
        strategy=SwitchStrategy.AUTO if strategy == "unspecified" else SwitchStrategy(strategy),
        message=message.message,
        reason=message.reason,
        next_step=message.next_step,
        begin_time=convert.optional_time(message.begin_time),
        end_time=convert.optional_time(message.end_time),
        needed_bytes=message.needed_bytes,
        available_bytes=message.available_bytes,
    )
