"""The service stays light: what trains is only in the worker."""

from __future__ import annotations

import asyncio
import sys

from tests.support.processes import process_environment


async def test_the_service_and_its_preflight_load_no_torch() -> None:
    code = (
        "import sys, services.trainer.__main__, services.trainer.preflight; "
        "print({'torch', 'transformers', 'peft', 'trl', 'vllm', 'datasets'} & set(sys.modules))"
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        code,
        env=process_environment(),
        stdout=asyncio.subprocess.PIPE,
    )
    output, _ = await process.communicate()
    assert (process.returncode, output.decode().strip()) == (0, "set()")
