"""Who makes the call that is being answered, for logs, histories and audits."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Caller:
    """actor as the call's metadata names it, method without its service, and the call's request id."""

    actor: str = ""
    method: str = ""
    request_id: str = ""


# Set by the interceptor around every call; tasks that a call starts inherit it.
CALLER: ContextVar[Caller | None] = ContextVar("caller", default=None)


def current_caller() -> Caller:
    """Who makes the call that is being answered; nobody outside a call."""
    return CALLER.get() or Caller()
