"""What the service costs: a job through trainer and registry, the worker alone, and a plain TRL script.

All train the same LoRA on the same base, which is on this machine, for the same number of steps of rows of
one length, each in processes of its own, in turns. A job's time is from CreateJob to SUCCEEDED, with its
version in the registry; a script's from its start to its end. First steps are counted from there, too.

Our loop itself is faster than TRL's, which would hide what the service costs. So the service is held against
our own worker alone, which trains by the same loop and speaks to nobody: what a job of five minutes pays is
what is outside of its steps, and what its steps take longer. GRAFT_BENCH_JOB_S=300 measures jobs of five
minutes; without it they have one minute, and the share is reckoned for five.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from graft.client import Client

from bench.harness import Measurement, Report, Summary, compare
from bench.processes import REPOSITORY, ServerProcess, start_graft_service

_JOB_S, _FIVE_MINUTES_S = 60.0, 300.0
_ROWS, _BATCH, _LENGTH = 512, 8, 256
_CALIBRATION_STEPS = 12
_IDLE_S = 1.0
_WAITING = "services.trainer.run.warm"
_WORST_OVERHEAD, _WORST_FIRST_STEP_S = 0.02, 5.0
_SERVICE, _WORKER, _PLAIN = "graft", "graft's worker alone", "plain TRL script"


def run(short: bool = False) -> Report:
    """Measures all in turns; short only shows that they run."""
    job_s = 2.0 if short else float(os.environ.get("GRAFT_BENCH_JOB_S", _JOB_S))
    with tempfile.TemporaryDirectory(prefix="graft-bench-") as name:
        task = Task(Path(name))
        once = task.worker_alone(_CALIBRATION_STEPS)
        steps = max(3, round(job_s / once["step_s"]))
        with task.services() as trainer:
            report = compare(
                "overhead",
                {
                    _SERVICE: lambda: asyncio.run(task.through_service(trainer, steps)),
                    _WORKER: lambda: task.worker_alone(steps),
                    _PLAIN: lambda: task.plain(steps),
                },
                rounds=1 if short else 3,
                settings={
                    "steps": steps,
                    "job_s": job_s,
                    "batch": _BATCH,
                    "tokens_per_row": _LENGTH,
                },
            )
    set_goals(report)
    return report


def set_goals(report: Report) -> None:
    """Holds what a job pays, and how soon it begins, against what is promised."""
    for peer in (_WORKER, _PLAIN):
        paid = [_paid(one[_SERVICE], one[peer]) for one in report.rounds]
        share = Summary.of([seconds / _FIVE_MINUTES_S for seconds in paid])
        report.figures.setdefault(f"{_SERVICE} - {peer}", {})["of_five_minutes"] = share
        figure = f"overhead of a job of 5 minutes, over {peer}"
        wanted = f"at most {_WORST_OVERHEAD:.0%}"
        report.goal(figure, wanted, share.median, share.median <= _WORST_OVERHEAD)
    first = report.figures[_SERVICE]["first_step_s"].median
    wanted = f"at most {_WORST_FIRST_STEP_S:g} s"
    report.goal(
        "first step after the job is created, s", wanted, first, first <= _WORST_FIRST_STEP_S
    )


def _paid(ours: Measurement, peer: Measurement) -> float:
    """Seconds that a job of five minutes' steps takes longer than a peer's that does the same."""
    steps_s = _FIVE_MINUTES_S * (ours["step_s"] / peer["step_s"] - 1)
    return steps_s + ours["outside_s"] - peer["outside_s"]


@dataclass(slots=True)
class Times:
    """When what happened, in seconds of the clock; steps as they were reported."""

    begin_s: float
    steps_s: list[float]
    end_s: float

    def measured(self) -> Measurement:
        """total_s = first_step_s + the other steps + after_s; outside_s is all but the steps."""
        per_step = (self.steps_s[-1] - self.steps_s[0]) / (len(self.steps_s) - 1)
        total_s = self.end_s - self.begin_s
        return {
            "total_s": total_s,
            "first_step_s": self.steps_s[0] - self.begin_s,
            "step_s": per_step,
            "after_s": self.end_s - self.steps_s[-1],
            "outside_s": total_s - per_step * len(self.steps_s),
        }


class Task:
    """One base, its rows, and everybody who trains on them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._base, self._rows = folder / "base", folder / "rows.jsonl"
        self._count = 0
        _write_rows(self._rows)
        subprocess.run(
            [sys.executable, "-m", "bench.small_base", str(self._base), str(self._rows)],
            check=True,
            cwd=REPOSITORY,
            env=_environment(),
        )

    def spec(self, steps: int) -> dict[str, Any]:
        """The job; its adapter is another one each time."""
        self._count += 1
        return {
            "base": {"source": str(self._base)},
            "dataset": {"path": str(self._rows)},
            "method": {"lora": {"rank": 16, "alpha": 32}},
            "hyperparameters": {
                "max_steps": steps,
                "micro_batch_size": _BATCH,
                "max_length_tokens": _LENGTH,
                "learning_rate": 2e-4,
            },
            "resources": {"cpu_threads": os.cpu_count()},
            "output": {"adapter": f"bench-{self._count}"},
        }

    @contextmanager
    def services(self) -> Iterator[str]:
        """A registry and a trainer; the trainer's address."""
        servers: list[ServerProcess] = []
        try:
            registry, address = start_graft_service("registry", {}, self._folder / "registry")
            servers.append(registry)
            settings = {"registry_address": address, "slots": 1}
            trainer, address = start_graft_service("trainer", settings, self._folder / "trainer")
            servers.append(trainer)
            yield address
        finally:
            for server in reversed(servers):
                server.close()

    async def through_service(self, trainer: str, steps: int) -> Measurement:
        """A job, from its creation to its version; nobody computes before it or, for the next, after it."""
        try:
            await self._idle()
            return await self._job(trainer, steps)
        finally:
            await self._idle()

    async def _idle(self) -> None:
        """Waits until a worker that the trainer has wait for the next job has read its libraries."""
        waits, spent_s, again_s = False, -1.0, 0.0
        while not waits or again_s > spent_s:
            waits = any(_WAITING in " ".join(each.cmdline()) for each in _children())
            spent_s, again_s = again_s, self._spent_s()
            await asyncio.sleep(_IDLE_S)

    def _spent_s(self) -> float:
        times = [each.cpu_times() for each in _children()]
        return round(sum(each.user + each.system for each in times), 1)

    async def _job(self, trainer: str, steps: int) -> Measurement:
        async with Client(trainer=trainer) as client:
            times = Times(time.time(), [], 0.0)
            job = await client.train(self.spec(steps))
            async for event in job.events():
                if event.metrics is not None:
                    times.steps_s.append(time.time())
            times.end_s = time.time()
            await job.wait()  # Raises where it has failed.
        return times.measured()

    def worker_alone(self, steps: int) -> Measurement:
        """Our worker without trainer and registry."""
        folder = self._folder / f"alone-{self._count}"
        folder.mkdir()
        path = folder / "spec.json"
        path.write_text(json.dumps(self.spec(steps)), "utf-8")
        return _timed(["services.trainer.run", str(path)], lambda line: "metrics" in line)

    def plain(self, steps: int) -> Measurement:
        """The script."""
        self._count += 1
        out = self._folder / f"plain-{self._count}"
        arguments = [str(self._base), str(self._rows), str(out), str(steps)]
        return _timed(["bench.plain_sft", *arguments], lambda line: "step" in line)


