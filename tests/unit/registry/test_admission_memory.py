"""Admission streams: what it needs does not grow with the weights, nor with what a header claims."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.hostile import HEADERS
from tests.support.processes import ROOT, process_environment

MIB = 1024 * 1024


async def measured(folder: Path, *arguments: str) -> Any:
    """What a process of its own found, see tests.support.admission_peak."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.support.admission_peak", str(folder), *arguments,
        cwd=ROOT, env=process_environment(), stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    output, _ = await process.communicate()
    assert process.returncode == 0
    return json.loads(output)


@pytest.mark.parametrize("gib", [1, pytest.param(10, marks=pytest.mark.soak)])
async def test_weights_of_gigabytes_are_checked_in_little_memory(tmp_path: Path, gib: int) -> None:
    found = await measured(tmp_path, "sparse", str(gib))
    assert found["size_bytes"] > gib * 2**30
    assert f"{gib * 2**28} values, none of them NaN" in found["said"]["finite-values"]
    assert "all lora_B matrices are zero" in found["said"]["notes"]
    assert found["grown_bytes"] < 64 * MIB


async def test_hostile_headers_are_refused_in_little_memory(tmp_path: Path) -> None:
    found = await measured(tmp_path, "hostile")
    assert found.keys() == HEADERS.keys()
    for what, one in found.items():
        assert HEADERS[what].words in one["said"]["refused"], what
        assert one["grown_bytes"] < 128 * MIB, what
