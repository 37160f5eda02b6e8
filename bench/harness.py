"""Runs contenders in turns and compares them: ratios of medians with their spread, as a table and JSON.

Machines drift while they are measured; contenders that take turns within a round drift together, so a
ratio is taken per round and only then summarized. A benchmark is a function that returns a Report.
"""

from __future__ import annotations

import json
import platform
import statistics
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import psutil

Measurement = Mapping[str, float]
Contender = Callable[[], Measurement]


@dataclass(frozen=True, slots=True)
class Summary:
    """What became of one figure over the rounds; min and max are its spread."""

    median: float
    min: float
    max: float

    @classmethod
    def of(cls, values: list[float]) -> Summary:
        """Summarizes at least one value."""
        return cls(statistics.median(values), min(values), max(values))

    def __str__(self) -> str:
        return f"{self.median:,.4g} ({self.min:,.4g} to {self.max:,.4g})"


@dataclass(slots=True)
class Report:
    """Result of a benchmark.

    Attributes:
        name: of the benchmark.
        settings: what was the same for all contenders.
        figures: contender -> figure -> summary over the rounds.
        ratios: "ours / peer" -> figure -> summary of the ratios of each round.
        goals: figure of the project -> (wanted, measured, reached), in words.
        rounds: raw measurements, in the order in which they were taken.
    """

    name: str
    settings: dict[str, object]
    figures: dict[str, dict[str, Summary]] = field(default_factory=dict)
    ratios: dict[str, dict[str, Summary]] = field(default_factory=dict)
    goals: list[tuple[str, str, str, bool]] = field(default_factory=list)
    rounds: list[dict[str, dict[str, float]]] = field(default_factory=list)

    def goal(self, figure: str, wanted: str, measured: float, reached: bool) -> None:
        """Records whether a figure that the project promises was reached."""
        self.goals.append((figure, wanted, f"{measured:,.4g}", reached))

    def ratio(self, ours: str, peer: str, figure: str) -> Summary:
        """The ratio of one figure of two contenders, taken per round; keeps it among the ratios."""
        summary = Summary.of(
            [measured[ours][figure] / measured[peer][figure] for measured in self.rounds]
        )
        self.ratios.setdefault(f"{ours} / {peer}", {})[figure] = summary
        return summary

    def print(self) -> None:
        """Writes the report for people."""
        print(f"\n== {self.name} ==")
        print("   " + ", ".join(f"{key}={value}" for key, value in self.settings.items()))
        for title, table in (("", self.figures), ("ratio ", self.ratios)):
            for who, figures in table.items():
                for figure, summary in figures.items():
                    print(f"   {title}{who:<34} {figure:<28} {summary}")
        for figure, wanted, measured, reached in self.goals:
            print(f"   goal: {figure}: {measured} (wanted {wanted}): {_verdict(reached)}")

    def write(self, folder: Path) -> Path:
        """Keeps the report as JSON in folder, with the machine and the time; returns its path."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.name}.json"
        machine = {
            "cores": psutil.cpu_count(),
            "memory_bytes": psutil.virtual_memory().total,
            "platform": platform.platform(),
            "python": platform.python_version(),
        }
        content = {**asdict(self), "machine": machine, "time": datetime.now(UTC).isoformat()}
        path.write_text(json.dumps(content, indent=2) + "\n", "utf-8")
        return path


def compare(
    name: str,
    contenders: Mapping[str, Contender],
    *,
    rounds: int,
    settings: Mapping[str, object],
    warm_up_rounds: int = 0,
) -> Report:
    """Lets contenders take turns and summarizes what they measured.

    Args:
        name: of the benchmark and its JSON file.
        contenders: ours first; each call is one measurement, figure -> value.
        rounds: how often each has its turn. The order is reversed in every second round.
        settings: what was the same for all, for the report.
        warm_up_rounds: rounds before that, which do not count.
    """
    assert rounds > 0
    assert contenders
    report = Report(name, dict(settings))
    for number in range(-warm_up_rounds, rounds):
        order = list(contenders.items())
        measured = {who: dict(run()) for who, run in (order if number % 2 == 0 else order[::-1])}
        print(f"   {name}: {_progress(number, rounds)}: {_short(measured)}", flush=True)
        if number >= 0:
            report.rounds.append(measured)
    summarize(report, list(contenders))
    return report


def summarize(report: Report, contenders: list[str]) -> None:
    """Fills figures and ratios of a report from its rounds; the first contender is ours."""
    ours, *peers = contenders
    for who in contenders:
        names = report.rounds[0][who]
        report.figures[who] = {
            figure: Summary.of([measured[who][figure] for measured in report.rounds])
            for figure in names
        }
    for peer in peers:
        shared = [name for name in report.rounds[0][ours] if name in report.rounds[0][peer]]
        report.ratios[f"{ours} / {peer}"] = {
            figure: Summary.of(
                [measured[ours][figure] / measured[peer][figure] for measured in report.rounds]
            )
            for figure in shared
            if all(measured[peer][figure] for measured in report.rounds)
        }


def _verdict(reached: bool) -> str:
    return "reached" if reached else "NOT reached"


def _progress(number: int, rounds: int) -> str:
    return f"round {number + 1}/{rounds}" if number >= 0 else "warm-up"


def _short(measured: Mapping[str, Mapping[str, float]]) -> str:
    return "; ".join(
        f"{who} " + " ".join(f"{figure}={value:,.4g}" for figure, value in figures.items())
        for who, figures in measured.items()
    )
