"""One slot, a flood on one adapter, and somebody who asks for another: how long until the first token.

Ours beside vLLM's own HTTP server with the same engine settings. What the flood itself gets is measured
too, alone and while the other asks.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import graft
import uvloop
from graft.bases import read_base
from graft.channel import open_channel
from graft.inference.v1 import inference_service_pb2 as pb
from graft.inference.v1.inference_service_pb2_grpc import InferenceServiceStub

from bench.harness import Report, Summary
from bench.processes import REPOSITORY, start_graft_service, start_vllm_server
from bench.streaming import on_cpu
from bench.swap import PROMPT, RANK, write_adapter

STREAMS = 16
FLOOD_TOKENS, QUIET_TOKENS = 128, 16
MAX_MODEL_LEN = 512
LOUD, QUIET = "loud", "quiet"
WANTED_S = 2.0
# Who waits longer is taken to wait for ever.
GIVE_UP_S = 20.0

# model, tokens, called at each message with how many tokens are new
Ask = Callable[[str, int, Callable[[int], None]], Awaitable[None]]


@dataclass(slots=True)
class Measured:
    """Seconds to first tokens of the quiet one, and tokens/s of the flood, alone and beside it."""

    first_token_s: list[float]
    alone_tokens_per_s: float
    beside_tokens_per_s: float


def run(*, short: bool = False, base: Path = REPOSITORY / "examples/base") -> Report:
    """Ours, and then the peer: each alone on the machine."""
    asks, seconds = (3, 2.0) if short else (20, 10.0)
    with tempfile.TemporaryDirectory(prefix="graft-bench-") as temporary:
        folder = Path(temporary)
        described = read_base(base, f"namespaces/default/bases/{base.name}")
        adapters = {
            name: write_adapter(folder / name, described, seed)
            for seed, name in enumerate((LOUD, QUIET))
        }
        ours = _ours(base, adapters, folder, asks, seconds)
        theirs = _theirs(base, adapters, folder, min(asks, 3), seconds)
    report = Report(
        "fairness",
        {"slots": 1, "streams": STREAMS, "max_tokens": FLOOD_TOKENS, "cores": os.cpu_count()},
    )
    for who, measured in (("graft (gRPC)", ours), ("vllm (HTTP)", theirs)):
        kept = measured.beside_tokens_per_s / measured.alone_tokens_per_s
        report.figures[who] = {
            "first_token_s": Summary.of(measured.first_token_s),
            "flood_alone_tokens_per_s": Summary.of([measured.alone_tokens_per_s]),
            "flood_beside_share": Summary.of([kept]),
        }
        report.rounds.append({who: {"first_token_s": max(measured.first_token_s)}})
    worst_s = max(ours.first_token_s)
    report.goal(
        "first token of another adapter, worst", "at most 2 s", worst_s, worst_s <= WANTED_S
    )
    return report


def _ours(
    base: Path, adapters: dict[str, Path], folder: Path, asks: int, seconds: float
) -> Measured:
    registry, registry_address = start_graft_service("registry", {}, folder / "registry")
    try:
        asyncio.run(_publish(registry_address, base, adapters))
        settings = {
            "base": base,
            "registry_address": registry_address,
            "max_adapters": 1,
            "max_lora_rank": RANK,
            "max_model_len": MAX_MODEL_LEN,
            "max_num_seqs": STREAMS * 2,
        }
        inference, address = start_graft_service("inference", settings, folder / "inference")
        try:
            return uvloop.run(_over_grpc(address, asks, seconds))
        finally:
            inference.close()
    finally:
        registry.close()


def _theirs(
    base: Path, adapters: dict[str, Path], folder: Path, asks: int, seconds: float
) -> Measured:
    arguments = [
        *("--model", str(base), "--max-model-len", str(MAX_MODEL_LEN)),
        *("--max-num-seqs", str(STREAMS * 2), "--enable-lora", "--max-loras", "1"),
        *("--max-cpu-loras", "2", "--max-lora-rank", str(RANK), "--generation-config", "vllm"),
        *("--lora-modules", *(f"{name}={path}" for name, path in adapters.items())),
        *("--disable-log-stats", *on_cpu()),
    ]
    server, url = start_vllm_server(arguments, folder / "peer")
    try:
        return uvloop.run(_over_http(url, asks, seconds))
    finally:
        server.close()


async def _publish(address: str, base: Path, adapters: dict[str, Path]) -> None:
    async with graft.Client(registry=address) as client:
        for name, folder in adapters.items():
            await client.adapters.push(name, folder, base=base)


async def _over_grpc(address: str, asks: int, seconds: float) -> Measured:
    async with open_channel(address) as channel:
        stub = InferenceServiceStub(channel)

        async def ask(model: str, tokens: int, new: Callable[[int], None]) -> None:
            sampling = pb.SamplingParams(max_tokens=tokens, temperature=0, ignore_eos=True)
            request = pb.GenerateRequest(model=model, prompt=PROMPT, sampling=sampling)
            async for message in stub.StreamGenerate(request):
                new(len(message.token_ids))

        return await _measure(ask, asks, seconds)


async def _over_http(url: str, asks: int, seconds: float) -> Measured:
    async with AsyncExitStack() as stack:
        connector = aiohttp.TCPConnector(limit=0)
        session = await stack.enter_async_context(aiohttp.ClientSession(connector=connector))

        async def ask(model: str, tokens: int, new: Callable[[int], None]) -> None:
            body = {
                "model": model,
                "prompt": PROMPT,
                "max_tokens": tokens,
                "temperature": 0,
                "ignore_eos": True,
                "stream": True,
            }
            async with session.post(f"{url}/v1/completions", json=body) as response:
                response.raise_for_status()
                async for line in response.content:
                    if line.startswith(b"data: {"):
                        new(1)

        return await _measure(ask, asks, seconds)


async def _measure(ask: Ask, asks: int, seconds: float) -> Measured:
    produced = 0

    def count(new: int) -> None:
        nonlocal produced
        produced += new

    async def flood() -> None:
        while True:
            await ask(LOUD, FLOOD_TOKENS, count)

    for model in (QUIET, LOUD):
        await ask(model, 1, lambda _: None)
    floods = [asyncio.create_task(flood()) for _ in range(STREAMS)]
    try:
        await asyncio.sleep(seconds / 4)
        began, began_s = produced, time.perf_counter()
        await asyncio.sleep(seconds)
        alone = (produced - began) / (time.perf_counter() - began_s)
        began, began_s = produced, time.perf_counter()
        waits = [await _first_token(ask) for _ in range(asks)]
        beside = (produced - began) / (time.perf_counter() - began_s)
    finally:
        for task in floods:
            task.cancel()
        await asyncio.gather(*floods, return_exceptions=True)
    return Measured(waits, alone, beside)


async def _first_token(ask: Ask) -> float:
    """Seconds until the quiet one's first token; a while passes before the next."""
    began_s, first_s = time.perf_counter(), 0.0

    def count(_: int) -> None:
        nonlocal first_s
        first_s = first_s or time.perf_counter() - began_s

    try:
        async with asyncio.timeout(GIVE_UP_S):
            await ask(QUIET, QUIET_TOKENS, count)
    except TimeoutError:
        first_s = first_s or GIVE_UP_S
    await asyncio.sleep(0.3)
    return first_s
