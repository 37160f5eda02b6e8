"""Training speed and peak memory of one base and one method: ours beside TRL alone and the tutorial recipe."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graft.trainer.v1 import job_spec_pb2 as pb

from bench.contenders import Contenders
from bench.gpu.architectures import (
    QWEN25_05B,
    QWEN25_7B,
    QWEN25_15B,
    TINY,
    Architecture,
    write_base,
)
from bench.harness import Report, compare
from bench.training import everybody, set_goals
from services.trainer.run.models import load_model
from services.trainer.spec import BaseSpec
from services.trainer.spec.base import parse_base


@dataclass(frozen=True, slots=True)
class Case:
    """What is trained how, on rows of alpaca_en_demo.json or like it."""

    architecture: Architecture
    method: str
    micro_batch_size: int
    rows: int
    max_tokens: int = 512

    @property
    def name(self) -> str:
        """For reports and files."""
        return f"gpu-training-{self.architecture.name}-{self.method}"


CASES = (
    Case(QWEN25_05B, "lora", 8, 512),
    Case(QWEN25_05B, "qlora", 8, 512),
    Case(QWEN25_05B, "full", 8, 512),
    Case(QWEN25_15B, "lora", 8, 256),
    Case(QWEN25_15B, "qlora", 8, 256),
    Case(QWEN25_7B, "lora", 4, 96),
    Case(QWEN25_7B, "qlora", 4, 96),
)
TINY_CASES = tuple(Case(TINY, method, 4, 4, 64) for method in ("lora", "qlora", "full"))


def run(case: Case, *, short: bool = False) -> Report:
    """All contenders in turns; short is one round that counts, without goals."""
    with tempfile.TemporaryDirectory(prefix="graft-bench-") as folder:
        base = write_base(case.architecture, Path(folder) / "base")
        spec = _base_spec(base, case.method)
        contenders = Contenders(
            Path(folder),
            lambda: _load(base, spec),
            rows=case.rows,
            method=case.method,
            micro_batch_size=case.micro_batch_size,
            max_tokens=case.max_tokens,
        )
        report = compare(
            case.name,
            everybody(contenders),
            rounds=1 if short else 3,
            warm_up_rounds=0 if short else 1,
            settings=contenders.settings | {"base": case.architecture.name},
        )
        set_goals(report, contenders.real_rows)
    return report


def _base_spec(base: Path, method: str) -> BaseSpec:
    return parse_base(pb.BaseSpec(source=str(base)), "nf4" if method == "qlora" else "none")


def _load(base: Path, spec: BaseSpec) -> Any:
    return load_model(base, spec)
