"""The trainer's settings, from GRAFT_TRAINER_* variables."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from services.common.config import ServiceSettings


class TrainerSettings(ServiceSettings):
    """What decides how the trainer runs; see ServiceSettings for what every service has."""

    model_config = SettingsConfigDict(
        env_prefix="GRAFT_TRAINER_", frozen=True, extra="ignore", env_file=".env"
    )

    registry_address: str = Field(
        default="", description="host:port of the registry that results are committed to"
    )
    worker_address: str = Field(
        default="",
        description="host:port that workers report to; by default where this service listens",
    )
    slots: int = Field(
        default=0,
        ge=0,
        le=100_000,
        description="jobs of one slot at a time; 0: one per GPU, without GPUs two; on Kubernetes, which "
        "has queues of its own, 10,000",
    )
    accelerator: Literal["auto", "cpu"] = Field(
        default="auto",
        description="auto gives each worker the GPUs of its slots; cpu hides them all",
    )
    worker_command: tuple[str, ...] = Field(
        default=(sys.executable, "-m", "services.trainer.run"),
        description="command line of a worker, to which its spec file is added",
    )
    warm_workers: int = Field(
        default=1,
        ge=0,
        le=64,
        description="processes that have read their libraries and wait for a job on a free slot, with about "
        "half a gigabyte each; local workers only, begun when a core of the machine is idle",
    )
    launcher: Literal["local", "kubernetes"] = Field(
        default="local", description="where workers run: on this machine, or as Kubernetes Jobs"
    )
    kubernetes_policy: Path | None = Field(
        default=None,
        description="YAML file that says how workers' pods are made (docs/launcher.md)",
    )
    kubernetes_image: str = Field(
        default="", description="image of workers, where the policy file names none"
    )
    kubernetes_queue: str = Field(
        default="", description="Kueue's LocalQueue of workers, where the policy file names none"
    )
    kubernetes_tls_secret: str = Field(
        default="",
        description="Secret with workers' ca.crt, tls.crt and tls.key, where the policy file names none",
    )
    kubernetes_namespace: str = Field(
        default="", description="namespace of workers; by default the trainer's own"
    )
    kubernetes_instance: str = Field(
        default="graft",
        pattern=r"^[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$",
        description="tells this trainer's Jobs from those of another in the same namespace",
    )
    kubernetes_kubeconfig: Path | None = Field(
        default=None, description="kubeconfig file, for a trainer outside of the cluster"
    )
    kubernetes_context: str = Field(default="", description="context of the kubeconfig file")
    signing_key: Path | None = Field(
        default=None, description="PEM file of the key that signs every trained version"
    )
    worker_start_timeout_s: float = Field(
        default=600.0, gt=0, description="how long a worker may take until its first sign of life"
    )
    worker_timeout_s: float = Field(
        default=60.0, gt=0, description="silence after which a worker is taken for lost"
    )
    worker_stall_factor: float = Field(
        default=20.0,
        ge=0,
        description="a step that takes so many times the attempt's longest is taken for a stall, although the "
        "worker gives signs of life: it is ended and goes on from its checkpoint; 0: never",
    )
    worker_stall_least_s: float = Field(
        default=300.0, gt=0, description="but no step is taken for a stall before that"
    )
    worker_stall_first_s: float = Field(
        default=3600.0,
        gt=0,
        description="how long an attempt's first steps may take, which warm up",
    )
    cancel_grace_s: float = Field(
        default=10.0,
        ge=0,
        description="how long a cancelled worker may take to end before it is killed",
    )
    pause_grace_s: float = Field(
        default=300.0,
        ge=0,
        description="how long a paused worker may take to write a checkpoint before it is killed; it then "
        "goes on from the one before",
    )
    exit_grace_s: float = Field(
        default=20.0, ge=0, description="how long a worker may take to end after its last report"
    )
    preflight_timeout_s: float = Field(
        default=600.0, gt=0, description="how long the check of one job may take"
    )
