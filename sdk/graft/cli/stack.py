"""The services of one machine together: started in order, restarted when one dies, drained in order."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from graft.cli.services import Service, ServiceState
from graft.endpoints import SERVICES, endpoints_file
from graft.errors import GraftError, Reason
from graft.files import write_atomic

DEFAULT_PORT = 7431
_HTTP_OFFSET = len(SERVICES)
_METRICS_OFFSET = 2000
# A service drains twice, first its workers or its watches and then its calls, and closes what it has.
_DRAINS = 2
_DRAIN_TIMEOUT_S = 30.0
_CLOSE_S = 15.0
_MOST_RESTARTS = 5
_READY_TIMEOUT_S = {"registry": 60.0, "trainer": 60.0, "inference": 1800.0}


@dataclass(frozen=True, slots=True)
class StackSettings:
    """What `graft up` was asked for.

    Attributes:
        home: where all services keep their data.
        host: address to listen on.
        port: first of four ports, the last of them for HTTP; the metrics are 2000 above. 0 takes free
            ones.
        base: folder of the base model; None starts no inference.
        slots: jobs that may train at the same time; None leaves it to the trainer.
        max_adapters: adapter versions on the engine at once; None leaves it to inference.
        engine: "vllm", or another that the inference service knows.
    """

    home: Path
    host: str = "127.0.0.1"
    port: int = DEFAULT_PORT
    base: Path | None = None
    slots: int | None = None
    max_adapters: int | None = None
    engine: str | None = None


class Stack:
    """The services of one machine.

    Args:
        settings: what to start.
    """

    def __init__(self, settings: StackSettings) -> None:
        self._settings = settings
        self._wanted = SERVICES if settings.base is not None else SERVICES[:2]
        self.services: list[Service] = []

    def endpoints(self) -> dict[str, object]:
        """What endpoints.json holds."""
        base = {"base": str(self._settings.base)} if self._settings.base is not None else {}
        http = [service.http_address for service in self.services if service.http_address]
        return {
            **base,
            **{service.name: service.address for service in self.services},
            **({"http": http[0]} if http else {}),
            "metrics": {service.name: service.metrics_address for service in self.services},
        }

    async def start(self) -> None:
        """Starts the registry, then the others at once, and writes endpoints.json.

        Raises:
            GraftError: UNAVAILABLE when a port is in use or a service does not come up.
        """
        ports = {name: self._port(index) for index, name in enumerate(SERVICES)}
        for name in self._wanted:
            more = (self._http_port,) if name == "inference" else ()
            for port in (ports[name], self._metrics_port(ports[name]), *more):
                _check_free(self._settings.host, port, name)
        folder, logs = self._settings.home / "run", self._settings.home / "logs"
        folder.mkdir(parents=True, exist_ok=True)
        logs.mkdir(parents=True, exist_ok=True)
        self.services = [
            Service(name, self._listening(name, ports[name]), folder, logs / f"{name}.log",
                    _READY_TIMEOUT_S[name])
            for name in self._wanted
        ]  # fmt: skip
        registry, *others = self.services
        await registry.start()
        for service in others:
            service.settings = {
                **service.settings,
                f"GRAFT_{service.name.upper()}_REGISTRY_ADDRESS": registry.address,
                **self._own(service.name),
            }
        with _first_error():
            async with asyncio.TaskGroup() as group:
                for service in others:
                    group.create_task(service.start())
        content = json.dumps(self.endpoints(), indent=2) + "\n"
        write_atomic(endpoints_file(self._settings.home), content.encode())

    async def watch(self) -> None:
        """Starts again what ends by itself; returns only by an error.

        Raises:
            GraftError: UNAVAILABLE when a service ended too often or does not come up again.
        """
        with _first_error():
            async with asyncio.TaskGroup() as group:
                for service in self.services:
                    group.create_task(self._keep(service))

    async def _keep(self, service: Service) -> None:
        while service.process is not None:
            code = await service.process.wait()
            service.kill()
            if service.restarts == _MOST_RESTARTS:
                service.state = ServiceState.FAILED
                raise service.failed(f"ended {_MOST_RESTARTS + 1} times, last with {code}")
            service.restarts += 1
            service.state = ServiceState.RESTARTING
            await asyncio.sleep(min(0.5 * 2**service.restarts, 10.0))
            # Where clients know it to be, also when the port was a free one at first.
            prefix = f"GRAFT_{service.name.upper()}"
            service.settings = {
                **service.settings,
                f"{prefix}_LISTEN": service.address,
                f"{prefix}_METRICS_LISTEN": service.metrics_address,
                **_http_listen(service),
            }
            await service.start()

    async def stop(self) -> None:
        """Drains inference, then the trainer, then the registry that both need; see check_ends()."""
        for service in reversed(self.services):
            await service.stop(stop_timeout_s(service.name))
        if self.services:
            endpoints_file(self._settings.home).unlink(missing_ok=True)

    def check_ends(self) -> None:
        """Says what did not end as it should.

        Raises:
            GraftError: INTERNAL, naming each service that was killed or failed, and its exit code.
        """
        ill = [end for service in self.services if (end := service.ill_end())]
        if ill:
            raise GraftError(
                Reason.INTERNAL,
                f"Not every service drained to its end: {', '.join(ill)}",
                next_step=f"Read its log in {self._settings.home / 'logs'}; the next `graft up` "
                "goes on from what is stored.",
            )

    def kill(self) -> None:
        """Ends at once what still runs, without a drain."""
        for service in self.services:
            service.kill()

    def _port(self, index: int) -> int:
        return self._settings.port + index if self._settings.port else 0

    @property
    def _http_port(self) -> int:
        return self._port(_HTTP_OFFSET)

    def _metrics_port(self, port: int) -> int:
        return port + _METRICS_OFFSET if port else 0

    def _listening(self, name: str, port: int) -> dict[str, str]:
        prefix, host = f"GRAFT_{name.upper()}", self._settings.host
        return {
            "GRAFT_HOME": str(self._settings.home),
            f"{prefix}_LISTEN": f"{host}:{port}",
            f"{prefix}_METRICS_LISTEN": f"{host}:{self._metrics_port(port)}",
            f"{prefix}_DATA_DIR": str(self._settings.home),
        }

    def _own(self, name: str) -> dict[str, str]:
        chosen = self._settings
        everybody: dict[str, dict[str, object]] = {
            "trainer": {"GRAFT_TRAINER_SLOTS": chosen.slots},
            "inference": {
                "GRAFT_INFERENCE_BASE": chosen.base,
                "GRAFT_INFERENCE_MAX_ADAPTERS": chosen.max_adapters,
                "GRAFT_INFERENCE_ENGINE": chosen.engine,
                "GRAFT_INFERENCE_HTTP_LISTEN": f"{chosen.host}:{self._http_port}",
            },
        }
        return {key: str(value) for key, value in everybody[name].items() if value is not None}


def _http_listen(service: Service) -> dict[str, str]:
    if not service.http_address:
        return {}
    return {"GRAFT_INFERENCE_HTTP_LISTEN": service.http_address.rpartition("/")[2]}


def stop_timeout_s(service: str) -> float:
    """How long a service may take from SIGTERM to its end: more than it needs for its drain time."""
    given = os.environ.get(f"GRAFT_{service.upper()}_DRAIN_TIMEOUT_S", "")
    try:
        drain_timeout_s = float(given or _DRAIN_TIMEOUT_S)
    except ValueError:  # The service refuses it at its start, in its own words.
        drain_timeout_s = _DRAIN_TIMEOUT_S
    return _DRAINS * drain_timeout_s + _CLOSE_S


def _check_free(host: str, port: int, service: str) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise GraftError(
                Reason.UNAVAILABLE,
                f"Port {port} on {host}, for the {service}, cannot be used ({error.strerror})",
                next_step="Stop what uses it (`graft down` if it is Graft), or choose others with "
                "`graft up --port N`; --port 0 takes free ones.",
                port=port,
            ) from None


@contextmanager
def _first_error() -> Iterator[None]:
    """Raises the first error of a task group as itself."""
    try:
        yield
    except BaseExceptionGroup as group:
        raise group.exceptions[0] from None
