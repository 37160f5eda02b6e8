"""Several jobs at once, each with its progress bar, live loss and time left."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import graft
from graft.results import short_id
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

Curve = list[tuple[int, float]]


async def follow(jobs: Sequence[graft.JobHandle]) -> list[tuple[graft.Job, Curve]]:
    """Shows the jobs until all have ended.

    Returns:
        For each job how it ended, and its (step, loss) pairs.

    Raises:
        JobFailedError: one of them did not succeed.
    """
    columns = (
        TextColumn("  {task.description:<24}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[figures]}"),
    )
    with Progress(*columns) as bars:
        rows = [bars.add_task(short_id(job.name), total=None, figures="waits") for job in jobs]
        pairs = zip(jobs, rows, strict=True)
        return list(await asyncio.gather(*(_follow(job, bars, row) for job, row in pairs)))


async def _follow(job: graft.JobHandle, bars: Progress, row: TaskID) -> tuple[graft.Job, Curve]:
    curve: Curve = []
    async for event in job.events():
        if event.metrics is not None:
            now = event.metrics
            curve.append((now.step, now.loss))
            figures = f"loss {now.loss:.3f}  {now.tokens_per_second:,.0f} tokens/s  {now.remaining_s:.0f} s left"
            bars.update(row, completed=now.step, total=now.total_steps, figures=figures)
        elif event.state_change is not None and event.state_change.to_state.ended:
            bars.update(
                row,
                figures=f"{event.state_change.to_state.lower()}  loss {curve[-1][1]:.3f}"
                if curve
                else "",
            )
    return await job.wait(), curve
