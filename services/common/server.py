"""A gRPC server with what every service has: health, reflection, metrics, signals and a drain.

A service adds its servicers and says what to do before and after; see serve().
"""

from __future__ import annotations

import asyncio
import gc
import json
import signal
from collections.abc import Awaitable, Callable, Sequence

import grpc
from graft.channel import MAX_MESSAGE_BYTES
from graft.errors import GraftError, Reason
from graft.files import write_atomic
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer
from grpc_reflection.v1alpha import reflection
from prometheus_client import CollectorRegistry

from services.common.config import ServiceSettings
from services.common.interceptors import CallInterceptor
from services.common.logs import get_logger
from services.common.metrics import CertificateMetrics, MetricsEndpoint, RpcMetrics
from services.common.tls import ServerCertificates, certificates_of
from services.common.tracing import Tracing

_OPTIONS = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.so_reuseport", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
)


# Different questions, each a name at grpc.health.v1: whether it has started once, whether it should get
# calls now, and whether there is hope for this process. "" and each service's name ask the second.
STARTUP, READINESS, LIVENESS = "startup", "readiness", "liveness"
# For the last bytes of the last answers to get to their callers.
_LAST_BYTES_S = 3.0


class GrpcServer:
    """Listens from listen() on, gets calls from start() on, until it drains.

    Args:
        settings: where to listen and how long to drain.
        service_names: full protobuf names, for health and reflection.
        metrics: registry that is shown at the metrics endpoint.
        tracing: gets a span for each call.
    """

    def __init__(
        self,
        settings: ServiceSettings,
        service_names: Sequence[str],
        metrics: CollectorRegistry,
        tracing: Tracing | None = None,
    ) -> None:
        self._settings = settings
        self._names = tuple(service_names)
        self._metrics = metrics
        self._health = HealthServicer()
        self._interceptor = CallInterceptor(RpcMetrics(metrics), tracing)
        self.grpc = grpc.aio.server(
            interceptors=[self._interceptor],
            options=(*_OPTIONS, *_aging(settings.max_connection_age_s)),
        )
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self.grpc)
        # For probes that speak no TLS; it has nothing else to say.
        self._plain = grpc.aio.server(options=_OPTIONS) if settings.health_listen else None
        if self._plain is not None:
            health_pb2_grpc.add_HealthServicer_to_server(self._health, self._plain)
        reflection.enable_server_reflection(
            [*self._names, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name,
             reflection.SERVICE_NAME],
            self.grpc,
        )  # fmt: skip
        self.address = ""
        self.metrics_address = ""
        self.health_address = ""
        # Of what listens beside it, for the log and the ready file.
        self.more_addresses: dict[str, str] = {}
        self.certificates: ServerCertificates | None = None
        self._says: dict[str, bool] = {}

    async def listen(self) -> None:
        """Binds and answers: it is alive, and not ready. Servicers are added before."""
        if self.address:
            return
        self.certificates = certificates_of(self._settings)
        host, _, _port = self._settings.listen.rpartition(":")
        try:
            if self.certificates is None:
                port = self.grpc.add_insecure_port(self._settings.listen)
            else:
                port = self.grpc.add_secure_port(
                    self._settings.listen, self.certificates.credentials()
                )
                CertificateMetrics(self._metrics, self.certificates.ends)
            self._listen_for_probes()
            self._endpoint = MetricsEndpoint(self._settings.metrics_listen, self._metrics)
        except (RuntimeError, OSError) as error:
            raise GraftError(
                Reason.UNAVAILABLE,
                f"It cannot listen on {_all_of(self._settings)} ({error})",
                next_step="End what listens there, or set other addresses.",
            ) from None
        for name in (STARTUP, READINESS, "", *self._names):
            await self._set(name, serving=False)
        await self.set_alive(True)
        await self.grpc.start()
        if self._plain is not None:
            await self._plain.start()
        self.address, self.metrics_address = f"{host}:{port}", self._endpoint.address

    def _listen_for_probes(self) -> None:
        if self._plain is not None and self._settings.health_listen is not None:
            host, _, _port = self._settings.health_listen.rpartition(":")
            port = self._plain.add_insecure_port(self._settings.health_listen)
            self.health_address = f"{host}:{port}"

    async def start(self) -> None:
        """Listens if it does not yet, serves, and writes the ready file."""
        await self.listen()
        await self.set_started()
        await self.set_serving(True)
        # What was made at the start stays to the end: looking through it again at every full
        # collection would stop all calls for tens of milliseconds.
        gc.collect()
        gc.freeze()
        if self._settings.ready_file is not None:
            ready = {"address": self.address, "metrics_address": self.metrics_address}
            if self.health_address:
                ready["health_address"] = self.health_address
            ready |= self.more_addresses
            write_atomic(self._settings.ready_file, json.dumps(ready).encode())
        get_logger().info(
            "serving",
            address=self.address,
            metrics_address=self.metrics_address,
            **self.more_addresses,
        )

    async def set_serving(self, serving: bool) -> None:
        """Whether it should get calls: readiness, the server as a whole, and each service."""
        for name in (READINESS, "", *self._names):
            await self._set(name, serving=serving and not self._interceptor.draining)

    async def set_started(self) -> None:
        """Its start is over, whatever comes."""
        await self._set(STARTUP, serving=True)

    async def set_alive(self, alive: bool) -> None:
        """Whether there is hope: who watches liveness ends a process that says no."""
        await self._set(LIVENESS, serving=alive)

    def says(self, name: str) -> bool:
        """What grpc.health.v1 answers now for STARTUP, READINESS or LIVENESS."""
        return self._says.get(name, False)

    async def _set(self, name: str, *, serving: bool) -> None:
        self._says[name] = serving
        status = health_pb2.HealthCheckResponse
        await self._health.set(name, status.SERVING if serving else status.NOT_SERVING)

    async def refuse(self) -> None:
        """Not ready any more, whatever comes: what still arrives is UNAVAILABLE, with a hint to retry."""
        self._interceptor.draining = True
        # It stays alive: it must not be killed for draining.
        await self.set_serving(False)

    async def drain(self) -> None:
        """Takes no new calls, lets those in flight end within the drain time, then stops."""
        await self.refuse()
        drain_s = self._settings.drain_timeout_s
        stopping = asyncio.ensure_future(self.grpc.stop(drain_s))
        answered = asyncio.ensure_future(self._interceptor.idle.wait())
        try:
            await asyncio.wait({stopping, answered}, return_when=asyncio.FIRST_COMPLETED)
            # What gRPC still waits for is nothing that comes to an end: who watches our health, and calls on
            # connections that were made in this very moment, which its core keeps and hands to nobody. Their
            # callers would wait for all of the drain time, too; so they are told to go elsewhere.
            await self.grpc.stop(min(_LAST_BYTES_S, drain_s))
            await stopping
        finally:
            answered.cancel()
            stopping.cancel()
        if self._plain is not None:
            await self._plain.stop(None)
        self._endpoint.close()


def _all_of(settings: ServiceSettings) -> str:
    ours = (settings.listen, settings.metrics_listen, settings.health_listen)
    return " and ".join(one for one in ours if one)


def _aging(max_age_s: float) -> tuple[tuple[str, int], ...]:
    return (("grpc.max_connection_age_ms", round(1000 * max_age_s)),) if max_age_s else ()


async def serve_until_signal(
    start: Callable[[], Awaitable[None]], stop: Callable[[], Awaitable[None]]
) -> None:
    """Runs a service: start, wait for SIGTERM or SIGINT, stop.

    Handlers are set before anything starts: as process 1 of a container a service would otherwise
    ignore SIGTERM.
    """
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    starting, told = asyncio.ensure_future(start()), asyncio.ensure_future(stopping.wait())
    try:
        # A start may wait long, for a registry that is away: it ends when it is told to as well.
        await asyncio.wait({starting, told}, return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            await starting
            await told
        get_logger().info("draining")
    finally:
        for task in (starting, told):
            task.cancel()
        await asyncio.gather(starting, told, return_exceptions=True)
        await stop()
    get_logger().info("stopped")
