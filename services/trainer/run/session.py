"""The session with the trainer: reports go up and are repeated until acknowledged, commands come down.

Runs on the background loop, so that training never waits for the network and goes on without it.
"""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable

import grpc
from graft.channel import open_channel
from graft.trainer.v1.worker_service_pb2 import (
    Finished,
    Heartbeat,
    Hello,
    SessionRequest,
    SessionResponse,
)
from graft.trainer.v1.worker_service_pb2_grpc import WorkerServiceStub

from services.trainer.run.background import BackgroundLoop
from services.trainer.run.exits import ExitCode
from services.trainer.run.reporters import Reporter

_HEARTBEAT_S = 2.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.2, 5.0
_CANCEL_PATIENCE_S, _PREEMPTED_PATIENCE_S = 0.7, 3.0
_MOST_WAITING = 20_000
# The trainer knows this worker no more: its job has ended or another attempt runs.
_DISOWNED = {
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.UNAUTHENTICATED,
}


class SessionReporter(Reporter):
    """Reports to the trainer.

    Args:
        loop: the background loop that it lives on.
        address: the trainer's "host:port".
        hello: who this worker is.
        patience_s: how long finish() waits for a trainer that is away.
        may_die: whether a cancellation can still be obeyed; asked before the process ends.
    """

    def __init__(
        self,
        loop: BackgroundLoop,
        address: str,
        hello: Hello,
        patience_s: float,
        may_die: Callable[[], bool],
    ) -> None:
        self._loop = loop
        self._address = address
        self._hello = hello
        self._patience_s = patience_s
        self._may_die = may_die
        self._lock = threading.Lock()
        self._waiting: deque[SessionRequest] = deque()
        self._number = 0
        self._step = 0
        self._streams = 0
        self._news = asyncio.Event()
        self._all_arrived = threading.Event()
        loop.start(self._keep_connected())

    def send(self, report: SessionRequest) -> None:
        with self._lock:
            self._number += 1
            report.report_number = self._number
            self._waiting.append(report)
            self._all_arrived.clear()
            if len(self._waiting) > _MOST_WAITING:
                self._thin_out()
        self._loop.call(self._news.set)

    def finish(self, report: Finished) -> None:
        self.send(SessionRequest(finished=report))
        # Whoever preempts goes away soon, and the exit code says the same.
        self._all_arrived.wait(_PREEMPTED_PATIENCE_S if report.preempted else self._patience_s)

    def at_step(self, step: int) -> None:
        self._step = step

    def _thin_out(self) -> None:
        """Drops every other report of figures: the curve stays, at half its resolution."""
        kept = [
            report
            for index, report in enumerate(self._waiting)
            if index % 2 or report.WhichOneof("report") != "metrics"
        ]
        self._waiting = deque(kept)

    async def _keep_connected(self) -> None:
        pause_s = _FIRST_PAUSE_S
        while True:
            try:
                async with open_channel(self._address) as channel:
                    async for answer in WorkerServiceStub(channel).Session(self._requests()):
                        pause_s = _FIRST_PAUSE_S
                        self._obey(answer)
            except grpc.aio.AioRpcError as error:
                if error.code() in _DISOWNED:
                    os._exit(ExitCode.CANCELLED)
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    async def _requests(self) -> AsyncIterator[SessionRequest]:
        """One stream: hello, everything that is not acknowledged, then what comes, with signs of life."""
        self._streams += 1
        this, sent = self._streams, 0
        yield SessionRequest(hello=self._hello)
        while (
            this == self._streams
        ):  # A broken stream's generator lives on until it is asked again.
            self._news.clear()
            with self._lock:
                fresh = [report for report in self._waiting if report.report_number > sent]
            for report in fresh:
                sent = report.report_number
                yield report
            try:
                await asyncio.wait_for(self._news.wait(), _HEARTBEAT_S)
            except TimeoutError:
                yield SessionRequest(heartbeat=Heartbeat(step=self._step))

    def _obey(self, answer: SessionResponse) -> None:
        command = answer.WhichOneof("command")
        if command == "acknowledged_report_number":
            self._forget(answer.acknowledged_report_number)
        elif command == "preempt":
            os.kill(os.getpid(), signal.SIGTERM)
        elif command == "cancel":
            threading.Thread(target=self._die, args=(answer.cancel.reason,), daemon=True).start()

    def _forget(self, number: int) -> None:
        with self._lock:
            while self._waiting and self._waiting[0].report_number <= number:
                self._waiting.popleft()
            if not self._waiting:
                self._all_arrived.set()

    def _die(self, reason: str) -> None:
        if not self._may_die():
            return
        self.send(SessionRequest(finished=Finished(cancelled=True, message=reason)))
        self._all_arrived.wait(_CANCEL_PATIENCE_S)
        os._exit(ExitCode.CANCELLED)
