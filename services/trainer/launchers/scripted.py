"""A worker that trains nothing: it plays a script over the real WorkerService, for tests and simulations.

It keeps to the worker's contract: reports are numbered and repeated until they are acknowledged, a
broken stream is opened again, checkpoints outlive it, commands are obeyed unless the script says not.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import grpc
from graft.channel import open_channel
from graft.common.v1 import common_pb2
from graft.files import write_atomic
from graft.trainer.v1 import stages_pb2 as stages
from graft.trainer.v1 import worker_service_pb2 as pb
from graft.trainer.v1.worker_service_pb2_grpc import WorkerServiceStub

from services.trainer.verdict import EXIT_CANCELLED, EXIT_PREEMPTED, EXIT_STALLED

_RETRY_S = 0.05
_LOOK_AGAIN_S = 0.01
# Whoever preempts goes away soon, and the exit code says the same.
_PREEMPTED_PATIENCE_S = 1.0
_REFUSALS = (grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.FAILED_PRECONDITION)


@dataclass(frozen=True, slots=True)
class Script:
    """What a scripted worker does.

    Args:
        steps: training steps, each with its metrics and a checkpoint.
        step_s: how long a step takes.
        lost_attempts: attempts up to this one vanish in the middle, without a word.
        exit_code: with lost_attempts 0, ends early with this code and no report of an end.
        failure_cause: number of the contract's FailureCause to fail with after the steps.
        stubborn: obeys no command.
        silent: connects, then sends no sign of life.
        repeat: sends every report twice.
        version: what it says that it made.
        heartbeat_s: seconds between two signs of life.
        stalled_s: its heartbeats say so long that it does not get on in its step.
        waits_at: after this step it gets no further until it is told to end, or until waits_for is there; after
            the last one its result waits to be committed. 0: it never waits.
        waits_for: a file; without one only an end is waited for.
        failed_uploads: attempts up to this one fail when they upload.
    """

    steps: int = 3
    step_s: float = 0.0
    lost_attempts: int = 0
    exit_code: int = 0
    failure_cause: int = 0
    stubborn: bool = False
    silent: bool = False
    repeat: bool = False
    version: str = "namespaces/default/adapters/bot/versions/1"
    heartbeat_s: float = 0.2
    stalled_s: float = 0.0
    waits_at: int = 0
    waits_for: str = ""
    failed_uploads: int = 0


class ScriptedWorker:
    """One attempt of a scripted worker; run() is its life and returns its exit code (-9: vanished)."""

    def __init__(
        self, script: Script, trainer: str, job: str, attempt: int, token: str, work_dir: Path
    ) -> None:
        self._script = script
        self._trainer = trainer
        self._hello = pb.Hello(job=job, attempt=attempt, token=token)
        self._checkpoint = work_dir / "scripted-checkpoint.json"
        self._unacknowledged: deque[pb.SessionRequest] = deque()
        self._next_number = 1
        self._changed = asyncio.Event()
        self._accepted = asyncio.Event()
        self._all_heard = asyncio.Event()
        self._stop_code: int | None = None
        self._step = 0
        # What a worker leaves where it ran; nothing before its end.
        self.last_report: pb.Finished | None = None

    async def run(self) -> int:
        """Plays the script to its end."""
        link = asyncio.create_task(self._keep_connected()) if self._trainer else None
        try:
            code = await self._play()
            if link is not None and code != -9:
                heard = asyncio.create_task(self._all_heard.wait())
                await asyncio.wait(
                    {link, heard},
                    timeout=_PREEMPTED_PATIENCE_S if code == EXIT_PREEMPTED else None,
                    return_when=asyncio.FIRST_COMPLETED,
                )
                heard.cancel()
            return code
        finally:
            if link is not None:
                link.cancel()
                await asyncio.gather(link, return_exceptions=True)

    def preempt(self) -> None:
        """What SIGTERM means to a worker."""
        if not self._script.stubborn:
            self._stop_code = EXIT_PREEMPTED

    async def _play(self) -> int:
        script, total = self._script, self._script.steps
        self._step = self._load()
        self._say(pb.SessionRequest(started=pb.Started(step=self._step, total_steps=total)))
        while self._step < total:
            await asyncio.sleep(script.step_s)
            await self._wait()
            if self._stop_code is not None:
                return self._stopped(self._stop_code)
            self._train_step(total)
            if self._step * 2 >= total and self._hello.attempt <= script.lost_attempts:
                return -9
            if script.exit_code and self._step * 2 >= total:
                return script.exit_code
        return await self._finish()

    async def _wait(self) -> None:
        script = self._script
        while script.waits_at and self._step == script.waits_at and self._stop_code is None:
            if script.waits_for and Path(script.waits_for).exists():
                return
            await asyncio.sleep(_LOOK_AGAIN_S)

    def _train_step(self, total: int) -> None:
        self._step += 1
        metrics = common_pb2.TrainingMetrics(
            step=self._step, total_steps=total, loss=1 / self._step, tokens_per_second=1000.0
        )
        self._say(pb.SessionRequest(metrics=metrics))
        write_atomic(self._checkpoint, json.dumps(self._step).encode())
        self._say(pb.SessionRequest(checkpoint_step=self._step))

    async def _finish(self) -> int:
        if self._script.failure_cause:
            cause = common_pb2.FailureCause.ValueType(self._script.failure_cause)
            failed = pb.Finished(failure_cause=cause, message="as the script says")
            self._say(pb.SessionRequest(finished=failed))
            return 70
        self._say(pb.SessionRequest(finalizing=pb.Finalizing()))
        self._say(pb.SessionRequest(stage=stages.JOB_STAGE_UPLOADING))
        if self._hello.attempt <= self._script.failed_uploads:
            cause = common_pb2.FAILURE_CAUSE_INTERNAL
            failed = pb.Finished(failure_cause=cause, message="the registry is away")
            self._say(pb.SessionRequest(finished=failed))
            return 70
        await self._wait()
        if self._stop_code is not None:
            return self._stopped(self._stop_code)
        self._say(pb.SessionRequest(stage=stages.JOB_STAGE_COMMITTING))
        self._say(pb.SessionRequest(finished=pb.Finished(version=self._script.version)))
        return 0

    def _stopped(self, code: int) -> int:
        if code == EXIT_STALLED:  # What hangs says nothing more.
            return code
        self._say(
            pb.SessionRequest(
                finished=pb.Finished(
                    cancelled=code == EXIT_CANCELLED, preempted=code == EXIT_PREEMPTED
                )
            )
        )
        return code

    def _load(self) -> int:
        if not self._checkpoint.exists():
            return 0
        return int(json.loads(self._checkpoint.read_text("utf-8")))

    def _say(self, request: pb.SessionRequest) -> None:
        if request.HasField("finished"):
            self.last_report = request.finished
        request.report_number = self._next_number
        self._next_number += 1
        if self._trainer:
            self._unacknowledged.append(request)
            self._all_heard.clear()
            self._changed.set()

    async def _keep_connected(self) -> None:
        async with open_channel(self._trainer) as channel:
            stub = WorkerServiceStub(channel)
            while True:
                try:
                    async for answer in stub.Session(self._requests()):
                        self._obey(answer)
                except grpc.aio.AioRpcError as error:
                    if error.code() in _REFUSALS:
                        self._stop_code = EXIT_CANCELLED
                        return
                await asyncio.sleep(_RETRY_S)

    async def _requests(self) -> AsyncIterator[pb.SessionRequest]:
        self._accepted.clear()
        yield pb.SessionRequest(hello=self._hello)
        await self._accepted.wait()
        sent = 0
        while True:
            for request in [each for each in self._unacknowledged if each.report_number > sent]:
                sent = request.report_number
                for _ in range(1 + self._script.repeat):
                    yield request
            self._changed.clear()
            try:
                await asyncio.wait_for(self._changed.wait(), self._script.heartbeat_s)
            except TimeoutError:
                if not self._script.silent:
                    yield pb.SessionRequest(heartbeat=self._heartbeat())

    def _heartbeat(self) -> pb.Heartbeat:
        return pb.Heartbeat(step=self._step, quiet_s=self._script.stalled_s, longest_step_s=0.01)

    def _obey(self, answer: pb.SessionResponse) -> None:
        self._accepted.set()
        if answer.HasField("acknowledged_report_number"):
            acknowledged = answer.acknowledged_report_number
            while self._unacknowledged and self._unacknowledged[0].report_number <= acknowledged:
                self._unacknowledged.popleft()
            if not self._unacknowledged:
                self._all_heard.set()
        elif answer.HasField("end_stalled"):
            self._stop_code = None if self._script.stubborn else EXIT_STALLED
        elif not self._script.stubborn:
            self._stop_code = EXIT_CANCELLED if answer.HasField("cancel") else EXIT_PREEMPTED
