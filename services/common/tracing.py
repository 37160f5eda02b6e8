"""OpenTelemetry spans of a service: of the calls that it answers and of what it does for them.

A span's parent is the W3C traceparent of the call's metadata. Where spans go is said elsewhere
(tracing_setup.py), and opentelemetry is imported only where traces are on.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span

# What goes from call to call: W3C Trace Context and Baggage.
TRACE_HEADERS = ("traceparent", "tracestate", "baggage")
_NS_PER_S = 1_000_000_000
Attribute = str | int | float | bool


class Tracing:
    """Makes the spans of one service. Tracing.off() makes none and costs nothing.

    Args:
        provider: where spans go; None for nowhere.
    """

    def __init__(self, provider: TracerProvider | None) -> None:
        self._provider = provider
        self._tracer = None if provider is None else provider.get_tracer("graft")

    @classmethod
    def off(cls) -> Tracing:
        """No traces."""
        return cls(None)

    @property
    def on(self) -> bool:
        """Whether there are traces."""
        return self._tracer is not None

    def span(self, name: str, **attributes: Attribute) -> AbstractContextManager[object]:
        """A span around what is inside; spans made there, in new tasks too, are its children."""
        if self._tracer is None:
            return nullcontext()
        return self._tracer.start_as_current_span(
            name, attributes=attributes, set_status_on_exception=True
        )

    def call(
        self, method: str, metadata: Mapping[str, Any], request_id: str
    ) -> AbstractContextManager[object]:
        """The span of a call that is answered here, below the span that its metadata names."""
        service, _, name = method.strip("/").rpartition("/")
        about = {"rpc.system": "grpc", "rpc.service": service, "rpc.method": name}
        return self._answering(f"{service}/{name}", metadata, request_id, about)

    def request(
        self, method: str, route: str, headers: Mapping[str, Any], request_id: str
    ) -> AbstractContextManager[object]:
        """The same for an HTTP request; route is the path with its variables unfilled."""
        about = {"http.request.method": method, "http.route": route}
        return self._answering(f"{method} {route}", headers, request_id, about)

    def _answering(
        self, name: str, headers: Mapping[str, Any], request_id: str, about: dict[str, str]
    ) -> AbstractContextManager[object]:
        if self._tracer is None:
            return nullcontext()
        from opentelemetry.propagate import extract
        from opentelemetry.trace import SpanKind

        carrier = {key: str(headers[key]) for key in TRACE_HEADERS if key in headers}
        return self._tracer.start_as_current_span(
            name,
            context=extract(carrier),
            kind=SpanKind.SERVER,
            attributes={**about, "graft.request_id": request_id},
        )

    def passed(self, name: str, seconds: float, **attributes: Attribute) -> None:
        """A span that ends now and began so long ago."""
        if self._tracer is not None:
            end_ns = time.time_ns()
            began_ns = end_ns - int(seconds * _NS_PER_S)
            self._tracer.start_span(name, start_time=began_ns, attributes=attributes).end(end_ns)

    def describe(self, **attributes: Attribute) -> None:
        """Says more of the span that is around the caller."""
        if self._tracer is not None:
            from opentelemetry.trace import get_current_span

            get_current_span().set_attributes(attributes)

    def answering(self) -> AnswerSpans:
        """Spans of one answer, from its handing over to the engine; see AnswerSpans."""
        return AnswerSpans(self._tracer)

    def close(self) -> None:
        """Sends what is left; may take as long as the exporter's timeout."""
        if self._provider is not None:
            self._provider.shutdown()


class AnswerSpans:
    """The span `generation` and in it `first_token`, without touching the current span.

    An async generator is resumed in whatever context its reader has, so these are started by hand.
    """

    def __init__(self, tracer: Any) -> None:
        self._tracer = tracer
        self._generation: Span | None = None
        self._first_token: Span | None = None
        self.headers: Mapping[str, str] | None = None
        if tracer is not None:
            self._begin()

    def _begin(self) -> None:
        from opentelemetry.propagate import inject
        from opentelemetry.trace import set_span_in_context

        self._generation = self._tracer.start_span("generation")
        context = set_span_in_context(self._generation)
        self._first_token = self._tracer.start_span("first_token", context=context)
        headers: dict[str, str] = {}
        inject(headers, context=context)
        # What the engine names as the parent of its own spans.
        self.headers = headers

    def first_token(self) -> None:
        """It is there."""
        if self._first_token is not None:
            self._first_token.end()
            self._first_token = None

    def end(self, outcome: str, prompt_tokens: int, completion_tokens: int) -> None:
        """The answer has ended; outcome is ok, cancelled or error."""
        self.first_token()
        if self._generation is None:
            return
        self._generation.set_attributes(
            {
                "graft.outcome": outcome,
                "gen_ai.usage.input_tokens": prompt_tokens,
                "gen_ai.usage.output_tokens": completion_tokens,
            }
        )
        if outcome == "error":
            from opentelemetry.trace import StatusCode

            self._generation.set_status(StatusCode.ERROR)
        self._generation.end()
