"""`graft jobs`: what trains, trained and failed."""

from __future__ import annotations

from contextlib import aclosing
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from graft.cli.curve_picture import Curves, collect, save_picture
from graft.cli.follow import follow
from graft.cli.output import Output, ago
from graft.cli.session import JsonOption, run
from graft.cli.views import describe_event, show_curve
from graft.client import Client
from graft.errors import GraftError, Reason
from graft.jobs import JobHandle
from graft.results import Job, JobState, short_id

app = typer.Typer(
    no_args_is_help=True, help="List, watch, pause and cancel jobs; try failed ones again."
)
JobArgument = Annotated[
    str, typer.Argument(metavar="JOB", help="Its id, as `graft jobs list` shows.")
]
_STYLES = {
    JobState.SUCCEEDED: "green",
    JobState.FAILED: "red",
    JobState.RUNNING: "yellow",
    JobState.CANCELLED: "dim",
    JobState.PAUSED: "cyan",
}


@app.command("list")
def list_jobs(
    ctx: typer.Context,
    limit: Annotated[int, typer.Option(min=1, help="At most this many.")] = 20,
    as_json: JsonOption = False,
) -> None:
    """List jobs, newest first."""
    out = Output(as_json)

    async def work(client: Client) -> None:
        jobs = await client.jobs.list(limit)
        if as_json:
            out.json(jobs)
        elif jobs:
            out.table(
                ("JOB", "STATE", "ADAPTER", "STEP", "LOSS", "VERSION", "CREATED"), map(_row, jobs)
            )
        else:
            out.note("No jobs yet. Start one: graft train DATA --base FOLDER --adapter NAME")

    run(ctx, out, work)


@app.command()
def get(ctx: typer.Context, job: JobArgument, as_json: JsonOption = False) -> None:
    """Show one job."""
    out = Output(as_json)

    async def work(client: Client) -> None:
        found = await client.jobs.get(job)
        if as_json:
            out.json(found)
        out.fields(_fields(found))

    run(ctx, out, work)


@app.command()
def watch(ctx: typer.Context, job: JobArgument, as_json: JsonOption = False) -> None:
    """Follow a job until it ends; Ctrl-C only stops watching. Exits as `graft train` does."""
    out = Output(as_json)

    async def work(client: Client) -> int:
        handle = client.job(job)
        await handle.get()
        return await follow(out, handle, may_cancel=False)

    run(ctx, out, work)


@app.command()
def cancel(
    ctx: typer.Context,
    job: JobArgument,
    reason: Annotated[str, typer.Option(help="Why, for its record.")] = "",
    as_json: JsonOption = False,
) -> None:
    """Ask a job to stop; it ends within a second or one step."""
    out = Output(as_json)

    async def work(client: Client) -> None:
        found = await client.job(job).cancel(reason)
        if as_json:
            out.json(found)
        out.note(f"{short_id(found.name)} is told to stop. Its checkpoints are kept.")

    run(ctx, out, work)


@app.command()
def pause(
    ctx: typer.Context,
    job: JobArgument,
    reason: Annotated[str, typer.Option(help="Why, for its record.")] = "",
    as_json: JsonOption = False,
) -> None:
    """Ask a job to write a checkpoint and free what it holds; `graft jobs resume` lets it go on."""
    out = Output(as_json)

    async def work(client: Client) -> None:
        found = await client.job(job).pause(reason)
        if as_json:
            out.json(found)
        name = short_id(found.name)
        how = "is told to stop at the end of its step" if found.pause_requested else "is paused"
        out.note(f"{name} {how}. Let it go on: graft jobs resume {name}")

    run(ctx, out, work)


@app.command()
def resume(ctx: typer.Context, job: JobArgument, as_json: JsonOption = False) -> None:
    """Let a paused job go on from its last good checkpoint."""
    out = Output(as_json)

    async def work(client: Client) -> None:
        _show_taken_up(out, await client.job(job).resume())

    run(ctx, out, work)


@app.command()
def retry(ctx: typer.Context, job: JobArgument, as_json: JsonOption = False) -> None:
    """Take a failed job up again with the stage that failed: what it has made is not made again."""
    out = Output(as_json)

    async def work(client: Client) -> None:
        _show_taken_up(out, await client.job(job).retry())

    run(ctx, out, work)


