"""The session: every report arrives though the trainer goes and comes back, and its commands are obeyed."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import pytest
from graft.common.v1.common_pb2 import TrainingMetrics
from graft.trainer.v1 import worker_service_pb2 as pb
from graft.trainer.v1.worker_service_pb2_grpc import (
    WorkerServiceServicer,
    add_WorkerServiceServicer_to_server,
)

from services.trainer.run.background import BackgroundLoop
from services.trainer.run.session import SessionReporter
from tests.support.ports import kept_port
from tests.support.trainer import until
from tests.unit.trainer_worker.support import WorkerProcess

HELLO = pb.Hello(job="namespaces/default/jobs/j1", attempt=2, token="secret")
_WITHIN_S = 200.0


class Trainer(WorkerServiceServicer):
    """A trainer that keeps what it hears; it acknowledges, and breaks the stream, when told."""

    def __init__(self) -> None:
        self.heard: list[pb.SessionRequest] = []
        self.hellos: list[pb.Hello] = []
        self.acknowledges = True
        self.break_after = 0
        self.knows_the_worker = True
        self.commands: asyncio.Queue[pb.SessionResponse] = asyncio.Queue()

    async def Session(
        self,
        request_iterator: AsyncIterator[pb.SessionRequest],
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> AsyncIterator[pb.SessionResponse]:
        async for request in request_iterator:
            if request.HasField("hello"):
                self.hellos.append(request.hello)
                if not self.knows_the_worker:
                    await context.abort(grpc.StatusCode.PERMISSION_DENIED, "another attempt runs")
                yield pb.SessionResponse(acknowledged_report_number=0)
            elif request.report_number:
                self.heard.append(request)
                if self.break_after and len(self.heard) >= self.break_after:
                    self.break_after = 0
                    await context.abort(grpc.StatusCode.UNAVAILABLE, "the trainer goes")
                if self.acknowledges:
                    yield pb.SessionResponse(acknowledged_report_number=request.report_number)
            while not self.commands.empty():
                yield self.commands.get_nowait()


@pytest.fixture
async def trainer() -> AsyncIterator[tuple[Trainer, str]]:
    servicer, server = Trainer(), grpc.aio.server()
    add_WorkerServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield servicer, f"127.0.0.1:{port}"
    await server.stop(None)


@pytest.fixture
async def loop() -> AsyncIterator[BackgroundLoop]:
    background = BackgroundLoop()
    yield background
    await asyncio.to_thread(background.close)


async def test_reports_that_were_not_acknowledged_are_repeated_on_the_next_stream(
    trainer: tuple[Trainer, str], loop: BackgroundLoop, capfd: pytest.CaptureFixture[str]
) -> None:
    servicer, address = trainer
    servicer.break_after = 2
    reporter = SessionReporter(loop, address, HELLO, _WITHIN_S, lambda: True)
    for step in range(1, 4):
        reporter.metrics(TrainingMetrics(step=step))
    await asyncio.to_thread(reporter.finish, pb.Finished(version="v"))
    numbers = [request.report_number for request in servicer.heard]
    assert sorted(set(numbers)) == [1, 2, 3, 4]
    assert numbers.count(2) == 2
    assert numbers[-1] == 4
    assert servicer.hellos == [HELLO, HELLO]
    said = capfd.readouterr().err
    assert "; trying again." in said
    assert "is reached again." in said


@pytest.mark.parametrize("committed", [True, False])
async def test_a_worker_that_its_trainer_disowns_stops_unless_it_has_committed(
    committed: bool,
    trainer: tuple[Trainer, str],
    loop: BackgroundLoop,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    exits: list[int] = []
    monkeypatch.setattr(os, "_exit", exits.append)
    servicer, address = trainer
    servicer.knows_the_worker = False
    reporter = SessionReporter(loop, address, HELLO, _WITHIN_S, lambda: not committed)
    reporter.log("one")
    async with asyncio.timeout(_WITHIN_S / 2):
        await asyncio.to_thread(reporter.finish, pb.Finished(version="v"))
    assert exits == ([] if committed else [79])


async def test_reports_wait_for_a_trainer_that_is_away(loop: BackgroundLoop) -> None:
    port = kept_port()
    reporter = SessionReporter(loop, f"127.0.0.1:{port}", HELLO, _WITHIN_S, lambda: True)
    reporter.log("one")
    servicer, server = Trainer(), grpc.aio.server()
    add_WorkerServiceServicer_to_server(servicer, server)
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await asyncio.to_thread(reporter.finish, pb.Finished(version="v"))
    assert [request.report_number for request in servicer.heard] == [1, 2]
    await server.stop(None)


async def test_a_trainer_that_stays_away_does_not_keep_the_worker(loop: BackgroundLoop) -> None:
    reporter = SessionReporter(loop, "127.0.0.1:9", HELLO, 0.2, lambda: True)
    async with asyncio.timeout(_WITHIN_S):
        await asyncio.to_thread(reporter.finish, pb.Finished(version="v"))


@pytest.mark.training
async def test_a_worker_is_cancelled_or_preempted_by_its_trainer(
    trainer: tuple[Trainer, str], start: Callable[..., WorkerProcess]
) -> None:
    servicer, address = trainer
    environment = {"GRAFT_WORKER_TRAINER": address, "GRAFT_WORKER_TOKEN": "secret"}
    first = start(environment=environment, hyperparameters={"epochs": 10_000})
    await until(lambda: any(r.metrics.step >= 2 for r in servicer.heard), _WITHIN_S)
    # As over a stream that broke and the one after it.
    for _ in range(2):
        servicer.commands.put_nowait(pb.SessionResponse(preempt=pb.Preempt(reason="drain")))
    assert await asyncio.to_thread(first.process.wait) == 75
    finished = servicer.heard[-1].finished
    assert finished.preempted
    assert any(request.checkpoint_step for request in servicer.heard)

    servicer.heard.clear()
    second = start(environment=environment, hyperparameters={"epochs": 10_000})
    await until(lambda: any(r.HasField("started") for r in servicer.heard), _WITHIN_S)
    started = next(r.started for r in servicer.heard if r.HasField("started"))
    assert started.step > 0
    servicer.commands.put_nowait(pb.SessionResponse(cancel=pb.Cancel(reason="no need")))
    assert await asyncio.to_thread(second.process.wait) == 79
    assert servicer.heard[-1].finished.cancelled
    assert servicer.heard[-1].finished.message == "no need"
    assert second.process.returncode != -signal.SIGTERM
