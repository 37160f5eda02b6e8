"""Runs the worker in this process or as its own, on a tiny base and a small fixed task."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.pairs import Processes
from tests.unit.trainer_worker.support import COLOURS, Outcome, WorkerProcess, attempt, merge


@pytest.fixture(scope="session")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 questions whose answers a tiny model can learn by heart."""
    path = tmp_path_factory.mktemp("data") / "colours.jsonl"
    rows = []
    for number in range(48):
        colour = COLOURS[number % 4]
        rows.append({"instruction": colour * (1 + number % 5), "output": f"I like {colour}"})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


@pytest.fixture
def spec(tiny_base: Path, task: Path) -> dict[str, Any]:
    """A small job; tests change what they are about."""
    return {
        "base": {"source": str(tiny_base)},
        "dataset": {"path": str(task)},
        "method": {"lora": {"rank": 8, "dropout": 0.1}},
        "hyperparameters": {"epochs": 2, "learning_rate": 0.005, "micro_batch_size": 4},
        "checkpointing": {"every_steps": 5},
        "resources": {"cpu_threads": 1},
        "output": {"adapter": "bot"},
        "seed": 7,
    }


@pytest.fixture
def train(spec: dict[str, Any], tmp_path: Path) -> Callable[..., Outcome]:
    """Does one attempt in this process; keyword arguments change the spec's fields."""

    def run(
        folder: str = "work",
        registry: str = "",
        environment: dict[str, str] | None = None,
        **changes: Any,
    ) -> Outcome:
        return attempt(merge(spec, changes), tmp_path / folder, registry, environment)

    return run


@pytest.fixture
def start(spec: dict[str, Any], tmp_path: Path) -> Iterator[Callable[..., WorkerProcess]]:
    """Starts an attempt as a process of its own; keyword arguments change the spec's fields."""
    started: list[WorkerProcess] = []

    def run(
        folder: str = "work", environment: dict[str, str] | None = None, **changes: Any
    ) -> WorkerProcess:
        started.append(WorkerProcess(merge(spec, changes), tmp_path / folder, environment or {}))
        return started[-1]

    yield run
    for process in started:
        process.close()


@pytest.fixture(scope="session")
def two() -> Iterator[Processes]:
    """Two processes that train jobs together."""
    processes = Processes(2)
    yield processes
    processes.close()


@pytest.fixture
def small(spec: dict[str, Any]) -> dict[str, Any]:
    """A job without dropout, which is another in each process."""
    changes: dict[str, Any] = {
        "method": {"lora": {"dropout": 0.0}},
        # The last step of an epoch has fewer batches than there are processes.
        "dataset": {"max_rows": 36},
        "hyperparameters": {"epochs": 2, "max_grad_norm": 0.5},
        "checkpointing": {"every_steps": 100},
    }
    return merge(spec, changes)
