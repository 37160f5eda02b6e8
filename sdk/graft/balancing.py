"""Which replica of inference answers a request: all in turn, or by adapter.

In turn is what a channel does by itself. By adapter keeps the requests of an adapter on one replica as
long as that is there and not overloaded, so that each replica loads few adapters of many.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from enum import StrEnum
from typing import TYPE_CHECKING, TypeVar

from graft.blends import BlendReference, is_blend
from graft.errors import GraftError, Reason, UnavailableError
from graft.names import DEFAULT_NAMESPACE, ModelReference
from graft.replicas import Replica, Replicas
from graft.ring import Ring

if TYPE_CHECKING:
    from graft.connection import Connection
    from graft.inference.v1.inference_service_pb2_grpc import InferenceServiceAsyncStub

Result = TypeVar("Result")
_ATTEMPTS = 4
_FIRST_PAUSE_S = 0.1
# What another replica may do better. A limit or a deadline it would not.
_GOES_ON = (Reason.UNAVAILABLE, Reason.ENGINE_DEAD, Reason.OVERLOADED)
_BOUND = 1.25


class Balance(StrEnum):
    """How requests for text are spread over the replicas of an address."""

    ROUND_ROBIN = "round_robin"
    ADAPTER = "adapter"


class Balancer(ABC):
    """Chooses a replica for each request."""

    @abstractmethod
    async def call(
        self, model: str, work: Callable[[InferenceServiceAsyncStub], Awaitable[Result]]
    ) -> Result:
        """Does a unary request."""

    @abstractmethod
    def stream(
        self, model: str, work: Callable[[InferenceServiceAsyncStub], AsyncGenerator[Result, None]]
    ) -> AsyncGenerator[Result, None]:
        """Does a streaming request; once a piece has come it is never begun again."""

    async def close(self) -> None:
        """Frees what it opened."""
        return


class RoundRobin(Balancer):
    """In turn, by the channel, which also tries again."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def call(
        self, model: str, work: Callable[[InferenceServiceAsyncStub], Awaitable[Result]]
    ) -> Result:
        return await work(self._connection.inference)

    def stream(
        self, model: str, work: Callable[[InferenceServiceAsyncStub], AsyncGenerator[Result, None]]
    ) -> AsyncGenerator[Result, None]:
        return work(self._connection.inference)


class ByAdapter(Balancer):
    """By consistent hashing of the adapter's name; what fails goes to the next replica on the ring.

    Args:
        replicas: those that there are.
        namespace: of names that say none.
        bound: a replica with so much of the mean load is passed over; None for never.
    """

    def __init__(
        self,
        replicas: Replicas,
        namespace: str = DEFAULT_NAMESPACE,
        bound: float | None = _BOUND,
    ) -> None:
        self._replicas, self._namespace, self._bound = replicas, namespace, bound
        self._ring = Ring(())

    async def call(
        self, model: str, work: Callable[[InferenceServiceAsyncStub], Awaitable[Result]]
    ) -> Result:
        attempts = _Attempts()
        while True:
            try:
                async with self._chosen(model, attempts) as replica:
                    return await work(replica.stub)
            except UnavailableError as error:
                await attempts.go_on(error, len(self._ring.addresses))

    async def stream(
        self, model: str, work: Callable[[InferenceServiceAsyncStub], AsyncGenerator[Result, None]]
    ) -> AsyncGenerator[Result, None]:
        attempts = _Attempts()
        while True:
            begun = False
            try:
                async with (
                    self._chosen(model, attempts) as replica,
                    aclosing(work(replica.stub)) as pieces,
                ):
                    async for piece in pieces:
                        begun = True
                        yield piece
                    return
            except UnavailableError as error:
                if begun:
                    raise
                await attempts.go_on(error, len(self._ring.addresses))

    async def close(self) -> None:
        await self._replicas.close()

    @asynccontextmanager
    async def _chosen(self, model: str, attempts: _Attempts) -> AsyncIterator[Replica]:
        """The replica whose turn it is, counted and connected; notes it as tried."""
        known = await self._replicas.current(failed=attempts.any_failed)
        order = self._order(model, known)
        if not order:
            raise GraftError(
                Reason.UNAVAILABLE,
                "inference has no replica that is ready",
                next_step="Wait for one: `kubectl get pods`; or lower what readiness requires.",
            )
        replica = known[attempts.choose(order)]
        replica.in_flight += 1
        try:
            await replica.reach()
            yield replica
        finally:
            replica.in_flight -= 1

    def _order(self, model: str, known: dict[str, Replica]) -> Sequence[str]:
        if self._ring.addresses != tuple(sorted(known)):
            self._ring = Ring(known)
        key = adapter_key(model, self._namespace)
        if self._bound is None:
            return self._ring.order(key)
        load = {address: replica.in_flight for address, replica in known.items()}
        return self._ring.bounded(key, load, self._bound)


class _Attempts:
    """The tries of one request."""

    def __init__(self) -> None:
        self.tried: list[str] = []
        self._failures = 0

    @property
    def any_failed(self) -> bool:
        """Whether there was one before."""
        return self._failures > 0

    def choose(self, order: Sequence[str]) -> str:
        """The first that was tried least: after all of them the first again."""
        chosen = min(order, key=self.tried.count)
        self.tried.append(chosen)
        return chosen

    async def go_on(self, error: GraftError, replicas: int) -> None:
        """Returns when the next may begin; raises the error where another would not help."""
        self._failures += 1
        if error.reason not in _GOES_ON or self._failures >= _ATTEMPTS:
            raise error
        rounds, rest = divmod(self._failures, max(1, replicas))
        if rest == 0:
            # All have been asked.
            await asyncio.sleep(_FIRST_PAUSE_S * 2.0 ** (rounds - 1))


def adapter_key(model: str, namespace: str) -> str:
    """What is hashed: the adapter, whichever version or alias is asked for; of a blend its one form."""
    try:
        if is_blend(model):
            return str(BlendReference.parse(model, namespace))
        reference = ModelReference.parse(model, namespace)
    except GraftError:
        # The service says what is wrong with it.
        return model
    return f"{reference.namespace}/{reference.name}"
