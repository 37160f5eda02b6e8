"""Kinds of adapters beside plain LoRA, in the engine: DoRA and IA3 beside LoRA's speed.

A toy model on a CPU, 4 adapters of a kind and the base in one batch, an engine for each kind. The engines take
turns. What a kind adds to this is a Part: its contenders, and what they are held against.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from bench.harness import Contender, Report, compare
from bench.lora import EngineProcess
from bench.processes import REPOSITORY
from services.inference.vllm_plugin import scales_entry
from tests.support.models import LINEAR, make_adapter
from tests.support.scaled_folders import make_dora, make_ia3

GOAL = 0.8
ADAPTERS = 4
RANK = 8
MAX_TOKENS = 128
STREAMS = (16, 64)
# An engine of plain LoRA in which there are no scales to be looked for.
_WITHOUT = "lora, scales off"


@dataclass(frozen=True, slots=True)
class Part:
    """What is measured of some kinds.

    Attributes:
        contenders: by name; each answers with "tokens_per_s".
        peers: what each is held against: its tokens/s are wanted to be GOAL of the peer's.
        beside: the same, with nothing that is wanted.
    """

    contenders: Mapping[str, Contender]
    peers: Mapping[str, str]
    beside: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Setting:
    """What a part is made with.

    Attributes:
        base: the model's folder.
        folder: for files of the run.
        stack: ends what was started.
    """

    base: Path
    folder: Path
    stack: ExitStack


def run(*, short: bool = False, base: Path = REPOSITORY / "examples/base") -> Report:
    """Starts an engine per kind, and lets them take turns."""
    with tempfile.TemporaryDirectory(prefix="graft-bench-") as temporary, ExitStack() as stack:
        setting = Setting(base, Path(temporary), stack)
        parts = [make(setting) for make in PARTS]
        contenders = {name: one for part in parts for name, one in part.contenders.items()}
        report = compare(
            "kinds",
            contenders,
            rounds=2 if short else 9,
            warm_up_rounds=1 if short else 2,
            settings={
                "adapters": ADAPTERS,
                "max_tokens": MAX_TOKENS,
                "rank": RANK,
                "cores": os.cpu_count(),
            },
        )
    report.ratios.clear()
    for part in parts:
        for name, peer in part.beside.items():
            report.ratio(name, peer, "tokens_per_s")
        for name, peer in part.peers.items():
            reached = report.ratio(name, peer, "tokens_per_s").median
            report.goal(f"tokens/s, {name} / {peer}", f"at least {GOAL}", reached, reached >= GOAL)
    return report


def scaled(setting: Setting) -> Part:
    """DoRA and IA3, and all kinds in one batch, beside plain LoRA."""
    makers: dict[str, list[Callable[[Path, Path, int], Path]]] = {
        "lora": [lora] * ADAPTERS,
        _WITHOUT: [lora] * ADAPTERS,
        "dora": [dora] * ADAPTERS,
        "ia3": [ia3] * ADAPTERS,
        "mixed": [lora, dora, ia3, lora],
    }
    contenders: dict[str, Contender] = {}
    for kind, makes in makers.items():
        adapters = setting.folder / kind
        for number, make in enumerate(makes):
            make(adapters / str(number), setting.base, number)
        engine = EngineProcess(
            [
                str(setting.base),
                *("--rank", str(RANK), "--max-tokens", str(MAX_TOKENS)),
                *("--lora", str(adapters), "--compiled"),
            ],
            {scales_entry.VARIABLE: scales_entry.OFF if kind == _WITHOUT else ""},
            setting.folder / f"{kind}.log",
        )
        setting.stack.callback(engine.close)
        for streams in STREAMS:
            contenders[f"{kind}, {streams} streams"] = partial(engine.measure, ADAPTERS, streams)
    peers = {
        f"{kind}, {streams} streams": f"lora, {streams} streams"
        for kind in ("dora", "ia3", "mixed")
        for streams in STREAMS
    }
    beside = {f"lora, {streams} streams": f"{_WITHOUT}, {streams} streams" for streams in STREAMS}
    return Part(contenders, peers, beside)


def lora(folder: Path, base: Path, seed: int) -> Path:
    """On every linear layer."""
    targets = [module.split(".")[1] for module in LINEAR]
    return make_adapter(folder, base, rank=RANK, seed=seed, scale=0.02, targets=targets)


def dora(folder: Path, base: Path, seed: int) -> Path:
    """The same, with magnitudes."""
    return make_dora(folder, base, rank=RANK, seed=seed)


def ia3(folder: Path, base: Path, seed: int) -> Path:
    """On three layers of each block."""
    return make_ia3(folder, base, seed=seed)


PARTS: tuple[Callable[[Setting], Part], ...] = (scaled,)
