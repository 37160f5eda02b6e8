"""`graft up` and `graft down`: the services of one machine, as children of one command."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from graft.cli.home_lock import ask_to_stop, only_one, running
from graft.cli.output import Output
from graft.cli.services import import_path
from graft.cli.session import JsonOption, options, reported
from graft.cli.stack import DEFAULT_PORT, Stack, StackSettings, stop_timeout_s
from graft.cli.stack_display import StackDisplay
from graft.endpoints import SERVICES, graft_home
from graft.errors import GraftError, Reason

HomeOption = Annotated[
    Path | None,
    typer.Option(help="Where data, logs and addresses are kept; $GRAFT_HOME, else ~/.graft."),
]


def up(
    ctx: typer.Context,
    base: Annotated[
        Path | None,
        typer.Option(
            envvar="GRAFT_INFERENCE_BASE",
            help="Folder of the base model to serve; without it nothing is served.",
        ),
    ] = None,
    home: HomeOption = None,
    slots: Annotated[
        int | None, typer.Option(min=1, help="Jobs that may train at the same time.")
    ] = None,
    max_adapters: Annotated[
        int | None, typer.Option(min=0, help="Adapter versions on the engine at once.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int,
        typer.Option(
            min=0,
            max=63000,
            help="First of four ports, the last for OpenAI's API; metrics are 2000 above. 0: free ones.",
        ),
    ] = DEFAULT_PORT,
    detach: Annotated[
        bool, typer.Option("--detach", "-d", help="Come back once everything serves.")
    ] = False,
    engine: Annotated[
        str | None, typer.Option(help="vllm, or fake to try clients without a model.", hidden=True)
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Start registry, trainer and inference on this machine; Ctrl-C drains and stops them.

    Exits with 0 only when each of them drained to its end.
    """
    out = Output(as_json)
    settings = StackSettings(
        home=(home or graft_home()).absolute(),
        host=host,
        port=port,
        base=base.absolute() if base is not None else None,
        slots=slots,
        max_adapters=max_adapters,
        engine=engine,
    )
    with reported(out, options(ctx).debug):
        _check_base(settings.base)
        if detach:
            _detach(out, settings.home)
            return
        with only_one(settings.home):
            asyncio.run(_run(out, settings))


def down(ctx: typer.Context, home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Drain and stop what `graft up` started."""
    out = Output(as_json)
    with reported(out, options(ctx).debug):
        folder = (home or graft_home()).absolute()
        pid = running(folder)
        if pid is None:
            raise GraftError(
                Reason.UNAVAILABLE,
                f"No `graft up` runs in {folder}",
                next_step="Name its folder with --home, or start one with `graft up`.",
            )
        ask_to_stop(pid)
        timeout_s = sum(map(stop_timeout_s, SERVICES))
        deadline_s = time.monotonic() + timeout_s
        while running(folder) == pid:
            if time.monotonic() > deadline_s:
                raise GraftError(
                    Reason.UNAVAILABLE,
                    f"`graft up` (process {pid}) still drains after {timeout_s:.0f} s",
                    next_step=f"Look into {folder / 'logs'}.",
                )
            time.sleep(0.05)
    if as_json:
        out.json({"event": "stopped", "process": pid})
    out.note("Stopped.")


async def _run(out: Output, settings: StackSettings) -> None:
    stack, stopping = Stack(settings), asyncio.Event()
    loop = asyncio.get_running_loop()

    def stop_or_kill() -> None:
        if stopping.is_set():
            stack.kill()
            return
        stopping.set()
        out.note("Draining. Once more stops everything at once.")

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, stop_or_kill)
    async with StackDisplay(out, stack) as display:
        try:
            if await _unless(stopping, stack.start()):
                display.refresh()
                _announce(out, stack, settings)
                await _unless(stopping, stack.watch())
        finally:
            await stack.stop()
    stack.check_ends()
    if out.as_json:
        out.json({"event": "stopped"})
    out.note("Stopped.")


async def _unless(stopping: asyncio.Event, work: object) -> bool:
    """Runs work until it ends or somebody asks to stop; says whether it came to its end."""
    assert asyncio.iscoroutine(work)
    task = asyncio.ensure_future(work)
    asked = asyncio.ensure_future(stopping.wait())
    await asyncio.wait({task, asked}, return_when=asyncio.FIRST_COMPLETED)
    asked.cancel()
    if task.done():
        task.result()
        return True
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    return False


def _announce(out: Output, stack: Stack, settings: StackSettings) -> None:
    if out.as_json:
        out.json(
            {
                "event": "ready",
                "home": str(settings.home),
                **stack.endpoints(),
                "process": os.getpid(),
            }
        )
        return
    if settings.base is None:
        out.note("No base: jobs can train, nothing is served. To serve: graft up --base FOLDER")
    for service in stack.services:
        if service.http_address:
            out.note(f"OpenAI's API is at {service.http_address}/v1")
    out.note(f"Logs are in {settings.home / 'logs'}. Ctrl-C stops everything.")


def _check_base(base: Path | None) -> None:
    if base is not None and not (base / "config.json").is_file():
        raise GraftError(
            Reason.NOT_A_MODEL,
            f"{base} is not a model's folder: it has no config.json",
            next_step="Name a folder with config.json, a tokenizer and model.safetensors.",
            path=base,
        )


def _detach(out: Output, home: Path) -> None:
    """Starts the same command in the background and waits for its ready line."""
    logs = home / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    arguments = [one for one in sys.argv[1:] if one not in ("--detach", "-d", "--json")]
    said, log = logs / "up.json", logs / "up.log"
    with said.open("wb") as stdout, log.open("wb") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "graft.cli", *arguments, "--json"],
            env={**os.environ, "PYTHONPATH": import_path()},
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            start_new_session=True,
        )
    while not (lines := said.read_text("utf-8").splitlines()):
        if process.poll() is not None:
            raise _error_of(log)
        time.sleep(0.05)
    ready = json.loads(lines[0])
    if out.as_json:
        out.json(ready)
    rows = [(name, ready[name]) for name in (*SERVICES, "http") if name in ready]
    out.table(("SERVICE", "ADDRESS"), rows)
    out.note(f"Runs as process {process.pid}; stop it with `graft down`.")


def _error_of(log: Path) -> GraftError:
    """The error that a background `graft up` left as JSON."""
    lines = log.read_text("utf-8").strip().splitlines()
    try:
        told = json.loads(lines[-1])["error"]
        return GraftError(Reason(told["reason"]), told["message"], next_step=told["next_step"])
    except (IndexError, KeyError, ValueError):
        return GraftError(
            Reason.UNAVAILABLE, "`graft up` ended at once", next_step=f"Read {log}.", log=log
        )
