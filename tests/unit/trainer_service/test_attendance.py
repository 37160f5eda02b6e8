"""One worker under watch: what was said to a stream that broke is said again to the next one."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

from services.trainer.attendance import Attendance, Limits
from services.trainer.jobs import Attempt
from services.trainer.launchers.base import Worker
from services.trainer.session import Answer, Cancel, Link, Preempt

ATTEMPT = Attempt("jobs/a", 1, "token", (0,), "127.0.0.1:1", datetime.now(UTC))


class Signalled(Worker):
    """A worker that runs, and counts the signals that it gets."""

    def __init__(self) -> None:
        self.signals = 0

    @property
    def handle(self) -> str:
        return "it"

    async def wait(self) -> int | None:
        await asyncio.Event().wait()
        return None

    def terminate(self) -> None:
        self.signals += 1

    def kill(self) -> None:
        self.signals += 1


async def told(link: Link) -> list[Answer]:
    """Everything that a stream is told until it is closed."""
    link.close()
    return [answer async for answer in link.answers(lambda _batch: asyncio.sleep(0))]


async def test_a_command_that_a_broken_stream_may_have_lost_comes_over_the_next_one() -> None:
    worker = Signalled()
    attendance = Attendance(ATTEMPT, worker, Limits(), adopted=False)
    first = attendance.connect()
    attendance.preempt("the node goes")
    attendance.disconnect(first)
    assert await told(attendance.connect()) == [Preempt("the node goes")]
    attendance.cancel("enough")
    assert await told(attendance.connect()) == [Preempt("the node goes"), Cancel("enough")]
    assert worker.signals == 0


async def test_a_worker_without_a_stream_is_told_by_signal_and_not_again() -> None:
    worker = Signalled()
    attendance = Attendance(ATTEMPT, worker, Limits(), adopted=True)
    attendance.preempt("the node goes")
    assert worker.signals == 1
    assert await told(attendance.connect()) == []
