"""Starts each worker as a process of its own session on this machine, so that it outlives the trainer.

A worker is known by its process number, its start time and the token in its environment: a process
that got a dead worker's number is never taken for it.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import psutil
from google.protobuf.json_format import Parse, ParseError
from graft.errors import GraftError
from graft.files import write_atomic
from graft.trainer.v1.job_spec_pb2 import JobSpec

from services.trainer.launchers.base import Launch, Launcher, Worker
from services.trainer.launchers.warm import WarmWorkers, give
from services.trainer.run.lean import may_start_warm
from services.trainer.spec import parse_spec

# Clock ticks and rounding; numbers are not given again within this time.
_START_TIME_TOLERANCE_S = 0.05
_WARM = "warm-worker.json"
_IDENTITY = frozenset(
    f"GRAFT_WORKER_{name}" for name in ("JOB", "ATTEMPT", "TOKEN", "TRAINER", "REGISTRY", "DIR")
)


class LocalLauncher(Launcher):
    """Launcher of processes.

    Args:
        command: the worker's command line, to which the kind of job is added, where it is no training, and the
            path of its spec file.
        environment: what every worker inherits.
        devices: the GPUs behind the slots, as CUDA_VISIBLE_DEVICES names them; each worker sees those
            of its own slots, and none where there are none.
        team_command: torchrun's command line, to which its options and the spec file are added, for a job of
            several processes.
        warm_workers: how many processes may wait for a job with their libraries read.
        until_idle: returns when the machine has time for these to read them; None when it always has.
    """

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        devices: Sequence[str] = (),
        team_command: Sequence[str] = (sys.executable, "-m", "services.trainer.run.torchrun"),
        warm_workers: int = 0,
        until_idle: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self._command = tuple(command)
        self._team_command = tuple(team_command)
        # Another worker's identity must not be inherited, where this trainer leaves one of these out.
        self._environment = {
            name: value for name, value in environment.items() if name not in _IDENTITY
        }
        self._devices = tuple(devices)
        self._warm = WarmWorkers(warm_workers, self._environment)
        self._warm_workers = warm_workers
        self._until_idle = until_idle
        self._preparing: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        for slot in range(self._warm_workers):
            self._prepare(slot)

    async def close(self) -> None:
        for task in self._preparing:
            task.cancel()
        self._warm.close()

    def _prepare(self, slot: int) -> None:
        if self._until_idle is None:
            self._prepare_now(slot)
            return
        task = asyncio.ensure_future(self._prepare_later(self._until_idle, slot))
        self._preparing.add(task)
        task.add_done_callback(self._preparing.discard)

    async def _prepare_later(self, until_idle: Callable[[], Awaitable[None]], slot: int) -> None:
        await until_idle()
        self._prepare_now(slot)

    def _prepare_now(self, slot: int) -> None:
        devices = _devices_of([slot], self._devices)
        self._warm.prepare({"CUDA_VISIBLE_DEVICES": ",".join(devices), **_of_all()})

    async def start(self, launch: Launch) -> Worker:
        launch.work_dir.mkdir(parents=True, exist_ok=True)
        spec_path = launch.work_dir / "spec.json"
        write_atomic(spec_path, launch.spec_json.encode())
        process = await self._warm_process(launch, spec_path) or self._spawn(launch, spec_path)
        worker = _LocalWorker(psutil.Process(process.pid), launch.token, process)
        if self._warm_workers:
            worker.when_gone(lambda: self._prepare(launch.slots[0]) if launch.slots else None)
        return worker

    async def _warm_process(
        self, launch: Launch, spec_path: Path
    ) -> subprocess.Popen[bytes] | None:
        """One that waited, with this job; None where none waits that can do it."""
        variables = worker_environment(launch, self._devices)
        if not self._warm_workers or not await asyncio.to_thread(_fits, launch, self._devices):
            return None
        process = self._warm.take(variables["CUDA_VISIBLE_DEVICES"])
        if process is None:
            return None
        # Its environment says nothing of the job: this is what it is found by, from before it has it.
        known = _identity(psutil.Process(process.pid)) | {"token": launch.token}
        write_atomic(launch.work_dir / _WARM, json.dumps(known).encode())
        given = give(process, [str(spec_path)], variables, launch.log_path)
        return process if given else None

    def _spawn(self, launch: Launch, spec_path: Path) -> subprocess.Popen[bytes]:
        processes = process_count(launch, self._devices) if launch.kind == "train" else 1
        command = self._command if launch.kind == "train" else (*self._command, launch.kind)
        if processes > 1:
            # They find each other on this machine, at a port that is free.
            options = ("--standalone", "--local-addr=127.0.0.1", f"--nproc-per-node={processes}")
            command = (*self._team_command, *options)
        with launch.log_path.open("ab") as log:
            return subprocess.Popen(
                [*command, str(spec_path)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._environment | worker_environment(launch, self._devices),
                start_new_session=True,
            )

    async def find(self, launch: Launch, handle: str) -> Worker | None:
        if handle:
            known = json.loads(handle)
            process = _living(known["pid"], known["create_time"])
        else:
            process = _leader(launch.token) or _waited(launch)
        return None if process is None else _LocalWorker(process, launch.token, None)


def _fits(launch: Launch, devices: Sequence[str]) -> bool:
    """Whether a process that knew nothing of a job can do it."""
    if launch.kind != "train" or process_count(launch, devices) > 1:
        return False
    try:
        return may_start_warm(parse_spec(Parse(launch.spec_json, JobSpec())))
    except (GraftError, ParseError):
        # The worker says what is wrong with it.
        return False


def _waited(launch: Launch) -> psutil.Process | None:
    """The process that had waited before it got this attempt, while it lives."""
    try:
        known = json.loads((launch.work_dir / _WARM).read_bytes())
    except FileNotFoundError:
        return None
    return _living(known["pid"], known["create_time"]) if known["token"] == launch.token else None


def process_count(launch: Launch, devices: Sequence[str]) -> int:
    """How many processes train a job: as its spec says, else one for each of its GPUs."""
    resources = json.loads(launch.spec_json or "{}").get("resources", {})
    said = resources.get("processesPerNode") or resources.get("processes_per_node") or 0
    return int(said) or max(1, len(_own_devices(launch, devices)))


def _own_devices(launch: Launch, devices: Sequence[str]) -> list[str]:
    """The GPUs behind a job's slots; more slots than GPUs share them in turn."""
    return _devices_of(launch.slots, devices)


