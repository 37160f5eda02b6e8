"""Requests over several replicas: real gRPC servers on loopback addresses of their own."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from typing import Any

import graft
import grpc
import pytest
from graft import replicas as replicas_module
from graft.balancing import ByAdapter, adapter_key
from graft.channel import open_channel
from graft.connection import Connection
from graft.endpoints import Endpoints, check_address
from graft.errors import GraftError, Reason, UnavailableError
from graft.inference.v1 import inference_service_pb2 as pb
from graft.inference.v1 import inference_service_pb2_grpc as stubs
from graft.replicas import Replicas, look_up
from graft.ring import Ring
from prometheus_client import CollectorRegistry

from services.common.interceptors import CallInterceptor
from services.common.metrics import RpcMetrics
from tests.support.fakes import FakeInference
from tests.support.inference import question
from tests.support.waiting import eventually

MODELS = [f"bot-{number}" for number in range(40)]


class ReplicaServer(FakeInference):
    """One replica: refuses while it is told to, and can be ended and begun again at its address.

    Args:
        address: port 0 takes a free one, at the first start.
    """

    def __init__(self, address: str = "127.0.0.1:0") -> None:
        super().__init__()
        self.address = address
        self.refusal: GraftError | None = None
        self.hold = asyncio.Event()
        self.hold.set()
        self._server: grpc.aio.Server | None = None

    async def start(self) -> None:
        interceptor = CallInterceptor(RpcMetrics(CollectorRegistry()))
        self._server = grpc.aio.server(interceptors=[interceptor])
        stubs.add_InferenceServiceServicer_to_server(self, self._server)
        port = self._server.add_insecure_port(self.address)
        self.address = f"{self.address.rpartition(':')[0]}:{port}"
        await self._server.start()

    async def stop(self) -> None:
        if self._server is not None:
            await self._server.stop(0)
            self._server = None

    async def Generate(self, request: Any, context: Any) -> pb.GenerateResponse:
        if self.refusal is not None:
            raise self.refusal
        await self.hold.wait()
        return await super().Generate(request, context)

    async def StreamGenerate(
        self, request: Any, context: Any
    ) -> AsyncIterator[pb.GenerateResponse]:
        if self.refusal is not None:
            raise self.refusal
        async for answer in super().StreamGenerate(request, context):
            yield answer
            if request.prompt == "breaks":
                raise GraftError(Reason.UNAVAILABLE, "in the middle")


class Fleet:
    """Several replicas behind one name, whose addresses the test decides."""

    def __init__(self, replicas: Sequence[ReplicaServer]) -> None:
        self.replicas = {one.address: one for one in replicas}
        self.listed = list(self.replicas)

    async def resolve(self, target: str) -> Sequence[str]:
        if not self.listed:
            raise OSError("no address")
        return self.listed

    def served(self) -> dict[str, str]:
        """By model the replica that was asked for it."""
        return {
            request.model: address
            for address, one in self.replicas.items()
            for request in one.requests
        }

    def forget(self) -> None:
        for one in self.replicas.values():
            one.requests.clear()


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A replica that is there is never passed over because this machine is busy."""
    monkeypatch.setattr(replicas_module, "_CONNECT_S", 60.0)


@pytest.fixture
async def fleet() -> AsyncIterator[Fleet]:
    replicas = [ReplicaServer() for _ in range(4)]
    for one in replicas:
        await one.start()
    yield Fleet(replicas)
    for one in replicas:
        one.hold.set()
        await one.stop()


@asynccontextmanager
async def by_adapter(fleet: Fleet, bound: float | None = None) -> AsyncIterator[ByAdapter]:
    balancer = ByAdapter(Replicas("inference:1", fleet.resolve, refresh_s=0.0), bound=bound)
    yield balancer
    await balancer.close()


async def ask(balancer: ByAdapter, model: str) -> pb.GenerateResponse:
    connection = Connection(Endpoints("a:1", "a:1", "a:1"), 60.0, 0.0, None)
    return await balancer.call(
        model, lambda stub: connection.call(stub.Generate, question(model), "inference")
    )


async def ask_all(balancer: ByAdapter) -> None:
    for model in MODELS:
        await ask(balancer, model)


async def test_an_adapter_stays_on_its_replica_whichever_version_is_asked_for(fleet: Fleet) -> None:
    async with by_adapter(fleet) as balancer:
        for model in ("bot", "bot@canary", "bot:7", "default/bot"):
            await ask(balancer, model)
        assert len(set(fleet.served().values())) == 1
        await ask_all(balancer)
        assert set(fleet.served().values()) == set(fleet.replicas)


