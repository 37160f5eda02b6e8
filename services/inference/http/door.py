"""The HTTP server beside the gRPC server: OpenAI's API on the same answers. See docs/openai.md.

It listens as long as the gRPC server does: from the beginning, to say that it starts, until it has drained.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from aiohttp import web
from graft.errors import GraftError, Reason
from prometheus_client import CollectorRegistry

from services.common.https import HttpsCertificates
from services.common.logs import get_logger
from services.common.tls import ServerCertificates
from services.common.tracing import Tracing
from services.inference.http.calls import Calls
from services.inference.http.handlers import Handlers
from services.inference.http.keys import ApiKeys
from services.inference.http.metrics import HttpMetrics
from services.inference.serving import Serving

_BACKLOG = 1024
# Longer than what balancers keep, so that it is never we who close a connection that they still use.
_KEEPALIVE_S = 75.0
# What was cancelled gets as long to end.
_CANCEL_S = 1.0


@dataclass(frozen=True, slots=True)
class DoorOptions:
    """Settings of the door.

    Attributes:
        listen: host:port.
        api_keys: file of the keys; None lets everybody in.
        max_body_bytes: longer requests are refused.
        drain_timeout_s: how long requests in flight may go on at the end.
        stalled_after_s: a reader that takes nothing for so long gives its place to others.
    """

    listen: str
    api_keys: Path | None
    max_body_bytes: int
    drain_timeout_s: float
    stalled_after_s: float


class HttpDoor:
    """Listens from listen() on, answers from begin() on, until it drains.

    Args:
        serving: the base that is served now; asked at every request, because it may change.
        ready, alive: what the probes /ready and /health say.

    Attributes:
        address: "http://host:port" or "https://host:port" once it listens.

    Raises:
        GraftError: INVALID_REQUEST when the keys' file cannot be used.
    """

    def __init__(
        self,
        options: DoorOptions,
        serving: Callable[[], Serving],
        metrics: CollectorRegistry,
        tracing: Tracing,
        ready: Callable[[], bool],
        alive: Callable[[], bool],
    ) -> None:
        self._options, self._ready, self._alive = options, ready, alive
        keys = None if options.api_keys is None else ApiKeys(options.api_keys)
        self._calls = Calls(HttpMetrics(metrics), tracing, keys)
        self._begun = False
        handlers = Handlers(lambda: serving() if self._begun else None, options.stalled_after_s)
        app = web.Application(
            middlewares=[self._calls.middleware], client_max_size=options.max_body_bytes
        )
        app.add_routes(handlers.routes())
        app.add_routes([web.get("/health", self._health), web.get("/ready", self._readiness)])
        self._runner = web.AppRunner(
            app,
            access_log=None,
            # Who hangs up frees its place at once.
            handler_cancellation=True,
            keepalive_timeout=_KEEPALIVE_S,
            shutdown_timeout=_CANCEL_S,
        )
        self.address = ""

    async def listen(self, certificates: ServerCertificates | None) -> None:
        """Binds and answers that it starts.

        Raises:
            GraftError: UNAVAILABLE when it cannot listen there.
        """
        if self.address:
            return
        host, _, port = self._options.listen.rpartition(":")
        await self._runner.setup()
        try:
            bound = socket.create_server(
                (host.strip("[]"), int(port)),
                family=socket.AF_INET6 if ":" in host else socket.AF_INET,
                backlog=_BACKLOG,
            )
        except OSError as error:
            raise GraftError(
                Reason.UNAVAILABLE,
                f"It cannot listen for HTTP on {self._options.listen} ({error})",
                next_step="End what listens there, or set another GRAFT_INFERENCE_HTTP_LISTEN.",
            ) from None
        context = None if certificates is None else HttpsCertificates(certificates).context
        await web.SockSite(self._runner, bound, ssl_context=context, backlog=_BACKLOG).start()
        scheme = "http" if context is None else "https"
        self.address = f"{scheme}://{host}:{bound.getsockname()[1]}"

    def begin(self) -> None:
        """From now on requests are answered."""
        self._begun = True

    def refuse(self) -> None:
        """What still arrives is 503, with a hint to retry."""
        self._calls.draining = True

    async def drain(self) -> None:
        """Takes no new requests, lets those in flight end within the drain time, then stops."""
        self.refuse()
        for site in list(self._runner.sites):
            await site.stop()
        if self._runner.server is not None:
            self._runner.server.pre_shutdown()
        if self._calls.running:
            await asyncio.wait(self._calls.running, timeout=self._options.drain_timeout_s)
        late = set(self._calls.running)
        if late:
            get_logger().warning("requests cut off by the end of the drain", requests=len(late))
        for task in late:
            task.cancel()
        await self._runner.cleanup()

    async def _health(self, _request: web.Request) -> web.Response:
        return _state(self._alive(), "alive", "there is no hope for its engine")

    async def _readiness(self, _request: web.Request) -> web.Response:
        return _state(self._ready(), "ready", "not ready")


def _state(good: bool, yes: str, no: str) -> web.Response:
    return web.json_response({"status": yes if good else no}, status=200 if good else 503)