def _children() -> list[psutil.Process]:
    return psutil.Process().children(recursive=True)


def _timed(module: list[str], is_step: Any) -> Measurement:
    """Runs `python -m module` to its end; its lines of JSON say when a step was done."""
    times = Times(time.time(), [], 0.0)
    process = subprocess.Popen(
        [sys.executable, "-m", *module],
        cwd=REPOSITORY,
        env=_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # As the trainer starts workers: the scheduler shares the cores between sessions.
        start_new_session=True,
    )
    assert process.stdout is not None
    for text in process.stdout:
        if text.startswith('{"') and is_step(json.loads(text)):
            times.steps_s.append(time.time())
    _, errors = process.communicate()
    times.end_s = time.time()
    if process.returncode:
        raise RuntimeError(f"{module[0]} ended with code {process.returncode}:\n{errors[-3000:]}")
    return times.measured()


def _environment() -> dict[str, str]:
    path = os.pathsep.join([str(REPOSITORY / "sdk"), str(REPOSITORY)])
    threads = str(os.cpu_count())
    same = {"PYTHONPATH": path, "OMP_NUM_THREADS": threads, "GOMP_SPINCOUNT": "1000"}
    return dict(os.environ) | same | {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}


def _write_rows(path: Path) -> None:
    """Rows that are cut at the same length, so that every step is as much work for everybody."""
    words = [f"{chr(97 + number % 26)}{number}" for number in range(600)]
    with path.open("w", encoding="utf-8") as out:
        for row in range(_ROWS):
            text = " ".join(words[(row * 7 + at) % len(words)] for at in range(_LENGTH))
            out.write(json.dumps({"prompt": f"Say row {row}: ", "completion": text}) + "\n")
