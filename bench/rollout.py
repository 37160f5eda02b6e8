"""A bad canary under load, on two endpoints: how long until it is taken back, and how many requests it touched.

The registry is a process of its own; the endpoints are real but for their engine, whose adapters behave as
told: well, slowly, by failing, by babbling. Requests come at an even rate, whatever becomes of those before.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import graft
import grpc
import uvloop
from graft.channel import open_channel
from graft.digests import digest_file
from graft.inference.v1 import inference_service_pb2 as pb
from graft.inference.v1 import rollout_pb2
from graft.inference.v1.inference_service_pb2_grpc import InferenceServiceStub
from graft.rollout_policy import RolloutLimits

from bench.harness import Report, summarize
from bench.processes import REPOSITORY, start_graft_service
from bench.swap import publish
from services.common.logs import configure_logs
from services.inference.config import InferenceSettings
from services.inference.engines.acting import Act, ActingEngine
from services.inference.rollout.split import choose
from services.inference.server import InferenceServer

if TYPE_CHECKING:
    from graft.inference.v1.inference_service_pb2_grpc import InferenceServiceAsyncStub

REPLICAS = 2
REQUESTS_PER_S = 120
PERCENT = 10.0
WINDOW_S = 10.0
MIN_REQUESTS = 20
SESSIONS = 5000
MAX_TOKENS = 400
WANTED_S = 2.0
ADAPTER = "namespaces/default/adapters/bench"
ALIAS = f"{ADAPTER}/aliases/production"
_GOOD = Act(first_s=0.02, token_s=0.002)
# What each does wrong, and the limit that is for it. The slow one takes longer than the window to answer.
KINDS: dict[str, tuple[Act, dict[str, Any]]] = {
    "slow": (Act(first_s=0.5, token_s=2.0), {"max_token_ratio": 3.0, "max_first_token_s": 5.0}),
    "failing": (Act(first_s=0.02, token_s=0.002, fails=True), {"max_error_rate": 0.1}),
    "babbling": (
        Act(text="and so on ", first_s=0.02, token_s=0.02, babbles=True),
        {"max_babble_rate": 0.2},
    ),
}


@dataclass(slots=True)
class Seen:
    """What the clients saw since the canary was set."""

    requests: int = 0
    belonging: int = 0
    touched: int = 0
    strays: int = 0
    first_bad_s: float = 0.0
    last_touched_s: float = 0.0
    failed_stable: int = 0


@dataclass(slots=True)
class Endpoints:
    """Two endpoints, and the calls to them."""

    engines: list[ActingEngine] = field(default_factory=list)
    stubs: list[InferenceServiceAsyncStub] = field(default_factory=list)


def run(*, short: bool = False, base: Path = REPOSITORY / "examples/base") -> Report:
    """Starts a registry; each kind of bad canary has its turn in each round."""
    rounds = 1 if short else 5
    with tempfile.TemporaryDirectory(prefix="graft-bench-") as temporary:
        folder = Path(temporary)
        registry, address = start_graft_service("registry", {}, folder / "registry")
        try:
            return uvloop.run(_measure(address, base, folder, rounds))
        finally:
            registry.close()


async def _measure(address: str, base: Path, folder: Path, rounds: int) -> Report:
    # What fails is told in the report.
    configure_logs("bench", "CRITICAL", "json")
    report = Report(
        "rollout",
        {
            "replicas": REPLICAS,
            "requests_per_s": REQUESTS_PER_S,
            "percent": PERCENT,
            "window_s": WINDOW_S,
            "min_requests": MIN_REQUESTS,
            "sessions": SESSIONS,
            "cores": os.cpu_count(),
        },
    )
    async with AsyncExitStack() as stack:
        channel = await stack.enter_async_context(open_channel(address))
        # The good one, and a bad one for each turn: what was bad once is not tried again.
        count = 1 + rounds * len(KINDS)
        # The endpoints first: they record the base.
        endpoints = await _start(stack, address, base, folder)
        await publish(channel, base, folder / "versions", count)
        for engine in endpoints.engines:
            engine.acts.update(_acts(folder / "versions", rounds))
        client = await stack.enter_async_context(graft.Client(registry=address))
        await client.adapters.promote("bench", 1)
        numbers = itertools.count(2)
        for number in range(rounds):
            measured: dict[str, dict[str, float]] = {}
            for kind, (_, limits) in KINDS.items():
                measured[kind] = await _turn(client, endpoints, next(numbers), limits)
                print(
                    f"   rollout: round {number + 1}/{rounds}: {kind} {measured[kind]}", flush=True
                )
            report.rounds.append(measured)
    summarize(report, list(KINDS))
    report.ratios.clear()
    return _judged(report)


def _acts(versions: Path, rounds: int) -> dict[str, Act]:
    acts = [_GOOD, *(act for _ in range(rounds) for act, _ in KINDS.values())]
    return {
        digest_file(versions / str(number) / "adapter_model.safetensors"): act
        for number, act in enumerate(acts)
    }


async def _start(stack: AsyncExitStack, address: str, base: Path, folder: Path) -> Endpoints:
    endpoints = Endpoints()
    for number in range(REPLICAS):
        settings = InferenceSettings(
            base=base, registry_address=address, data_dir=folder / f"replica-{number}"
        )
        engine = ActingEngine({})
        server = InferenceServer(settings, engine=engine)
        await server.start()
        stack.push_async_callback(server.stop)
        channel = await stack.enter_async_context(open_channel(server.address))
        endpoints.engines.append(engine)
        endpoints.stubs.append(InferenceServiceStub(channel))
    return endpoints


async def _turn(
    client: graft.Client, endpoints: Endpoints, number: int, limits: dict[str, Any]
) -> dict[str, float]:
    """One bad canary, from when it is set until every endpoint and the registry are rid of it."""
    seen, stop = Seen(), asyncio.Event()
    load = asyncio.create_task(_load(endpoints, number, seen, stop))
    await asyncio.sleep(2.0)
    # The stable version's figures are there, as they are where a service runs.
    before, belonged = seen.requests, seen.belonging
    policy = RolloutLimits(window_s=WINDOW_S, min_requests=MIN_REQUESTS, **limits)
    await client.rollouts.start("bench", number, limits=policy, percent=PERCENT)
    began_s = time.monotonic()
    await _loaded(endpoints)
    loaded_s = time.monotonic()
    await _rid(client, endpoints)
    back_s = time.monotonic()
    requests, belonging = seen.requests - before, seen.belonging - belonged
    await asyncio.sleep(2.0)
    stop.set()
    await load
    assert seen.first_bad_s, "no bad answer was seen"
    return {
        "back_after_first_bad_s": back_s - seen.first_bad_s,
        "beyond_window_s": back_s - seen.first_bad_s - WINDOW_S,
        "loaded_after_s": loaded_s - began_s,
        "last_touched_after_back_s": seen.last_touched_s - back_s,
        "requests": requests,
        "touched": seen.touched,
        "touched_percent": 100 * seen.touched / requests,
        "of_their_sessions_percent": 100 * belonging / requests,
        "strays": seen.strays,
        "failed_stable": seen.failed_stable,
    }


async def _load(endpoints: Endpoints, number: int, seen: Seen, stop: asyncio.Event) -> None:
    tasks: set[asyncio.Task[None]] = set()
    sessions: Iterator[int] = itertools.cycle(range(SESSIONS))
    stubs, begin_s = itertools.cycle(endpoints.stubs), time.monotonic()
    for count in itertools.count(1):
        if stop.is_set():
            break
        ask = _ask(next(stubs), f"session-{next(sessions)}", number, seen)
        task = asyncio.create_task(ask)
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        await asyncio.sleep(max(0.0, begin_s + count / REQUESTS_PER_S - time.monotonic()))
    # A slow canary's answers would go on for half a minute: what matters of them was seen.
    for task in tuple(tasks):
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _ask(stub: InferenceServiceAsyncStub, key: str, number: int, seen: Seen) -> None:
    request = pb.GenerateRequest(
        model="bench@production",
        prompt="how are you?",
        session_key=key,
        sampling=pb.SamplingParams(max_tokens=MAX_TOKENS),
    )
    belongs = choose(ALIAS, [(number, PERCENT)], key) == number
    seen.requests, seen.belonging = seen.requests + 1, seen.belonging + belongs
    sent_s, touched = time.monotonic(), False
    try:
        async for message in stub.StreamGenerate(request):
            if touched or not message.provenance.version:
                continue
            touched = message.provenance.rollout_part == rollout_pb2.ROLLOUT_PART_CANARY
            if touched:
                seen.touched += 1
                seen.strays += not belongs
                seen.first_bad_s = seen.first_bad_s or time.monotonic()
                seen.last_touched_s = max(seen.last_touched_s, sent_s)
    except grpc.aio.AioRpcError:
        seen.failed_stable += not touched


async def _loaded(endpoints: Endpoints) -> None:
    serving = rollout_pb2.CANARY_STATE_SERVING
    for stub in endpoints.stubs:
        while True:
            answer = await stub.ListRollouts(rollout_pb2.ListRolloutsRequest())
            canaries = [one for each in answer.rollouts for one in each.canaries]
            # A quick judge may have had it out already.
            if not canaries or canaries[0].state >= serving:
                break
            await asyncio.sleep(0.005)


async def _rid(client: graft.Client, endpoints: Endpoints) -> None:
    async with asyncio.timeout(WINDOW_S + 60):
        await _poll(lambda: _registry_has_none(client))
        for stub in endpoints.stubs:
            await _poll(lambda: _endpoint_has_none(stub))  # noqa: B023


async def _registry_has_none(client: graft.Client) -> bool:
    return not (await client.rollouts.status("bench")).canaries


async def _endpoint_has_none(stub: InferenceServiceAsyncStub) -> bool:
    return not (await stub.ListRollouts(rollout_pb2.ListRolloutsRequest())).rollouts


async def _poll(holds: Callable[[], Awaitable[bool]]) -> None:
    while True:
        if await holds():
            return
        await asyncio.sleep(0.01)


def _judged(report: Report) -> Report:
    for kind in KINDS:
        figures = report.figures[kind]
        beyond = figures["beyond_window_s"].max
        report.goal(
            f"{kind}: from the first bad answer to taken back, beyond the window, worst",
            f"at most {WANTED_S} s",
            beyond,
            beyond <= WANTED_S,
        )
        share = max(
            measured[kind]["touched_percent"] - measured[kind]["of_their_sessions_percent"]
            for measured in report.rounds
        )
        report.goal(
            f"{kind}: touched, beyond the requests of the canary's own sessions, points",
            "at most 0",
            share,
            share <= 0,
        )
        strays = figures["strays"].max + figures["failed_stable"].max
        report.goal(
            f"{kind}: requests touched or failed outside of that share", "0", strays, strays == 0
        )
    return report
