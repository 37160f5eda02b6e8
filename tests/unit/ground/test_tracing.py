"""Tracing is off unless OTEL_ variables ask for it, goes where they say, and never needs opentelemetry."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from graft.channel import call_metadata, open_channel, rpc_errors
from graft.errors import GraftError, Reason
from graft.inference.v1.inference_service_pb2_grpc import InferenceServiceStub
from opentelemetry import trace

from services.common.tracing_setup import otlp_endpoint, traces_wanted, tracing_from_environment
from tests.support.inference import question
from tests.support.inference_process import exit_code, inference_process
from tests.support.processes import ServiceProcess, process_environment
from tests.support.traces import Kept, children, one, otlp_receiver
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from graft.inference.v1.inference_service_pb2_grpc import InferenceServiceAsyncStub

ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
PARENT = ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
OTHER = ("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")
CALL = "graft.inference.v1.InferenceService/Generate"


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OTEL_SDK_DISABLED", "OTEL_TRACES_EXPORTER", ENDPOINT):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("environment", "wanted"),
    [
        ({}, False),
        ({ENDPOINT: "http://collector:4317"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://collector:4317"}, True),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, True),
        ({"OTEL_TRACES_EXPORTER": "console"}, True),
        ({"OTEL_TRACES_EXPORTER": "none", ENDPOINT: "http://collector:4317"}, False),
        ({"OTEL_SDK_DISABLED": "true", ENDPOINT: "http://collector:4317"}, False),
    ],
)
def test_traces_are_made_where_the_environment_asks_for_them(
    environment: dict[str, str], wanted: bool
) -> None:
    assert traces_wanted(environment) is wanted


@pytest.mark.parametrize(
    ("environment", "endpoint"),
    [
        ({}, None),
        ({ENDPOINT: "http://c:4317"}, "http://c:4317"),
        (
            {ENDPOINT: "http://c:4318/", "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"},
            "http://c:4318/v1/traces",
        ),
        ({ENDPOINT: "http://c:4317", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://d"}, "http://d"),
        ({ENDPOINT: "http://c:4317", "OTEL_TRACES_EXPORTER": "console"}, None),
    ],
)
def test_the_engine_sends_its_spans_to_the_same_place(
    environment: dict[str, str], endpoint: str | None
) -> None:
    assert otlp_endpoint(environment) == endpoint


@pytest.mark.parametrize(
    ("name", "value"),
    [("OTEL_TRACES_EXPORTER", "zipkin"), ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json")],
)
def test_what_is_not_known_is_refused_by_name_at_the_start(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(ENDPOINT, "http://127.0.0.1:1")
    monkeypatch.setenv(name, value)
    with pytest.raises(GraftError, match=name) as caught:
        tracing_from_environment("inference")
    assert caught.value.reason is Reason.INVALID_REQUEST
    assert caught.value.next_step


def test_the_sdk_imports_nothing_of_opentelemetry() -> None:
    program = (
        "import sys, graft\n"
        "from graft.channel import call_metadata\n"
        "names = [name for name, _ in call_metadata()]\n"
        "assert names == ['x-request-id'], names\n"
        "assert not [name for name in sys.modules if name.startswith('opentelemetry')]\n"
    )
    subprocess.run(
        [sys.executable, "-c", program], check=True, env=process_environment(), timeout=600
    )


def test_a_service_needs_no_opentelemetry_until_traces_are_wanted() -> None:
    program = (
        "import os, sys\n"
        "sys.modules['opentelemetry'] = None\n"
        "import services.inference.server\n"
        "from graft.channel import call_metadata\n"
        "from services.common.tracing_setup import tracing_from_environment\n"
        "assert not tracing_from_environment('inference').on and call_metadata()\n"
        f"os.environ[{ENDPOINT!r}] = 'http://127.0.0.1:1'\n"
        "try:\n"
        "    tracing_from_environment('inference')\n"
        "except Exception as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        check=True, env=process_environment(), timeout=600, capture_output=True, text=True,
    )  # fmt: skip
    assert "graft-adapters[tracing]" in done.stdout


def test_a_call_carries_the_callers_span_and_none_where_there_is_none() -> None:
    assert "traceparent" not in dict(call_metadata())
    with Kept().provider.get_tracer("application").start_as_current_span("work") as span:
        context = span.get_span_context()
        parent = dict(call_metadata())["traceparent"]
    assert parent.startswith(f"00-{context.trace_id:032x}-{context.span_id:016x}-")
    assert not trace.get_current_span().get_span_context().is_valid


async def test_spans_of_all_services_come_to_the_collector_that_the_environment_names(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ready = tmp_path / "ready.json"
    async with otlp_receiver() as receiver:
        monkeypatch.setenv(ENDPOINT, receiver.address)
        with ServiceProcess("registry", tmp_path / "registry").wait_ready() as registry:
            settings = {
                "engine": "fake",
                "base_name": "tiny",
                "ready_file": ready,
                "registry_address": registry.address,
            }
            async with inference_process(tiny_base, tmp_path, **settings) as process:
                ended = asyncio.ensure_future(process.wait())
                await eventually(lambda: ready.exists() or ended.done(), "serving", within_s=120)
                async with open_channel(json.loads(ready.read_bytes())["address"]) as channel:
                    stub: InferenceServiceAsyncStub = InferenceServiceStub(channel)
                    await stub.Generate(question("tiny"), metadata=(PARENT,))
                    with pytest.raises(GraftError), rpc_errors("the service"):
                        await stub.Generate(question("absent"), metadata=(OTHER,))
                # What is left is sent before a service ends.
                assert await exit_code(process) == 0
            assert await registry.stop() == 0
        answered = [span for span in receiver.spans() if span.trace == PARENT[1].split("-")[1]]
        refused = [span for span in receiver.spans() if span.trace == OTHER[1].split("-")[1]]
    call = one(answered, CALL)
    assert (call.service, call.parent) == ("graft-inference", PARENT[1].split("-")[2])
    assert children(answered, call) >= {"resolve", "generation"}
    asked = [span for span in refused if span.service == "graft-registry"]
    assert {span.parent for span in asked} == {one(refused, "resolve").span}
