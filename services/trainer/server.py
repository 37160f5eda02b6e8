"""Puts the trainer together: the only place that constructs its parts."""

from __future__ import annotations

import asyncio
import fcntl
import os
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import IO

from graft.errors import GraftError, Reason
from graft.keys import load_key
from graft.kubernetes.pod_policy import PodPolicies, PodPolicy, read_policies
from graft.trainer.v1.trainer_service_pb2_grpc import add_TrainerServiceServicer_to_server
from graft.trainer.v1.worker_service_pb2_grpc import add_WorkerServiceServicer_to_server
from prometheus_client import CollectorRegistry

from services.common.server import GrpcServer
from services.common.tracing_setup import tracing_from_environment
from services.trainer.attendance import Limits
from services.trainer.config import TrainerSettings
from services.trainer.journal import Journal
from services.trainer.launchers.base import Launcher
from services.trainer.launchers.idle import until_a_core_is_idle
from services.trainer.launchers.local import LocalLauncher
from services.trainer.launches import Launches
from services.trainer.metrics import TrainerMetrics
from services.trainer.plan.process import Planning
from services.trainer.preflight import Preflight, ProcessPreflight
from services.trainer.preflight.process import Surveyor
from services.trainer.scheduler import Scheduler
from services.trainer.servicer import TrainerServicer, WorkerServicer
from services.trainer.slots import Slots, default_slots, visible_devices
from services.trainer.stall import StallLimits
from services.trainer.store.sqlite import SqliteJobStore
from services.trainer.supervisor import Supervisor

SERVICES = ("graft.trainer.v1.TrainerService", "graft.trainer.v1.WorkerService")
# A cluster has queues and quotas of its own: the trainer holds nothing back that they may let run.
_CLUSTER_SLOTS = 10_000


class TrainerServer:
    """The whole service, from its database to its port.

    Args:
        settings: see TrainerSettings.
        launcher: what starts workers; local processes when left out.
        preflight: what checks jobs; the real checks when left out.
    """

    def __init__(
        self,
        settings: TrainerSettings,
        launcher: Launcher | None = None,
        preflight: Preflight | None = None,
    ) -> None:
        self._settings = settings
        self._folder = settings.data_dir / "trainer"
        self._devices = _devices(settings)
        self._launcher = launcher or _make_launcher(settings, self._devices)
        self._preflight = preflight or ProcessPreflight(settings.preflight_timeout_s)
        self._registry = CollectorRegistry()
        self._tracing = tracing_from_environment("trainer")
        self._server = GrpcServer(settings, SERVICES, self._registry, self._tracing)
        self._undo = AsyncExitStack()

    @property
    def address(self) -> str:
        """Where it listens, "host:port", once it has started."""
        return self._server.address

    @property
    def metrics_address(self) -> str:
        """Where its metrics are, "host:port", once it has started."""
        return self._server.metrics_address

    async def start(self) -> None:
        """Opens the database, takes over workers that still run, serves, and then schedules.

        Raises:
            GraftError: ALREADY_EXISTS, when another trainer works in the same folder.
        """
        self._undo.push_async_callback(asyncio.to_thread, self._tracing.close)
        self._undo.callback(_lock(self._folder).close)
        self._store = await SqliteJobStore.open(self._folder / "jobs.sqlite")
        self._undo.push_async_callback(self._store.close)
        self._undo.push_async_callback(self._launcher.close)
        await self._launcher.open()
        self._build()
        self._metrics.reset(await self._store.counts())
        # Before serving: a worker that reconnects must be known.
        await self._supervisor.recover()
        await self._server.start()
        self._undo.push_async_callback(self._drain)
        self._launches.trainer_address = self._settings.worker_address or _dialled(self.address)
        self._supervisor.preempt_strangers()
        self._scheduler.start()

    async def stop(self) -> None:
        """Undoes what start() did, as far as it came; workers write checkpoints and end."""
        await self._undo.aclose()

    async def _drain(self) -> None:
        await self._server.set_serving(False)
        await self._scheduler.stop()
        await self._supervisor.drain(self._settings.drain_timeout_s)
        await self._journal.close()
        await self._server.drain()

    def _build(self) -> None:
        settings = self._settings
        wake = asyncio.Event()
        total = settings.slots or _default_slots(settings, self._devices)
        slots = Slots(total, wake.set)
        self._metrics = TrainerMetrics(self._registry)
        self._journal = Journal(self._store, self._metrics)
        self._launches = Launches(
            (self._folder / "jobs").absolute(),
            settings.registry_address,
            total,
            len(os.sched_getaffinity(0)),
        )
        self._supervisor = Supervisor(
            self._journal, self._launcher, self._launches, slots, _limits(settings), self._metrics
        )
        self._scheduler = Scheduler(
            self._journal, self._supervisor, self._preflight, slots, wake, self._metrics
        )
        surveyor = Surveyor(settings.preflight_timeout_s, settings.registry_address)
        plans = Planning(
            settings.preflight_timeout_s, settings.registry_address, settings.accelerator
        )
        trainer = TrainerServicer(
            self._journal,
            self._scheduler,
            self._supervisor,
            surveyor,
            plans,
            wake,
            self._launcher.max_nodes,
        )
        add_TrainerServiceServicer_to_server(trainer, self._server.grpc)
        add_WorkerServiceServicer_to_server(WorkerServicer(self._supervisor), self._server.grpc)


