"""Channels to Graft's services: the settings that all clients share, and errors as our own.

What a server that is away or going did not do is tried again by itself, and only while no byte of an
answer has arrived.
"""

from __future__ import annotations

import json
import sys
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import grpc

from graft.errors import from_rpc_error
from graft.secure import SecureChannel
from graft.tls import Tls

REQUEST_ID_HEADER = "x-request-id"
ACTOR_HEADER = "x-graft-actor"
# Id of the call that is being answered; a service sets it, so that what it asks others carries it on.
REQUEST_ID: ContextVar[str | None] = ContextVar("graft_request_id", default=None)
MAX_MESSAGE_BYTES = 16 * 1024 * 1024
_SERVICE_CONFIG = json.dumps(
    {
        # A name with several addresses, as a headless Service has, means all of them in turn.
        "loadBalancingConfig": [{"round_robin": {}}],
        "methodConfig": [
            {
                "name": [{}],
                "retryPolicy": {
                    "maxAttempts": 4,
                    "initialBackoff": "0.1s",
                    "maxBackoff": "2s",
                    "backoffMultiplier": 2,
                    # No servicer says CANCELLED, and a call that its caller cancels is not tried again: what is
                    # left are calls that reached a server after it had stopped to take any, and before its
                    # client knew. gRPC's core cancels those.
                    "retryableStatusCodes": ["UNAVAILABLE", "CANCELLED"],
                },
            }
        ],
    }
)
OPTIONS: tuple[tuple[str, str | int], ...] = (
    ("grpc.service_config", _SERVICE_CONFIG),
    ("grpc.enable_retries", 1),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    # gRPC would have all channels of a process to an address wait together, where one of them found nobody there:
    # whoever comes anew to a server that is back would be refused for as long.
    ("grpc.use_local_subchannel_pool", 1),
)


def open_channel(
    address: str, options: Sequence[tuple[str, str | int]] = (), tls: Tls | None = None
) -> grpc.aio.Channel:
    """An asyncio channel to address. Connects when it is used.

    Args:
        address: "host:port" or "dns:///host:port". Where host has several addresses its calls take
            them in turn, and those that cannot be reached are passed over.
        options: more than OPTIONS.
        tls: whom to trust and what to show; by default GRAFT_TLS_CA and so on, without which nothing
            is encrypted.

    Raises:
        GraftError: INVALID_REQUEST, naming a file with certificates that cannot be used.
    """
    tls = tls or Tls.from_environ()
    if tls is not None:
        return SecureChannel(address, [*OPTIONS, *options], tls)
    return grpc.aio.insecure_channel(address, options=[*OPTIONS, *options])


def call_metadata(
    request_id: str | None = None, actor: str | None = None
) -> tuple[tuple[str, str], ...]:
    """Metadata of a call: a request id that every service on its way logs, who asks, and the trace.

    Without one of its own, a call made while another is answered carries that one's id.
    """
    pairs = [(REQUEST_ID_HEADER, request_id or REQUEST_ID.get() or uuid.uuid4().hex)]
    if actor:
        pairs.append((ACTOR_HEADER, actor))
    return (*pairs, *_trace_context())


def _trace_context() -> tuple[tuple[str, str], ...]:
    """W3C traceparent of the caller's current span, where the caller makes any.

    Who has a span has imported opentelemetry: without it there is nothing to ask, and nothing to import.
    """
    if "opentelemetry.trace" not in sys.modules:
        return ()
    from opentelemetry.propagate import inject

    carrier: dict[str, str] = {}
    inject(carrier)
    return tuple((name.lower(), value) for name, value in carrier.items())


@contextmanager
def rpc_errors(peer: str) -> Iterator[None]:
    """Turns a failed call inside into a GraftError; peer is for the message, as in "the registry"."""
    try:
        yield
    except grpc.aio.AioRpcError as error:
        raise from_rpc_error(error, peer) from None
