"""Leases of a worker: on the data that it trains on, so that the next attempt finds it too."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager

from graft.channel import open_channel
from graft.leases import LeaseKeeper

from services.trainer.run.background import BackgroundLoop
from services.trainer.run.reporters import Reporter
from services.trainer.run.settings import WorkerSettings


@contextmanager
def held_data(
    digests: Sequence[str], settings: WorkerSettings, loop: BackgroundLoop, reporter: Reporter
) -> Iterator[None]:
    """Holds uploaded data files in the registry during the block."""
    if not digests or not settings.registry_address:
        yield
        return
    stack = AsyncExitStack()

    async def begin() -> None:
        channel = await stack.enter_async_context(open_channel(settings.registry_address))
        holder = f"{settings.job}/{settings.attempt}"
        keeper = LeaseKeeper(channel, holder, "train", list(digests), warn=reporter.log)
        await stack.enter_async_context(keeper)

    loop.run(begin())
    try:
        yield
    finally:
        loop.run(stack.aclose())
