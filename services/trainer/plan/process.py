"""Plans and recommendations, each in a process of its own, one at a time: a probe beside another measures neither."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from services.trainer.side_process import run_aside

_MODULE = "services.trainer.run.planning"


class Planning:
    """Runs the planner.

    Args:
        timeout_s: longest time of one plan.
        registry_address: "host:port" of the registry that uploaded data is in; "" for none.
        accelerator: "cpu" where workers get no GPU, else "auto".
    """

    def __init__(
        self, timeout_s: float, registry_address: str = "", accelerator: str = "auto"
    ) -> None:
        self._timeout_s, self._registry_address = timeout_s, registry_address
        self._own = "cpu" if accelerator == "cpu" else ""
        self._turn = asyncio.Lock()

    async def run(
        self, work: str, spec_json: str, accelerator: str, *, probe: bool
    ) -> AsyncGenerator[dict[str, Any], None]:
        """Progress, and at last the result, in JSON's values.

        Args:
            work: "plan" or "recommend".
            spec_json: the job.
            accelerator: of the table, "cpu", or "" for what there is.
            probe: whether steps are tried.

        Raises:
            GraftError: what is wrong with the spec, its base or its data; INTERNAL.
        """
        request = {
            "spec_json": spec_json,
            "accelerator": accelerator or self._own,
            "memory_bytes": 0,
            "skip_probe": not probe,
            "registry_address": self._registry_address,
        }
        if self._turn.locked():
            yield {"progress": {"stage": "waiting for another plan to be made"}}
        async with self._turn:
            updates = run_aside(_MODULE, json.dumps(request), self._timeout_s, work)
            async with aclosing(updates):
                async for update in updates:
                    yield update
