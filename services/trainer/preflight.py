"""Checks a job before it may wait for a slot: its base, its target modules and its data. No torch.

Runs as `python -m services.trainer.preflight` with the spec on standard input, in a process of its
own: a large data set neither holds up the service nor takes it along when memory runs out.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
from abc import ABC, abstractmethod
from pathlib import Path

from graft.bases import read_modules
from graft.errors import GraftError, Reason

from services.trainer.convert import spec_from_json
from services.trainer.formats import load_examples
from services.trainer.jobs import Job
from services.trainer.methods.lora import TARGET_WORDS
from services.trainer.spec import JobSpec, local_path

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
# A head that shares the embedding's weights is a module without a tensor of its own.
_WITHOUT_TENSOR = frozenset({"lm_head"})


class Preflight(ABC):
    """What is asked of a job before it is queued."""

    @abstractmethod
    async def check(self, job: Job) -> None:
        """Does nothing for a job that can be tried.

        Raises:
            GraftError: BAD_DATA, naming row and field; NOT_A_MODEL or INVALID_SPEC; INTERNAL.
        """


class NoPreflight(Preflight):
    """Lets every job pass: for workers that train nothing."""

    async def check(self, job: Job) -> None:
        """Nothing is wrong."""


class ProcessPreflight(Preflight):
    """Runs check_spec in a process of its own."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s

    async def check(self, job: Job) -> None:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "services.trainer.preflight",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        talk = process.communicate(job.spec_json.encode())
        try:
            output, errors = await asyncio.wait_for(talk, self._timeout_s)
        except TimeoutError:
            raise _failed(f"it took more than {self._timeout_s:g} s") from None
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if process.returncode != 0:
            raise _failed(f"it ended with code {process.returncode}: {_last(errors)}")
        found = json.loads(output)
        if found:
            raise GraftError(
                Reason(found["reason"]), found["message"], next_step=found["next_step"]
            )


def check_spec(spec: JobSpec) -> None:
    """Looks at what a spec names: the base's folder, its modules, every row of the data.

    Raises:
        GraftError: NOT_A_MODEL, INVALID_SPEC or BAD_DATA.
    """
    folder = local_path(spec.base.source)
    # What is not on this machine (a hub id, an uploaded blob) is fetched, and then checked, by the worker.
    if folder.exists() or _HUB_ID.fullmatch(spec.base.source) is None:
        _check_targets(folder, getattr(spec.method, "target_modules", ()))
    for source in spec.dataset.sources:
        if source.path:
            load_examples(local_path(source.path), source.format, source.max_rows)


def _check_targets(folder: Path, targets: tuple[str, ...]) -> None:
    paths = {module.path for module in read_modules(folder)}
    for target in targets:
        if target in TARGET_WORDS:
            continue
        known = any(path == target or path.endswith(f".{target}") for path in paths)
        if not known and target not in _WITHOUT_TENSOR:
            names = sorted({path.rsplit(".", 1)[-1] for path in paths})
            raise GraftError(
                Reason.INVALID_SPEC,
                f"method.lora.target_modules names {target!r}, which {folder} does not have",
                next_step=f"Name some of {', '.join(names)}, or none for all linear layers.",
            )


def _failed(why: str) -> GraftError:
    return GraftError(
        Reason.INTERNAL,
        f"The check of the job could not be completed: {why}",
        next_step="Create the job again; if it stays so, look into the trainer's log.",
    )


def _last(errors: bytes) -> str:
    lines = errors.decode("utf-8", "replace").strip().splitlines()
    return lines[-1] if lines else "it wrote nothing"


def main() -> None:
    """Checks the spec on standard input; writes {} or the error as JSON."""
    result = {}
    try:
        check_spec(spec_from_json(sys.stdin.read()))
    except GraftError as error:
        result = {
            "reason": error.reason.value,
            "message": error.message,
            "next_step": error.next_step,
        }
    json.dump(result, sys.stdout)


if __name__ == "__main__":
    main()
