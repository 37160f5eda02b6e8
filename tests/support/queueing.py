"""An engine of steps in front of which a scheduler stands: no clock but its own, no waiting for luck."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, field

from services.inference.scheduling.queue import Claim, Turn
from services.inference.scheduling.scheduler import Scheduler, SchedulingOptions

# Turns of the event loop after which everybody who can go on has gone on.
_SETTLED, _MOST_TURNS = 12, 1000


@dataclass(eq=False)
class Asked:
    """A request; given_at is the step at which it got its turn."""

    adapter: str
    tokens: int
    asked_at: int
    room: int = 1
    given_at: int | None = None
    ended: bool = False
    task: asyncio.Task[None] | None = None


@dataclass
class Simulation:
    """Makes one token of every running request in each step, which takes a second of its clock.

    Attributes:
        served: tokens of prompts and answers, by adapter.
        order: adapters in the order in which they got their turns.
    """

    options: SchedulingOptions
    slots: int = 8
    time: int = 0
    served: Counter[str] = field(default_factory=Counter)
    order: list[str] = field(default_factory=list)
    running: dict[Turn, Asked] = field(default_factory=dict)
    asked: list[Asked] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._ends: dict[Turn, asyncio.Future[None]] = {}
        self.scheduler = Scheduler(self.options, lambda: self.slots, lambda: float(self.time))

    def ask(
        self,
        adapter: str,
        tokens: int = 1,
        *,
        slot: str | None = None,
        prompt: int = 1,
        namespace: str = "default",
        priority: int = 0,
        within: float | None = None,
        fails: bool = False,
        room: int = 1,
    ) -> Asked:
        """Asks; with fails it ends as soon as it has its turn, before it comes to the engine."""
        claim = Claim(
            namespace, adapter, adapter if slot is None else slot, prompt, tokens, priority, within,
            room=room,
        )  # fmt: skip
        asked = Asked(adapter, tokens, self.time, room)
        asked.task = asyncio.create_task(self._run(claim, asked, fails))
        # Whether it was refused is asked by those who want to know.
        asked.task.add_done_callback(lambda done: done.cancelled() or done.exception())
        self.asked.append(asked)
        return asked

    async def _run(self, claim: Claim, asked: Asked, fails: bool) -> None:
        turn = await self.scheduler.turn(claim)
        if fails:
            turn.close()
            return
        ended = asyncio.get_running_loop().create_future()
        try:
            turn.ready()
            turn.start()
            asked.given_at = self.time
            self.order.append(asked.adapter)
            self.served[asked.adapter] += claim.prompt_tokens
            self.running[turn] = asked
            self._ends[turn] = ended
            await ended
            asked.ended = True
        finally:
            self.running.pop(turn, None)
            self._ends.pop(turn, None)
            turn.close()

    async def settle(self) -> None:
        """Lets everybody go on who can."""
        for turn in range(_MOST_TURNS):
            await asyncio.sleep(0)
            if turn >= _SETTLED and self.scheduler.in_flight == len(self.running):
                return
        raise AssertionError("a turn was given that nobody took, or was not closed")

    async def step(self, count: int = 1) -> None:
        """So many tokens of each running request."""
        for _ in range(count):
            self.time += 1
            for turn, asked in list(self.running.items()):
                turn.count(1)
                self.served[asked.adapter] += 1
                asked.tokens -= 1
                if asked.tokens == 0:
                    del self.running[turn]
                    ended = self._ends.pop(turn)
                    # One that was cancelled in this very step has not gone on yet.
                    if not ended.done():
                        ended.set_result(None)
            await self.settle()

    async def drain(self, limit: int = 10_000) -> None:
        """Steps until nobody runs or waits; fails the test when that does not come."""
        await self.settle()
        for _ in range(limit):
            if not self.running and not self.scheduler.waiting:
                return
            await self.step()
        raise AssertionError(f"{self.scheduler.waiting} requests wait for ever")
