"""Where the services are: from arguments, the environment, or what `graft up` wrote."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from graft.errors import GraftError, Reason

SERVICES = ("registry", "trainer", "inference")
# gRPC's own way to say that every address of a name is meant; it is what a plain name means here too.
DNS = "dns:///"
DEFAULT_ADDRESSES = {
    "registry": "127.0.0.1:7431",
    "trainer": "127.0.0.1:7432",
    "inference": "127.0.0.1:7433",
}


def graft_home(environ: Mapping[str, str] = os.environ) -> Path:
    """Where Graft keeps its data on one machine: $GRAFT_HOME, else ~/.graft."""
    return Path(environ.get("GRAFT_HOME") or Path.home() / ".graft").absolute()


def endpoints_file(home: Path) -> Path:
    """The file that `graft up` writes its services' addresses to."""
    return home / "endpoints.json"


@dataclass(frozen=True, slots=True)
class Endpoints:
    """Addresses ("host:port") of the three services."""

    registry: str
    trainer: str
    inference: str

    @classmethod
    def find(
        cls,
        registry: str | None = None,
        trainer: str | None = None,
        inference: str | None = None,
        environ: Mapping[str, str] = os.environ,
    ) -> Self:
        """Addresses by precedence: argument, GRAFT_REGISTRY and so on, endpoints.json, default port.

        Raises:
            GraftError: INVALID_REQUEST when an address is not host:port or the file is not JSON.
        """
        given = {"registry": registry, "trainer": trainer, "inference": inference}
        written = announced(graft_home(environ))
        found = {
            name: given[name]
            or environ.get(f"GRAFT_{name.upper()}")
            or written.get(name)
            or DEFAULT_ADDRESSES[name]
            for name in SERVICES
        }
        return cls(**{name: check_address(name, address) for name, address in found.items()})


def check_address(service: str, address: str) -> str:
    """Returns address when it is host:port, or dns:///host:port.

    Raises:
        GraftError: INVALID_REQUEST.
    """
    host, _, port = address.removeprefix(DNS).rpartition(":")
    if not host or not port.isdigit() or "/" in host:
        raise GraftError(
            Reason.INVALID_REQUEST,
            f"{address!r} is not an address of the {service}",
            next_step="Write host:port, for example 127.0.0.1:7431.",
            service=service,
        )
    return address


def announced(home: Path) -> dict[str, str]:
    """Addresses that `graft up` wrote; without inference where it serves no base.

    Raises:
        GraftError: INVALID_REQUEST when the file is not JSON.
    """
    content = _read(endpoints_file(home))
    return {name: str(content[name]) for name in SERVICES if content.get(name)}


def served_base(home: Path) -> str | None:
    """Folder of the base that `graft up` serves.

    Raises:
        GraftError: INVALID_REQUEST when its file is not JSON.
    """
    return _read(endpoints_file(home)).get("base")


def _read(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError:
        raise GraftError(
            Reason.INVALID_REQUEST,
            f"{path} is not JSON",
            next_step="Delete it and run `graft up` again, or name the addresses.",
        ) from None
    return content
