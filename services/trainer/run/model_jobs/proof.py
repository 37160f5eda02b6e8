"""Proves a result: a fresh process loads it, and its logits must be those of the trained model, within a limit."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from graft.errors import GraftError, Reason

from services.trainer.spec import BaseSpec

# What rounding to the type of the weights may move logits by, as a share of their spread. An adapter that is
# missing altogether moves them by about 1.
LIMITS = {
    "float32": 1e-3,
    "float16": 0.01,
    "bfloat16": 0.05,
    "nf4": 0.35,
    "w4a16": 0.35,
    "f32": 1e-3,
    "f16": 0.01,
    "bf16": 0.05,
    "q8_0": 0.05,
    "svd": 0.05,
}


@dataclass(frozen=True, slots=True)
class Loading:
    """What the fresh process loads.

    Args:
        folder: a model's, or the base of adapter.
        adapter: a PEFT folder; None for none.
        base: how the base of an adapter is held.
        gguf: name of a file in folder; "" for none.
        config: the model's folder that the file was made of.
    """

    folder: Path
    adapter: Path | None = None
    base: BaseSpec | None = None
    gguf: str = ""
    config: Path | None = None


@dataclass(frozen=True, slots=True)
class Proof:
    """What the fresh process found, within its limit; the names are logits.Distance's."""

    relative_rms: float
    largest: float
    top1_agreement: float
    positions: int
    limit: float

    def metrics(self) -> dict[str, float]:
        """For the version's lineage."""
        return {
            "logits_difference": self.relative_rms,
            "logits_largest_difference": self.largest,
            "logits_top1_agreement": self.top1_agreement,
            "logits_limit": self.limit,
        }

    def describe(self) -> str:
        """In words."""
        return (
            f"logits differ by {self.relative_rms:.2g} of their spread (limit {self.limit:.2g}), at most by "
            f"{self.largest:.2g}; the most probable token is the same at {self.top1_agreement:.1%} of "
            f"{self.positions} positions"
        )


def prove(loading: Loading, probe: Path, limit: float, what: str) -> Proof:
    """Compares what a fresh process loads with the probe's logits.

    Args:
        loading: what it loads.
        probe: what the trained model said, as logits.write_probe() keeps it.
        limit: the largest relative_rms.
        what: the result in words, for the error.

    Raises:
        GraftError: NOT_THE_SAME, with the number.
    """
    request = probe.with_suffix(".json")
    said: dict[str, Any] = {"probe": str(probe), "folder": str(loading.folder)}
    if loading.adapter is not None:
        assert loading.base is not None
        said |= {"adapter": str(loading.adapter), "base": asdict(loading.base)}
    if loading.gguf:
        said |= {"gguf": loading.gguf, "config": str(loading.config)}
    request.write_text(json.dumps(said), "utf-8")
    module = "services.trainer.run.model_jobs.check"
    done = subprocess.run(
        [sys.executable, "-m", module, str(request)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        why = (done.stderr.strip().splitlines() or ["it wrote nothing"])[-1]
        raise _not_the_same(what, f"a fresh process could not load it ({why})")
    found = json.loads(done.stdout.strip().splitlines()[-1])
    found.pop("dtype")
    proof = Proof(**found, limit=limit)
    if not proof.relative_rms <= limit:
        raise _not_the_same(
            what,
            f"its logits differ by {proof.relative_rms:.3g} of their spread, and {limit:.3g} is the limit; the most "
            f"probable token is the same at {proof.top1_agreement:.1%} of {proof.positions} positions",
            difference=f"{proof.relative_rms:.6g}",
            limit=f"{limit:g}",
        )
    return proof


def _not_the_same(what: str, why: str, **numbers: str) -> GraftError:
    return GraftError(
        Reason.NOT_THE_SAME,
        f"{what} is not what was trained: {why}; nothing was committed",
        next_step="Choose a longer dtype, no requantization or a higher rank; proof.max_relative_rms moves the limit.",
        **numbers,
    )
