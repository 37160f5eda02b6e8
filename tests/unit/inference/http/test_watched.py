"""What operators see of requests over HTTP: one trace with the caller's, metrics by status, and the ready file."""

from __future__ import annotations

import json
from pathlib import Path

import openai
import pytest

from services.common.tracing import Tracing
from tests.support.inference import RunningInference, start_inference
from tests.support.traces import Kept, below, one
from tests.support.waiting import eventually
from tests.unit.inference.http.conftest import client_of

CHAT = "POST /v1/chat/completions"
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


async def test_a_request_continues_the_callers_trace(tmp_path: Path) -> None:
    kept = Kept()
    async with (
        start_inference(tmp_path, tracing=Tracing(kept.provider)) as service,
        client_of(service) as client,
    ):
        (version,) = await service.publish("bot", "one")
        await client.chat.completions.create(
            model="bot",
            messages=[{"role": "user", "content": "hello"}],
            max_tokens=4,
            extra_headers={"traceparent": PARENT, "x-request-id": "mine"},
        )
        await eventually(lambda: any(each.name == CHAT for each in kept.spans()))
        spans = kept.spans()
        call = one(spans, CHAT)
        assert (call.trace, call.parent) == tuple(PARENT.split("-")[1:3])
        assert below(spans, call) >= {"resolve", "acquire", "load", "generation"}
        assert call.attributes["graft.version"] == version.name
        assert call.attributes["http.response.status_code"] == 200
        assert call.attributes["graft.request_id"] == "mine"


async def test_a_stream_that_fails_in_the_middle_is_counted_as_failed(
    service: RunningInference, client: openai.AsyncOpenAI
) -> None:
    service.fake.hold(2)
    stream = await client.completions.create(model="tiny", prompt="x", max_tokens=9, stream=True)
    service.fake.die()
    with pytest.raises(openai.APIError):
        async for _ in stream:
            pass
    value = service.server.metrics_registry.get_sample_value
    labels = {"route": "/v1/completions", "code": "503"}
    await eventually(lambda: value("graft_http_requests_total", labels) == 1)
    flight = {"route": "/v1/completions"}
    assert value("graft_http_requests_in_flight", flight) == 0


async def test_the_ready_file_says_where_the_door_is(tmp_path: Path) -> None:
    ready = tmp_path / "ready.json"
    async with start_inference(tmp_path, ready_file=ready) as service:
        assert json.loads(ready.read_text())["http_address"] == service.server.http_address
