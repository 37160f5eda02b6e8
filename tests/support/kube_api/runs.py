"""What a pod does: nothing, a scripted worker in this process, or a worker process of its own."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from google.protobuf import json_format

from services.trainer.launchers.scripted import Script, ScriptedWorker
from tests.support.kube_api.store import Object


@dataclass(frozen=True, slots=True)
class Ended:
    """How a container ended: its exit code as Kubernetes tells it, and its termination message."""

    exit_code: int
    message: str = ""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Started:
    """What a pod's container is started with.

    Args:
        pod: the object.
        command: of the container.
        environment: with values from Secrets filled in.
        spec: the job's spec, from the ConfigMap.
        volumes: where the pod's claims and folders are on this machine.
    """

    pod: Object
    command: Sequence[str]
    environment: Mapping[str, str]
    spec: str
    volumes: Path

    @property
    def work_dir(self) -> Path:
        """The worker's folder on this machine."""
        return self.volumes / self.environment["GRAFT_WORKER_DIR"].lstrip("/")


class PodRun(ABC):
    """The container of one pod."""

    @abstractmethod
    async def run(self) -> Ended:
        """Runs to its end."""

    @abstractmethod
    def terminate(self) -> None:
        """SIGTERM."""

    @abstractmethod
    def kill(self) -> None:
        """SIGKILL."""


class IdleRun(PodRun):
    """Runs until it is told to end, and then ends as preempted, or until end() is called."""

    def __init__(self, _started: Started) -> None:
        self._end: asyncio.Future[Ended] = asyncio.get_running_loop().create_future()

    async def run(self) -> Ended:
        return await self._end

    def terminate(self) -> None:
        self.end(Ended(75))

    def kill(self) -> None:
        self.end(Ended(137))

    def end(self, ended: Ended) -> None:
        """Ends so."""
        if not self._end.done():
            self._end.set_result(ended)


class ScriptedRun(PodRun):
    """Plays a script over the real WorkerService and leaves its last report as the pod's message."""

    def __init__(self, started: Started, script: Script) -> None:
        environment = started.environment
        started.work_dir.mkdir(parents=True, exist_ok=True)
        self._worker = ScriptedWorker(
            script,
            environment.get("GRAFT_WORKER_TRAINER", ""),
            environment["GRAFT_WORKER_JOB"],
            int(environment["GRAFT_WORKER_ATTEMPT"]),
            environment["GRAFT_WORKER_TOKEN"],
            started.work_dir,
        )
        self._task = asyncio.ensure_future(self._worker.run())

    async def run(self) -> Ended:
        await asyncio.wait({self._task})
        code = 137 if self._task.cancelled() else self._task.result()
        left = self._worker.last_report
        message = json_format.MessageToJson(left, indent=None) if left is not None else ""
        return Ended(128 - code if code < 0 else code, message)

    def terminate(self) -> None:
        self._worker.preempt()

    def kill(self) -> None:
        self._task.cancel()


class ProcessRun(PodRun):
    """A process with the pod's command, environment and spec; a command in place of the pod's may be given."""

    def __init__(self, started: Started, command: Sequence[str] = ()) -> None:
        started.work_dir.mkdir(parents=True, exist_ok=True)
        folder = started.volumes / started.pod["metadata"]["name"]
        folder.mkdir(parents=True, exist_ok=True)
        spec, self._end_file, self.log = (folder / name for name in ("spec.json", "end", "log"))
        spec.write_text(started.spec)
        own = {
            "GRAFT_WORKER_DIR": str(started.work_dir),
            "GRAFT_WORKER_END_FILE": str(self._end_file),
        }
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [*(command or started.command[:-1]), str(spec)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **started.environment, **own},
                start_new_session=True,
            )

    async def run(self) -> Ended:
        code = await asyncio.to_thread(self._process.wait)
        message = self._end_file.read_text() if self._end_file.exists() else ""
        if code and not message:
            message = self.log.read_text()[-2048:]
        return Ended(128 - code if code < 0 else code, message)

    def terminate(self) -> None:
        self._process.terminate()

    def kill(self) -> None:
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