async def test_two_clients_agree(fleet: Fleet) -> None:
    async with by_adapter(fleet) as one, by_adapter(fleet) as other:
        await ask_all(one)
        before = fleet.served()
        fleet.forget()
        await ask_all(other)
        assert fleet.served() == before


async def test_when_an_address_disappears_only_its_share_moves_and_comes_back_with_it(
    fleet: Fleet,
) -> None:
    async with by_adapter(fleet) as balancer:
        await ask_all(balancer)
        before = fleet.served()
        gone = fleet.listed.pop()
        fleet.forget()
        await ask_all(balancer)
        moved = {model for model in MODELS if fleet.served()[model] != before[model]}
        assert moved == {model for model in MODELS if before[model] == gone}
        assert moved
        fleet.listed.append(gone)
        fleet.forget()
        await ask_all(balancer)
        assert fleet.served() == before


async def test_a_replica_that_is_down_is_passed_over_and_no_request_fails(fleet: Fleet) -> None:
    async with by_adapter(fleet) as balancer:
        await ask_all(balancer)
        down = fleet.served()[MODELS[0]]
        await fleet.replicas[down].stop()
        fleet.forget()
        await ask_all(balancer)
        ring = Ring(fleet.replicas)
        for model, address in fleet.served().items():
            first, second, *_ = ring.order(adapter_key(model, "default"))
            assert address == (second if first == down else first)
        await fleet.replicas[down].start()

        async def back() -> bool:
            fleet.forget()
            await ask(balancer, MODELS[0])
            return fleet.served()[MODELS[0]] == down

        await eventually(back, "the return of its share")


@pytest.mark.parametrize("reason", [Reason.UNAVAILABLE, Reason.ENGINE_DEAD, Reason.OVERLOADED])
async def test_what_one_replica_cannot_do_now_the_next_does(fleet: Fleet, reason: Reason) -> None:
    async with by_adapter(fleet) as balancer:
        await ask(balancer, "bot")
        first = fleet.served()["bot"]
        fleet.replicas[first].refusal = GraftError(reason, "not now", next_step="Later.")
        fleet.forget()
        await ask(balancer, "bot")
        assert fleet.served()["bot"] == Ring(fleet.replicas).order("default/bot")[1]


@pytest.mark.parametrize("reason", [Reason.RATE_LIMITED, Reason.MODEL_NOT_FOUND])
async def test_what_no_replica_would_do_is_asked_once(fleet: Fleet, reason: Reason) -> None:
    for one in fleet.replicas.values():
        one.refusal = GraftError(reason, "no", next_step="Ask less.")
    async with by_adapter(fleet) as balancer:
        with pytest.raises(GraftError) as caught:
            await ask(balancer, "bot")
        assert caught.value.reason is reason


async def test_when_all_are_down_the_error_says_so_and_soon(fleet: Fleet) -> None:
    for one in fleet.replicas.values():
        await one.stop()
    async with by_adapter(fleet) as balancer:
        with pytest.raises(UnavailableError, match="cannot be reached") as caught:
            async with asyncio.timeout(30):
                await ask(balancer, "bot")
        assert caught.value.next_step
    fleet.listed.clear()
    async with by_adapter(fleet) as balancer:
        with pytest.raises(UnavailableError, match="cannot be found"):
            async with asyncio.timeout(30):
                await ask(balancer, "bot")


async def test_a_name_server_that_is_away_changes_nothing(fleet: Fleet) -> None:
    async with by_adapter(fleet) as balancer:
        await ask_all(balancer)
        before = fleet.served()
        fleet.listed.clear()
        fleet.forget()
        await ask_all(balancer)
        assert fleet.served() == before


async def test_a_stream_goes_to_the_next_before_its_first_piece_and_never_after(
    fleet: Fleet,
) -> None:
    connection = Connection(Endpoints("a:1", "a:1", "a:1"), 60.0, 0.0, None)

    async def stream(balancer: ByAdapter, prompt: str) -> str:
        text = ""
        pieces = balancer.stream(
            "bot",
            lambda stub: connection.stream(
                stub.StreamGenerate, question("bot", prompt), "inference"
            ),
        )
        async with aclosing(pieces):
            async for piece in pieces:
                text += piece.text
        return text

    async with by_adapter(fleet) as balancer:
        first = Ring(fleet.replicas).order("default/bot")[0]
        fleet.replicas[first].refusal = GraftError(Reason.UNAVAILABLE, "not now")
        assert await stream(balancer, "one two") == "one two"
        fleet.replicas[first].refusal = None
        fleet.forget()
        with pytest.raises(UnavailableError, match="in the middle"):
            await stream(balancer, "breaks")
        assert sum(len(one.requests) for one in fleet.replicas.values()) == 1


