"""Structured logs on standard error, each line with the request id of the call that it belongs to."""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING

import structlog

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger, Processor


def configure_logs(service: str, level: str, log_format: str) -> None:
    """Sets up structlog for this process; call once, from a service's __main__.

    Args:
        service: name that every line carries.
        level: least level that is written.
        log_format: "json", or "console" for people.
    """
    renderer: Processor = (
        structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
        if log_format == "console"
        else structlog.processors.JSONRenderer()
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.bind_contextvars(service=service)


def get_logger() -> FilteringBoundLogger:
    """A logger; what was bound to the running call is on each of its lines."""
    logger: FilteringBoundLogger = structlog.get_logger()
    return logger
