"""Server processes for benchmarks: started once, and stopped by signal while another has its turn."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
START_TIMEOUT_S = 300.0


class ServerProcess:
    """A server in a process group of its own.

    Args:
        module: run as `python -m module arguments`.
        env: added to this process's environment.
        log: what it says goes there.
    """

    def __init__(
        self, module: str, arguments: list[str], env: Mapping[str, str], log: Path
    ) -> None:
        self._log = log
        path = os.pathsep.join([str(REPOSITORY / "sdk"), str(REPOSITORY)])
        with log.open("wb") as out:
            self._process = subprocess.Popen(
                [sys.executable, "-m", module, *arguments],
                env={**os.environ, "PYTHONPATH": path, **env},
                cwd=REPOSITORY,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """Of the process that was started."""
        return self._process.pid

    def wait_until(self, ready: Callable[[], bool]) -> None:
        """Waits for ready(); ends the server where that never comes, and says the end of its log."""
        deadline_s = time.monotonic() + START_TIMEOUT_S
        try:
            while not ready():
                if self._process.poll() is not None or time.monotonic() > deadline_s:
                    tail = self._log.read_text("utf-8", "replace")[-3000:]
                    raise RuntimeError(f"the server of {self._log.name} did not start:\n{tail}")
                time.sleep(0.1)
        except BaseException:
            # Whoever waits has nothing yet to end it with.
            self.close()
            raise

    def end(self) -> str:
        """How it ended, if it did, and what it said last."""
        return (
            f"exit code {self._process.poll()}; {self._log.read_text('utf-8', 'replace')[-3000:]}"
        )

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Runs only inside: an idle engine polls, and would take time from its rival."""
        os.killpg(self.pid, signal.SIGCONT)
        try:
            yield
        finally:
            self.pause()

    def pause(self) -> None:
        """Stops it until its turn."""
        os.killpg(self.pid, signal.SIGSTOP)

    def close(self) -> None:
        """Ends it, and kills what is left of its group."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGCONT)
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(self.pid, signal.SIGKILL)
            self._process.wait()


def start_graft_service(
    service: str, settings: Mapping[str, object], folder: Path
) -> tuple[ServerProcess, str]:
    """One of our services and its gRPC address.

    Args:
        service: "inference" or "registry".
        settings: fields of its settings class.
        folder: for its data, its log and its ready file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    ready = folder / "ready.json"
    values = {"data_dir": folder, "ready_file": ready, "log_level": "WARNING", **settings}
    env = {f"GRAFT_{service}_{name}".upper(): str(value) for name, value in values.items()}
    server = ServerProcess(f"services.{service}", [], env, folder / "log")
    server.wait_until(ready.exists)
    address: str = json.loads(ready.read_bytes())["address"]
    return server, address


def start_vllm_server(
    arguments: list[str], folder: Path, more_env: Mapping[str, str] | None = None
) -> tuple[ServerProcess, str]:
    """vLLM's own OpenAI server and its URL."""
    folder.mkdir(parents=True, exist_ok=True)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    env = {
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        **(more_env or {}),
    }
    listen = ["--host", "127.0.0.1", "--port", str(port)]
    server = ServerProcess(
        "vllm.entrypoints.openai.api_server", [*arguments, *listen], env, folder / "log"
    )

    def ready() -> bool:
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=1) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    server.wait_until(ready)
    return server, url