def _devices_of(slots: Sequence[int], devices: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(devices[slot % len(devices)] for slot in slots if devices))


def worker_environment(launch: Launch, devices: Sequence[str]) -> dict[str, str]:
    """The variables that a worker reads, as its contract names them."""
    variables = {
        "GRAFT_WORKER_JOB": launch.job,
        "GRAFT_WORKER_ATTEMPT": str(launch.attempt),
        "GRAFT_WORKER_TOKEN": launch.token,
        "GRAFT_WORKER_TRAINER": launch.trainer_address,
        "GRAFT_WORKER_REGISTRY": launch.registry_address,
        "GRAFT_WORKER_DIR": str(launch.work_dir.absolute()),
        "OMP_NUM_THREADS": str(max(1, launch.cpu_threads // process_count(launch, devices))),
    }
    told = {name: value for name, value in variables.items() if value}
    return told | _of_all() | {"CUDA_VISIBLE_DEVICES": ",".join(_own_devices(launch, devices))}


def _of_all() -> dict[str, str]:
    """What every worker has."""
    return {
        # Workers share the cores: threads that spin for each other would keep the awaited one out.
        "GOMP_SPINCOUNT": os.environ.get("GOMP_SPINCOUNT", "1000"),
        "PYTHONUNBUFFERED": "1",
    }


class _LocalWorker(Worker):
    def __init__(
        self, process: psutil.Process, token: str, child: subprocess.Popen[bytes] | None
    ) -> None:
        self._process = process
        self._token = token
        self._child = child
        self._handle = json.dumps(_identity(process))
        self._ended = asyncio.ensure_future(self._wait())

    @property
    def handle(self) -> str:
        return self._handle

    async def wait(self) -> int | None:
        return await asyncio.shield(self._ended)

    async def _wait(self) -> int | None:
        await _until_gone(self._process)
        # What it started (data loader processes, a team's) must not outlive it.
        self._kill_members()
        return None if self._child is None else self._child.wait()

    def when_gone(self, call: Callable[[], None]) -> None:
        """Calls when nothing of it runs any more."""
        self._ended.add_done_callback(lambda ended: None if ended.cancelled() else call())

    def terminate(self) -> None:
        if not self._ended.done():
            _signal(self._process, signal.SIGTERM)

    def kill(self) -> None:
        if not self._ended.done():
            # By itself, because just after its start its environment cannot be read yet.
            _signal(self._process, signal.SIGKILL)
            self._kill_members()

    def _kill_members(self) -> None:
        for process in _members(self._token):
            _signal(process, signal.SIGKILL)


def _identity(process: psutil.Process) -> dict[str, float]:
    return {"pid": process.pid, "create_time": process.create_time()}


def _signal(process: psutil.Process, number: signal.Signals) -> None:
    # psutil compares the start time first: a number that was given again is not signalled.
    with suppress(psutil.NoSuchProcess):
        process.send_signal(number)


async def _until_gone(process: psutil.Process) -> None:
    """Waits for a process, also one that is not our child, without asking again and again."""
    try:
        descriptor = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return
    loop, gone = asyncio.get_running_loop(), asyncio.Event()
    try:
        # Checked after opening: from here on the number cannot mean another process.
        if not process.is_running():
            return
        loop.add_reader(descriptor, gone.set)
        await gone.wait()
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)


def _living(pid: int, create_time: float) -> psutil.Process | None:
    try:
        process = psutil.Process(pid)
        same = abs(process.create_time() - create_time) < _START_TIME_TOLERANCE_S
        return process if same and process.status() != psutil.STATUS_ZOMBIE else None
    except psutil.NoSuchProcess:
        return None


def _leader(token: str) -> psutil.Process | None:
    """The session leader with this token: a worker whose number the trainer could not store."""
    leaders = [process for process in _members(token) if _session(process.pid) == process.pid]
    # torchrun gives each of a team's processes a session of its own, and is older than they are.
    return min(leaders, key=_age, default=None)


def _age(process: psutil.Process) -> float:
    try:
        return float(process.create_time())
    except psutil.NoSuchProcess:
        return math.inf


def _members(token: str) -> list[psutil.Process]:
    """A worker's processes: its token is in the environment of all that it started."""
    return [process for process in psutil.process_iter() if _has_token(process, token)]


def _session(pid: int) -> int:
    try:
        return os.getsid(pid)
    except (ProcessLookupError, PermissionError):
        return -1


def _has_token(process: psutil.Process, token: str) -> bool:
    try:
        return process.environ().get("GRAFT_WORKER_TOKEN") == token
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return False
