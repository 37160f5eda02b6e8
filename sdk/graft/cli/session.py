"""What every command goes through: global options, one client, errors as words and exit codes."""

from __future__ import annotations

import asyncio
import getpass
import os
import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated

import typer

from graft.cli.output import Output
from graft.client import Client
from graft.errors import (
    ConflictError,
    GraftError,
    InvalidError,
    NotFoundError,
    QuotaError,
    Reason,
    RefusedError,
    UnavailableError,
)
from graft.names import DEFAULT_NAMESPACE
from graft.tls import Tls

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]

EXIT_OTHER, EXIT_USAGE, EXIT_NOT_FOUND, EXIT_CONFLICT, EXIT_UNAVAILABLE = 1, 2, 3, 4, 5
EXIT_INTERRUPTED = 130
_EXIT_CODES: tuple[tuple[type[GraftError], int], ...] = (
    (InvalidError, EXIT_USAGE),
    (NotFoundError, EXIT_NOT_FOUND),
    (ConflictError, EXIT_CONFLICT),
    (RefusedError, EXIT_CONFLICT),
    (QuotaError, EXIT_CONFLICT),
    (UnavailableError, EXIT_UNAVAILABLE),
)


@dataclass(frozen=True, slots=True)
class Options:
    """The options that stand before a command."""

    registry: str | None = None
    trainer: str | None = None
    inference: str | None = None
    namespace: str = DEFAULT_NAMESPACE
    debug: bool = False
    tls_ca: str | None = None
    tls_certificate: str | None = None
    tls_key: str | None = None
    tls_server_name: str | None = None

    @property
    def tls(self) -> Tls | None:
        """How all three services are spoken to.

        Raises:
            GraftError: INVALID_REQUEST when the options are not whole.
        """
        return Tls.of(self.tls_ca, self.tls_certificate, self.tls_key, self.tls_server_name)


def options(ctx: typer.Context) -> Options:
    """The options that stood before the command."""
    found = ctx.find_object(Options)
    return found if found is not None else Options()


def make_client(chosen: Options) -> Client:
    """A client with the addresses that were chosen; the actor is who sits here.

    Raises:
        GraftError: INVALID_REQUEST when an address is not one, or a file with a certificate is not.
    """
    return Client(
        registry=chosen.registry,
        trainer=chosen.trainer,
        inference=chosen.inference,
        namespace=chosen.namespace,
        actor=_actor(),
        tls=chosen.tls,
    )


def run(ctx: typer.Context, out: Output, work: Callable[[Client], Awaitable[int | None]]) -> None:
    """Runs a command's work with a client; what work returns is the exit code, None is 0."""
    chosen = options(ctx)

    async def with_client() -> int | None:
        async with make_client(chosen) as client:
            return await work(client)

    with reported(out, chosen.debug):
        code = asyncio.run(with_client())
    if code:
        raise typer.Exit(code)


@contextmanager
def reported(out: Output, debug: bool) -> Iterator[None]:
    """Prints an error of the block and exits by its kind; with debug the traceback comes through."""
    try:
        yield
    except GraftError as error:
        if debug:
            raise
        out.error(error)
        raise typer.Exit(exit_code(error)) from None
    except KeyboardInterrupt:
        raise typer.Exit(EXIT_INTERRUPTED) from None
    except (typer.Exit, typer.Abort, typer.TyperException, BrokenPipeError):
        raise
    except Exception as error:
        if debug:
            raise
        out.error(
            GraftError(
                Reason.INTERNAL,
                f"graft itself failed: {type(error).__name__}: {error}",
                next_step="Run it again as `graft --debug ...` for the traceback.",
            )
        )
        raise typer.Exit(EXIT_OTHER) from None


def exit_code(error: GraftError) -> int:
    """2 usage, 3 not found, 4 conflict or refused, 5 unavailable, 1 anything else."""
    return next((code for kind, code in _EXIT_CODES if isinstance(error, kind)), EXIT_OTHER)


def _actor() -> str:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"
