"""A channel with TLS whose certificates may be renewed: the next call after that goes by the new ones.

gRPC's own channel keeps what it was opened with. This one opens another when a file has changed; calls in
flight end on the one that they began on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

import grpc

from graft.renewed import Renewed
from graft.tls import Tls, read_ca, read_pair

_Options = Sequence[tuple[str, str | int]]


class SecureChannel(grpc.aio.Channel):
    """A grpc.aio.Channel to address.

    Args:
        address: as grpc.aio.secure_channel wants it.
        options: the channel's.
        tls: files with certificates; they are read here, and again when they change.

    Raises:
        GraftError: INVALID_REQUEST, naming the file that cannot be used.
    """

    def __init__(self, address: str, options: _Options, tls: Tls) -> None:
        if tls.server_name:
            options = [*options, ("grpc.ssl_target_name_override", tls.server_name)]
        self._address, self._options = address, options
        self._credentials = Renewed(tls.files, lambda: _credentials(tls))
        self._now = self._open(*self._credentials.now())
        self._leaving: set[_Generation] = set()
        self._closing: set[asyncio.Task[None]] = set()

    def _open(self, credentials: grpc.ChannelCredentials, number: int) -> _Generation:
        opened = grpc.aio.secure_channel(self._address, credentials, options=list(self._options))
        return _Generation(opened, number)

    def current(self) -> _Generation:
        """What the next call goes by."""
        credentials, number = self._credentials.now()
        if number != self._now.number:
            self._leaving.add(self._now)
            self._now = self._open(credentials, number)
            self._let_go()
        return self._now

    def _let_go(self) -> None:
        for one in [each for each in self._leaving if not each.in_flight]:
            self._leaving.discard(one)
            task = asyncio.ensure_future(one.channel.close(None))
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    def ended(self, generation: _Generation) -> None:
        """A call of it is over."""
        generation.in_flight -= 1
        if generation is not self._now:
            self._let_go()

    async def close(self, grace: float | None = None) -> None:
        """See grpc.aio.Channel."""
        ending = [self._now, *self._leaving]
        self._leaving.clear()
        await asyncio.gather(*(one.channel.close(grace) for one in ending), *self._closing)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close(None)

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        """See grpc.aio.Channel."""
        return self.current().channel.get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        """See grpc.aio.Channel."""
        await self._now.channel.wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        """See grpc.aio.Channel."""
        await self.current().channel.channel_ready()

    def unary_unary(self, method: str, *more: Any, **named: Any) -> Any:
        """See grpc.aio.Channel."""
        return _Method(self, "unary_unary", (method, *more), named)

    def unary_stream(self, method: str, *more: Any, **named: Any) -> Any:
        """See grpc.aio.Channel."""
        return _Method(self, "unary_stream", (method, *more), named)

    def stream_unary(self, method: str, *more: Any, **named: Any) -> Any:
        """See grpc.aio.Channel."""
        return _Method(self, "stream_unary", (method, *more), named)

    def stream_stream(self, method: str, *more: Any, **named: Any) -> Any:
        """See grpc.aio.Channel."""
        return _Method(self, "stream_stream", (method, *more), named)


class _Generation:
    """A channel of gRPC's with the certificates of one time."""

    def __init__(self, channel: grpc.aio.Channel, number: int) -> None:
        self.channel, self.number, self.in_flight = channel, number, 0


class _Method:
    """A method of a service, on whichever channel is current when it is called."""

    def __init__(
        self, owner: SecureChannel, kind: str, given: tuple[Any, ...], named: dict[str, Any]
    ) -> None:
        self._owner, self._kind, self._given, self._named = owner, kind, given, named
        self._generation: _Generation | None = None
        self._method: Any = None

    def __call__(self, *given: Any, **named: Any) -> Any:
        generation = self._owner.current()
        if generation is not self._generation:
            self._generation = generation
            self._method = getattr(generation.channel, self._kind)(*self._given, **self._named)
        call = self._method(*given, **named)
        generation.in_flight += 1
        call.add_done_callback(lambda _: self._owner.ended(generation))
        return call


def _credentials(tls: Tls) -> grpc.ChannelCredentials:
    roots = None if tls.ca is None else read_ca(tls.ca)
    if tls.certificate is None or tls.key is None:
        return grpc.ssl_channel_credentials(roots)
    pair = read_pair(tls.certificate, tls.key)
    return grpc.ssl_channel_credentials(roots, pair.key, pair.certificate)
