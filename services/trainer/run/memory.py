"""How many sequences go through the model at once, and what becomes of that when memory runs out.

A step's rows, and so what is learned of them, stay the same: they are only taken in smaller pieces. The trainers
do that (trainers/pieces.py); here is what they go by.
"""

from __future__ import annotations

import ctypes
import gc
import json
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from graft.files import write_atomic

from services.trainer.methods import METHODS
from services.trainer.run.exits import OutOfMemoryError, PreemptedError, is_out_of_memory
from services.trainer.spec import JobSpec

TRAINING, EVALUATION, SAMPLING = "training", "evaluation", "sampling"
_FILE = "pieces.json"
T = TypeVar("T")


class Pieces:
    """How many sequences are taken at once while training, evaluating and sampling answers.

    Args:
        wanted: the spec's micro_batch_size.
        log: takes a line for people.
        folder: where a size is left for the next attempt, when this one cannot go on; None for nowhere.
    """

    def __init__(self, wanted: int, log: Callable[[str], None], folder: Path | None = None) -> None:
        self.wanted = wanted
        self.times = 0
        self._log = log
        self._file = folder / _FILE if folder else None
        self._sizes: dict[str, int] = {}
        if self._file is not None:
            with suppress(OSError, ValueError):
                self.restore(json.loads(self._file.read_bytes()))

    def size(self, what: str = TRAINING, most: int = 0) -> int:
        """Sequences at once for TRAINING, EVALUATION or SAMPLING; most where it has never been less."""
        return self._sizes.get(what, most or self.wanted)

    def cut(self, items: Sequence[T], what: str = TRAINING) -> list[Sequence[T]]:
        """The items in pieces of that size."""
        size = self.size(what, len(items) if what == SAMPLING else 0)
        return [items[start : start + size] for start in range(0, len(items), size)]

    def halve(self, what: str, where: str, why: str, advice: str, now: int = 0) -> None:
        """Takes half as many at once from now on, and says so.

        Args:
            what: TRAINING, EVALUATION or SAMPLING.
            where: in words: "in step 7".
            why: the error's own words.
            advice: what to do when one sequence is too many.
            now: how many were too many, where that is less than the size.

        Raises:
            OutOfMemoryError: it was one already.
        """
        before = min(self.size(what, now), now or sys.maxsize)
        if before <= 1:
            raise OutOfMemoryError(
                f"Memory ran out {where} with a single sequence at a time ({why}). {advice}"
            )
        self._sizes[what] = before // 2
        self.times += 1
        give_memory_back()
        self._log(f"Memory ran out {where} ({why}). {self._consequence(what, before)}")

    def _consequence(self, what: str, before: int) -> str:
        size = self._sizes[what]
        if what == EVALUATION:
            return f"The evaluation begins again with {size} rows at a time instead of {before}."
        if what == SAMPLING:
            return f"Its answers are sampled again, {size} at a time instead of {before}."
        batches = -(-self.wanted // size)
        return (
            f"The step is done again with micro_batch_size {size} instead of {before} and {batches} times the "
            "accumulation: the same rows, the same global batch, and nothing that was learned is lost."
        )

    def restart(self, where: str, why: str, advice: str) -> None:
        """Halves the size for the next attempt, where this one cannot do its step again.

        Raises:
            PreemptedError: the attempt ends, and the job goes on from its last checkpoint.
            OutOfMemoryError: it was one already.
        """
        self.halve(TRAINING, where, why, advice)
        if self._file is not None:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(self._file, json.dumps(self.state()).encode())
        raise PreemptedError(
            f"Memory ran out {where}; it goes on from the last checkpoint with micro_batch_size {self.size()}"
        )

    def state(self) -> dict[str, int]:
        """What a checkpoint must hold, so that a resumed run goes on in the same pieces."""
        return {**self._sizes, "times": self.times}

    def restore(self, state: dict[str, int]) -> None:
        """Takes what state() gave; a smaller size that is known already stays."""
        self.times = max(self.times, int(state.get("times", 0)))
        for what in (TRAINING, EVALUATION, SAMPLING):
            if what in state:
                self._sizes[what] = min(int(state[what]), self._sizes.get(what, sys.maxsize))

    def figures(self) -> dict[str, float]:
        """For a version's lineage: nothing, where memory was always enough."""
        if not self.times:
            return {}
        return {"micro_batch_size": float(self.size()), "out_of_memory": float(self.times)}


def give_memory_back() -> None:
    """Frees what nobody holds any more: to the device, and on a CPU to the system."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
    with suppress(OSError, AttributeError):  # glibc's alone.
        ctypes.CDLL(None).malloc_trim(0)


def what_helps(spec: JobSpec) -> str:
    """What a user can change when one sequence is too many: only what is not so already."""
    hyper, info = spec.hyperparameters, METHODS[spec.method.kind].info
    ways = []
    if not hyper.gradient_checkpointing and info.gradient_checkpointing:
        ways.append("turn on hyperparameters.gradient_checkpointing")
    if spec.base.quantization == "none" and "nf4" in info.quantizations:
        ways.append("quantize the base (base.quantization nf4)")
    ways.append(f"lower hyperparameters.max_length_tokens (now {hyper.max_length_tokens})")
    if hyper.optimizer == "adamw":
        ways.append("use hyperparameters.optimizer adamw_8bit")
    ways.append("take a smaller base or a larger machine")
    words = ", or ".join([", ".join(ways[:-1]), ways[-1]])
    return f"{words[0].upper()}{words[1:]}; `graft plan` says what fits."


def first_line(error: BaseException) -> str:
    """What an error says, in a line."""
    line = (str(error).splitlines() or [type(error).__name__])[0]
    return line if len(line) <= 200 else f"{line[:200]}..."


def out_of_memory_words(work: Callable[[], T]) -> tuple[T | None, str]:
    """Does work: its result and "", or None and the words of the error when memory ran out.

    Whoever calls it has left the error's handler by then, whose traceback holds the tensors.
    """
    try:
        return work(), ""
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        return None, first_line(error) or "no words"


def places_of(items: Sequence[Any]) -> list[Any]:
    """Where the rows of a batch's items stand: token rows, packs of them, or rows that are mappings."""
    places = []
    for item in items:
        if isinstance(item, list):
            places += places_of(item)
        else:
            place = item.get("place") if isinstance(item, dict) else item.place
            places += [] if place is None else [place]
    return places
