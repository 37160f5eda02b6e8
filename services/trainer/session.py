"""One stream of a worker: its reports are stored and then acknowledged, commands go down to it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from graft.errors import GraftError, Reason

from services.common.logs import get_logger
from services.trainer.jobs import Report


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """Every report up to this number is stored."""

    report_number: int


@dataclass(frozen=True, slots=True)
class Cancel:
    """Stop at once; keep nothing but the checkpoints."""

    reason: str


@dataclass(frozen=True, slots=True)
class Preempt:
    """Write a checkpoint and stop."""

    reason: str


@dataclass(frozen=True, slots=True)
class EndStalled:
    """Write what every thread is at to the log, and end at once: the steps do not get on."""

    reason: str


@dataclass(frozen=True, slots=True)
class _Closed:
    pass


NumberedReport = tuple[int, Report]
Command = Cancel | Preempt | EndStalled
Answer = Acknowledged | Command
Record = Callable[[Sequence[NumberedReport]], Awaitable[None]]


class Link:
    """What is on its way between the trainer and one stream of a worker."""

    def __init__(self) -> None:
        self._inbox: asyncio.Queue[NumberedReport | Command | _Closed] = asyncio.Queue()
        self._closed = asyncio.Event()

    def receive(self, number: int, report: Report) -> None:
        """A report has arrived."""
        self._inbox.put_nowait((number, report))

    def send(self, command: Command) -> None:
        """A command is to go to the worker."""
        self._inbox.put_nowait(command)

    def close(self) -> None:
        """Nothing more comes; what has come is still stored."""
        self._inbox.put_nowait(_Closed())

    async def until_closed(self, timeout_s: float) -> None:
        """Waits until everything that came is stored, at most so long."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._closed.wait(), timeout_s)

    async def answers(self, record: Record) -> AsyncGenerator[Answer, None]:
        """Stores what arrives, many reports in one transaction, and yields what the worker is told."""
        try:
            while True:
                items = [await self._inbox.get()]
                while not self._inbox.empty():
                    items.append(self._inbox.get_nowait())
                reports = [item for item in items if isinstance(item, tuple)]
                if reports:
                    await record(reports)
                    yield Acknowledged(max(number for number, _report in reports))
                for item in items:
                    if isinstance(item, Command):
                        yield item
                if any(isinstance(item, _Closed) for item in items):
                    return
        finally:
            # The stream broke; a worker that is gone cannot repeat what it said last.
            try:
                await self._record_rest(record)
            except GraftError as error:
                # A worker that goes on repeats them; one whose attempt is over is not heard any more.
                if error.reason is not Reason.JOB_ENDED:
                    get_logger().error("last reports of a stream not stored", error=str(error))
            finally:
                self._closed.set()

    async def _record_rest(self, record: Record) -> None:
        rest = []
        while not self._inbox.empty():
            if isinstance(item := self._inbox.get_nowait(), tuple):
                rest.append(item)
        if rest:
            await record(rest)
