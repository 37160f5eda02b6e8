"""Ports of servers that go away and come back, or that only another process listens at, later."""

from __future__ import annotations

import random
import socket
from contextlib import suppress
from pathlib import Path

_FIRST, _LAST = 10_000, 32_767
_GIVEN_OUT = Path("/proc/sys/net/ipv4/ip_local_port_range")


def kept_port() -> int:
    """A free port that the system gives to nobody who asks for any, so that it is still free later.

    Any other port may meanwhile be somebody's who connects to somewhere, for one to the server that is away.
    """
    last = min(_LAST, int(_GIVEN_OUT.read_text().split()[0]) - 1)
    chance = random.SystemRandom()
    while True:
        port = chance.randint(_FIRST, last if last > _FIRST else _LAST)
        with socket.socket() as taken, suppress(OSError):
            taken.bind(("127.0.0.1", port))
            return port
