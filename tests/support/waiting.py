"""Waiting for something to become true, with a deadline."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable


async def eventually(
    condition: Callable[[], bool | Awaitable[bool]], what: str = "it", within_s: float = 60.0
) -> None:
    """Returns as soon as condition() is true; fails the test, naming what, when it stays false."""
    try:
        async with asyncio.timeout(within_s):
            while True:
                holds = condition()
                if holds if isinstance(holds, bool) else await holds:
                    return
                await asyncio.sleep(0.01)
    except TimeoutError:
        raise AssertionError(f"{what} did not happen within {within_s} s") from None
