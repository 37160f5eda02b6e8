"""A steady load of streaming requests, each recorded with the version that answered it."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field

from graft.errors import GraftError


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a streamed answer. version is set on the first and the last one."""

    text: str
    tokens: int
    version: str


@dataclass(slots=True)
class Record:
    """One request: when it began, when its first token came, when it ended, and what came of it."""

    question: str
    began_s: float
    first_token_s: float = 0.0
    ended_s: float = 0.0
    version: str = ""
    text: str = ""
    tokens: int = 0
    error: str = ""


Ask = Callable[[str], AsyncIterator[Piece]]


@dataclass(slots=True)
class Load:
    """Keeps so many streams open at a time, over and over the same questions, until it is stopped.

    Attributes:
        records: every request that has ended, in order of its end.
    """

    ask: Ask
    questions: Sequence[str]
    streams: int
    records: list[Record] = field(default_factory=list)
    _stopping: asyncio.Event = field(default_factory=asyncio.Event)
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)

    def start(self) -> None:
        """Opens the streams."""
        questions = itertools.cycle(self.questions)
        self._tasks = [asyncio.create_task(self._stream(questions)) for _ in range(self.streams)]

    async def stop(self) -> None:
        """Lets the requests in flight end, and begins no more."""
        self._stopping.set()
        await asyncio.gather(*self._tasks)

    async def until(self, condition: Callable[[list[Record]], bool], timeout_s: float) -> bool:
        """Waits while the load runs until condition(records) holds; False when it took too long."""
        deadline_s = time.monotonic() + timeout_s
        while not condition(self.records):
            if time.monotonic() > deadline_s or all(task.done() for task in self._tasks):
                return False
            await asyncio.sleep(0.02)
        return True

    async def _stream(self, questions: itertools.cycle[str]) -> None:
        while not self._stopping.is_set():
            self.records.append(await ask_once(self.ask, next(questions)))


async def ask_once(ask: Ask, question: str) -> Record:
    """Sends one request and reads its answer to the end; an error becomes part of the record."""
    record = Record(question, time.monotonic())
    try:
        async for piece in ask(question):
            record.first_token_s = record.first_token_s or time.monotonic()
            record.text += piece.text
            record.tokens += piece.tokens
            record.version = piece.version or record.version
    except GraftError as error:
        record.error = str(error)
    record.ended_s = time.monotonic()
    return record
