"""The RPCs about the base itself: which one is served, another one, and cancelling that. Converts and asks."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from google.protobuf.timestamp_pb2 import Timestamp
from graft.errors import GraftError, Reason
from graft.inference.v1 import bases_pb2 as pb
from graft.inference.v1 import inference_service_pb2

from services.inference.bases.domain import Loading
from services.inference.bases.house import House
from services.inference.bases.switch import Stage, Strategy, Told, Wanted
from services.inference.bases.switching import Switcher

_DTYPES = ("", "auto", "bfloat16", "float16", "float32")
_STRATEGY = {
    pb.SWITCH_STRATEGY_UNSPECIFIED: Strategy.AUTO,
    pb.SWITCH_STRATEGY_BESIDE: Strategy.BESIDE,
    pb.SWITCH_STRATEGY_REPLACE: Strategy.REPLACE,
}
_STRATEGY_SAID = {strategy: value for value, strategy in _STRATEGY.items()}
_STAGE = {
    Stage.CHECKING: pb.SWITCH_STAGE_CHECKING,
    Stage.FETCHING: pb.SWITCH_STAGE_FETCHING,
    Stage.DRAINING: pb.SWITCH_STAGE_DRAINING,
    Stage.STARTING: pb.SWITCH_STAGE_STARTING,
    Stage.RETIRING: pb.SWITCH_STAGE_RETIRING,
    Stage.RESTORING: pb.SWITCH_STAGE_RESTORING,
    Stage.DONE: pb.SWITCH_STAGE_DONE,
    Stage.FAILED: pb.SWITCH_STAGE_FAILED,
    Stage.CANCELLED: pb.SWITCH_STAGE_CANCELLED,
}


class BaseRpcs:
    """What the service's front passes on; see InferenceService."""

    def __init__(self, house: House, switcher: Switcher) -> None:
        self._house, self._switcher = house, switcher

    def get(self) -> pb.ServedBase:
        """GetBase."""
        serving, last = self._house.current, self._switcher.last
        assert serving is not None, "the start is over"
        assert serving.base is not None, "the start is over"
        base = serving.base
        message = pb.ServedBase(
            name=base.name,
            fingerprint=base.fingerprint,
            reference=base.reference,
            version=base.version,
            version_digest=base.version_digest,
            quantization=base.quantization,
            max_context_tokens=serving.engine.limits.max_context_tokens,
            ready=self._house.ready,
        )
        if last is not None:
            message.last_switch.CopyFrom(_message(last.told))
        return message

    async def switch(
        self, request: pb.SwitchBaseRequest, write: Callable[[pb.BaseSwitch], Awaitable[None]]
    ) -> None:
        """SwitchBase: writes how it goes; it goes on when the caller leaves.

        Raises:
            GraftError: INVALID_REQUEST, IN_USE; what fails later is the last message.
        """
        strategy = _STRATEGY.get(request.strategy)
        if strategy is None:
            raise GraftError(
                Reason.INVALID_REQUEST,
                f"strategy is {request.strategy}, and there is none of that number",
                next_step="Use auto, beside or replace.",
                field="strategy",
            )
        loading = Loading(request.quantization or None, _dtype(request.dtype))
        wanted = Wanted(request.base, strategy, loading, request.validate_only)
        async for told in self._switcher.begin(wanted).follow():
            await write(_message(told))

    async def cancel(self, request: pb.CancelBaseSwitchRequest) -> pb.BaseSwitch:
        """CancelBaseSwitch: answers when the old base serves again.

        Raises:
            GraftError: INVALID_REQUEST, IN_USE.
        """
        return _message((await self._switcher.cancel(request.number)).told)

    def tell(self, residency: inference_service_pb2.Residency) -> None:
        """Says in a residency that the base is being changed."""
        last = self._switcher.last
        if last is not None and not last.over:
            residency.base_switch.CopyFrom(_message(last.told))


def _dtype(text: str) -> str | None:
    if text not in _DTYPES:
        raise GraftError(
            Reason.INVALID_REQUEST,
            f"dtype is {text!r}, and there is none of that name",
            next_step=f"Use one of {', '.join(_DTYPES[1:])}.",
            field="dtype",
        )
    return text or None


def _message(told: Told) -> pb.BaseSwitch:
    message = pb.BaseSwitch(
        number=told.number,
        stage=_STAGE[told.stage],
        from_base=told.from_base,
        to_base=told.to_base,
        strategy=_STRATEGY_SAID[told.strategy],
        message=told.message,
        begin_time=_time(told.begin_s),
        needed_bytes=told.needed_bytes,
        available_bytes=told.available_bytes,
    )
    if told.end_s:
        message.end_time.CopyFrom(_time(told.end_s))
    if told.error is not None:
        message.reason, message.next_step = told.error.reason.value, told.error.next_step
    return message


def _time(unix_s: float) -> Timestamp:
    message = Timestamp()
    message.FromMicroseconds(round(unix_s * 1_000_000))
    return message
