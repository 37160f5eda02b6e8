"""`graft audit`: who changed what in the registry; exported, and checked for changes of its own."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from graft.audit import AuditEntry, Chain
from graft.cli.output import Output
from graft.cli.session import JsonOption, run
from graft.client import Client
from graft.errors import GraftError, Reason
from graft.names import full_name

app = typer.Typer(help="Who changed what in the registry.")
_TAIL_BYTES = 1024 * 1024


@app.callback(invoke_without_command=True)
def audit(
    ctx: typer.Context,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what comes.")] = False,
    resource: Annotated[
        str, typer.Option(help="Only of bot, bot:7, bases/tiny or a full name, and what is below.")
    ] = "",
    after: Annotated[int, typer.Option(min=0, help="Only after the entry of this number.")] = 0,
    everywhere: Annotated[
        bool, typer.Option("--all-namespaces", help="Of all namespaces, and of none.")
    ] = False,
    json_lines: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|-", help="Write JSON lines; a file that is there goes on after its last."
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Print the audit log, oldest first."""
    if ctx.invoked_subcommand is not None:
        return
    out = Output(as_json or json_lines == "-")

    async def work(client: Client) -> None:
        with ExitStack() as opened:
            begin, write = await asyncio.to_thread(_writer, out, json_lines, after, opened)
            name = _resource(resource, client.namespace)
            read = client.audit.follow if follow else client.audit.entries
            count = await _write_all(read(begin, resource=name, everywhere=everywhere), write)
        if json_lines not in (None, "-"):
            out.note(f"{count} entries were written to {json_lines}.")

    run(ctx, out, work)


@app.command()
def verify(
    ctx: typer.Context,
    file: Annotated[
        Path | None,
        typer.Argument(help="What `graft audit --all-namespaces --json-lines FILE` wrote."),
    ] = None,
    known: Annotated[
        str, typer.Option(help="A digest that was the last one once: it must still be there.")
    ] = "",
    as_json: JsonOption = False,
) -> None:
    """Check that no entry was changed, removed or put in between."""
    out = Output(as_json)

    async def work(client: Client) -> None:
        if file is None:
            last = await client.audit.verify(known)
        else:
            last = await asyncio.to_thread(_verify_file, file, known)
        if as_json:
            out.json({"entries": last.number if last else 0, "digest": last.digest if last else ""})
        elif last is None:
            out.note("The audit log is empty.")
        else:
            out.note(f"{last.number} entries are as they were written; the last is {last.digest}.")
            out.note("Keep this digest: `graft audit verify --known DIGEST` then finds any change.")

    run(ctx, out, work)


def _resource(text: str, namespace: str) -> str:
    if not text or text.startswith("leases/"):
        return text
    return full_name(text, namespace)


async def _write_all(
    entries: AsyncIterator[AuditEntry], write: Callable[[AuditEntry], None]
) -> int:
    count = 0
    async for entry in entries:
        write(entry)
        count += 1
    return count


def _writer(
    out: Output, json_lines: str | None, after: int, opened: ExitStack
) -> tuple[int, Callable[[AuditEntry], None]]:
    """After which number to begin, and what to do with each entry."""
    if json_lines is None and not out.as_json:
        return after, lambda entry: out.note(_line(entry))
    if json_lines in (None, "-"):
        return after, lambda entry: _print(entry)
    path = Path(json_lines or "")
    begin = max(after, _last_number(path))
    target = opened.enter_context(path.open("a", encoding="utf-8"))

    def write(entry: AuditEntry) -> None:
        target.write(entry.to_json() + "\n")
        target.flush()

    return begin, write


def _print(entry: AuditEntry) -> None:
    sys.stdout.write(entry.to_json() + "\n")
    sys.stdout.flush()


def _line(entry: AuditEntry) -> str:
    moment = entry.time.astimezone().strftime("%Y-%m-%d %H:%M:%S")
    return f"{entry.number:>6} {moment} {entry.actor or '-'} {entry.method or '-'} {entry.resource}"


def _last_number(path: Path) -> int:
    """The number of the last entry of a file; 0 where there is none."""
    if not path.exists():
        return 0
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _TAIL_BYTES))
        tail = file.read()
    if not tail:
        return 0
    if not tail.endswith(b"\n"):
        raise GraftError(
            Reason.BAD_DATA,
            f"{path} ends in the middle of a line",
            next_step="Remove that line, or write to a new file.",
        )
    return AuditEntry.from_json(tail.splitlines()[-1].decode("utf-8", "replace")).number


def _verify_file(path: Path, known: str) -> AuditEntry | None:
    chain = Chain(known, begins_anywhere=True)
    try:
        with path.open(encoding="utf-8") as lines:
            for line in lines:
                chain.add(AuditEntry.from_json(line))
    except OSError as error:
        raise GraftError(
            Reason.BAD_DATA, f"{path} cannot be read: {error}", next_step="Name another file."
        ) from error
    chain.end()
    return chain.last
