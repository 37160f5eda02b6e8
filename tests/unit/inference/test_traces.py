"""One request's way as a trace viewer shows it: from the caller's span down to the engine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import graft
import pytest
from graft.errors import GraftError
from opentelemetry import trace
from prometheus_client import CollectorRegistry

from services.common.tracing import Tracing
from services.inference.engines.fake import FakeEngine
from services.inference.metrics import InferenceMetrics
from tests.support.inference import RunningInference, start_inference
from tests.support.traces import Kept, Seen, below, children, one
from tests.support.waiting import eventually

CALL = "graft.inference.v1.InferenceService/StreamGenerate"


class HeaderKeeper(FakeEngine):
    """Keeps what it is told of the trace."""

    def __init__(self) -> None:
        super().__init__()
        self.trace_headers: dict[str, str] = {}

    def generate(self, *arguments, **options):  # type: ignore[no-untyped-def]
        self.trace_headers = dict(options["trace_headers"] or {})
        return super().generate(*arguments, **options)


@pytest.fixture
def kept() -> Kept:
    return Kept()


@pytest.fixture
async def traced(tmp_path: Path, kept: Kept) -> AsyncIterator[RunningInference]:
    tracing = Tracing(kept.provider)
    async with start_inference(tmp_path, engine=HeaderKeeper(), tracing=tracing) as running:
        yield running


async def ask(service: RunningInference, model: str) -> None:
    async with graft.Client(inference=service.server.address) as client:
        async for _ in client.stream(model, "hello", max_tokens=4):
            pass


async def ended(kept: Kept, name: str = CALL) -> list[Seen]:
    await eventually(lambda: any(each.name == name for each in kept.spans()), name)
    return kept.spans()


async def test_a_request_is_one_trace_from_the_callers_span_to_the_engine(
    traced: RunningInference, kept: Kept
) -> None:
    await traced.publish("bot", "one")
    with kept.provider.get_tracer("application").start_as_current_span("my work"):
        await ask(traced, "bot:1")
    spans = await ended(kept)
    work, call = one(spans, "my work"), one(spans, CALL)
    assert call.parent == work.span
    assert children(spans, call) >= {"resolve", "acquire", "generation"}
    assert below(spans, call) >= {"verify", "fetch", "load"}
    generation = one(spans, "generation")
    assert children(spans, generation) == {"first_token"}
    assert isinstance(traced.engine, HeaderKeeper)
    assert traced.engine.trace_headers["traceparent"].split("-")[1:3] == [
        call.trace,
        generation.span,
    ]
    assert {span.trace for span in spans} == {call.trace}


async def test_spans_say_who_answered_and_how_much(traced: RunningInference, kept: Kept) -> None:
    (version,) = await traced.publish("bot", "one")
    await ask(traced, "bot:1")
    spans = await ended(kept)
    call, generation = one(spans, CALL), one(spans, "generation")
    assert call.attributes["graft.version"] == version.name
    assert call.attributes["graft.version_digest"] == version.digest
    assert call.attributes["rpc.grpc.status_code"] == "OK"
    assert generation.attributes["gen_ai.usage.output_tokens"] == 4
    assert generation.attributes["graft.outcome"] == "ok"


async def test_a_refused_request_has_its_status_in_its_span(
    traced: RunningInference, kept: Kept
) -> None:
    with pytest.raises(GraftError):
        await ask(traced, "absent")
    spans = await ended(kept)
    call = one(spans, CALL)
    assert call.attributes["rpc.grpc.status_code"] == "NOT_FOUND"
    assert call.parent == ""


def test_a_wait_for_a_turn_is_a_span_of_the_request_that_waited(kept: Kept) -> None:
    tracing = Tracing(kept.provider)
    metrics = InferenceMetrics(CollectorRegistry(), tracing=tracing)
    with tracing.span("request"):
        metrics.waited_turn("bot", "1", 0.25)
    queue, request = one(kept.spans(), "queue"), one(kept.spans(), "request")
    assert queue.parent == request.span
    assert queue.seconds == pytest.approx(0.25)


async def test_requests_at_once_keep_their_traces_apart(
    traced: RunningInference, kept: Kept
) -> None:
    await traced.publish("bot", "one")
    tracer = kept.provider.get_tracer("application")

    async def work(number: int) -> str:
        with tracer.start_as_current_span(f"work {number}") as span:
            await ask(traced, "bot:1")
            return f"{span.get_span_context().trace_id:032x}"

    traces = await asyncio.gather(*(work(number) for number in range(8)))
    assert len(set(traces)) == 8
    await eventually(lambda: sum(each.name == CALL for each in kept.spans()) == 8, "all calls")
    for own in traces:
        spans = [span for span in kept.spans() if span.trace == own]
        assert one(spans, "generation").parent == one(spans, CALL).span
    # Loaded once: in the trace of whoever asked first.
    assert len([span for span in kept.spans() if span.name == "load"]) == 1


async def test_without_tracing_nothing_is_made(tmp_path: Path, kept: Kept) -> None:
    async with start_inference(tmp_path, engine=HeaderKeeper()) as service:
        await service.publish("bot", "one")
        await ask(service, "bot:1")
        assert isinstance(service.engine, HeaderKeeper)
        assert service.engine.trace_headers == {}
    assert kept.spans() == []
    assert not trace.get_current_span().get_span_context().is_valid
