"""Commands of a document, so that a test can follow it to the letter."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.support.processes import process_environment

_HEADING = re.compile(r"^#+ (.+)$")


@dataclass(frozen=True, slots=True)
class Done:
    """How a block ended: its exit code, and what it wrote."""

    code: int
    out: str
    err: str


def shell_blocks(document: Path) -> Mapping[str, Sequence[str]]:
    """The ```sh blocks of a document in their order, by the heading above them."""
    found: dict[str, list[str]] = {}
    heading = ""
    block: list[str] | None = None
    for line in document.read_text("utf-8").splitlines():
        if block is not None:
            if line == "```":
                found.setdefault(heading, []).append("\n".join(block))
                block = None
            else:
                block.append(line)
        elif line == "```sh":
            block = []
        elif match := _HEADING.match(line):
            heading = match[1]
    assert block is None, f"{document} ends in a block"
    return found


async def run_block(block: str, variables: Mapping[str, str], folder: Path) -> Done:
    """Runs a block as a person would who typed it: in bash, ending at the first failure."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    process = await asyncio.create_subprocess_exec(
        "bash", "-euo", "pipefail", "-c", block,
        env={**process_environment(), "PATH": path, **variables},
        cwd=folder,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, err = await process.communicate()
    assert process.returncode is not None
    return Done(process.returncode, out.decode(), err.decode())
