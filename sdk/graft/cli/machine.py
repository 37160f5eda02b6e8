"""What `graft doctor` asks the machine: packages, imports, accelerators, memory, services. Torch-free."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import grpc

from graft.channel import open_channel
from graft.handshakes import ask_again, handshake_trouble
from graft.tls import Tls

_IMPORT_TIMEOUT_S = 180.0
# grpc.health.v1.HealthCheckResponse{status: SERVING}; spelled out so that no server package is needed.
_SERVING = b"\x08\x01"
_NOBODY = "nothing answers there"


@dataclass(frozen=True, slots=True)
class Accelerator:
    """A card, as its driver names it."""

    name: str
    memory: str
    driver: str


class Machine(Protocol):
    """What a doctor may ask; the real one is LocalMachine."""

    def package_version(self, name: str) -> str | None:
        """Version of an installed distribution."""

    def import_error(self, module: str) -> str | None:
        """Why a module cannot be imported, in one line; None when it can."""

    def accelerators(self) -> list[Accelerator]:
        """NVIDIA cards."""

    def cores(self) -> int:
        """CPU cores that this process may use."""

    def memory_bytes(self) -> tuple[int, int]:
        """Memory that is available, and in all."""

    def disk_free_bytes(self, folder: Path) -> int:
        """Free space where a folder is or would be."""

    async def health(self, address: str, timeout_s: float) -> str | None:
        """None when the service there serves; otherwise what is wrong."""


class LocalMachine:
    """This machine.

    Args:
        tls: how services are asked; by default as the environment says.
    """

    def __init__(self, tls: Tls | None = None) -> None:
        self._tls = tls

    def package_version(self, name: str) -> str | None:
        """See Machine."""
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            return None

    def import_error(self, module: str) -> str | None:
        """See Machine. In a process of its own: an import may take gigabytes, or crash."""
        try:
            done = subprocess.run(
                [sys.executable, "-c", f"import {module}"],
                capture_output=True,
                text=True,
                timeout=_IMPORT_TIMEOUT_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return f"the import takes longer than {_IMPORT_TIMEOUT_S:.0f} s"
        if done.returncode == 0:
            return None
        lines = done.stderr.strip().splitlines()
        return lines[-1] if lines else f"the import ended with {done.returncode}"

    def accelerators(self) -> list[Accelerator]:
        """See Machine. From nvidia-smi, or where that is missing from /proc."""
        if shutil.which("nvidia-smi") is None:
            folder = Path("/proc/driver/nvidia/gpus")
            cards = sorted(folder.iterdir()) if folder.is_dir() else []
            return [Accelerator(_proc_name(card), "", "") for card in cards]
        query = "--query-gpu=name,memory.total,driver_version"
        try:
            done = subprocess.run(
                ["nvidia-smi", query, "--format=csv,noheader"],
                capture_output=True,
                text=True,
                timeout=20,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return []
        rows = (
            [line.split(", ") for line in done.stdout.splitlines()] if not done.returncode else []
        )
        return [Accelerator(*row) for row in rows if len(row) == 3]

    def cores(self) -> int:
        """See Machine."""
        return len(os.sched_getaffinity(0))

    def memory_bytes(self) -> tuple[int, int]:
        """See Machine."""
        lines = Path("/proc/meminfo").read_text("ascii").splitlines()
        kib = {line.split(":")[0]: int(line.split()[1]) for line in lines}
        return kib["MemAvailable"] * 1024, kib["MemTotal"] * 1024

    def disk_free_bytes(self, folder: Path) -> int:
        """See Machine."""
        there = next(path for path in (folder, *folder.parents) if path.exists())
        return shutil.disk_usage(there).free

    async def health(self, address: str, timeout_s: float) -> str | None:
        """See Machine."""
        tls = self._tls or Tls.from_environ()
        async with open_channel(address, tls=tls) as channel:
            check = channel.unary_unary("/grpc.health.v1.Health/Check", None, None)
            try:
                answer = await check(b"", timeout=timeout_s)
            except grpc.aio.AioRpcError as error:
                if error.code() is grpc.StatusCode.UNAVAILABLE:
                    trouble = handshake_trouble(error.details() or "")
                    if trouble is not None and trouble.closed:
                        trouble = await ask_again(address, tls) or trouble
                    return f"{trouble.what}. {trouble.next_step}" if trouble else _NOBODY
                return f"{error.code().name.lower().replace('_', ' ')}: {error.details()}"
        return (
            None if answer == _SERVING else "it answers, but does not serve (it drains or starts)"
        )


def _proc_name(card: Path) -> str:
    lines = (card / "information").read_text("utf-8", "replace").splitlines()
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("Model:")]
    return named[0] if named else card.name
