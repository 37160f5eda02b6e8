"""What happens around every call: a request id, one log line, metrics, and errors as gRPC statuses.

Nothing is done per message of a stream: a stream of tokens costs what its servicer makes it cost.
"""

from __future__ import annotations

import asyncio
import inspect
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import grpc
import structlog
from graft.channel import ACTOR_HEADER, REQUEST_ID, REQUEST_ID_HEADER
from graft.errors import GraftError, Reason, to_status
from grpc_status import rpc_status

from services.common.caller import CALLER, Caller
from services.common.logs import get_logger
from services.common.metrics import RpcMetrics
from services.common.tracing import Tracing

if TYPE_CHECKING:
    # The stubs' classes take type arguments, the real ones do not.
    _Interceptor = grpc.aio.ServerInterceptor[Any, Any]
    Context = grpc.aio.ServicerContext[Any, Any]
else:
    _Interceptor = grpc.aio.ServerInterceptor
    Context = grpc.aio.ServicerContext

# Asked by machines every few seconds; a log line for each would bury the others.
_QUIET = ("/grpc.health.", "/grpc.reflection.")
_RETRY_AFTER_S = 1.0


class CallInterceptor(_Interceptor):
    """Wraps every handler of a server."""

    def __init__(self, metrics: RpcMetrics, tracing: Tracing | None = None) -> None:
        self._metrics, self._tracing = metrics, tracing or Tracing.off()
        # From then on no call begins; those that have begun go on.
        self.draining = False
        # Set while no call is being answered; those of machines, which are not observed, are none.
        self.idle = asyncio.Event()
        self.idle.set()
        self._in_flight = 0

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Replaces the handler by one that is observed."""
        handler = await continuation(handler_call_details)
        method: str = handler_call_details.method
        if handler is None or method.startswith(_QUIET):
            return handler
        wrap = {
            (False, False): ("unary_unary", grpc.unary_unary_rpc_method_handler, self._unary),
            (False, True): ("unary_stream", grpc.unary_stream_rpc_method_handler, self._stream),
            (True, False): ("stream_unary", grpc.stream_unary_rpc_method_handler, self._unary),
            (True, True): ("stream_stream", grpc.stream_stream_rpc_method_handler, self._stream),
        }
        kind, make, observe = wrap[handler.request_streaming, handler.response_streaming]
        return make(
            observe(method, getattr(handler, kind)),
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )

    @contextmanager
    def _counted(self) -> Iterator[None]:
        self._in_flight += 1
        self.idle.clear()
        try:
            yield
        finally:
            self._in_flight -= 1
            if not self._in_flight:
                self.idle.set()

    def _observed(self, method: str, context: Context) -> _Observed:
        return _Observed(self._metrics, self._tracing, method, context, refuse=self.draining)

    def _unary(self, method: str, handler: Callable[..., Any]) -> Callable[..., Any]:
        async def call(request: Any, context: Context) -> Any:
            with self._counted():
                async with self._observed(method, context):
                    return await handler(request, context)

        return call

    def _stream(self, method: str, handler: Callable[..., Any]) -> Callable[..., Any]:
        if not inspect.isasyncgenfunction(handler):
            # It writes its messages to the context itself, which spares a hop for each.
            return self._unary(method, handler)

        async def call(request: Any, context: Context) -> AsyncIterator[Any]:
            with self._counted():
                async with self._observed(method, context):
                    async for answer in handler(request, context):
                        yield answer

        return call


class _Observed:
    """One call: binds its request id, counts and logs it, and turns errors into statuses."""

    def __init__(
        self,
        metrics: RpcMetrics,
        tracing: Tracing,
        method: str,
        context: Context,
        *,
        refuse: bool,
    ) -> None:
        self._metrics, self._tracing = metrics, tracing
        self._method, self._context, self._refuse = method, context, refuse

    async def __aenter__(self) -> None:
        metadata = dict(self._context.invocation_metadata() or ())
        request_id = str(metadata.get(REQUEST_ID_HEADER) or uuid.uuid4().hex)
        REQUEST_ID.set(request_id)
        actor = str(metadata.get(ACTOR_HEADER, ""))
        CALLER.set(Caller(actor, self._method.rpartition("/")[2], request_id))
        structlog.contextvars.bind_contextvars(request_id=request_id, actor=actor)
        self._began_s = time.perf_counter()
        self._span = self._tracing.call(self._method, metadata, request_id)
        self._span.__enter__()
        self._metrics.in_flight.labels(self._method).inc()
        if self._refuse:
            error = _draining()
            await self.__aexit__(type(error), error, None)

    async def __aexit__(self, kind: type[BaseException] | None, error: Any, trace: Any) -> None:
        seconds = time.perf_counter() - self._began_s
        refused = _as_graft_error(error)
        code = _code(error, refused)
        self._tracing.describe(**{"rpc.grpc.status_code": code})
        self._span.__exit__(kind, error, trace)
        self._metrics.in_flight.labels(self._method).dec()
        self._metrics.calls.labels(self._method, code).inc()
        self._metrics.seconds.labels(self._method).observe(seconds)
        log, fields = (
            get_logger(),
            {"method": self._method, "code": code, "seconds": round(seconds, 6)},
        )
        if refused is not None and refused.reason is Reason.INTERNAL:
            log.error("call failed", exc_info=error, **fields)
        elif refused is not None:
            log.info("call refused", reason=refused.reason.value, error=refused.message, **fields)
        else:
            log.info("call answered", **fields)
        if refused is not None:
            status = rpc_status.to_status(to_status(refused))
            await self._context.abort(
                refused.code, status.details, trailing_metadata=status.trailing_metadata
            )


def _draining() -> GraftError:
    return GraftError(
        Reason.UNAVAILABLE,
        "The service is stopping and takes no new calls",
        next_step="Try again at once: another replica answers, or this one when it is back.",
        retry_after_s=_RETRY_AFTER_S,
    )


def _as_graft_error(error: BaseException | None) -> GraftError | None:
    """What the caller is told; None for no error, a disconnect, and an abort by the servicer itself."""
    if isinstance(error, GraftError):
        return error
    if isinstance(error, grpc.aio.AbortError | grpc.aio.UsageError) or not isinstance(
        error, Exception
    ):
        return None
    return GraftError(
        Reason.INTERNAL,
        f"The service failed: {type(error).__name__}: {error}",
        next_step="Its log has the traceback under this call's request id.",
    )


def _code(error: BaseException | None, refused: GraftError | None) -> str:
    if refused is not None:
        return refused.code.name
    if isinstance(error, asyncio.CancelledError | GeneratorExit):
        return "CANCELLED"
    return "OK" if error is None else "ABORTED"
