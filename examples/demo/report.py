"""The demo's result as one HTML file with its picture: loss curves, the swap's timeline, right answers."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib
from matplotlib.figure import Figure

from examples.demo.load import Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOURS = ("#3b6ea5", "#d1762b", "#4b8f5c", "#8a5aa8")


@dataclass(slots=True)
class DemoResult:
    """Everything that the report shows.

    Attributes:
        losses: job -> (step, loss in nats) pairs.
        exact_match: what was asked of what -> share of held-out questions answered exactly, 0 to 1.
        samples: (model, question, answer) triples.
        records: requests of the load, on the monotonic clock.
        crossed: answers that name one version and are the other's.
        promoted_s: when the alias was moved, on the same clock.
        facts: what was measured, as label -> words.
    """

    losses: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    exact_match: dict[str, float] = field(default_factory=dict)
    samples: list[tuple[str, str, str]] = field(default_factory=list)
    records: list[Record] = field(default_factory=list)
    crossed: int = 0
    promoted_s: float = 0.0
    facts: dict[str, str] = field(default_factory=dict)


def write_report(result: DemoResult, folder: Path) -> Path:
    """Writes report.html and report.png into folder; returns the path of the HTML file."""
    matplotlib.use("agg")
    folder.mkdir(parents=True, exist_ok=True)
    picture = folder / "report.png"
    _draw(result).savefig(picture, dpi=110)
    page = folder / "report.html"
    page.write_text(_page(result, picture.read_bytes()), "utf-8")
    return page


def _draw(result: DemoResult) -> Figure:
    figure = Figure(figsize=(12, 7), layout="constrained")
    axes = figure.subplot_mosaic([["loss", "match"], ["swap", "swap"]])
    _draw_losses(axes["loss"], result.losses)
    _draw_matches(axes["match"], result.exact_match)
    _draw_swap(axes["swap"], result.records, result.promoted_s)
    return figure


def _draw_losses(axes: Axes, losses: Mapping[str, Sequence[tuple[int, float]]]) -> None:
    for colour, (job, points) in zip(_COLOURS, losses.items(), strict=False):
        axes.plot(*zip(*points, strict=True), label=job, color=colour)
    axes.set(title="Training loss", xlabel="step", ylabel="loss (nats per token)", yscale="log")
    axes.grid(alpha=0.3)
    axes.legend()


def _draw_matches(axes: Axes, matches: Mapping[str, float]) -> None:
    bars = axes.barh(list(matches), [100 * share for share in matches.values()], color=_COLOURS[0])
    axes.bar_label(bars, fmt="%.0f %%", padding=3)
    axes.set(title="Held-out questions answered exactly", xlim=(0, 115), xlabel="%")
    axes.invert_yaxis()


def _draw_swap(axes: Axes, records: Sequence[Record], promoted_s: float) -> None:
    """Every request as a line from its first call to its last token, around the moment of the swap."""
    versions = sorted({record.version for record in records if record.version})
    shown = [r for r in records if r.ended_s - promoted_s > -1.5 and r.began_s - promoted_s < 1.5]
    shown.sort(key=lambda record: record.began_s)
    for colour, version in zip(_COLOURS, versions, strict=False):
        rows = [(row, r) for row, r in enumerate(shown) if r.version == version]
        axes.hlines(
            [row for row, _ in rows],
            [r.began_s - promoted_s for _, r in rows],
            [r.ended_s - promoted_s for _, r in rows],
            color=colour,
            lw=1.5,
            label="version " + version.rpartition("/")[2],
        )
    axes.axvline(0, color="black", lw=1, ls="--", label="alias moved")
    axes.set(
        title="Requests around the swap: each line is one request, coloured by the version that answered",
        xlabel="seconds since the alias was moved",
        ylabel="request",
    )
    if shown:
        axes.legend(loc="upper left")


def _page(result: DemoResult, picture: bytes) -> str:
    facts = _table(("", ""), result.facts.items())
    samples = _table(("model", "question", "answer"), result.samples)
    encoded = base64.b64encode(picture).decode()
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Graft demo</title><style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 75rem; margin: 2rem auto; padding: 0 1rem; }}
table {{ border-collapse: collapse; margin: 1rem 0; }}
td, th {{ border-bottom: 1px solid #ddd; padding: .3rem .8rem; text-align: left; vertical-align: top; }}
img {{ max-width: 100%; }}</style></head><body>
<h1>Two adapters trained, served and swapped</h1>{facts}
<img alt="Loss curves, exact matches and the timeline of the swap" src="data:image/png;base64,{encoded}">
<h2>Answers</h2>{samples}</body></html>
"""


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["<table>"]
    if any(header):
        lines.append("<tr>" + "".join(f"<th>{html.escape(name)}</th>" for name in header) + "</tr>")
    for row in rows:
        lines.append("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>")
    return "".join([*lines, "</table>"])
