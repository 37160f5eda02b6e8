"""Attempts of the worker: in this process where only the outcome matters, as a process where its life does."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graft.digests import digest_file
from graft.files import write_atomic

from services.trainer.run import __main__ as worker
from services.trainer.run.background import BackgroundLoop
from services.trainer.run.reporters import JsonLinesReporter
from services.trainer.run.settings import read_settings
from services.trainer.run.stop import StopSignal

ROOT = Path(__file__).parents[3]
COLOURS = ("red", "blue", "green", "grey")
Event = dict[str, Any]


def merge(spec: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """The spec with the changes, field by field."""
    merged = dict(spec)
    for name, value in changes.items():
        old = spec.get(name)
        merged[name] = (
            merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
        )
    return merged


@dataclass
class Outcome:
    """What became of an attempt."""

    code: int
    events: list[Event]
    work_dir: Path

    @property
    def finished(self) -> Event:
        """The last report."""
        finished: Event = self.events[-1]["finished"]
        return finished

    @property
    def message(self) -> str:
        """Why it failed, in words."""
        return str(self.finished.get("message", ""))

    @property
    def log(self) -> str:
        """All lines for people."""
        return "\n".join(event["log"] for event in self.events if "log" in event)

    @property
    def losses(self) -> list[float]:
        """The loss of each report."""
        return [event["metrics"].get("loss", 0.0) for event in self.events if "metrics" in event]

    @property
    def weights_digest(self) -> str:
        """Digest of the trained weights."""
        return digest_file(self.work_dir / "result" / "adapter_model.safetensors")


def write_spec(spec: dict[str, Any], work_dir: Path) -> Path:
    """Writes the spec where the launcher would."""
    work_dir.mkdir(exist_ok=True)
    path = work_dir / "spec.json"
    # Each of several processes writes it, while another may read it.
    write_atomic(path, json.dumps(spec).encode())
    return path


def attempt(
    spec: dict[str, Any],
    work_dir: Path,
    registry: str = "",
    environment: dict[str, str] | None = None,
    kind: str = "train",
) -> Outcome:
    """One attempt in this process, without a trainer."""
    path = write_spec(spec, work_dir)
    variables = {
        "GRAFT_WORKER_DIR": str(work_dir),
        "GRAFT_WORKER_JOB": "namespaces/default/jobs/j1",
        "GRAFT_WORKER_REGISTRY": registry,
        "GRAFT_WORKER_REGISTRY_PATIENCE_S": "0.5",
        **(environment or {}),
    }
    out, loop = io.StringIO(), BackgroundLoop()
    reporter = JsonLinesReporter(out)
    code, finished = worker.attempt(
        path, read_settings(variables, path), loop, reporter, StopSignal(), kind
    )
    reporter.finish(finished)
    loop.close()
    return Outcome(code, [json.loads(line) for line in out.getvalue().splitlines()], work_dir)


class WorkerProcess:
    """A worker as the launcher starts it; without a trainer, its events are read from its output."""

    def __init__(self, spec: dict[str, Any], work_dir: Path, environment: dict[str, str]) -> None:
        path = write_spec(spec, work_dir)
        self.work_dir = work_dir
        self._errors = (work_dir / "stderr").open("wb")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "services.trainer.run", str(path)],
            cwd=ROOT,
            env={
                **os.environ,
                "PYTHONPATH": f"{ROOT / 'sdk'}{os.pathsep}{ROOT}",
                "GRAFT_WORKER_DIR": str(work_dir),
                "GRAFT_WORKER_JOB": "namespaces/default/jobs/j1",
                "OMP_NUM_THREADS": "1",
                **environment,
            },
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )
        self.events: list[Event] = []

    def read_events(self) -> Iterator[Event]:
        """Events as they come, until its output ends."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.events.append(json.loads(line))
            yield self.events[-1]

    def until_step(self, step: int) -> None:
        """Waits until it has reported the figures of a step."""
        for event in self.read_events():
            if int(event.get("metrics", {}).get("step", 0)) >= step:
                return
        raise AssertionError(f"ended before step {step}: {self.errors()}")

    def until_checkpoint(self, step: int) -> None:
        """Waits until it has said that the checkpoint of a step, or of a later one, is stored."""
        for event in self.read_events():
            if int(event.get("checkpoint_step", 0)) >= step:
                return
        raise AssertionError(f"ended before the checkpoint of step {step}: {self.errors()}")

    def send(self, number: signal.Signals) -> None:
        """Sends a signal."""
        self.process.send_signal(number)

    def outcome(self) -> Outcome:
        """Waits for the end."""
        list(self.read_events())
        return Outcome(self.process.wait(), self.events, self.work_dir)

    def close(self) -> None:
        """Ends it, if it has not ended, and its files."""
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()
        self._errors.close()

    def errors(self) -> str:
        """What it wrote to standard error."""
        return (self.work_dir / "stderr").read_text("utf-8")
