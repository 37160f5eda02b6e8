"""python -m services.inference.engines.transformers_process FD: the process in which the transformers engine computes.

It reads messages from a socket that it inherits and ends when that is closed, whatever it does.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import socket
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

from graft.errors import GraftError, Reason

from services.common.logs import get_logger
from services.inference.engines.base import engine_dead
from services.inference.engines.transformers_messages import (
    LENGTH,
    Message,
    delta_message,
    encode,
    error_message,
    limits_message,
    read_options,
    read_sampling,
)

# The kernel's largest.
_FIRST_TO_GO = "1000"


class Wire:
    """The socket's end in this process; a thread reads, whoever computes writes."""

    def __init__(self, end: socket.socket) -> None:
        self._socket, self._file = end, end.makefile("rb")
        self.inbox: queue.SimpleQueue[Message] = queue.SimpleQueue()

    def read(self) -> Message | None:
        """The next message; None when the service is gone."""
        length = self._file.read(LENGTH.size)
        if len(length) < LENGTH.size:
            return None
        text = self._file.read(LENGTH.unpack(length)[0])
        message: Message = json.loads(text)
        return message

    def follow(self) -> None:
        """Reads until the service is gone; then this process has no reason to be."""
        try:
            while (message := self.read()) is not None:
                self.inbox.put(message)
        finally:
            os._exit(0)

    def write(self, message: Message) -> None:
        """Sends one."""
        self._socket.sendall(encode(message))


class Process:
    """Does what messages say, between steps of the core."""

    def __init__(self, wire: Wire, core: Any) -> None:
        self._wire, self._core = wire, core

    def run(self) -> None:
        """Until the process ends."""
        while True:
            while not self._core.busy or not self._wire.inbox.empty():
                self._do(self._wire.inbox.get())
            told = self._core.step()
            deltas = [
                delta_message(name, what) for name, what in told if not isinstance(what, GraftError)
            ]
            if deltas:
                self._wire.write({"say": "deltas", "deltas": deltas})
            for name, what in told:
                if isinstance(what, GraftError):
                    self._refuse(name, what)

    def _do(self, message: Message) -> None:
        match message["do"]:
            case "generate":
                try:
                    self._core.add(
                        message["request"],
                        message["number"],
                        message["prompt"],
                        read_sampling(message["sampling"]),
                    )
                except KeyError:
                    self._refuse(message["request"], engine_dead())
                except GraftError as error:
                    self._refuse(message["request"], error)
            case "abort":
                self._core.abort(message["request"])
            case "load" | "unload":
                self._answer(message)

    def _answer(self, message: Message) -> None:
        error: GraftError | None = None
        answer = 0
        try:
            if message["do"] == "load":
                folder = Path(message["folder"])
                answer = self._core.load(message["number"], message["name"], folder)
            else:
                self._core.unload(message["number"])
        except GraftError as raised:
            error = raised
        said = None if error is None else error_message(error)
        self._wire.write({"say": "done", "call": message["call"], "error": said, "answer": answer})

    def _refuse(self, request: str, error: GraftError) -> None:
        self._wire.write({"say": "refused", "request": request, "error": error_message(error)})


def _offer_itself() -> None:
    """When the machine's memory ends, the kernel takes this process, and neither the service nor the first engine."""
    # Elsewhere than on Linux there is no such file.
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(_FIRST_TO_GO, "utf-8")


def main() -> None:
    """Loads the base that the first message names, says so, and computes."""
    # Ctrl-C is for the service, which ends this process.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _offer_itself()
    wire = Wire(socket.socket(fileno=int(sys.argv[1])))
    message = wire.read()
    if message is None:
        return
    threading.Thread(target=wire.follow, daemon=True).start()
    try:
        # Not before: it takes seconds, and the thread above ends the process if the service goes meanwhile.
        from services.inference.engines.transformers_core import Core
        from services.inference.engines.transformers_model import limits_of, load_base

        options = read_options(message["options"])
        base = load_base(options)
        core = Core(base, options.max_num_seqs, base.max_cells)
        wire.write({"say": "started", "limits": limits_message(limits_of(base, options))})
    except GraftError as error:
        wire.write({"say": "failed", "error": error_message(error)})
        return
    except Exception as error:
        get_logger().error("the transformers engine does not start", exc_info=error)
        broken = GraftError(
            Reason.NOT_A_MODEL,
            f"The transformers engine does not start: {error!r}",
            next_step="The service's log has the traceback.",
        )
        wire.write({"say": "failed", "error": error_message(broken)})
        return
    Process(wire, core).run()


if __name__ == "__main__":
    main()
