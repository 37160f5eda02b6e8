"""The plan against what happens: predicted and measured peak of memory, and time by the probe and in fact.

Each point of the grid is planned, with its probe, in a process of its own; the peak is the kernel's
(VmHWM: resident set, imports and all). Time compares the probe's speed with the median of a whole training's steps.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.harness import Report, Summary

_MOST_MEMORY_ERROR, _MOST_TIME_ERROR = 0.15, 0.25
_ROOT = Path(__file__).parents[1]
_TIMEOUT_S = 900


@dataclass(frozen=True)
class _Point:
    method: str
    hidden: int
    layers: int
    batch: int
    tokens: int
    checkpointing: bool = False


_GRID = (
    _Point("lora", 256, 4, 4, 256),
    _Point("lora", 512, 8, 8, 512),
    _Point("lora", 512, 8, 8, 512, True),
    _Point("qlora", 512, 8, 4, 256),
    _Point("full", 256, 4, 8, 256),
    _Point("full", 768, 12, 4, 256),
    _Point("dora", 512, 8, 4, 256),
    _Point("prompt_tuning", 512, 8, 4, 256),
)


def run(short: bool = False) -> Report:
    """Measures the grid, or its first point."""
    report = Report("plan", {"threads": os.environ.get("OMP_NUM_THREADS", "all")})
    errors = []
    for point in _GRID[: 1 if short else None]:
        with tempfile.TemporaryDirectory(prefix="graft-bench-") as folder:
            measured = _measure(point, Path(folder))
        name = f"{point.method} {point.hidden}x{point.layers} {point.batch}x{point.tokens}"
        name += " checkpointing" if point.checkpointing else ""
        report.rounds.append({name: measured})
        report.figures[name] = {key: Summary.of([one]) for key, one in measured.items()}
        print(f"   plan: {name}: {measured}", flush=True)
        errors.append(abs(measured["predicted_mb"] / measured["measured_mb"] - 1))
    worst = max(errors)
    report.goal(
        "largest error of memory",
        f"at most {_MOST_MEMORY_ERROR}",
        worst,
        worst <= _MOST_MEMORY_ERROR,
    )
    times = [
        abs(one["predicted_s"] / one["measured_s"] - 1) for r in report.rounds for one in r.values()
    ]
    report.goal(
        "largest error of time",
        f"at most {_MOST_TIME_ERROR}",
        max(times),
        max(times) <= _MOST_TIME_ERROR,
    )
    return report


def _measure(point: _Point, folder: Path) -> dict[str, float]:
    spec = _spec(point, folder)
    request = {
        "spec_json": json.dumps(spec),
        "accelerator": "",
        "memory_bytes": 0,
        "skip_probe": False,
        "registry_address": "",
    }
    lines = _python("services.trainer.run.planning", "plan", given=json.dumps(request))
    plan = json.loads(lines[-1])["result"]
    (folder / "job.json").write_text(json.dumps(spec))
    begin = time.time()
    reports = [json.loads(one) for one in _python("services.trainer.run", str(folder / "job.json"))]
    del begin
    steps = [one["metrics"] for one in reports if "metrics" in one]
    speeds = sorted(
        float(one["tokens_per_second"]) for one in steps if one.get("tokens_per_second")
    )
    actual = speeds[len(speeds) // 2]
    seconds = float(plan["time"]["total_seconds"])
    return {
        "predicted_mb": int(plan["memory"]["total_bytes"]) / 1e6,
        "measured_mb": int(plan["measured_peak_bytes"]) / 1e6,
        "predicted_s": seconds,
        "measured_s": seconds * float(plan["time"]["tokens_per_second"]) / actual,
    }


def _python(*arguments: str, given: str = "") -> list[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(_ROOT), str(_ROOT / "sdk")))}
    done = subprocess.run(
        [sys.executable, "-m", *arguments],
        input=given,
        capture_output=True,
        text=True,
        env=environment,
        timeout=_TIMEOUT_S,
    )
    assert done.stdout.strip(), done.stderr[-2000:]
    return done.stdout.strip().splitlines()


def _spec(point: _Point, folder: Path) -> dict[str, Any]:
    from tests.support.models import make_base

    base = make_base(folder / "base", hidden=point.hidden, layers=point.layers)
    rows = [
        {"text": "words and more words " * (point.tokens // 2)} for _ in range(10 * point.batch)
    ]
    data = folder / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "base": {"source": str(base)},
        "dataset": {"path": str(data)},
        "method": {point.method: {}},
        "hyperparameters": {
            "epochs": 1,
            "micro_batch_size": point.batch,
            "max_length_tokens": point.tokens,
            "gradient_checkpointing": point.checkpointing,
        },
        "output": {"base" if point.method == "full" else "adapter": "bench"},
    }
