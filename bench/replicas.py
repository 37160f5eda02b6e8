"""Many simulated replicas in one process: the service's own follower, swaps, residency and disk cache, each
with a channel and a watch of its own, and an engine without a model. `python -m bench.replicas JSON`.

It says what it sees on standard output, a line of JSON each: {"ready": n} when all watch, and then
{"version": ..., "wanted_s": [...], "routed_s": [...]} when the last replica has moved to a version, in
seconds of the machine's monotonic clock.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import uvloop
from graft.channel import open_channel
from graft.signatures import SignaturePolicy
from prometheus_client import CollectorRegistry

from services.common.logs import configure_logs
from services.inference.blends.fake import FakeBlender
from services.inference.blends.store import BlendStore
from services.inference.cache import AdapterCache
from services.inference.catalogue import Catalogue
from services.inference.domain import AdapterVersion, Base
from services.inference.engines.fake import FakeEngine
from services.inference.follower import Follower
from services.inference.gate import Gate
from services.inference.loading import Preparation
from services.inference.metrics import InferenceMetrics
from services.inference.registry.remote import RemoteRegistry
from services.inference.residency import Residency, ResidencyOptions
from services.inference.swaps import RouteKey, Swaps
from services.inference.trust import Trust

Noted = Callable[[str, str], None]


class NotedSwaps(Swaps):
    """Says when a version is wanted for a name, and when the name means it."""

    noted: Noted = staticmethod(lambda what, version: None)

    def want(self, key: RouteKey, version: str) -> None:
        self.noted("wanted_s", version)
        super().want(key, version)

    def _switch(self, key: RouteKey, version: AdapterVersion) -> None:
        super()._switch(key, version)
        self.noted("routed_s", version.name)


class Moves:
    """When the replicas of this process wanted and had each version; says so when the last has it."""

    def __init__(self, replicas: int) -> None:
        self._replicas = replicas
        self._times: dict[str, dict[str, list[float]]] = {}

    def note(self, what: str, version: str) -> None:
        """One replica."""
        times = self._times.setdefault(version, {"wanted_s": [], "routed_s": []})
        times[what].append(time.monotonic())
        if len(times["routed_s"]) == self._replicas:
            say({"version": version, **self._times.pop(version)})


def say(message: dict[str, Any]) -> None:
    """To whoever started this."""
    print(json.dumps(message), flush=True)


async def start_replica(
    address: str, base: Base, cache: Path, moves: Moves, stack: AsyncExitStack
) -> None:
    """A replica as services/inference/server.py puts it together, without its gRPC server."""
    registry = RemoteRegistry(open_channel(address), base.namespace)
    metrics = InferenceMetrics(CollectorRegistry())
    engine = FakeEngine()
    await engine.start()
    gate = Gate(engine, 30.0, 1024)
    files = AdapterCache(cache, registry, metrics)
    trust = Trust(registry, SignaturePolicy.OFF, ())
    blends = BlendStore(files, FakeBlender(), metrics)
    preparation = Preparation(engine, files, base, trust, blends)
    residency = Residency(engine, gate, preparation, metrics, ResidencyOptions())
    catalogue = Catalogue()
    swaps = NotedSwaps(catalogue, registry, residency, metrics)
    swaps.noted = moves.note
    follower = Follower(registry, base, catalogue, swaps, metrics, engine.limits.max_loaded)
    await follower.start()
    for close in (registry.close, engine.stop, residency.close, swaps.close, follower.stop):
        stack.push_async_callback(close)


async def run(options: dict[str, Any]) -> None:
    """Until standard input ends."""
    configure_logs("inference", "ERROR", "json")
    base, addresses = Base(options["base"], options["fingerprint"]), options["addresses"]
    moves = Moves(options["replicas"])
    async with AsyncExitStack() as stack:
        for number in range(options["replicas"]):
            address = addresses[number % len(addresses)]
            cache = Path(options["folder"]) / f"node-{number // options['per_node']}"
            await start_replica(address, base, cache, moves, stack)
        say({"ready": options["replicas"]})
        await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    uvloop.run(run(json.loads(sys.argv[1])))
