"""Checkpoints that are whole or not there: written aside, summed, flushed, renamed; verified before use."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from graft.digests import digest_file
from graft.files import fsync_folder, write_atomic

_MANIFEST = "manifest.json"
_PREFIX = "step-"
PARTIAL_DIR = "partial"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A good checkpoint: its optimizer step and its folder."""

    step: int
    path: Path


class CheckpointStore:
    """The checkpoints of one job.

    Args:
        folder: where they are kept.
        keep: how many of the newest are kept.
        run_key: what they belong to (spec, data and base); those of another key are not used.
        log: takes a line for people when one cannot be used.
    """

    def __init__(self, folder: Path, keep: int, run_key: str, log: Callable[[str], None]) -> None:
        self._folder = folder
        self._keep = keep
        self._run_key = run_key
        self._log = log
        folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(self.partial, ignore_errors=True)

    @property
    def partial(self) -> Path:
        """The folder that a checkpoint is written to before it is one."""
        return self._folder / PARTIAL_DIR

    def write(self, step: int, fill: Callable[[], Path]) -> Checkpoint:
        """Makes a checkpoint of what fill() writes to a folder below partial, which it returns.

        Raises:
            OSError: for example on a full disk; the checkpoints before are as they were.
        """
        shutil.rmtree(self.partial, ignore_errors=True)
        target = self._folder / f"{_PREFIX}{step:09d}"
        try:
            written = fill()
            _seal(written, {"step": step, "run_key": self._run_key})
            shutil.rmtree(target, ignore_errors=True)
            written.rename(target)
            fsync_folder(self._folder)
        finally:
            shutil.rmtree(self.partial, ignore_errors=True)
        for old in self._steps()[: -self._keep]:
            shutil.rmtree(self._path(old), ignore_errors=True)
        return Checkpoint(step, target)

    def last_good(self) -> Checkpoint | None:
        """The newest checkpoint whose every byte is right; says which ones are not."""
        for step in reversed(self._steps()):
            path = self._path(step)
            problem = _problem(path, self._run_key)
            if not problem:
                return Checkpoint(step, path)
            self._log(f"The checkpoint of step {step} is not used: {problem}.")
        return None

    def place(self, step: int) -> Checkpoint:
        """An empty folder for a checkpoint that comes from another process."""
        path = self._path(step)
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(parents=True)
        return Checkpoint(step, path)

    def _steps(self) -> list[int]:
        names = [path.name for path in self._folder.glob(f"{_PREFIX}[0-9]*")]
        return sorted(int(name.removeprefix(_PREFIX)) for name in names)

    def _path(self, step: int) -> Path:
        return self._folder / f"{_PREFIX}{step:09d}"


def _seal(folder: Path, about: dict[str, object]) -> None:
    """Flushes every file to the disk and writes the manifest with their digests last."""
    digests = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        digests[path.relative_to(folder).as_posix()] = digest_file(path)
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    write_atomic(folder / _MANIFEST, json.dumps({**about, "files": digests}).encode())


def _problem(folder: Path, run_key: str) -> str:
    """Why a checkpoint cannot be used; "" when it can."""
    try:
        manifest = json.loads((folder / _MANIFEST).read_bytes())
        files, key = dict(manifest["files"]), manifest["run_key"]
    except (OSError, ValueError, KeyError, TypeError):
        return "it has no readable manifest"
    if key != run_key:
        return "it belongs to another spec, base or data"
    for name, digest in files.items():
        if not (folder / name).is_file():
            return f"its file {name} is missing"
        if digest_file(folder / name) != digest:
            return f"its file {name} is damaged"
    return ""
