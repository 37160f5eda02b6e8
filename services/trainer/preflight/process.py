"""Checks and surveys in processes of their own."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

from services.trainer.jobs import Job
from services.trainer.preflight.base import Preflight
from services.trainer.side_process import run_aside

_MODULE = "services.trainer.preflight"


class ProcessPreflight(Preflight):
    """Runs check_spec in a process of its own."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s

    async def check(self, job: Job) -> None:
        async for _ in run_aside(_MODULE, job.spec_json, self._timeout_s, "check", job.kind):
            pass


class Surveyor:
    """Runs surveys of data, each in a process of its own.

    Args:
        timeout_s: longest time of one.
        registry_address: "host:port" of the registry that uploaded data is in; "" for none.
    """

    def __init__(self, timeout_s: float, registry_address: str = "") -> None:
        self._timeout_s, self._registry_address = timeout_s, registry_address

    def survey(self, spec_json: str, examples: int) -> AsyncGenerator[dict[str, Any], None]:
        """Progress, and at last the report, as the contract's ValidateJobResponse in JSON's values.

        Raises:
            GraftError: what keeps the data from being looked at; INTERNAL.
        """
        return run_aside(
            _MODULE, spec_json, self._timeout_s, "survey", str(examples), self._registry_address
        )
