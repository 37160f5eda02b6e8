"""Where the services of `graft up` stand: a moving table for a terminal, a line for each change else."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Self

from rich.live import Live
from rich.table import Table
from rich.text import Text

from graft.cli.output import Output, make_table
from graft.cli.services import Service, ServiceState
from graft.cli.stack import Stack

_STYLES = {
    ServiceState.SERVING: "green",
    ServiceState.FAILED: "bold red",
    ServiceState.STARTING: "yellow",
    ServiceState.RESTARTING: "yellow",
    ServiceState.DRAINING: "yellow",
}
_REFRESH_S = 0.2


class StackDisplay:
    """Shows where the services stand: a moving table, or a line for each change."""

    def __init__(self, out: Output, stack: Stack) -> None:
        self._out, self._stack = out, stack
        self._live = Live(console=out.console, auto_refresh=False) if out.live else None
        self._known: dict[str, ServiceState] = {}

    async def __aenter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        self._task = asyncio.create_task(self._follow())
        return self

    async def __aexit__(self, kind: object, error: object, trace: object) -> None:
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
        self.refresh()
        if self._live is not None:
            self._live.stop()

    async def _follow(self) -> None:
        while True:
            self.refresh()
            await asyncio.sleep(_REFRESH_S)

    def refresh(self) -> None:
        """Shows the present states."""
        if self._live is not None:
            self._live.update(_table(self._stack), refresh=True)
            return
        for service in self._stack.services:
            if self._known.get(service.name) is not service.state:
                where = f" at {service.address}" if service.state is ServiceState.SERVING else ""
                self._out.note(f"{service.name}: {service.state}{where}")
            self._known[service.name] = service.state


def _table(stack: Stack) -> Table:
    return make_table(
        ("SERVICE", "STATE", "ADDRESS", "METRICS", "RESTARTS"), map(_row, stack.services)
    )


def _row(service: Service) -> tuple[object, ...]:
    return (
        service.name,
        Text(service.state, style=_STYLES.get(service.state, "dim")),
        service.address,
        f"http://{service.metrics_address}/metrics" if service.metrics_address else "",
        service.restarts or "",
    )
