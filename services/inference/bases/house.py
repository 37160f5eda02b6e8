"""What serves now, and how another takes its place in one moment: calls, metrics and readiness follow.

Nothing is awaited between the old one's last new request and the new one's first.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Protocol

from prometheus_client import CollectorRegistry

from services.inference.answers import Answers
from services.inference.bases.place import Place
from services.inference.servicer import InferenceServicer
from services.inference.serving import Serving
from services.inference.shared import Shared
from services.inference.succession import Succession


class Front(Protocol):
    """Where calls arrive."""

    def begin(self, real: InferenceServicer) -> None:
        """They are answered by this one from now on."""

    def pause(self, paused: bool) -> None:
        """What tells of an engine that is not there has nothing to tell."""


Build = Callable[[Place, Shared], Serving]


class House:
    """Holds one Serving at a time, as far as anybody outside can see.

    Args:
        build: makes a Serving, not started, for a base.
        shared: what outlives a base; set_ready and set_alive are asked for the one that serves alone.
        front: where calls arrive.
        metrics: where what belongs to one Serving is shown.

    Attributes:
        ready: whether health says that calls are answered.
    """

    def __init__(
        self, build: Build, shared: Shared, front: Front, metrics: CollectorRegistry
    ) -> None:
        self._build, self._shared, self._front, self._metrics = build, shared, front, metrics
        self._current: Serving | None = None
        self._held = False
        # Before the start is over, that says whether it is ready.
        self._open = False
        self.ready = False

    @property
    def current(self) -> Serving | None:
        """What serves; None before the start."""
        return self._current

    @property
    def is_open(self) -> bool:
        """Whether the start is over."""
        return self._open

    def build(self, place: Place) -> Serving:
        """A Serving that is not started. What it says of its health counts while it is the one that serves."""
        made: list[Serving] = []

        def of_current(
            tell: Callable[[bool], Awaitable[None]],
        ) -> Callable[[bool], Awaitable[None]]:
            async def told(yes: bool) -> None:
                if made and made[0] is self._current:
                    await tell(yes)

            return told

        shared = replace(
            self._shared,
            set_ready=of_current(self._set_ready),
            set_alive=of_current(self._shared.set_alive),
        )
        made.append(self._build(place, shared))
        return made[0]

    def first(self, serving: Serving) -> None:
        """The one that the start is about."""
        self._current = serving

    def present(self, serving: Serving) -> None:
        """It serves from now on, and inherits what comes to the one before it."""
        new = serving.assembly
        assert new is not None, "it has started"
        old, self._current = self._current, serving
        self._front.begin(new.servicer)
        if old is not None and old is not serving and old.assembly is not None:
            self._metrics.unregister(old.assembly.lora_info)
            old.assembly.answers.succession.to(new.answers)
        new.lora_info.show_in(self._metrics)
        serving.show()

    async def open(self) -> None:
        """The start is over: what serves says from now on whether it is ready."""
        self._open = True
        await self._tell()

    async def hold(self) -> None:
        """Nothing new reaches the one that serves: it is going to end. Requests wait."""
        self._held = True
        if (succession := self._succession) is not None:
            succession.leave()
        self._front.pause(True)
        await self._say(False)

    async def release(self) -> None:
        """The one that serves answers, be it another than before hold() or the same."""
        self._held = False
        if (succession := self._succession) is not None:
            succession.stay()
        self._front.pause(False)
        await self._tell()

    def abandon(self) -> None:
        """The service ends, and the one that served has ended already: who waits is refused."""
        if (succession := self._succession) is not None:
            succession.end()

    async def no_hope(self) -> None:
        """Neither base can be started: whoever watches liveness starts the process anew."""
        await self._shared.set_alive(False)

    async def hope(self) -> None:
        """There is one again."""
        await self._shared.set_alive(True)

    @property
    def _succession(self) -> Succession[Answers] | None:
        if self._current is None or self._current.assembly is None:
            return None
        return self._current.assembly.answers.succession

    async def _tell(self) -> None:
        await self._set_ready(self._current is not None and self._current.gate.is_open)

    async def _set_ready(self, ready: bool) -> None:
        if self._open and not self._held:
            await self._say(ready)

    async def _say(self, ready: bool) -> None:
        self.ready = ready
        await self._shared.set_ready(ready)
