"""The plan against what happens: predicted and measured peak of memory, and time by the probe and in fact.

Each point of the grid is planned, with its probe, and then trained by a worker as a job would be. The peak is
the worker's own (VmHWM: resident set, imports and all), the time that from its first reported step to its last.
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
class Point:
    """A job on a Llama of random weights: hidden features, layers, sequences of a batch, tokens of each."""

    method: str
    hidden: int
    layers: int
    batch: int
    tokens: int
    checkpointing: bool = False
    packing: bool = False
    optimizer: str = "adamw"
    objective: str = "sft"
    steps: int = 16

    @property
    def name(self) -> str:
        """For reports."""
        words = [
            f"{self.method} {self.hidden}x{self.layers} {self.batch}x{self.tokens}",
            "checkpointing" if self.checkpointing else "",
            "packed" if self.packing else "",
            "" if self.optimizer == "adamw" else self.optimizer,
            "" if self.objective == "sft" else self.objective,
        ]
        return " ".join(word for word in words if word)


GRID = (
    Point("lora", 64, 2, 4, 256),
    Point("lora", 512, 8, 8, 512),
    Point("lora", 512, 8, 8, 512, checkpointing=True),
    Point("lora", 1024, 16, 2, 128),
    Point("lora", 1024, 16, 4, 512, checkpointing=True),
    Point("lora", 512, 8, 4, 512, packing=True),
    Point("qlora", 512, 8, 4, 256),
    Point("qlora", 1024, 16, 4, 256),
    Point("full", 256, 4, 8, 256),
    Point("full", 768, 12, 4, 256),
    Point("full", 768, 12, 2, 128, optimizer="adamw_8bit"),
    Point("dora", 512, 8, 4, 256),
    Point("ia3", 512, 8, 4, 256),
    Point("prompt_tuning", 512, 8, 4, 256),
    Point("prefix_tuning", 512, 8, 4, 256),
    Point("bottleneck", 512, 8, 4, 256),
    Point("lora", 512, 8, 4, 256, objective="dpo"),
    # Chosen after the shares of services/trainer/run/heap.py were fitted to those above, before a result was seen.
    Point("lora", 768, 6, 4, 384),
    Point("qlora", 768, 6, 2, 256),
    Point("full", 384, 6, 4, 384),
    Point("dora", 768, 4, 2, 256),
    Point("lora", 768, 10, 4, 384, checkpointing=True),
    Point("ia3", 768, 6, 2, 384),
)


def run(short: bool = False) -> Report:
    """Measures the grid, or its first point."""
    report = Report("plan", {"threads": os.environ.get("OMP_NUM_THREADS", "all")})
    errors = []
    for point in GRID[: 1 if short else None]:
        with tempfile.TemporaryDirectory(prefix="graft-bench-") as folder:
            measured = measure(point, Path(folder))
        name = point.name
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


def measure(point: Point, folder: Path, *, probe: bool = True) -> dict[str, float]:
    """A point's memory in MB and, with a probe, its time in seconds: as planned, and as it was in a new folder."""
    spec = _spec(point, folder)
    request = {
        "spec_json": json.dumps(spec),
        "accelerator": "",
        "memory_bytes": 0,
        "skip_probe": not probe,
        "registry_address": "",
    }
    lines = _python("services.trainer.run.planning", "plan", given=json.dumps(request))
    plan = json.loads(lines[-1])["result"]
    (folder / "job.json").write_text(json.dumps(spec))
    measured_bytes, measured_s, steps = _train(folder / "job.json")
    found = {
        "predicted_mb": int(plan["memory"]["total_bytes"]) / 1e6,
        "measured_mb": measured_bytes / 1e6,
    }
    if probe:
        found["predicted_s"] = float(plan["time"]["total_seconds"]) * (steps - 1) / steps
        found["measured_s"] = measured_s
    return found


def _train(job: Path) -> tuple[int, float, int]:
    """A whole training: its peak of memory in bytes, seconds from the first step's end to the last's, and steps."""
    worker = subprocess.Popen(
        [sys.executable, "-m", "services.trainer.run", str(job)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=_environment(),
    )
    assert worker.stdout is not None
    status, peak_kib, times = Path(f"/proc/{worker.pid}/status"), 0, []
    with worker.stdout:
        for line in worker.stdout:
            now = time.perf_counter()
            for field in status.read_text().splitlines():
                if field.startswith("VmHWM:"):
                    peak_kib = max(peak_kib, int(field.split()[1]))
            report = json.loads(line)
            if "metrics" in report and "loss" in report["metrics"]:
                times.append(now)
    assert worker.wait(_TIMEOUT_S) == 0, job
    return peak_kib * 1024, times[-1] - times[0], len(times)


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join((str(_ROOT), str(_ROOT / "sdk")))}


def _python(*arguments: str, given: str = "") -> list[str]:
    done = subprocess.run(
        [sys.executable, "-m", *arguments],
        input=given,
        capture_output=True,
        text=True,
        env=_environment(),
        timeout=_TIMEOUT_S,
    )
    assert done.stdout.strip(), done.stderr[-2000:]
    return done.stdout.strip().splitlines()


def _spec(point: Point, folder: Path) -> dict[str, Any]:
    from tests.support.models import make_base

    base = make_base(folder / "base", hidden=point.hidden, layers=point.layers)
    text = "words and more words " * (point.tokens // 2)
    row = {"text": text}
    if point.objective == "dpo":
        row = {"prompt": "Say words.", "chosen": text, "rejected": text[::-1]}
    rows = [row] * (point.steps * point.batch)
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
            "packing": point.packing,
            "optimizer": point.optimizer,
            "report_every_steps": 1,
        },
        "objective": {point.objective: {}},
        "output": {"base" if point.method == "full" else "adapter": "bench"},
    }
