"""Tries every structure in a process of its own before the engine sees it, and remembers what came out."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import sys
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path
from typing import Any

from graft.errors import GraftError, Reason

from services.inference.engines.base import Structure
from services.inference.engines.structure_grammar import form_of

_REMEMBERED = 4096
_MAX_WAITING = 64
# Of a machine that has other things to do; the trial's own limit is one of CPU time.
_PATIENCE_S = 30.0
_PACKAGE = Path(__file__).parents[3]


class Structures:
    """The trials of one engine; its process starts with the first one.

    Args:
        base: folder of the base, for its tokenizer.
        max_token_characters: of one token, at most.
    """

    def __init__(self, base: Path, max_token_characters: int) -> None:
        self._base, self._max_token_characters = base, max_token_characters
        self._known: OrderedDict[str, dict[str, Any]] = OrderedDict()
        self._process: asyncio.subprocess.Process | None = None
        self._lock, self._waiting = asyncio.Lock(), 0

    async def least_tokens(self, structure: Structure) -> int:
        """See Engine.check_structure.

        Raises:
            GraftError: INVALID_REQUEST, OVERLOADED.
        """
        form = form_of(structure)
        line = json.dumps(form).encode()
        key = hashlib.sha256(line).hexdigest()
        found = self._known.get(key)
        if found is None:
            found = await self._try(key, line)
        else:
            self._known.move_to_end(key)
        if "wrong" in found:
            raise _invalid(form["kind"], found["wrong"])
        return -(-int(found["least_characters"]) // self._max_token_characters)

    async def close(self) -> None:
        """Ends its process."""
        process, self._process = self._process, None
        if process is not None and process.returncode is None:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    async def _try(self, key: str, line: bytes) -> dict[str, Any]:
        if self._waiting >= _MAX_WAITING:
            raise _overloaded(f"{self._waiting} structures are being tried already")
        self._waiting += 1
        try:
            async with self._lock:
                # Whoever waited may have waited for the same.
                if key not in self._known:
                    self._known[key] = await self._ask(line)
                    if len(self._known) > _REMEMBERED:
                        self._known.popitem(last=False)
                return self._known[key]
        finally:
            self._waiting -= 1

    async def _ask(self, line: bytes) -> dict[str, Any]:
        answered = False
        try:
            async with asyncio.timeout(_PATIENCE_S):
                process = await self._running()
                assert process.stdin is not None
                process.stdin.write(line + b"\n")
                await process.stdin.drain()
                result = await _read(process)
            answered = True
            return result
        except (TimeoutError, OSError, ValueError) as error:
            raise _overloaded("the process that tries structures does not answer") from error
        finally:
            # After half an exchange the next one would read this one's answer.
            if not answered:
                await asyncio.shield(self.close())

    async def _running(self) -> asyncio.subprocess.Process:
        if self._process is None or self._process.returncode is not None:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "services.inference.engines.structure_trial",
                str(self._base / "tokenizer.json"),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                env={**os.environ, "PYTHONPATH": os.pathsep.join([str(_PACKAGE), *sys.path])},
            )
            await _read(self._process)
        return self._process


async def _read(process: asyncio.subprocess.Process) -> dict[str, Any]:
    assert process.stdout is not None
    line = await process.stdout.readline()
    if not line:
        raise OSError("it has ended")
    result: dict[str, Any] = json.loads(line)
    return result


def _invalid(kind: str, what: str) -> GraftError:
    field = f"sampling.structure.{kind}"
    return GraftError(
        Reason.INVALID_REQUEST,
        f"{field} {what}",
        next_step="Make it simpler, or correct it; docs/generation.md says what is known and how large "
        "it may be.",
        field=field,
    )


def _overloaded(what: str) -> GraftError:
    return GraftError(
        Reason.OVERLOADED,
        f"The structure could not be tried: {what}",
        next_step="Try again in a few seconds.",
        retry_after_s="5",
    )
