"""Requests about the ends of adapters, bases and versions, checked."""

from __future__ import annotations

from typing import Protocol

from graft.names import parse_name

from services.registry.convert.checks import ADAPTER, BASE, check_text, version_number


class _Ending(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def reason(self) -> str: ...


def adapter_of(name: str) -> str:
    """The name of an adapter. Raises INVALID_NAME."""
    parse_name(name, ADAPTER)
    return name


def base_of(name: str) -> str:
    """The name of a base. Raises INVALID_NAME."""
    parse_name(name, BASE)
    return name


def version_of(name: str) -> str:
    """The name of a version, as it is stored. Raises INVALID_NAME, INVALID_REQUEST."""
    parent, number = version_number(name)
    return f"{parent}/versions/{number}"


def reason_of(request: _Ending) -> str:
    """Why. Raises INVALID_REQUEST."""
    return check_text("reason", request.reason)
