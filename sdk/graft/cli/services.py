"""One service as a child process: started with settings, waited for, drained, its log at hand."""

from __future__ import annotations

import asyncio
import ctypes
import importlib.util
import json
import os
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from graft.errors import GraftError, Reason

_POLL_S = 0.05
_PR_SET_PDEATHSIG = 1


class ServiceState(StrEnum):
    """Where a service stands."""

    WAITING = "waiting"
    STARTING = "starting"
    SERVING = "serving"
    RESTARTING = "restarting"
    DRAINING = "draining"
    STOPPED = "stopped"
    FAILED = "failed"


@dataclass(slots=True)
class Service:
    """A service of `graft up`: how to start it, and where it stands.

    Attributes:
        name: "registry", "trainer" or "inference"; its module is services.{name}.
        settings: environment that configures it.
        folder: where its ready file lies.
        log: file that its output is added to.
        ready_timeout_s: how long it may take until it serves.
        http_address: URL of the OpenAI API, where it has one.
        exit_code: how its last process ended, below 0 for a signal; None while it runs or never did.
    """

    name: str
    settings: Mapping[str, str]
    folder: Path
    log: Path
    ready_timeout_s: float
    state: ServiceState = ServiceState.WAITING
    address: str = ""
    metrics_address: str = ""
    http_address: str = ""
    restarts: int = 0
    exit_code: int | None = None
    process: asyncio.subprocess.Process | None = field(default=None, repr=False)
    _log_start: int = 0

    @property
    def ready_file(self) -> Path:
        """Written by the service once it serves."""
        return self.folder / f"{self.name}.ready.json"

    async def start(self) -> None:
        """Starts the process and waits until it serves.

        Raises:
            GraftError: UNAVAILABLE, with the end of its log, when it ends or takes too long.
        """
        self.ready_file.unlink(missing_ok=True)
        self.state = ServiceState.STARTING
        with self.log.open("ab") as log:
            self._log_start = log.tell()
            self.process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                f"services.{self.name}",
                env=self._environment(),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # Ctrl-C at the terminal is for us alone: we drain in the right order.
                start_new_session=True,
                preexec_fn=_end_with_parent,
            )
        try:
            async with asyncio.timeout(self.ready_timeout_s):
                await self._ready(self.process)
        except TimeoutError:
            self.state = ServiceState.FAILED
            raise self.failed(f"did not serve within {self.ready_timeout_s:.0f} s") from None
        self.state = ServiceState.SERVING

    async def _ready(self, process: asyncio.subprocess.Process) -> None:
        while not self.ready_file.exists():
            if process.returncode is not None:
                self.state = ServiceState.FAILED
                raise self.failed(f"ended with {_describe_exit(process.returncode)} at its start")
            await asyncio.sleep(_POLL_S)
        ready = json.loads(self.ready_file.read_text("utf-8"))
        self.address, self.metrics_address = ready["address"], ready["metrics_address"]
        self.http_address = ready.get("http_address", "")

    async def stop(self, timeout_s: float) -> None:
        """Asks it to drain and waits; it is killed, with its children, when that takes too long."""
        process, served = self.process, self.state is not ServiceState.STARTING
        if process is None:
            self.state = _ended(self.state)
            return
        if process.returncode is None:
            self.state = ServiceState.DRAINING
            _signal(process.pid, signal.SIGTERM, group=False)
            try:
                async with asyncio.timeout(timeout_s):
                    await process.wait()
            except TimeoutError:
                _signal(process.pid, signal.SIGKILL, group=True)
                await process.wait()
        self.ready_file.unlink(missing_ok=True)
        self.state, self.exit_code = _ended(self.state), process.returncode
        if not served and self.exit_code == -signal.SIGTERM:
            self.exit_code = 0  # So early that it did not listen to signals yet.

    def ill_end(self) -> str:
        """How it ended where that was not as it should; "" for a clean end, or none."""
        return f"{self.name} with {_describe_exit(self.exit_code)}" if self.exit_code else ""

    def tail(self, lines: int = 12) -> str:
        """The last lines of its log since it was started."""
        try:
            with self.log.open("rb") as file:
                file.seek(max(self._log_start, self.log.stat().st_size - 64 * 1024))
                text = file.read().decode("utf-8", "replace")
        except OSError:
            return ""
        return "\n".join(text.splitlines()[-lines:])

    def _environment(self) -> dict[str, str]:
        return {
            **os.environ,
            **self.settings,
            f"GRAFT_{self.name.upper()}_READY_FILE": str(self.ready_file),
            "PYTHONPATH": import_path(),
            "PYTHONUNBUFFERED": "1",
        }

    def kill(self) -> None:
        """Ends it at once, and what a process that died by itself may have left of its children."""
        if self.process is not None:
            _signal(self.process.pid, signal.SIGKILL, group=True)

    def failed(self, what: str) -> GraftError:
        """The error that says what the service did, with the end of its log."""
        tail = self.tail()
        said = f"; its log ends with:\n{tail}\n" if tail else " and said nothing"
        return GraftError(
            Reason.UNAVAILABLE,
            f"The {self.name} service {what}{said}",
            next_step=f"Read {self.log}, mend it and run `graft up` again; "
            "`graft doctor` says what is missing on this machine.",
            service=self.name,
        )


def import_path() -> str:
    """PYTHONPATH with which a child finds what this process finds, wherever it runs."""
    found = [importlib.util.find_spec(package) for package in ("graft", "services")]
    roots = [str(Path(spec.origin).parents[1]) for spec in found if spec and spec.origin]
    inherited = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    absolute = [str(Path(part).absolute()) for part in inherited if part]
    return os.pathsep.join(dict.fromkeys(roots + absolute))


def _end_with_parent() -> None:
    """Runs in the child before exec: when we are killed, the service is told to drain."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _signal(pid: int, number: signal.Signals, group: bool) -> None:
    try:
        (os.killpg if group else os.kill)(pid, number)
    except ProcessLookupError:
        return


def _ended(state: ServiceState) -> ServiceState:
    return state if state is ServiceState.FAILED else ServiceState.STOPPED


def _describe_exit(code: int) -> str:
    return f"exit code {code}" if code >= 0 else f"signal {signal.Signals(-code).name}"
