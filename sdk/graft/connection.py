"""The channels of one client: opened when first used, with a request id and a deadline on each call."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable
from contextlib import aclosing, asynccontextmanager
from functools import cached_property
from typing import TYPE_CHECKING, TypeVar

import grpc

from graft.blobs import BlobClient
from graft.channel import call_metadata, open_channel, rpc_errors
from graft.endpoints import Endpoints
from graft.errors import UnavailableError, is_closed, unreachable
from graft.handshakes import ask_again
from graft.inference.v1.inference_service_pb2_grpc import InferenceServiceStub
from graft.leases import LeaseKeeper, default_holder
from graft.registry.v1.operations_service_pb2_grpc import OperationsServiceStub
from graft.registry.v1.registry_service_pb2_grpc import RegistryServiceStub
from graft.tls import Tls
from graft.trainer.v1.trainer_service_pb2_grpc import TrainerServiceStub

if TYPE_CHECKING:
    from graft.inference.v1.inference_service_pb2_grpc import InferenceServiceAsyncStub
    from graft.registry.v1.operations_service_pb2_grpc import OperationsServiceAsyncStub
    from graft.registry.v1.registry_service_pb2_grpc import RegistryServiceAsyncStub
    from graft.trainer.v1.trainer_service_pb2_grpc import TrainerServiceAsyncStub

Request = TypeVar("Request")
Response = TypeVar("Response")
Item = TypeVar("Item")
_FIRST_PAUSE_S = 0.2
_LONGEST_PAUSE_S = 2.0
_STOOD_S = 10.0


class Connection:
    """Channels, stubs and the way a call is made.

    Args:
        endpoints: addresses of the services.
        timeout_s: deadline of a unary call where the call names none.
        patience_s: how long a watch tries to reach a service that went away.
        actor: who asks, for the services' logs and the history of aliases.
        tls: how they are spoken to; by default as the environment says.

    Raises:
        GraftError: INVALID_REQUEST when what the environment says of TLS is not whole.
    """

    def __init__(
        self,
        endpoints: Endpoints,
        timeout_s: float,
        patience_s: float,
        actor: str | None,
        tls: Tls | None = None,
    ) -> None:
        self.tls = tls or Tls.from_environ()
        self.endpoints = endpoints
        self.timeout_s = timeout_s
        self.patience_s = patience_s
        self._actor = actor
        self._channels: dict[str, grpc.aio.Channel] = {}

    def _channel(self, address: str) -> grpc.aio.Channel:
        if address not in self._channels:
            self._channels[address] = open_channel(address, tls=self.tls)
        return self._channels[address]

    @cached_property
    def registry(self) -> RegistryServiceAsyncStub:
        """Stub of the registry."""
        return RegistryServiceStub(self._channel(self.endpoints.registry))

    @cached_property
    def operations(self) -> OperationsServiceAsyncStub:
        """Stub of the registry's operations."""
        return OperationsServiceStub(self._channel(self.endpoints.registry))

    def lease(self, targets: Iterable[str], purpose: str, ttl_s: float = 60.0) -> LeaseKeeper:
        """A lease on versions and digests; see LeaseKeeper."""
        holder = self._actor or default_holder("client")
        channel = self._channel(self.endpoints.registry)
        return LeaseKeeper(channel, holder, purpose, targets, ttl_s=ttl_s)

    @cached_property
    def blobs(self) -> BlobClient:
        """The registry's blob store."""
        return BlobClient(self._channel(self.endpoints.registry), actor=self._actor)

    @cached_property
    def trainer(self) -> TrainerServiceAsyncStub:
        """Stub of the trainer."""
        return TrainerServiceStub(self._channel(self.endpoints.trainer))

    @cached_property
    def inference(self) -> InferenceServiceAsyncStub:
        """Stub of inference."""
        return InferenceServiceStub(self._channel(self.endpoints.inference))

    async def close(self) -> None:
        """Closes what was opened; calls in flight are cancelled."""
        channels = list(self._channels.values())
        self._channels.clear()
        for channel in channels:
            await channel.close(None)

    async def call(
        self,
        method: grpc.aio.UnaryUnaryMultiCallable[Request, Response],
        request: Request,
        peer: str,
        *,
        timeout_s: float | None = None,
        request_id: str | None = None,
    ) -> Response:
        """One unary call; peer is for messages, as in "the registry"."""
        async with self._explained(peer):
            return await method(
                request,
                timeout=timeout_s or self.timeout_s,
                metadata=call_metadata(request_id, self._actor),
            )

    async def stream(
        self,
        method: grpc.aio.UnaryStreamMultiCallable[Request, Response],
        request: Request,
        peer: str,
        *,
        timeout_s: float | None = None,
        request_id: str | None = None,
    ) -> AsyncGenerator[Response, None]:
        """One streaming call; it is cancelled when the iteration is left."""
        call = method(request, timeout=timeout_s, metadata=call_metadata(request_id, self._actor))
        try:
            async with self._explained(peer):
                async for message in call:
                    yield message
        finally:
            call.cancel()

    @asynccontextmanager
    async def _explained(self, peer: str) -> AsyncIterator[None]:
        """rpc_errors(), and where a service closed the connection without a word, why it did."""
        try:
            with rpc_errors(peer):
                yield
        except UnavailableError as error:
            address = self._address(peer)
            if not is_closed(error) or not address:
                raise
            trouble = await ask_again(address, self.tls)
            if trouble is None:
                raise
            raise unreachable(f"{peer} at {address}", trouble) from None

    def _address(self, peer: str) -> str:
        found = {"the registry": "registry", "the trainer": "trainer", "inference": "inference"}
        return str(getattr(self.endpoints, found[peer])) if peer in found else ""

    async def resumed(
        self,
        open_stream: Callable[[], AsyncGenerator[Item, None]],
        finished: Callable[[], Awaitable[bool]],
    ) -> AsyncGenerator[Item, None]:
        """Items of a stream that is opened again when the service went away.

        Args:
            open_stream: opens it after the last item that came through.
            finished: asked when a stream ends by itself; False opens the next.

        Raises:
            UnavailableError: the service was away for longer than patience_s.
        """
        loop, pause_s, away_since_s = asyncio.get_running_loop(), _FIRST_PAUSE_S, math.inf
        while True:
            opened_s = loop.time()
            try:
                async with aclosing(open_stream()) as items:
                    async for item in items:
                        pause_s, away_since_s = _FIRST_PAUSE_S, math.inf
                        yield item
                if await finished():
                    return
            except UnavailableError:
                failed_s = loop.time()
                # A stream that stood for a while was connected, also when it had nothing to say.
                stood = failed_s - opened_s > _STOOD_S
                away_since_s = failed_s if stood else min(away_since_s, failed_s)
                if failed_s - away_since_s > self.patience_s:
                    raise
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