def _devices(settings: TrainerSettings) -> tuple[str, ...]:
    return () if settings.accelerator == "cpu" else visible_devices(os.environ)


def _default_slots(settings: TrainerSettings, devices: tuple[str, ...]) -> int:
    return _CLUSTER_SLOTS if settings.launcher == "kubernetes" else default_slots(devices)


def _make_launcher(settings: TrainerSettings, devices: tuple[str, ...]) -> Launcher:
    if settings.launcher == "local":
        return _local_launcher(settings, devices)
    if not settings.worker_address:
        raise GraftError(
            Reason.INVALID_REQUEST,
            "The trainer starts workers as pods and does not know where they can reach it",
            next_step="Set GRAFT_TRAINER_WORKER_ADDRESS to its Service, for example graft-trainer:7432.",
        )
    try:
        from services.trainer.launchers.kubernetes import KubernetesLauncher
    except ModuleNotFoundError as error:
        raise GraftError(
            Reason.NOT_INSTALLED,
            f"The Kubernetes launcher needs {error.name}",
            next_step="Install graft-adapters[trainer,kubernetes].",
        ) from None
    usual = PodPolicy()
    usual = replace(
        usual,
        image=settings.kubernetes_image or usual.image,
        queue=settings.kubernetes_queue,
        tls_secret=settings.kubernetes_tls_secret,
    )
    path = settings.kubernetes_policy
    return KubernetesLauncher(
        read_policies(path, usual) if path is not None else PodPolicies(usual),
        namespace=settings.kubernetes_namespace,
        instance=settings.kubernetes_instance,
        kubeconfig=settings.kubernetes_kubeconfig,
        context=settings.kubernetes_context,
    )


def _local_launcher(settings: TrainerSettings, devices: tuple[str, ...]) -> LocalLauncher:
    environment = dict(os.environ)
    if settings.signing_key is not None:
        # Read once here, so that a key that cannot be used stops the trainer and not its jobs.
        load_key(settings.signing_key)
        environment["GRAFT_WORKER_SIGNING_KEY"] = str(settings.signing_key.absolute())
    usual = TrainerSettings.model_fields["worker_command"].default
    warm = settings.warm_workers if settings.worker_command == usual else 0
    return LocalLauncher(
        settings.worker_command,
        environment,
        devices,
        warm_workers=warm,
        # Not beside an engine that starts on the same cores, nor beside other jobs.
        until_idle=until_a_core_is_idle,
    )


def _limits(settings: TrainerSettings) -> Limits:
    return Limits(
        start_timeout_s=settings.worker_start_timeout_s,
        timeout_s=settings.worker_timeout_s,
        cancel_grace_s=settings.cancel_grace_s,
        exit_grace_s=settings.exit_grace_s,
        stall=StallLimits(
            settings.worker_stall_factor,
            settings.worker_stall_least_s,
            settings.worker_stall_first_s,
        ),
        pause_grace_s=settings.pause_grace_s,
    )


def _lock(folder: Path) -> IO[bytes]:
    """Held as long as the process lives: two trainers on one database would run jobs twice."""
    folder.mkdir(parents=True, exist_ok=True)
    file = (folder / "lock").open("ab")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise GraftError(
            Reason.ALREADY_EXISTS,
            f"Another trainer works in {folder}",
            next_step="Stop it, or set GRAFT_TRAINER_DATA_DIR to another folder.",
        ) from None
    return file


def _dialled(listening: str) -> str:
    """The address that a worker on this machine dials to reach a listening one."""
    host, _, port = listening.rpartition(":")
    return f"127.0.0.1:{port}" if host in ("0.0.0.0", "[::]", "") else listening
