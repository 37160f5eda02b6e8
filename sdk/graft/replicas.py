"""The replicas behind one name: their addresses, looked up again and again, and a channel to each.

For who chooses a replica itself (balancing.py); a channel to the name alone takes them in turn.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

import grpc

from graft.channel import open_channel, rpc_errors
from graft.endpoints import DNS
from graft.errors import GraftError, Reason, is_closed, unreachable
from graft.handshakes import ask_again
from graft.inference.v1.inference_service_pb2_grpc import InferenceServiceStub
from graft.tls import Tls

if TYPE_CHECKING:
    from graft.inference.v1.inference_service_pb2_grpc import InferenceServiceAsyncStub

Resolve = Callable[[str], Awaitable[Sequence[str]]]
_REFRESH_S = 5.0
_AFTER_FAILURE_S = 0.5
_CONNECT_S = 2.0
# Whoever calls tries the next replica: the same one again would only take time.
_OPTIONS = (("grpc.enable_retries", 0),)
_UP = grpc.ChannelConnectivity.READY
_DOWN = (grpc.ChannelConnectivity.TRANSIENT_FAILURE, grpc.ChannelConnectivity.SHUTDOWN)


class Replica:
    """One address with its channel; in_flight counts the requests on it."""

    def __init__(self, address: str, tls: Tls | None = None) -> None:
        self.address, self.in_flight = address, 0
        self._tls = tls
        self._channel = open_channel(address, _OPTIONS, tls)
        self.stub: InferenceServiceAsyncStub = InferenceServiceStub(self._channel)

    async def reach(self) -> None:
        """Returns when it is connected.

        Raises:
            GraftError: UNAVAILABLE, soon, where it cannot be.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(_CONNECT_S):
                while (state := self._channel.get_state(try_to_connect=True)) not in (_UP, *_DOWN):
                    await self._channel.wait_for_state_change(state)
        if self._channel.get_state() is not _UP:
            await self._explain()
            raise GraftError(
                Reason.UNAVAILABLE,
                f"inference at {self.address} cannot be reached",
                next_step="Check with `kubectl get pods` or `graft doctor` whether it runs.",
            )

    async def _explain(self) -> None:
        """Raises what a call says, where a certificate may be the reason."""
        if self._tls is None:
            return
        peer = f"inference at {self.address}"
        try:
            with rpc_errors(peer):
                check = self._channel.unary_unary("/grpc.health.v1.Health/Check", None, None)
                await check(b"", timeout=_CONNECT_S)
        except GraftError as error:
            trouble = await ask_again(self.address, self._tls) if is_closed(error) else None
            raise error if trouble is None else unreachable(peer, trouble) from None

    async def close(self) -> None:
        """Ends what is in flight on it."""
        await self._channel.close(None)


class Replicas:
    """The replicas that a name means now.

    Args:
        target: host:port, where host has an address for each replica, as a headless Service has.
        resolve: looks addresses up; for tests.
        refresh_s: how long what was looked up is good.
        tls: how they are spoken to; their certificates are for the name, not for their addresses.
    """

    def __init__(
        self,
        target: str,
        resolve: Resolve | None = None,
        refresh_s: float = _REFRESH_S,
        tls: Tls | None = None,
    ) -> None:
        self._target = target.removeprefix(DNS)
        self._tls = _named(tls or Tls.from_environ(), self._target)
        self._resolve, self._refresh_s = resolve or look_up, refresh_s
        self._known: dict[str, Replica] = {}
        # Those that are gone from the name, until the last request on them has ended.
        self._leaving: set[Replica] = set()
        self._looked_up_s = float("-inf")
        self._looking = asyncio.Lock()

    async def current(self, *, failed: bool = False) -> dict[str, Replica]:
        """By address.

        Args:
            failed: one of them did not answer: what was looked up is old sooner.

        Raises:
            GraftError: UNAVAILABLE when the name has no address and none is known of before.
        """
        good_for_s = min(self._refresh_s, _AFTER_FAILURE_S) if failed else self._refresh_s
        if time.monotonic() - self._looked_up_s > good_for_s:
            async with self._looking:
                # Somebody else may have done it meanwhile.
                if time.monotonic() - self._looked_up_s > good_for_s:
                    await self._refresh()
        return self._known

    async def _refresh(self) -> None:
        try:
            addresses = await self._resolve(self._target)
        except OSError as error:
            if not self._known:
                raise GraftError(
                    Reason.UNAVAILABLE,
                    f"inference at {self._target} cannot be found: {error}",
                    next_step="Check the name, and that replicas are ready: "
                    "`kubectl get endpointslices`.",
                ) from None
            # A name server that is away changes nothing.
            addresses = tuple(self._known)
        self._looked_up_s = time.monotonic()
        for address in addresses:
            if address not in self._known:
                self._known[address] = Replica(address, self._tls)
        for address in set(self._known) - set(addresses):
            self._leaving.add(self._known.pop(address))
        for replica in [one for one in self._leaving if not one.in_flight]:
            self._leaving.discard(replica)
            await replica.close()

    async def close(self) -> None:
        """Closes all channels."""
        replicas = [*self._known.values(), *self._leaving]
        self._known.clear()
        self._leaving.clear()
        for replica in replicas:
            await replica.close()


def _named(tls: Tls | None, target: str) -> Tls | None:
    if tls is None or tls.server_name:
        return tls
    return replace(tls, server_name=target.rpartition(":")[0].strip("[]"))


async def look_up(target: str) -> Sequence[str]:
    """Every address of host:port.

    Raises:
        OSError: it has none.
    """
    host, _, port = target.rpartition(":")
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)
    plain = {(str(address[0]), family) for family, _, _, _, address in found}
    return [
        f"[{ip}]:{port}" if family == socket.AF_INET6 else f"{ip}:{port}"
        for ip, family in sorted(plain)
    ]
