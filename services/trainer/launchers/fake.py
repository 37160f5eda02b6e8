"""A launcher whose workers are scripted tasks of this process: for tests and for simulations of many."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from services.trainer.launchers.base import Launch, Launcher, Worker
from services.trainer.launchers.scripted import Script, ScriptedWorker


class FakeLauncher(Launcher):
    """Launcher of scripted workers; find() finds what this very object started.

    Args:
        script: what each worker does, by its launch.
    """

    def __init__(self, script: Callable[[Launch], Script]) -> None:
        self._script = script
        self._workers: dict[str, _FakeWorker] = {}
        self.launches: list[Launch] = []

    async def start(self, launch: Launch) -> Worker:
        launch.work_dir.mkdir(parents=True, exist_ok=True)
        self.launches.append(launch)
        handle = f"{launch.job}/attempts/{launch.attempt}"
        scripted = ScriptedWorker(
            self._script(launch),
            launch.trainer_address,
            launch.job,
            launch.attempt,
            launch.token,
            launch.work_dir,
        )
        self._workers[handle] = _FakeWorker(handle, launch.token, scripted)
        return self._workers[handle]

    async def find(self, launch: Launch, handle: str) -> Worker | None:
        worker = self._workers.get(handle or f"{launch.job}/attempts/{launch.attempt}")
        if worker is None or worker.ended or worker.token != launch.token:
            return None
        return worker

    @property
    def running(self) -> int:
        """How many of its workers have not ended."""
        return sum(not worker.ended for worker in self._workers.values())


class _FakeWorker(Worker):
    def __init__(self, handle: str, token: str, scripted: ScriptedWorker) -> None:
        self._handle = handle
        self.token = token
        self._scripted = scripted
        self._task = asyncio.ensure_future(scripted.run())

    @property
    def handle(self) -> str:
        return self._handle

    @property
    def ended(self) -> bool:
        """Whether it runs no more."""
        return self._task.done()

    async def wait(self) -> int | None:
        await asyncio.wait({self._task})
        return -9 if self._task.cancelled() else self._task.result()

    def terminate(self) -> None:
        self._scripted.preempt()

    def kill(self) -> None:
        self._task.cancel()
