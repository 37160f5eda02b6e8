"""The endpoint at rest and at full load, with swaps and bad adapters among it, grows in nothing.

Seconds under `make test`; minutes under `make soak`: GRAFT_SOAK_MINUTES and GRAFT_SOAK_IDLE_MINUTES.
"""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest

from tests.faults.chaos.service import LONG, SHORT, Chaos, asked
from tests.faults.chaos.watching import MIB, fill_thread_pool, taken
from tests.support.bad_adapters import everything
from tests.support.waiting import eventually

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.engine]
LONG_S = 60 * float(os.environ.get("GRAFT_SOAK_MINUTES", "5"))
LONG_IDLE_S = 60 * float(os.environ.get("GRAFT_SOAK_IDLE_MINUTES", "3"))
STREAMS = 16
# What allocators keep of a burst, in two processes.
SLACK_BYTES = 24 * MIB


async def prepare(chaos: Chaos) -> None:
    """Two more versions to swap between, one that nobody gets, and an engine that has its kernels."""
    for seed in (31, 32):
        await chaos.add("one", chaos.fresh(seed))
    await chaos.add("bad", everything()["tensors: NaN"].write(chaos.folder / "nan"))
    # Steps of more sizes than a CPU engine keeps kernels of (cpu_kernels): it takes no more from here on.
    for tokens in range(1, 151):
        await chaos.ask("tiny", tuple(3 + (7 * place + tokens) % 500 for place in range(tokens)), 1)


@dataclass(slots=True)
class Load:
    """What was done, and whether to go on."""

    answers: int = 0
    swaps: int = 0
    refusals: int = 0
    leavers: int = 0
    done: asyncio.Event = field(default_factory=asyncio.Event)

    async def ask(self, chaos: Chaos, model: str) -> None:
        """One stream after the other."""
        while not self.done.is_set():
            async with chaos.answering(model, SHORT, 24) as answer:
                await answer
            self.answers += 1

    async def swap(self, chaos: Chaos) -> None:
        """One promotion after the other."""
        for number in itertools.cycle((2, 3)):
            if self.done.is_set():
                return
            await chaos.running.promote("one", number)
            version = f"namespaces/default/adapters/one/versions/{number}"

            async def moved(name: str = version) -> bool:
                return (await chaos.ask("one", SHORT, 1)).version == name

            await eventually(moved, version)
            self.swaps += 1

    async def misuse(self, chaos: Chaos) -> None:
        """Asks for a bad adapter, and leaves in mid-answer."""
        while not self.done.is_set():
            await chaos.refusal("bad:1")
            self.refusals += 1
            call = chaos.running.stub.StreamGenerate(asked("two", LONG, 80))
            await call.read()
            call.cancel()
            self.leavers += 1


@asynccontextmanager
async def full_load(chaos: Chaos) -> AsyncIterator[Load]:
    """Every stream that the engine computes at once, swaps, bad adapters and callers who leave."""
    load = Load()
    models = itertools.cycle(["tiny", "one", "two", "one:1"])
    tasks = [
        asyncio.create_task(load.ask(chaos, model))
        for model in itertools.islice(models, STREAMS - 3)
    ]
    tasks += [asyncio.create_task(work(chaos)) for work in (load.swap, load.misuse)]
    try:
        yield load
    finally:
        load.done.set()
        await asyncio.gather(*tasks)


async def at_rest(chaos: Chaos) -> None:
    """Nothing is asked any more, and nothing is unloaded."""
    await eventually(lambda: chaos.engine.unfinished() == 0, "rest")

    async def settled() -> bool:
        return "DRAINING" not in (await chaos.residency()).values()

    await eventually(settled, "the unloads")


@pytest.mark.parametrize(
    ("warm_s", "load_s", "rounds"),
    [
        # A short load is still warming up; what grows grows in every round.
        pytest.param(3.0, 5.0, 3, id="short"),
        pytest.param(
            60.0, LONG_S, 1, id="long", marks=[pytest.mark.soak, pytest.mark.timeout(7200)]
        ),
    ],
)
async def test_full_load_grows_in_nothing(
    chaos: Chaos, warm_s: float, load_s: float, rounds: int
) -> None:
    await fill_thread_pool()
    await prepare(chaos)
    async with full_load(chaos):
        await asyncio.sleep(warm_s)
    grown = ""
    for _ in range(rounds):
        grown = await growth_under_load(chaos, load_s)
        if not grown:
            return
    raise AssertionError(grown)


async def growth_under_load(chaos: Chaos, load_s: float) -> str:
    """What there is more of after a while at full load, with what was done; empty for nothing."""
    await at_rest(chaos)
    before = await taken(chaos)
    async with full_load(chaos) as load:
        await asyncio.sleep(load_s)
        # Some of each, however slow the machine.
        await eventually(
            lambda: min(load.answers, load.swaps, load.leavers) > 0, "each of them once", 120
        )
    await at_rest(chaos)
    # What passes is no growth, as a process that PostgreSQL starts now and then for another test, or a
    # thread that gRPC has under load and ends when it had nothing to do for 20 s.
    for _ in range(60):
        after = await taken(chaos)
        grown = after.growth_since(before, SLACK_BYTES)
        if not grown:
            return ""
        await asyncio.sleep(0.5)
    return f"{grown}: {load} {before} {after}"


@pytest.mark.parametrize(
    "idle_s",
    [
        pytest.param(3.0, id="short"),
        pytest.param(
            LONG_IDLE_S, id="long", marks=[pytest.mark.soak, pytest.mark.timeout(LONG_IDLE_S + 600)]
        ),
    ],
)
async def test_rest_grows_in_nothing(chaos: Chaos, idle_s: float) -> None:
    for model in ("tiny", "one", "two"):
        await chaos.ask(model)
    await fill_thread_pool()
    before = await taken(chaos)
    await asyncio.sleep(idle_s)
    # A connection that is just being made anew is no growth: it is one that stays.
    for _ in range(20):
        after = await taken(chaos)
        if not after.growth_since(before, SLACK_BYTES // 4):
            return
        await asyncio.sleep(0.5)
    raise AssertionError(f"{after.growth_since(before, SLACK_BYTES // 4)}: {before} {after}")
