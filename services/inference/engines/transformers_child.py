"""The process of the transformers engine, seen from the service: started, spoken to, and mourned."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import socket
import sys
from contextlib import suppress
from typing import Any

from graft.errors import GraftError, Reason

from services.inference.engines.base import Delta, Limits, engine_dead
from services.inference.engines.transformers_messages import (
    LENGTH,
    Message,
    TransformersOptions,
    encode,
    options_message,
    read_delta,
    read_error,
    read_limits,
)

_MODULE = "services.inference.engines.transformers_process"
_ENDS_S = 5.0


class Stream:
    """What the process has said of one request and nobody has taken yet: at most an answer."""

    def __init__(self) -> None:
        self._waiting: list[Delta] = []
        self._error: GraftError | None = None
        self._news = asyncio.Event()

    def put(self, delta: Delta) -> None:
        """More of the answer."""
        self._waiting.append(delta)
        self._news.set()

    def fail(self, error: GraftError) -> None:
        """No more comes."""
        self._error = error
        self._news.set()

    async def take(self) -> Delta:
        """All that there is, as one; waits for the first of it.

        Raises:
            GraftError: when the request failed.
        """
        await self._news.wait()
        self._news.clear()
        if not self._waiting:
            assert self._error is not None
            raise self._error
        if self._error is not None:
            self._news.set()
        found, self._waiting = self._waiting, []
        return joined(found)


def joined(deltas: list[Delta]) -> Delta:
    """Deltas of one answer as one."""
    if len(deltas) == 1:
        return deltas[0]
    return Delta(
        "".join(each.text for each in deltas),
        [token for each in deltas for token in each.token_ids],
        tuple(position for each in deltas for position in each.logprobs),
        deltas[-1].finish,
    )


class Child:
    """One process, from its start to its end.

    Attributes:
        limits: as it said when it had started.
        died: set when it is gone.
        streams: of the requests that it works on.
    """

    def __init__(
        self, process: asyncio.subprocess.Process, streams: Any, writer: asyncio.StreamWriter
    ) -> None:
        self._process, self._reader, self._writer = process, streams, writer
        self._calls: dict[int, asyncio.Future[int]] = {}
        self._numbers = itertools.count(1)
        self._task: asyncio.Task[None] | None = None
        self.limits: Limits | None = None
        self.died = asyncio.Event()
        self.streams: dict[str, Stream] = {}

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    @classmethod
    async def start(cls, options: TransformersOptions) -> Child:
        """Returns when the base is loaded.

        Raises:
            GraftError: NOT_A_MODEL.
        """
        ours, theirs = socket.socketpair()
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                _MODULE,
                str(theirs.fileno()),
                pass_fds=[theirs.fileno()],
                stdin=asyncio.subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            )
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        reader, writer = await asyncio.open_connection(sock=ours)
        child = cls(process, reader, writer)
        try:
            child._send({"options": options_message(options)})
            await child._hear_start()
        except BaseException:
            await child.end()
            raise
        child._task = asyncio.create_task(child._follow())
        return child

    async def _hear_start(self) -> None:
        try:
            message = await self._read()
        except (OSError, asyncio.IncompleteReadError):
            code = await self._process.wait()
            raise GraftError(
                Reason.NOT_A_MODEL,
                f"The transformers engine ended with code {code} while it loaded the base",
                next_step="It needs memory for a second copy of the base; the service's log says more.",
            ) from None
        if message["say"] == "failed":
            raise read_error(message["error"])
        self.limits = read_limits(message["limits"])

    async def _read(self) -> Message:
        length = await self._reader.readexactly(LENGTH.size)
        text = await self._reader.readexactly(LENGTH.unpack(length)[0])
        message: Message = json.loads(text)
        return message

    async def _follow(self) -> None:
        try:
            while True:
                self._hear(await self._read())
        except (OSError, asyncio.IncompleteReadError):
            return
        finally:
            self._mourn()

    def _hear(self, message: Message) -> None:
        match message["say"]:
            case "deltas":
                for each in message["deltas"]:
                    name, delta = read_delta(each)
                    # One that was aborted may have been under way.
                    if (stream := self.streams.get(name)) is not None:
                        stream.put(delta)
            case "refused":
                if (stream := self.streams.get(message["request"])) is not None:
                    stream.fail(read_error(message["error"]))
            case "done":
                call = self._calls.pop(message["call"])
                if call.done():
                    return
                if message["error"] is None:
                    call.set_result(message["answer"])
                else:
                    call.set_exception(read_error(message["error"]))

    def _mourn(self) -> None:
        self.died.set()
        for stream in self.streams.values():
            stream.fail(engine_dead())
        for call in self._calls.values():
            if not call.done():
                call.set_exception(engine_dead())
        self._calls.clear()

    async def call(self, message: Message) -> int:
        """Has something done; answers with what the process answers.

        Raises:
            GraftError: as the process says; ENGINE_DEAD.
        """
        number = next(self._numbers)
        future = self._calls[number] = asyncio.get_running_loop().create_future()
        # A caller that is cancelled hears nothing of it.
        future.add_done_callback(lambda done: done.cancelled() or done.exception())
        self._send({**message, "call": number})
        return await asyncio.shield(future)

    def generate(self, message: Message) -> Stream:
        """Begins a request; abort() it in any case."""
        stream = self.streams[message["request"]] = Stream()
        self._send({**message, "do": "generate"})
        return stream

    def abort(self, request: str, *, finished: bool) -> None:
        """Nothing more of it is wanted."""
        if self.streams.pop(request, None) is not None and not finished:
            with suppress(GraftError):
                self._send({"do": "abort", "request": request})

    def _send(self, message: Message) -> None:
        if self.died.is_set():
            raise engine_dead()
        self._writer.write(encode(message))

    async def end(self) -> None:
        """Ends the process; what it works on ends with ENGINE_DEAD."""
        self._writer.close()
        with suppress(OSError):
            await self._writer.wait_closed()
        try:
            await asyncio.wait_for(self._process.wait(), _ENDS_S)
        except TimeoutError:
            # In the middle of a long computation.
            with suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        self._mourn()
