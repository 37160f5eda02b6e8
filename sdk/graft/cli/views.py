"""How a running job looks: a moving bar for a terminal, lines for a pipe, JSON lines for a script."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Protocol

from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.text import Text

from graft.cli.curve import draw_curve
from graft.cli.output import Output
from graft.results import JobEvent, JobState, Metrics

_LINE_EVERY_S = 5.0


class JobView(Protocol):
    """Shows the events of one job."""

    def show(self, event: JobEvent) -> None:
        """Takes the next event."""

    def pause(self) -> None:
        """Leaves the terminal to somebody else."""

    def resume(self) -> None:
        """Takes it back."""

    def close(self) -> None:
        """Shows what is shown at the end."""


def make_view(out: Output) -> JobView:
    """The view that fits where the output goes."""
    if out.as_json:
        return JsonView(out)
    return LiveView(out) if out.live else LineView(out)


def event_kind(event: JobEvent) -> str:
    """ "state_change", "metrics", "log", "stage" or "checkpoint"."""
    if event.state_change is not None:
        return "state_change"
    if event.metrics is not None:
        return "metrics"
    if event.stage is not None:
        return "stage"
    return "log" if event.log is not None else "checkpoint"


class JsonView:
    """One line of JSON for each event."""

    def __init__(self, out: Output) -> None:
        self._out = out

    def show(self, event: JobEvent) -> None:
        """Prints it, without the fields that it does not have."""
        kind = event_kind(event)
        body = {"event": kind, "sequence": event.sequence, "time": event.time}
        payload = {
            "state_change": event.state_change,
            "metrics": event.metrics,
            "log": event.log,
            "stage": event.stage,
            "checkpoint": event.checkpoint_step,
        }
        name = "step" if kind == "checkpoint" else kind
        self._out.json({**body, "attempt": event.attempt, name: payload[kind]})

    def pause(self) -> None:
        """Nothing to do."""

    def resume(self) -> None:
        """Nothing to do."""

    def close(self) -> None:
        """Nothing to do."""


class LineView:
    """A line for each state, and every few seconds one with figures."""

    def __init__(self, out: Output) -> None:
        self._out = out
        self._next_line_s = 0.0
        self._losses: list[float] = []

    def show(self, event: JobEvent) -> None:
        """Prints it, unless there was a line with figures just now."""
        if event.metrics is not None:
            self._losses.append(event.metrics.loss)
            last = event.metrics.step >= event.metrics.total_steps
            if not last and time.monotonic() < self._next_line_s:
                return
            self._next_line_s = time.monotonic() + _LINE_EVERY_S
            self._out.note(figures(event.metrics))
            return
        text = describe_event(event)
        if text:
            self._out.note(text)

    def pause(self) -> None:
        """Nothing to do."""

    def resume(self) -> None:
        """Nothing to do."""

    def close(self) -> None:
        """Draws the loss."""
        show_curve(self._out, self._losses)


class LiveView:
    """A bar with step, loss, tokens per second and time left; lines for people above it."""

    def __init__(self, out: Output) -> None:
        self._out = out
        self._losses: list[float] = []
        self._progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            _FiguresColumn(),
            console=out.console,
            transient=True,
        )
        self._task = self._progress.add_task("pending", total=None)
        self._progress.start()

    def show(self, event: JobEvent) -> None:
        """Moves the bar, or prints a line above it."""
        if event.metrics is not None:
            self._losses.append(event.metrics.loss)
            self._progress.update(
                self._task,
                completed=event.metrics.step,
                total=event.metrics.total_steps or None,
                metrics=event.metrics,
            )
            return
        if event.state_change is not None:
            description = event.state_change.to_state.lower()
            self._progress.update(self._task, description=description)
        if event.stage is not None:
            self._progress.update(self._task, description=event.stage.lower())
            return
        text = describe_event(event)
        if text and event.checkpoint_step is None:
            self._progress.console.print(Text(text, style="dim"), soft_wrap=True)

    def pause(self) -> None:
        """Takes the bar away."""
        self._progress.stop()

    def resume(self) -> None:
        """Brings it back."""
        self._progress.start()

    def close(self) -> None:
        """Takes the bar away and draws the loss."""
        self._progress.stop()
        show_curve(self._out, self._losses)


class _FiguresColumn(ProgressColumn):
    def render(self, task: Task) -> Text:
        metrics = task.fields.get("metrics")
        return Text(figures(metrics)) if isinstance(metrics, Metrics) else Text("")


def figures(metrics: Metrics) -> str:
    """The figures of a step in one line."""
    parts = [f"step {metrics.step}/{metrics.total_steps}", f"loss {metrics.loss:.4f}"]
    if metrics.eval_loss is not None:
        parts.append(f"eval loss {metrics.eval_loss:.4f}")
    # Those of the untrained model stand in the version; in a line they would only be in the way.
    shown = {name: one for name, one in metrics.figures.items() if not name.startswith("before_")}
    parts += [f"{name} {value:.3g}" for name, value in sorted(shown.items())]
    if metrics.tokens_per_second:
        parts.append(f"{metrics.tokens_per_second:,.0f} tokens/s")
    if metrics.remaining_s:
        parts.append(f"{timedelta(seconds=round(metrics.remaining_s))} left")
    return "  ".join(parts)


def describe_event(event: JobEvent) -> str:
    """An event in words; empty for figures."""
    if event.state_change is not None:
        change = event.state_change
        if change.to_state is JobState.PAUSED:
            return f"paused: {change.message}. `graft jobs resume` lets it go on."
        return f"{change.to_state.lower()}: {change.message}" if change.message else (
            change.to_state.lower()
        )  # fmt: skip
    if event.log is not None:
        return event.log
    if event.stage is not None:
        return f"stage: {event.stage.lower()}"
    return f"checkpoint at step {event.checkpoint_step}" if event.checkpoint_step else ""


def show_curve(out: Output, losses: list[float]) -> None:
    """The loss over the steps, when there is enough of it."""
    lines = draw_curve(losses)
    if lines:
        out.note("\n".join(["", *lines, f"loss over {len(losses)} reports", ""]))
