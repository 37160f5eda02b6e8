"""Writes checkpoints beside the training: a thread writes, sums, flushes and renames what was copied at a step's end.

The next checkpoint waits for the one before. What is too large to be copied is written while training waits.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Self

import psutil

from services.trainer.run.checkpoints import CheckpointStore
from services.trainer.run.manifests import Score
from services.trainer.run.snapshots import Snapshot

# Limit, use, and where it says how much of the use is a cache of files that the kernel can drop.
_CGROUPS = (
    ("memory.max", "memory.current", "memory.stat", "inactive_file "),
    (
        "memory/memory.limit_in_bytes",
        "memory/memory.usage_in_bytes",
        "memory/memory.stat",
        "total_inactive_file ",
    ),
)
_CGROUP_FOLDER = Path("/sys/fs/cgroup")
# Of the memory that is left, how much a copy may take.
_COPY_SHARE = 0.5


class CheckpointWriter:
    """The one that a training gives its checkpoints to. One thread at a time.

    Args:
        store: where they are kept; nothing else may use it before wait() has returned.
        written: is told the step of each one that is safe on disk, on whatever thread wrote it.
        spare_bytes: how much memory is left; asked before each copy.
    """

    def __init__(
        self,
        store: CheckpointStore,
        written: Callable[[int], None],
        spare_bytes: Callable[[], int] | None = None,
    ) -> None:
        self._store = store
        self._written = written
        self._spare_bytes = spare_bytes or spare_memory_bytes
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def submit(self, step: int, snapshot: Snapshot, score: Score | None = None) -> None:
        """Makes a checkpoint of a snapshot whose tensors are the live ones; returns when training may go on.

        Raises:
            GraftError, OSError: as CheckpointStore.write(), of the checkpoint before this one, or of this
                one where it is too large to be copied.
        """
        self.wait()
        too_large = snapshot.size_bytes > _COPY_SHARE * self._spare_bytes()
        if too_large or not snapshot.can_be_copied:
            self._write(step, snapshot, score)
            return
        copied = snapshot.on_host()
        self._thread = threading.Thread(
            target=self._work, args=(step, copied, score), name=f"checkpoint-{step}", daemon=True
        )
        self._thread.start()

    def among_best(self, score: Score, count: int) -> bool:
        """Whether a score is among so many best ones of the checkpoints. Waits, and raises as wait() does."""
        self.wait()
        return self._store.among_best(score, count)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: object) -> None:
        """Waits until the last one is on disk; its error is raised, but not in place of another."""
        if kind is None:
            self.wait()
            return
        with suppress(Exception):
            self.wait()

    def check(self) -> None:
        """Raises the error of a checkpoint that could not be written, once; never waits."""
        if self._thread is not None and not self._thread.is_alive():
            self.wait()

    def wait(self) -> None:
        """Waits until the last one is on disk.

        Raises:
            GraftError, OSError: as CheckpointStore.write().
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _work(self, step: int, snapshot: Snapshot, score: Score | None) -> None:
        try:
            self._write(step, snapshot, score)
        except BaseException as error:  # Raised again where the training can hear it.
            self._error = error

    def _write(self, step: int, snapshot: Snapshot, score: Score | None) -> None:
        self._store.write(step, snapshot.write, score, snapshot.size_bytes)
        self._written(step)


def spare_memory_bytes(cgroup: Path = _CGROUP_FOLDER) -> int:
    """Memory that this process can still have: the machine's, or less where a container has a limit."""
    spare = [psutil.virtual_memory().available]
    for limit, used, stat, field in _CGROUPS:
        try:
            free = int((cgroup / limit).read_text()) - int((cgroup / used).read_text())
            lines = (cgroup / stat).read_text().splitlines()
        except (OSError, ValueError):  # There is no limit, or it is "max".
            continue
        spare.append(free + sum(int(one.split()[1]) for one in lines if one.startswith(field)))
    return max(0, min(spare))
