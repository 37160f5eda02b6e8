"""What happens around every HTTP request: a request id, the caller's key, one log line, metrics, a span, and
errors in OpenAI's form. The counterpart of services/common/interceptors.py.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import structlog
from aiohttp import web
from graft.channel import ACTOR_HEADER, REQUEST_ID, REQUEST_ID_HEADER
from graft.errors import GraftError, Reason

from services.common.caller import CALLER, Caller
from services.common.logs import get_logger
from services.common.tracing import Tracing
from services.inference.http.errors import error_headers, error_text, status_of
from services.inference.http.keys import ApiKeys
from services.inference.http.metrics import HttpMetrics

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

# Asked by machines every few seconds, and by those who have no key.
PROBES = frozenset({"/health", "/ready"})
_GONE = 499
_RETRY_AFTER_S = 1.0
_MAX_REQUEST_ID = 128
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(slots=True)
class Call:
    """What is known of one request while it is answered.

    Attributes:
        failed: what its client is told instead of an answer, or in the middle of one.
        cause: what raised it.
    """

    failed: GraftError | None = None
    cause: Exception | None = None


CALL = web.RequestKey("call", Call)


class Calls:
    """The middleware of the door.

    Attributes:
        draining: from then on no request begins; those that have begun go on.
        running: the tasks that answer now.
    """

    def __init__(self, metrics: HttpMetrics, tracing: Tracing, keys: ApiKeys | None) -> None:
        self._metrics, self._tracing, self._keys = metrics, tracing, keys
        self.draining = False
        self.running: set[asyncio.Task[Any]] = set()

    @property
    def middleware(self) -> Any:
        """For web.Application."""

        @web.middleware
        async def observed(request: web.Request, handler: Handler) -> web.StreamResponse:
            if request.path in PROBES:
                return await handler(request)
            task = asyncio.current_task()
            assert task is not None
            self.running.add(task)
            try:
                return await self._answer(request, handler)
            finally:
                self.running.discard(task)

        return observed

    async def _answer(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        route, began_s = _route(request), time.perf_counter()
        request[CALL] = call = Call()
        request_id = _request_id(request)
        _name(request, request_id, request.headers.get(ACTOR_HEADER, ""))
        in_flight = self._metrics.in_flight.labels(route)
        in_flight.inc()
        status = _GONE
        try:
            with self._tracing.request(request.method, route, _lower(request), request_id):
                response = await self._respond(request, handler, request_id)
                status = response.status
                if call.failed is not None and response.prepared:
                    # In the middle of a stream, whose own status was 200.
                    status = status_of(call.failed)
                self._tracing.describe(**{"http.response.status_code": status})
            if not response.prepared:
                response.headers[REQUEST_ID_HEADER] = request_id
            _log(request, route, status, time.perf_counter() - began_s, call)
            return response
        except ConnectionError:
            raise asyncio.CancelledError from None
        finally:
            in_flight.dec()
            self._metrics.requests.labels(route, str(status)).inc()
            self._metrics.seconds.labels(route).observe(time.perf_counter() - began_s)

    async def _respond(
        self, request: web.Request, handler: Handler, request_id: str
    ) -> web.StreamResponse:
        try:
            if self.draining:
                raise _draining()
            if self._keys is not None:
                name = self._keys.caller(request.headers.get("Authorization", ""))
                if name:
                    _name(request, request_id, name)
            return await handler(request)
        except Exception as error:
            if hung_up(request, error):
                raise
            response = error_response(fail(request, error))
            if isinstance(error, web.HTTPException):
                response.set_status(error.status)
            if isinstance(error, web.HTTPMethodNotAllowed):
                response.headers["Allow"] = error.headers["Allow"]
            if self.draining:
                response.force_close()
            return response


def hung_up(request: web.Request, error: Exception) -> bool:
    """Whether an error is only that the client has gone while it was written to."""
    transport = request.transport
    return isinstance(error, ConnectionError) and (transport is None or transport.is_closing())


def fail(request: web.Request, error: Exception) -> GraftError:
    """Notes what ended a request, for its metrics and its log line; what its client is told."""
    call = request[CALL]
    call.failed, call.cause = as_graft_error(error), error
    return call.failed


def error_response(error: GraftError) -> web.Response:
    """An error as an answer of its own."""
    return web.Response(
        status=status_of(error),
        text=error_text(error),
        content_type="application/json",
        headers=error_headers(error),
    )


def as_graft_error(error: Exception) -> GraftError:
    """What the client is told of an error, whoever raised it."""
    if isinstance(error, GraftError):
        return error
    if isinstance(error, web.HTTPRequestEntityTooLarge):
        return GraftError(
            Reason.TOO_LARGE,
            "The request's body is larger than this service takes",
            next_step="Send less at once; GRAFT_INFERENCE_HTTP_MAX_BODY_BYTES is its bound.",
        )
    if isinstance(error, web.HTTPNotFound):
        return GraftError(
            Reason.MODEL_NOT_FOUND,
            "There is nothing at this path",
            next_step="Ask /v1/chat/completions, /v1/completions, /v1/embeddings or /v1/models; the "
            "client's base_url ends with /v1.",
        )
    if isinstance(error, web.HTTPException):
        return GraftError(
            Reason.INVALID_REQUEST,
            f"The request cannot be answered: {error.status} {error.reason}",
            next_step="Read docs/openai.md for paths and methods.",
        )
    return GraftError(
        Reason.INTERNAL,
        f"The service failed: {type(error).__name__}: {error}",
        next_step="Its log has the traceback under this request's id.",
    )


def _route(request: web.Request) -> str:
    resource = request.match_info.route.resource
    return "other" if resource is None else resource.canonical


def _request_id(request: web.Request) -> str:
    given = request.headers.get(REQUEST_ID_HEADER, "")
    return given if given and len(given) <= _MAX_REQUEST_ID else uuid.uuid4().hex


def _name(request: web.Request, request_id: str, actor: str) -> None:
    """Says who asks, for logs and for what this service asks others."""
    REQUEST_ID.set(request_id)
    CALLER.set(Caller(actor, request.path, request_id))
    structlog.contextvars.bind_contextvars(request_id=request_id, actor=actor)


def _lower(request: web.Request) -> dict[str, str]:
    return {name.lower(): value for name, value in request.headers.items()}


def _log(
    request: web.Request,
    route: str,
    status: int,
    seconds: float,
    call: Call,
) -> None:
    log: FilteringBoundLogger = get_logger()
    failed = call.failed
    fields = {"route": f"{request.method} {route}", "code": status, "seconds": round(seconds, 6)}
    if failed is None:
        log.info("request answered", **fields)
    elif failed.reason is Reason.INTERNAL:
        log.error("request failed", error=failed.message, exc_info=call.cause, **fields)
    else:
        log.info("request refused", reason=failed.reason.value, error=failed.message, **fields)


def _draining() -> GraftError:
    return GraftError(
        Reason.UNAVAILABLE,
        "The service is stopping and takes no new requests",
        next_step="Try again at once: another replica answers, or this one when it is back.",
        retry_after_s=_RETRY_AFTER_S,
    )
