"""The session with the trainer: reports go up and are repeated until acknowledged, commands come down.

Runs on the background loop, so that training never waits for the network and goes on without it.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
import traceback
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
from services.trainer.run.watchdog import end_stalled

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
        may_die: waits for a commit that is on its way, and says whether the process may still end
            as if there was none; asked before it does.
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
        self._streams = 0
        self._broken = False
        self._disowned = False
        self._told_to_stop = False
        self._news, self._accepted = asyncio.Event(), asyncio.Event()
        self._all_arrived = threading.Event()
        loop.start(self._keep_connected())

    def send(self, report: SessionRequest) -> None:
        with self._lock:
            self._number += 1
            report.report_number = self._number
            self._waiting.append(report)
            if not self._disowned:
                self._all_arrived.clear()
            if len(self._waiting) > _MOST_WAITING:
                self._thin_out()
        self._loop.call(self._news.set)

    def finish(self, report: Finished) -> None:
        self.send(SessionRequest(finished=report))
        # Whoever preempts goes away soon, and the exit code says the same.
        self._all_arrived.wait(_PREEMPTED_PATIENCE_S if report.preempted else self._patience_s)

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
        while not self._disowned:
            try:
                async with open_channel(self._address) as channel:
                    async for answer in WorkerServiceStub(channel).Session(self._requests()):
                        pause_s = _FIRST_PAUSE_S
                        self._connected()
                        self._obey(answer)
                self._disconnected("the trainer ended it")
            except grpc.aio.AioRpcError as error:
                self._disconnected(f"{error.code().name}: {error.details()}")
                if error.code() in _DISOWNED:
                    # On a thread: the commit that may be on its way needs this loop.
                    await asyncio.to_thread(self._be_disowned)
            except Exception:  # A fault of ours: the training is worth more than its reports.
                traceback.print_exc()
                self._disconnected("see above")
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    def _connected(self) -> None:
        self._accepted.set()
        if self._broken:
            _say(f"The trainer at {self._address} is reached again.")
        self._broken = False

    def _disconnected(self, why: str) -> None:
        if not self._broken:
            _say(f"The session with the trainer at {self._address} broke ({why}); trying again.")
        self._broken = True

    async def _requests(self) -> AsyncIterator[SessionRequest]:
        """One stream: hello, everything that is not acknowledged, then what comes, with signs of life."""
        self._streams += 1
        this, sent = self._streams, 0
        self._accepted.clear()
        yield SessionRequest(hello=self._hello)
        # A refusal that meets a message on its way arrives as INTERNAL, without its reason (gRPC).
        await self._accepted.wait()
        # A broken stream's generator lives on until it is asked again.
        while this == self._streams:
            self._news.clear()
            with self._lock:
                fresh = [report for report in self._waiting if report.report_number > sent]
            for report in fresh:
                sent = report.report_number
                yield report
            try:
                await asyncio.wait_for(self._news.wait(), _HEARTBEAT_S)
            except TimeoutError:
                yield SessionRequest(heartbeat=self._heartbeat())

    def _heartbeat(self) -> Heartbeat:
        beat = self.pulse.beat()
        return Heartbeat(step=beat.step, quiet_s=beat.quiet_s, longest_step_s=beat.longest_step_s)

    def _obey(self, answer: SessionResponse) -> None:
        command = answer.WhichOneof("command")
        if command == "acknowledged_report_number":
            self._forget(answer.acknowledged_report_number)
        elif command == "preempt":
            self._preempt(answer.preempt.reason)
        elif command == "end_stalled":
            end_stalled(answer.end_stalled.reason)
        elif command == "cancel":
            _say(f"Told to cancel: {answer.cancel.reason or 'no reason was given'}")
            threading.Thread(target=self._die, args=(answer.cancel.reason,), daemon=True).start()

    def _preempt(self, reason: str) -> None:
        # It comes again over each new stream, and a second signal would not wait for the step's end.
        if not self._told_to_stop:
            self._told_to_stop = True
            _say(f"Told to write a checkpoint and stop: {reason}")
            os.kill(os.getpid(), signal.SIGTERM)

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

    def _be_disowned(self) -> None:
        """Ends a worker that the trainer knows no more, but for one that has committed: it ends by itself."""
        if self._may_die():
            os._exit(ExitCode.CANCELLED)
        with self._lock:  # Else a report on its way in takes the news back.
            self._disowned = True
            self._all_arrived.set()


def _say(line: str) -> None:
    """Into the attempt's log: what the trainer itself did need not be reported to it."""
    print(line, file=sys.stderr, flush=True)
