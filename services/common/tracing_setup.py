"""Where the spans of a service go, as the standard OTEL_ variables say; without them, nowhere."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any

from graft.errors import GraftError, Reason

from services.common.tracing import Tracing

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")


def tracing_from_environment(service: str) -> Tracing:
    """Traces as OTEL_ variables say: on when an exporter is named, by its endpoint or by its kind.

    Args:
        service: the spans' service is graft-{service} where OTEL_SERVICE_NAME does not name another.

    Raises:
        GraftError: NOT_INSTALLED, or INVALID_REQUEST when they ask for what is not known.
    """
    if not traces_wanted(os.environ):
        return Tracing.off()
    if find_spec("opentelemetry") is None or find_spec("opentelemetry.sdk") is None:
        raise GraftError(
            Reason.NOT_INSTALLED,
            "The OTEL_ variables ask for traces, and opentelemetry is not installed",
            next_step="Install graft-adapters[tracing], or set OTEL_SDK_DISABLED=true.",
        )
    from opentelemetry import trace
    from opentelemetry.sdk.resources import SERVICE_NAME, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    # Later ones win: what OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES say comes last.
    named = {} if _names_service(os.environ) else {SERVICE_NAME: f"graft-{service}"}
    provider = TracerProvider(resource=Resource.create(named))
    for exporter in _exporters(os.environ):
        provider.add_span_processor(BatchSpanProcessor(exporter))
    # vLLM asks the process for its tracer: its spans go the same way.
    trace.set_tracer_provider(provider)
    return Tracing(provider)


def traces_wanted(environment: Mapping[str, str]) -> bool:
    """Whether OTEL_ variables name an exporter of traces."""
    if environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return False
    kinds = _kinds(environment)
    if kinds:
        return kinds != ["none"]
    return any(environment.get(name) for name in _ENDPOINTS)


def otlp_endpoint(environment: Mapping[str, str]) -> str | None:
    """Where OTLP spans go, in full; None where none are wanted or the exporter's default is meant."""
    if not traces_wanted(environment) or "otlp" not in (_kinds(environment) or ["otlp"]):
        return None
    if own := environment.get(_ENDPOINTS[0]):
        return own
    shared = environment.get(_ENDPOINTS[1])
    if shared and _protocol(environment) == "http/protobuf":
        return f"{shared.rstrip('/')}/v1/traces"
    return shared or None


def _protocol(environment: Mapping[str, str]) -> str:
    return (
        environment.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL")
        or environment.get("OTEL_EXPORTER_OTLP_PROTOCOL")
        or "grpc"
    )


def _kinds(environment: Mapping[str, str]) -> list[str]:
    named = environment.get("OTEL_TRACES_EXPORTER", "").split(",")
    return [kind.strip().lower() for kind in named if kind.strip()]


def _names_service(environment: Mapping[str, str]) -> bool:
    given = environment.get("OTEL_RESOURCE_ATTRIBUTES", "")
    return bool(environment.get("OTEL_SERVICE_NAME")) or "service.name=" in given


def _exporters(environment: Mapping[str, str]) -> Sequence[Any]:
    return [_exporter(kind, environment) for kind in _kinds(environment) or ["otlp"]]


def _exporter(kind: str, environment: Mapping[str, str]) -> Any:
    if kind == "console":
        from opentelemetry.sdk.trace.export import ConsoleSpanExporter

        return ConsoleSpanExporter()
    if kind != "otlp":
        raise _wrong(
            f"OTEL_TRACES_EXPORTER names {kind!r}, which this service does not know",
            "Use otlp, console or none.",
        )
    protocol = _protocol(environment)
    try:
        if protocol == "grpc":
            from opentelemetry.exporter.otlp.proto.grpc import trace_exporter as by_grpc

            return by_grpc.OTLPSpanExporter()
        if protocol == "http/protobuf":
            from opentelemetry.exporter.otlp.proto.http import trace_exporter as by_http

            return by_http.OTLPSpanExporter()
    except ImportError as error:
        raise GraftError(
            Reason.NOT_INSTALLED,
            f"The OTEL_ variables ask for traces over {protocol}, whose exporter is not installed "
            f"({error})",
            next_step="Install graft-adapters[tracing], or set OTEL_TRACES_EXPORTER=none.",
        ) from error
    raise _wrong(
        f"OTEL_EXPORTER_OTLP_PROTOCOL is {protocol!r}, which this service does not know",
        "Use grpc or http/protobuf.",
    )


def _wrong(what: str, next_step: str) -> GraftError:
    return GraftError(Reason.INVALID_REQUEST, what, next_step=next_step)
