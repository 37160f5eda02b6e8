"""Spans for tests: kept in this process, or received over OTLP from another."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as pb
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as rpc
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter


@dataclass(frozen=True, slots=True)
class Seen:
    """A span as a trace viewer shows it; ids in hexadecimal, an empty parent is a root's."""

    name: str
    trace: str
    span: str
    parent: str
    service: str
    seconds: float
    attributes: dict[str, object]


class Kept:
    """A tracer provider whose spans stay in this process."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        self.provider = TracerProvider()
        self.provider.add_span_processor(SimpleSpanProcessor(self._exporter))

    def spans(self) -> list[Seen]:
        """All that have ended."""
        return [_kept(span) for span in self._exporter.get_finished_spans()]


@dataclass(slots=True)
class Receiver(rpc.TraceServiceServicer):
    """What an OpenTelemetry collector is to its senders."""

    address: str = ""
    seen: list[Seen] = field(default_factory=list)

    def spans(self) -> list[Seen]:
        """All that have arrived."""
        return list(self.seen)

    async def Export(
        self, request: pb.ExportTraceServiceRequest, context: object
    ) -> pb.ExportTraceServiceResponse:
        for resource in request.resource_spans:
            about = {each.key: each.value.string_value for each in resource.resource.attributes}
            for scope in resource.scope_spans:
                self.seen += [_received(span, about["service.name"]) for span in scope.spans]
        return pb.ExportTraceServiceResponse()


@asynccontextmanager
async def otlp_receiver() -> AsyncIterator[Receiver]:
    """Listens for OTLP over gRPC until the block ends."""
    server, receiver = grpc.aio.server(), Receiver()
    rpc.add_TraceServiceServicer_to_server(receiver, server)  # type: ignore[no-untyped-call]
    receiver.address = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    try:
        yield receiver
    finally:
        await server.stop(None)


def one(spans: list[Seen], name: str) -> Seen:
    """The only span of a name."""
    found = [span for span in spans if span.name == name]
    assert len(found) == 1, f"{len(found)} spans are called {name}: {[each.name for each in spans]}"
    return found[0]


def children(spans: list[Seen], of: Seen) -> set[str]:
    """Names of the spans right below one."""
    return {span.name for span in spans if span.parent == of.span}


def below(spans: list[Seen], of: Seen) -> set[str]:
    """Names of all spans below one, however deep."""
    nearest = [span for span in spans if span.parent == of.span]
    return {span.name for span in nearest}.union(*(below(spans, span) for span in nearest))


def _kept(span: ReadableSpan) -> Seen:
    context = span.get_span_context()
    assert context is not None
    return Seen(
        span.name,
        f"{context.trace_id:032x}",
        f"{context.span_id:016x}",
        "" if span.parent is None else f"{span.parent.span_id:016x}",
        str(span.resource.attributes["service.name"]),
        ((span.end_time or 0) - (span.start_time or 0)) / 1e9,
        dict(span.attributes or {}),
    )


def _received(span: Span, service: str) -> Seen:
    values = {
        each.key: getattr(each.value, each.value.WhichOneof("value") or "string_value")
        for each in span.attributes
    }
    return Seen(
        span.name,
        span.trace_id.hex(),
        span.span_id.hex(),
        span.parent_span_id.hex(),
        service,
        (span.end_time_unix_nano - span.start_time_unix_nano) / 1e9,
        values,
    )
