"""Errors in OpenAI's form: which HTTP status, type and code a Reason has there.

Clients of OpenAI try 408, 409, 429 and everything from 500 on again by themselves, so that what will
never work as it is must have another status.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping

import grpc
from graft.errors import GraftError, Reason

_CODE = grpc.StatusCode
_BY_CODE: Mapping[grpc.StatusCode, int] = {
    _CODE.INVALID_ARGUMENT: 400,
    _CODE.OUT_OF_RANGE: 400,
    _CODE.UNIMPLEMENTED: 400,
    _CODE.UNAUTHENTICATED: 401,
    _CODE.PERMISSION_DENIED: 403,
    _CODE.NOT_FOUND: 404,
    _CODE.ABORTED: 409,
    _CODE.ALREADY_EXISTS: 409,
    # The adapter cannot be served as it is: no other try helps.
    _CODE.FAILED_PRECONDITION: 422,
    _CODE.RESOURCE_EXHAUSTED: 429,
    _CODE.CANCELLED: 499,
    _CODE.INTERNAL: 500,
    _CODE.DATA_LOSS: 500,
    _CODE.UNAVAILABLE: 503,
    _CODE.DEADLINE_EXCEEDED: 504,
}
# Where a reason is more exact than its gRPC status.
_BY_REASON: Mapping[Reason, int] = {
    Reason.TOO_LARGE: 413,
    Reason.WRONG_BASE: 404,
    Reason.DELETED: 404,
    # 429 is a caller's own limit; here everybody asks for too much.
    Reason.OVERLOADED: 503,
}
_NOT_FOUND = frozenset(
    {
        Reason.MODEL_NOT_FOUND,
        Reason.ADAPTER_NOT_FOUND,
        Reason.ALIAS_NOT_FOUND,
        Reason.VERSION_NOT_FOUND,
        Reason.BASE_NOT_FOUND,
        Reason.WRONG_BASE,
        Reason.DELETED,
    }
)
_CODES: Mapping[Reason, str] = {
    **dict.fromkeys(_NOT_FOUND, "model_not_found"),
    Reason.PROMPT_TOO_LONG: "context_length_exceeded",
    Reason.RATE_LIMITED: "rate_limit_exceeded",
    Reason.QUOTA_EXCEEDED: "insufficient_quota",
    Reason.UNAUTHENTICATED: "invalid_api_key",
    Reason.NOT_SUPPORTED: "unsupported_parameter",
}
# What is named otherwise in the contract, longest first.
_NAMES = {
    "sampling.structure": "response_format",
    "sampling.": "",
    "inputs[": "input[",
    "prompt_token_ids": "prompt",
}
# Of the metadata: said elsewhere.
_SAID = frozenset({"field", "retry_after_s"})


def status_of(error: GraftError) -> int:
    """The HTTP status of an error."""
    return _BY_REASON.get(error.reason) or _BY_CODE[error.code]


def error_body(error: GraftError) -> dict[str, object]:
    """{"error": {message, type, param, code, graft}}; graft has reason, next step and what else is known."""
    status = status_of(error)
    field = error.metadata.get("field")
    known = {key: value for key, value in error.metadata.items() if key not in _SAID}
    message = _openai(str(error)) if field else str(error)
    return {
        "error": {
            "message": message,
            "type": _type(status),
            "param": _openai(field) if field else _param(error.reason),
            "code": _CODES.get(error.reason, error.reason.value.lower()),
            "graft": {"reason": error.reason.value, "next_step": error.next_step, **known},
        }
    }


def _openai(text: str) -> str:
    for ours, theirs in _NAMES.items():
        text = text.replace(ours, theirs)
    return text


def error_text(error: GraftError) -> str:
    """The same as JSON."""
    return json.dumps(error_body(error))


def error_headers(error: GraftError) -> dict[str, str]:
    """Retry-After, in whole seconds and in milliseconds, where the service knows."""
    after_s = error.retry_after_s
    if error.reason is Reason.UNAUTHENTICATED:
        return {"WWW-Authenticate": "Bearer"}
    if after_s is None:
        # What is lost for good is not asked for again.
        return {"x-should-retry": "false"} if error.reason is Reason.QUOTA_EXCEEDED else {}
    return {
        "Retry-After": str(math.ceil(after_s)),
        "retry-after-ms": str(round(1000 * after_s)),
    }


def _type(status: int) -> str:
    if status == 429:
        return "rate_limit_error"
    if status in (401, 403):
        return "authentication_error"
    return "invalid_request_error" if status < 500 else "server_error"


def _param(reason: Reason) -> str | None:
    if reason is Reason.PROMPT_TOO_LONG:
        return "messages"
    return "model" if reason in _NOT_FOUND or reason is Reason.INVALID_REFERENCE else None


def not_supported(field: str, why: str, next_step: str) -> GraftError:
    """NOT_SUPPORTED, naming the field."""
    return GraftError(Reason.NOT_SUPPORTED, f"{field} {why}", next_step=next_step, field=field)
