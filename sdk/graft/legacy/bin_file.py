"""Starts the conversion of an adapter_model.bin and puts what came of it in words.

The file is a pickle and is opened only by the process that this starts: without the network, without
an environment, in a folder of its own, with limits, reading tensors and nothing else.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from graft.errors import GraftError, Reason

_TIMEOUT_S = 900.0
_MAX_ANSWER_BYTES = 64 * 1024
_SAVE_AGAIN = (
    "Save it again with PEFT where you trust it: `PeftModel.from_pretrained(base, "
    "folder).save_pretrained(new_folder)` writes adapter_model.safetensors."
)
_NEXT_STEPS = {
    "no_torch": "Install torch 2.6 or newer and safetensors beside graft (pip install "
    "'graft-adapters[convert]'). Or: " + _SAVE_AGAIN,
    "no_sandbox": "Push it from a Linux that has user namespaces or seccomp. Or: " + _SAVE_AGAIN,
    "not_plain": "Do not load it anywhere unless you know who made it. " + _SAVE_AGAIN,
    "too_large": "Check where the file is from. " + _SAVE_AGAIN,
}


async def convert(source: Path, target: Path, timeout_s: float = _TIMEOUT_S) -> int:
    """Writes the tensors of source (.bin) to target (.safetensors); answers how many there are.

    Raises:
        GraftError: ADAPTER_UNUSABLE, saying what source holds instead of plain tensors, or
            NOT_INSTALLED, when torch is missing.
    """
    if sys.platform != "linux":
        raise _refused(source, "no_sandbox", "a pickle is opened only in a sandbox of Linux")
    with tempfile.TemporaryDirectory(prefix="graft-convert-") as home:
        answer = await _run(source, Path(home), timeout_s)
        problem = answer.get("problem")
        if problem:
            raise _refused(source, str(problem), str(answer.get("detail", "")))
        await asyncio.to_thread(_move, Path(home) / "out", target)
    return int(answer["tensors"])


async def _run(source: Path, home: Path, timeout_s: float) -> dict[str, Any]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-P", "-m", "graft.legacy.convert"),
        *(str(source.absolute()), str(home / "out"), str(os.getpid())),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        env=_environment(home),
        cwd=home,
        start_new_session=True,
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(timeout_s):
            text = await process.stdout.read(_MAX_ANSWER_BYTES)
            code = await process.wait()
    except TimeoutError:
        return {"problem": "too_large", "detail": f"it took more than {timeout_s:g} s"}
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
    try:
        answer = json.loads(text)
    except ValueError:
        return {"problem": "too_large", "detail": f"the conversion ended with {code}"}
    assert isinstance(answer, dict), "convert.py prints an object"
    return answer


def _environment(home: Path) -> dict[str, str]:
    # The modules are found where this process finds them; nothing else is handed down.
    paths = [path for path in sys.path if path and Path(path).exists()]
    return {
        "HOME": str(home),
        "TMPDIR": str(home),
        "LC_ALL": "C.UTF-8",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONDONTWRITEBYTECODE": "1",
    }


def _move(source: Path, target: Path) -> None:
    try:
        source.replace(target)
    except OSError:
        # Another file system.
        with source.open("rb") as read, target.open("wb") as write:
            while chunk := read.read(1024 * 1024):
                write.write(chunk)


def _refused(source: Path, problem: str, detail: str) -> GraftError:
    reason = Reason.NOT_INSTALLED if problem == "no_torch" else Reason.ADAPTER_UNUSABLE
    return GraftError(
        reason,
        f"{source} is a pickle and was not converted: {detail}",
        next_step=_NEXT_STEPS.get(problem, _SAVE_AGAIN),
        path=source,
        problem=problem,
    )
