"""Checkpoints that are whole or not there: written aside, summed, flushed, renamed; verified before use, kept by policy.

It knows files and steps, no torch; run/checkpoint_writer.py writes through it beside the training.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from graft.files import fsync_folder

from services.trainer.run.disk import is_disk_full, storage_full
from services.trainer.run.manifests import Score, read_manifest, seal, verify

_PREFIX = "step-"
PARTIAL_DIR = "partial"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A good checkpoint: its optimizer step, its folder, and what it was worth where it was evaluated."""

    step: int
    path: Path
    score: Score | None = None


@dataclass(frozen=True, slots=True)
class Keep:
    """Which checkpoints are kept; each rule by itself is enough.

    Args:
        newest: how many of the newest, at least 1.
        best: how many of those with the best scores.
        every_steps: whether those of steps that this number divides, for good; 0 for none.
    """

    newest: int
    best: int = 0
    every_steps: int = 0

    def choose(self, found: Iterable[Checkpoint]) -> set[int]:
        """The steps of the checkpoints that are kept."""
        by_age = sorted(found, key=lambda one: one.step)
        kept = {one.step for one in by_age[-self.newest :]}
        kept |= {one.step for one in rank(by_age)[: self.best]}
        if self.every_steps:
            kept |= {one.step for one in by_age if one.step % self.every_steps == 0}
        return kept


def rank(found: Iterable[Checkpoint]) -> list[Checkpoint]:
    """Those that have a score, the best first; of two that are as good the earlier one."""
    scored = [one for one in found if one.score is not None]
    return sorted(scored, key=lambda one: (one.score.rank if one.score else 0.0, one.step))


class CheckpointStore:
    """The checkpoints of one job. One thread at a time.

    Args:
        folder: where they are kept.
        keep: which ones.
        run_key: what they belong to (spec, data and base); those of another key are not used.
        log: takes a line for people when one cannot be used.
    """

    def __init__(self, folder: Path, keep: Keep, run_key: str, log: Callable[[str], None]) -> None:
        self._folder = folder
        self._keep = keep
        self._run_key = run_key
        self._log = log
        folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(self.partial, ignore_errors=True)
        # Those of this run that are not known to be damaged.
        self._usable = {one.step: one for one in map(self._recall, self._steps()) if one}

    @property
    def partial(self) -> Path:
        """The folder that a checkpoint is written to before it is one."""
        return self._folder / PARTIAL_DIR

    @property
    def unused(self) -> Path:
        """A folder beside them for whoever must be given one, and looks into it: nothing is ever written there."""
        return self._folder / "unused"

    def write(
        self,
        step: int,
        fill: Callable[[Path], None],
        score: Score | None = None,
        needed_bytes: int = 0,
    ) -> Checkpoint:
        """Makes a checkpoint of the files that fill() writes into the empty folder that it is given.

        Args:
            step: the optimizer step that is done; one that is there already is written anew.
            fill: writes the files.
            score: what the step is worth, where it was evaluated.
            needed_bytes: about how much fill() writes; 0 where that is not known.

        Raises:
            GraftError: STORAGE_FULL, with path, bytes free and needed; the checkpoints before are as they were.
            OSError: what else went wrong; the same holds.
        """
        shutil.rmtree(self.partial, ignore_errors=True)
        self.partial.mkdir()
        checkpoint = Checkpoint(step, self._path(step), score)
        try:
            fill(self.partial)
            seal(self.partial, step, self._run_key, score)
            shutil.rmtree(checkpoint.path, ignore_errors=True)
            self.partial.rename(checkpoint.path)
            fsync_folder(self._folder)
        except Exception as error:
            if not is_disk_full(error, self._folder, needed_bytes):
                raise
            shutil.rmtree(self.partial, ignore_errors=True)
            what = f"checkpoint of step {step}"
            raise storage_full(
                error, self._folder, what, needed_bytes, self._kept_words()
            ) from error
        finally:
            shutil.rmtree(self.partial, ignore_errors=True)
        self._usable[step] = checkpoint
        self._prune()
        return checkpoint

    def last_good(self) -> Checkpoint | None:
        """The newest checkpoint whose every byte is right; says which ones are not."""
        found = self._steps()
        for step in reversed(found):
            if good := self._verified(step):
                return good
        if found:
            self._log("No checkpoint can be used: the training begins anew.")
        return None

    def best(self) -> Checkpoint | None:
        """The checkpoint with the best score whose every byte is right; says which better ones are not."""
        for one in rank(self._usable.values()):
            if good := self._verified(one.step):
                return good
        return None

    def among_best(self, score: Score, count: int) -> bool:
        """Whether a score would be among so many best ones; nothing is verified."""
        best = rank(self._usable.values())[:count]
        return len(best) < count or any(score.beats(one.score) for one in best)

    def place(self, step: int) -> Checkpoint:
        """An empty folder for a checkpoint that comes from another process."""
        path = self._path(step)
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(parents=True)
        return Checkpoint(step, path)

    def _verified(self, step: int) -> Checkpoint | None:
        problem = verify(self._path(step), self._run_key)
        if not problem:
            return self._usable.get(step) or self._recall(step)
        self._usable.pop(step, None)
        self._log(f"The checkpoint of step {step} is not used: {problem}.")
        return None

    def _recall(self, step: int) -> Checkpoint | None:
        manifest = read_manifest(self._path(step))
        if manifest is None or manifest.run_key != self._run_key:
            return None
        return Checkpoint(step, self._path(step), manifest.score)

    def _prune(self) -> None:
        """Removes what no rule keeps; damaged ones and those of another run, which nothing can use, too."""
        kept = self._keep.choose(self._usable.values())
        for step in self._steps():
            if step not in kept:
                self._usable.pop(step, None)
                shutil.rmtree(self._path(step), ignore_errors=True)

    def _kept_words(self) -> str:
        if not self._usable:
            return "there is no checkpoint before it"
        return f"The checkpoint of step {max(self._usable)} is kept"

    def _steps(self) -> list[int]:
        names = [path.name for path in self._folder.glob(f"{_PREFIX}[0-9]*")]
        return sorted(int(name.removeprefix(_PREFIX)) for name in names)

    def _path(self, step: int) -> Path:
        return self._folder / f"{_PREFIX}{step:09d}"
