"""Bases of random weights, and the end of a run that asks for a CUDA device where there is none."""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from bench.gpu.architectures import QWEN25_05B, TINY, Architecture, write_base
from tests.unit.trainer_worker.support import COLOURS

ARCHITECTURES = {one.name: one for one in (TINY, QWEN25_05B)}


@pytest.hookimpl(trylast=True)  # After pytest has deselected what is not asked for.
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if any(item.get_closest_marker("gpu") for item in items) and not torch.cuda.is_available():
        pytest.exit("There is no CUDA device here, so the GPU suite did not run.", returncode=2)


@pytest.fixture(
    scope="session",
    params=[
        pytest.param(TINY.name),
        pytest.param(QWEN25_05B.name, marks=pytest.mark.gpu),
    ],
)
def architecture(request: pytest.FixtureRequest) -> Architecture:
    """Tiny wherever the tests run, and a published one under `make test-gpu`."""
    return ARCHITECTURES[request.param]


@pytest.fixture(scope="session")
def base(architecture: Architecture, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(architecture, tmp_path_factory.mktemp("base") / "base")


@pytest.fixture(scope="session")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """32 questions whose answers are learned by heart."""
    path = tmp_path_factory.mktemp("data") / "colours.jsonl"
    rows = [
        {
            "instruction": COLOURS[number % 4] * (1 + number % 5),
            "output": f"I like {COLOURS[number % 4]}",
        }
        for number in range(32)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


@pytest.fixture(autouse=True)
def free_memory() -> Iterator[None]:
    """What a test has left on the device goes."""
    yield
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
