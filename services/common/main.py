"""What every service's __main__ does: settings, logs, serving until a signal, and an exit code."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Protocol, TypeVar

import uvloop
from graft.errors import GraftError
from pydantic import ValidationError

from services.common.config import ServiceSettings
from services.common.logs import configure_logs, get_logger
from services.common.server import serve_until_signal

EXIT_CANNOT_START = 1
EXIT_USAGE = 2


class Service(Protocol):
    """What a composition root gives."""

    async def start(self) -> None:
        """Serves."""

    async def stop(self) -> None:
        """Drains and ends."""


Settings = TypeVar("Settings", bound=ServiceSettings)


def run_service(
    name: str,
    settings_class: type[Settings],
    build: Callable[[Settings], Service],
    arguments: list[str],
) -> int:
    """Runs a service until SIGTERM or SIGINT.

    Args:
        name: of the service, for its logs.
        settings_class: read from the environment; `--help` lists its fields.
        build: makes the service inside the event loop.
        arguments: of the command line, without the program's name.

    Returns:
        0 after a drain, 1 when it cannot start, 2 for wrong settings.
    """
    if arguments:
        print(settings_help(name, settings_class))
        return 0 if arguments[0] in ("-h", "--help") else EXIT_USAGE
    try:
        settings = settings_class()
    except ValidationError as error:
        print(_explain(name, settings_class, error), file=sys.stderr)
        return EXIT_USAGE
    configure_logs(name, settings.log_level, settings.log_format)

    async def serve() -> None:
        service = build(settings)
        await serve_until_signal(service.start, service.stop)

    try:
        uvloop.run(serve())
    except GraftError as error:
        get_logger().error("cannot start", reason=error.reason.value, error=str(error))
        print(f"The {name} service cannot start: {error}", file=sys.stderr)
        return EXIT_CANNOT_START
    return 0


def settings_help(name: str, settings_class: type[ServiceSettings]) -> str:
    """Every setting of a service with its variable, its default and what it means."""
    lines = [f"python -m services.{name}: takes no arguments, but these variables:\n"]
    for field, info in settings_class.model_fields.items():
        default = (
            "must be set" if info.is_required() else info.get_default(call_default_factory=True)
        )
        lines.append(f"  {_variable(settings_class, field)}  ({default})")
        lines.append(f"      {info.description or ''}")
    return "\n".join(lines)


def _explain(name: str, settings_class: type[ServiceSettings], error: ValidationError) -> str:
    lines = [f"The {name} service's settings cannot be used:"]
    for problem in error.errors():
        field = str(problem["loc"][0]) if problem["loc"] else ""
        lines.append(f"  {_variable(settings_class, field)}: {problem['msg']}")
    return "\n".join([*lines, f"`python -m services.{name} --help` lists them all."])


def _variable(settings_class: type[ServiceSettings], field: str) -> str:
    return f"{settings_class.model_config.get('env_prefix', '')}{field}".upper()
