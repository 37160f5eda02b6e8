"""A wake-up for whoever waits in this process; says only that something may be new."""

from __future__ import annotations

import asyncio


class Pulse:
    """Wakes all who wait. Take next() before looking, then wait for it: nothing is missed between."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def next(self) -> asyncio.Event:
        """Set when fire() is called after this."""
        return self._event

    def fire(self) -> None:
        """Wakes everybody who holds the current event."""
        self._event.set()
        self._event = asyncio.Event()