async def test_with_a_bound_a_flood_on_one_adapter_spreads(fleet: Fleet) -> None:
    async with by_adapter(fleet, bound=1.25) as balancer:
        for one in fleet.replicas.values():
            one.hold.clear()
        flood = [asyncio.create_task(ask(balancer, "bot")) for _ in range(8)]
        # What is held was not counted by the fake yet.
        await eventually(
            lambda: sum(one.in_flight for one in balancer._replicas._known.values()) == 8, "all"
        )
        loads = sorted(one.in_flight for one in balancer._replicas._known.values())
        for one in fleet.replicas.values():
            one.hold.set()
        await asyncio.gather(*flood)
        assert max(loads) <= 3
        assert sum(load > 0 for load in loads) >= 3


async def test_a_replica_that_left_the_name_ends_what_it_has_begun(fleet: Fleet) -> None:
    async with by_adapter(fleet) as balancer:
        first = Ring(fleet.replicas).order("default/bot")[0]
        fleet.replicas[first].hold.clear()
        asking = asyncio.create_task(ask(balancer, "bot"))
        await eventually(
            lambda: any(one.in_flight for one in balancer._replicas._known.values()), "the request"
        )
        fleet.listed.remove(first)
        await ask(balancer, "other")
        fleet.replicas[first].hold.set()
        assert (await asking).text


@pytest.fixture
async def loopback() -> AsyncIterator[dict[str, ReplicaServer]]:
    """Three replicas on one port of three addresses, as pods are."""
    port = "0"
    async with AsyncExitStack() as stack:
        found = {}
        for number in (1, 2, 3):
            replica = ReplicaServer(f"127.0.0.{number}:{port}")
            await replica.start()
            port = replica.address.rpartition(":")[2]
            stack.push_async_callback(replica.stop)
            found[replica.address] = replica
        yield found


async def test_a_channel_takes_the_addresses_of_a_name_in_turn_and_passes_over_a_dead_one(
    loopback: dict[str, ReplicaServer],
) -> None:
    """gRPC's own resolver gives several addresses for a list, as for a name with several."""
    target = "ipv4:" + ",".join(loopback)
    async with open_channel(target) as channel:
        stub = stubs.InferenceServiceStub(channel)

        async def spread() -> bool:
            return all(one.requests for one in loopback.values())

        async def ask_some() -> bool:
            await stub.Generate(question("bot"))
            return await spread()

        await eventually(ask_some, "all three")
        for one in loopback.values():
            one.requests.clear()
        for _ in range(30):
            await stub.Generate(question("bot"))
        counts = Counter({address: len(one.requests) for address, one in loopback.items()})
        assert set(counts.values()) == {10}
        dead, *_ = loopback
        await loopback[dead].stop()
        for _ in range(30):
            await stub.Generate(question("bot"))
        assert len(loopback[dead].requests) == 10


async def test_a_client_balances_by_adapter_when_it_is_told_to(fleet: Fleet) -> None:
    address = next(iter(fleet.replicas))
    async with graft.Client(inference=f"dns:///{address}", balance="adapter") as client:
        assert (await client.generate("bot", "hello there")).text == "hello there"
        pieces = [piece.text async for piece in client.stream("bot", "one two")]
        assert "".join(pieces) == "one two"
    with pytest.raises(graft.InvalidError, match="round_robin"):
        graft.Client(balance="alphabet")


async def test_every_address_of_a_name_is_found() -> None:
    assert "127.0.0.1:7" in await look_up("localhost:7")
    assert await look_up("127.0.0.1:7") == ["127.0.0.1:7"]
    assert await look_up("[::1]:7") == ["[::1]:7"]


def test_an_address_may_say_dns() -> None:
    assert check_address("inference", "dns:///graft-inference-tiny-headless.graft.svc:50051")
    with pytest.raises(GraftError):
        check_address("inference", "http://graft:1")
