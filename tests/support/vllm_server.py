"""A stock `vllm serve` as a process of its own."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import httpx

from tests.support.processes import process_environment
from tests.support.waiting import eventually

# In float32, so that answers can be compared token by token, and small.
_ARGUMENTS = (
    *("--dtype", "float32", "--enforce-eager", "--max-num-seqs", "8", "--max-model-len", "512"),
    *("--enable-lora", "--max-loras", "4", "--max-lora-rank", "16", "--seed", "0"),
)
_ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
    "GOMP_SPINCOUNT": "1000",
    # Importing trl anywhere in this process sets it to ERROR, for its children too.
    "VLLM_LOGGING_LEVEL": "INFO",
}


@asynccontextmanager
async def vllm_server(
    base: Path, log: Path, environment: Mapping[str, str], *arguments: str
) -> AsyncIterator[httpx.AsyncClient]:
    """A client of its HTTP API, once it serves; what is left of it at the end is killed."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    # The command `vllm serve` looks for a distribution named vllm; the CPU build has another name.
    command = (sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(base))
    with log.open("wb") as out:
        process = await asyncio.create_subprocess_exec(
            *command,
            *("--host", "127.0.0.1", "--port", str(port), *_ARGUMENTS, *arguments),
            env=process_environment() | _ENVIRONMENT | dict(environment),
            cwd=log.parent,
            stdout=out,
            stderr=out,
            start_new_session=True,
        )
    try:
        async with httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False
        ) as client:
            await _serving(process, client, log)
            yield client
    finally:
        await _end(process)


async def _serving(process: Process, client: httpx.AsyncClient, log: Path) -> None:
    async def ready() -> bool:
        assert process.returncode is None, log.read_text("utf-8", "replace")[-5000:]
        try:
            return (await client.get("/health")).status_code == 200
        except httpx.TransportError:
            return False

    await eventually(ready, "serving", within_s=120)


async def _end(process: Process) -> None:
    if process.returncode is None:
        process.send_signal(signal.SIGTERM)
        with suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), 15)
    try:
        # Its group: an engine is a process too.
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    await process.wait()
