"""What clients see of the queue: who is served next, what is refused, and what leaves it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from graft.channel import open_channel
from graft.errors import Reason
from graft.inference.v1 import inference_service_pb2 as pb
from graft.inference.v1.inference_service_pb2_grpc import InferenceServiceStub
from grpc_status import rpc_status

from services.inference.config import InferenceSettings
from services.inference.domain import AdapterFile
from services.inference.scheduling.limits import Limit
from tests.support.inference import RunningInference, question, start_inference
from tests.support.waiting import eventually
from tests.unit.inference.refusals import refusal


def waiting(service: RunningInference) -> float | None:
    return service.server.metrics_registry.get_sample_value("graft_inference_queue_waiting")


async def queued(service: RunningInference, count: int) -> None:
    await eventually(lambda: waiting(service) == count, f"a queue of {count}")


class Orders:
    """Asks and remembers in which order the answers ended."""

    def __init__(self, service: RunningInference) -> None:
        self._service = service
        self.ended: list[str] = []
        self._tasks: list[asyncio.Task[None]] = []

    def ask(self, model: str, name: str = "", priority: int = 0) -> None:
        request = question(model)
        request.priority = priority
        call = self._service.stub.Generate(request)
        self._tasks.append(asyncio.create_task(self._wait(name or model, call)))

    async def _wait(self, name: str, call: Awaitable[pb.GenerateResponse]) -> None:
        await call
        self.ended.append(name)

    async def all(self) -> list[str]:
        await asyncio.gather(*self._tasks)
        return self.ended


async def test_a_flood_on_the_only_slot_delays_another_by_what_is_running_alone(
    tmp_path: Path,
) -> None:
    async with start_inference(tmp_path, max_in_flight=4, slot_turn_s=0) as service:
        service.fake.limit_slots(1)
        await service.publish("loud", "one")
        await service.publish("quiet", "two")
        await service.ask("loud")
        service.fake.hold(after_tokens=0)
        orders = Orders(service)
        for _ in range(40):
            orders.ask("loud")
        await queued(service, 36)
        orders.ask("quiet")
        await queued(service, 37)
        await service.fake.release()
        ended = await orders.all()
        assert ended.index("quiet") <= 4


async def test_a_flood_on_one_adapter_delays_another_by_no_more_than_their_tokens(
    tmp_path: Path,
) -> None:
    async with start_inference(tmp_path, max_in_flight=2) as service:
        await service.publish("loud", "one")
        await service.publish("quiet", "two")
        await service.ask("loud")
        await service.ask("quiet")
        service.fake.hold(after_tokens=0)
        orders = Orders(service)
        for _ in range(40):
            orders.ask("loud")
        await queued(service, 38)
        for _ in range(5):
            orders.ask("quiet")
        await queued(service, 43)
        await service.fake.release()
        ended = await orders.all()
        assert [*ended[:16]].count("quiet") == 5


async def test_as_many_as_the_engine_takes_do_not_wait(tmp_path: Path) -> None:
    async with start_inference(tmp_path, max_num_seqs=64) as service:
        service.fake.hold(after_tokens=0)
        orders = Orders(service)
        for _ in range(65):
            orders.ask("tiny")
        await eventually(lambda: service.engine.unfinished() == 64, "64 at once")
        await queued(service, 1)
        await service.fake.release()
        assert len(await orders.all()) == 65


async def test_a_full_queue_says_when_to_come_back(tmp_path: Path) -> None:
    async with start_inference(tmp_path, max_in_flight=1, max_waiting=1) as service:
        service.fake.hold(after_tokens=0)
        orders = Orders(service)
        orders.ask("tiny")
        await eventually(lambda: service.engine.unfinished() == 1, "the first")
        orders.ask("tiny")
        await queued(service, 1)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await service.ask("tiny")
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        status: Any = rpc_status.from_call(caught.value)  # type: ignore[arg-type]
        retry = error_details_pb2.RetryInfo()
        assert [each.Unpack(retry) for each in status.details].count(True) == 1
        assert retry.retry_delay.ToMilliseconds() > 0
        error = await refusal(service.stub.Generate(question("tiny")))
        assert error.reason is Reason.OVERLOADED
        assert error.retry_after_s == retry.retry_delay.ToMilliseconds() / 1000
        await service.fake.release()
        await orders.all()


async def test_what_expires_in_the_queue_never_reaches_the_engine(tmp_path: Path) -> None:
    async with start_inference(tmp_path, max_in_flight=1) as service:
        service.fake.hold(after_tokens=0)
        orders = Orders(service)
        orders.ask("tiny")
        await eventually(lambda: service.engine.unfinished() == 1, "the first")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await service.stub.Generate(question("tiny"), timeout=0.1)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await queued(service, 0)
        await service.fake.release()
        await orders.all()
        requests = service.server.metrics_registry.get_sample_value(
            "graft_inference_requests_total", {"adapter": "tiny", "version": "", "outcome": "ok"}
        )
        assert requests == 1


async def test_who_goes_away_frees_the_place_in_the_queue(tmp_path: Path) -> None:
    async with start_inference(tmp_path, max_in_flight=1, max_waiting=1) as service:
        service.fake.hold(after_tokens=0)
        orders = Orders(service)
        orders.ask("tiny")
        await eventually(lambda: service.engine.unfinished() == 1, "the first")
        call = service.stub.StreamGenerate(question("tiny"))
        await queued(service, 1)
        call.cancel()
        await queued(service, 0)
        orders.ask("tiny")
        await queued(service, 1)
        await service.fake.release()
        assert len(await orders.all()) == 2


async def test_a_stream_that_nobody_reads_keeps_no_place_for_ever(tmp_path: Path) -> None:
    async with (
        start_inference(tmp_path, max_in_flight=1, stalled_after_s=0.05) as service,
        # A window that long answers fill.
        open_channel(service.server.address, [("grpc.http2.bdp_probe", 0)]) as channel,
    ):
        stub: Any = InferenceServiceStub(channel)
        unread = stub.StreamGenerate(question("tiny", max_tokens=500, logprobs=20))
        last = await unread.read()
        assert (await service.ask("tiny")).text
        assert service.engine.unfinished() == 1
        while not last.finish_reason:
            last = await unread.read()
        assert last.usage.completion_tokens == 500


async def test_priority_moves_a_request_before_the_adapters_others(tmp_path: Path) -> None:
    async with start_inference(tmp_path, max_in_flight=1) as service:
        service.fake.hold(after_tokens=0)
        orders = Orders(service)
        orders.ask("tiny", "running")
        await eventually(lambda: service.engine.unfinished() == 1, "the first")
        for number, (name, priority) in enumerate([("batch", -100), ("user", 0), ("urgent", 50)]):
            orders.ask("tiny", name, priority)
            await queued(service, number + 1)
        await service.fake.release()
        assert await orders.all() == ["running", "urgent", "user", "batch"]


@pytest.mark.parametrize("priority", [101, -101])
async def test_a_priority_out_of_range_is_refused(service: RunningInference, priority: int) -> None:
    request = question("tiny")
    request.priority = priority
    error = await refusal(service.stub.Generate(request))
    assert error.reason is Reason.INVALID_REQUEST
    assert "priority" in error.message


async def test_an_adapter_at_its_limit_waits_and_the_base_does_not(tmp_path: Path) -> None:
    limits = {"bot": Limit(max_concurrent=1)}
    async with start_inference(tmp_path, adapter_limits=limits) as service:
        await service.publish("bot", "one")
        service.fake.hold(after_tokens=0)
        orders = Orders(service)
        for _ in range(3):
            orders.ask("bot:1")
        await queued(service, 2)
        orders.ask("tiny")
        await eventually(lambda: service.engine.unfinished() == 2, "the base's")
        assert waiting(service) == 2
        await service.fake.release()
        assert len(await orders.all()) == 4


async def test_a_used_up_token_rate_is_refused_with_when_to_come_back(tmp_path: Path) -> None:
    limits = {"bot": Limit(tokens_per_s=0.5, burst_tokens=1)}
    async with start_inference(tmp_path, adapter_limits=limits, rate_limit_wait_s=1) as service:
        await service.publish("bot", "one")
        await service.ask("bot:1", max_tokens=100)
        error = await refusal(service.stub.Generate(question("bot:1")))
        assert error.reason is Reason.RATE_LIMITED
        assert error.retry_after_s is not None
        assert error.retry_after_s > 100
        assert (await service.ask("tiny")).text


async def test_who_waits_gets_the_version_that_its_name_means_when_its_turn_comes(
    tmp_path: Path,
) -> None:
    async with start_inference(tmp_path, max_in_flight=1) as service:
        await service.publish("bot", "one", "two")
        await service.promote("bot", 1)
        service.fake.hold(after_tokens=0)
        orders = Orders(service)
        orders.ask("tiny")
        await eventually(lambda: service.engine.unfinished() == 1, "the first")
        chat = pb.ChatRequest(
            model="bot@production",
            messages=[pb.ChatMessage(role="user", content="hello")],
            sampling=pb.SamplingParams(max_tokens=8, temperature=0),
        )
        calls = [
            asyncio.ensure_future(service.stub.Chat(chat)),
            asyncio.ensure_future(service.stub.Generate(question("bot@production"))),
        ]
        await queued(service, 2)
        await service.promote("bot", 2)

        async def promoted() -> bool:
            models = (await service.stub.ListModels(pb.ListModelsRequest())).models
            return any(
                each.reference == "bot@production" and each.version.endswith("/2")
                for each in models
            )

        await eventually(promoted, "the promotion")
        await service.fake.release()
        await orders.all()
        answers = await asyncio.gather(*calls)
        assert {each.provenance.version[-1] for each in answers} == {"2"}
        assert answers[1].text == (await service.ask("bot:2")).text
        assert answers[0].usage.prompt_tokens > 0


async def test_an_adapter_that_cannot_be_fetched_holds_no_slot(tmp_path: Path) -> None:
    async with start_inference(tmp_path) as service:
        service.fake.limit_slots(1)
        await service.publish("bot", "one")
        (slow,) = await service.publish("slow", "two")
        await service.ask("bot:1")
        fetch, begun, gate = service.memory.fetch, asyncio.Event(), asyncio.Event()

        async def late(file: AdapterFile, target: Path) -> None:
            begun.set()
            await gate.wait()
            await fetch(file, target)

        service.memory.fetch = late  # type: ignore[method-assign]
        coming = asyncio.ensure_future(service.stub.Generate(question("slow:1")))
        await begun.wait()
        for _ in range(5):
            assert (await service.ask("bot:1")).text
        gate.set()
        assert (await coming).provenance.version == slow.name


def test_limits_come_from_the_environment_as_json(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {"*": {"max_concurrent": 3}, "bot": {"weight": 2.5, "tokens_per_s": 500}}
    monkeypatch.setenv("GRAFT_INFERENCE_ADAPTER_LIMITS", json.dumps(given))
    settings = InferenceSettings(base=Path("tiny"))
    assert settings.adapter_limits["bot"] == Limit(weight=2.5, tokens_per_s=500)
    assert settings.adapter_limits["*"].max_concurrent == 3
