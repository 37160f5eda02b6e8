"""Answers questions over HTTP: whole, or as server-sent events while they come.

A response's status is sent with the first token: whatever goes wrong before has a status of its own, and
what goes wrong later is an event, as OpenAI's servers do.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Any, TypeVar

from aiohttp import web
from graft.channel import REQUEST_ID, REQUEST_ID_HEADER
from graft.errors import GraftError, Reason

from services.inference.answer import Answer
from services.inference.answers import Answers
from services.inference.engines.base import Delta
from services.inference.http.calls import fail, hung_up
from services.inference.http.errors import error_text
from services.inference.http.schemas import StreamOptions
from services.inference.many import gathered
from services.inference.questions import Question

TIMEOUT_HEADER = "x-request-timeout"
_DONE = "data: [DONE]\n\n"
Value = TypeVar("Value")


class Form(ABC):
    """How the answers to one request look."""

    def __init__(self, options: StreamOptions | None) -> None:
        self._include_usage = options is not None and options.include_usage
        self._continuous = options is not None and options.continuous_usage_stats

    @abstractmethod
    def event(self, answer: Answer, delta: Delta, place: int) -> str:
        """What is new, as events; "" where that is nothing to tell.

        Args:
            place: which of the request's prompts, from 0.
        """

    @abstractmethod
    def last(self, answers: Sequence[Answer]) -> str:
        """The event after all answers, where one was asked for."""

    @abstractmethod
    def whole(self, answers: Sequence[tuple[Answer, Sequence[Delta]]]) -> dict[str, Any]:
        """All of it, one answer for each prompt."""


class Streams:
    """Answers the questions of a request.

    Args:
        answers: of the base that is served now.
        stalled_after_s: a reader that takes nothing for so long gives its place to others.
    """

    def __init__(self, answers: Callable[[], Answers], stalled_after_s: float) -> None:
        self._answers, self._stalled_after_s = answers, stalled_after_s

    async def reply(
        self, request: web.Request, questions: Sequence[Question], form: Form, *, stream: bool
    ) -> web.StreamResponse:
        """The response to a request.

        Raises:
            GraftError: as Answers.admit(); DEADLINE_EXCEEDED.
        """
        if stream:
            return await self._stream(request, questions, form)
        async with within_deadline(request) as remaining_s:
            found = await _together([self._whole(question, remaining_s) for question in questions])
        return web.json_response(form.whole(found))

    async def _whole(
        self, question: Question, remaining_s: float | None
    ) -> tuple[Answer, list[Delta]]:
        async with self._answers().admit(question, remaining_s) as answer:
            return answer, await answer.wholes()

    async def _stream(
        self, request: web.Request, questions: Sequence[Question], form: Form
    ) -> web.StreamResponse:
        response = web.StreamResponse(
            headers={
                "Content-Type": "text/event-stream; charset=utf-8",
                "Cache-Control": "no-cache",
                "X-Accel-Buffering": "no",
                REQUEST_ID_HEADER: REQUEST_ID.get() or "",
            }
        )
        try:
            async with within_deadline(request) as remaining_s:
                answers = await _together(
                    [
                        self._part(request, response, form, question, place, remaining_s)
                        for place, question in enumerate(questions)
                    ]
                )
            end = form.last(answers)
        except Exception as error:
            if not response.prepared or hung_up(request, error):
                raise
            end = f"data: {error_text(fail(request, error))}\n\n"
        if not response.prepared:
            await response.prepare(request)
        await response.write_eof((end + _DONE).encode())
        return response

    async def _part(
        self,
        request: web.Request,
        response: web.StreamResponse,
        form: Form,
        question: Question,
        place: int,
        remaining_s: float | None,
    ) -> Answer:
        later, after_s = asyncio.get_running_loop().call_later, self._stalled_after_s
        admitted = self._answers().admit(question, remaining_s)
        async with admitted as answer, aclosing(answer.parts()) as parts:
            async for delta in parts:
                events = form.event(answer, delta, place)
                if not events:
                    continue
                if not response.prepared:
                    await response.prepare(request)
                waiting = later(after_s, answer.stalled)
                try:
                    await response.write(events.encode())
                finally:
                    waiting.cancel()
        return answer


@asynccontextmanager
async def within_deadline(request: web.Request) -> AsyncIterator[float | None]:
    """Ends what is inside when the client's own deadline passes; gives the seconds until then.

    Raises:
        GraftError: DEADLINE_EXCEEDED; INVALID_REQUEST for a header that is no number.
    """
    given = request.headers.get(TIMEOUT_HEADER)
    if given is None:
        yield None
        return
    try:
        timeout_s = float(given)
    except ValueError:
        timeout_s = 0.0
    if not 0 < timeout_s < float("inf"):
        raise GraftError(
            Reason.INVALID_REQUEST,
            f"The header {TIMEOUT_HEADER} is {given[:40]!r}",
            next_step="Send seconds above 0, or leave it out.",
            field=TIMEOUT_HEADER,
        )
    timeout = asyncio.timeout(timeout_s)
    try:
        async with timeout:
            yield timeout_s
    except TimeoutError:
        if not timeout.expired():
            raise
        raise GraftError(
            Reason.DEADLINE_EXCEEDED,
            f"The answer took longer than the {timeout_s:g} s of {TIMEOUT_HEADER}",
            next_step="Give it more time, or ask for fewer tokens.",
        ) from None


async def _together(work: Sequence[Coroutine[Any, Any, Value]]) -> list[Value]:
    """What all of it returns; the first error ends the rest."""
    if len(work) == 1:
        return [await work[0]]
    return await gathered(work)