def _show_taken_up(out: Output, job: Job) -> None:
    if out.as_json:
        out.json(job)
    name = short_id(job.name)
    out.note(f"{name} is {job.state.lower()}: {job.message or 'nothing had to be done'}")
    out.note(f"Watch it: graft jobs watch {name}")


@app.command()
def logs(ctx: typer.Context, job: JobArgument, as_json: JsonOption = False) -> None:
    """Print what a job said, and follow it until it ends."""
    out = Output(as_json)

    async def work(client: Client) -> None:
        handle = client.job(job)
        await handle.get()
        await _print_log(out, handle)

    run(ctx, out, work)


@app.command()
def curve(
    ctx: typer.Context,
    job: JobArgument,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="A .png file for the picture.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Draw a job's loss as far as it is: in the terminal, or as a picture into a file."""
    out = Output(as_json)

    async def work(client: Client) -> None:
        handle = client.job(job)
        found = await handle.get()
        known = found.metrics.step if found.metrics else 0
        curves = Curves()
        if known or found.state.ended:
            async with aclosing(handle.events()) as events:
                curves = await collect(events, None if found.state.ended else known)
        if not curves.loss:
            raise GraftError(
                Reason.INVALID_REQUEST,
                f"{short_id(found.name)} has reported no loss yet",
                next_step=f"Follow it: graft jobs watch {short_id(found.name)}",
            )
        if as_json:
            out.json({"loss": curves.loss, "eval_loss": curves.eval_loss})
        if output is None:
            show_curve(out, [curves.loss[step] for step in sorted(curves.loss)])
            return
        save_picture(curves, short_id(found.name), output)
        out.note(f"The losses of {len(curves.loss)} steps are drawn in {output}.")

    run(ctx, out, work)


async def _print_log(out: Output, handle: JobHandle) -> None:
    async for event in handle.events():
        text = describe_event(event)
        if not text:
            continue
        if out.as_json:
            out.json({"time": event.time, "attempt": event.attempt, "text": text})
        else:
            moment = event.time.astimezone().strftime("%H:%M:%S") if event.time else ""
            out.note(f"{moment} [{event.attempt}] {text}")


def _row(job: Job) -> tuple[object, ...]:
    metrics = job.metrics
    return (
        short_id(job.name),
        _state(job),
        _made(job),
        f"{metrics.step}/{metrics.total_steps}" if metrics else "",
        f"{metrics.loss:.4f}" if metrics else "",
        short_id(job.version) if job.version else "",
        ago(job.create_time),
    )


def _fields(job: Job) -> list[tuple[str, object]]:
    metrics, spec = job.metrics, job.spec
    return [
        ("job", job.name),
        ("kind", job.kind if job.kind != "train" else None),
        ("state", _state(job)),
        ("stage", job.stage.lower() if job.stage else None),
        ("cause", job.failure_cause.lower().replace("_", " ") if job.failure_cause else None),
        ("message", job.message),
        ("adapter", spec.get("output", {}).get("adapter")),
        ("of", spec.get("version") if job.kind != "train" else None),
        ("output base", spec.get("output_base") or spec.get("output", {}).get("base")),
        ("version", job.version),
        ("base", spec.get("base", {}).get("source")),
        ("data", spec.get("dataset", {}).get("path") or spec.get("dataset", {}).get("blob_name")),
        ("attempt", job.attempt or None),
        ("step", f"{metrics.step}/{metrics.total_steps}" if metrics else None),
        ("checkpoint", f"step {job.checkpoint_step}" if job.checkpoint_step else None),
        ("loss", f"{metrics.loss:.4f}" if metrics else None),
        ("tokens/s", f"{metrics.tokens_per_second:,.0f}" if metrics else None),
        ("created", ago(job.create_time)),
        ("took", _took(job)),
    ]


def _state(job: Job) -> Text:
    text = job.state.lower() + (" (pausing)" if job.pause_requested else "")
    return Text(text, style=_STYLES.get(job.state, ""))


def _made(job: Job) -> str:
    """What a job works for, in a word: its adapter, or the version that it merges or evaluates."""
    output = job.spec.get("output", {})
    return str(output.get("adapter") or output.get("base") or job.spec.get("version", ""))


def _took(job: Job) -> str:
    if job.start_time is None:
        return ""
    end = job.end_time or datetime.now(UTC)
    return f"{(end - job.start_time).total_seconds():.0f} s"
