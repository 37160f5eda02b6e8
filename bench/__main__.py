"""Runs benchmarks by name, or all of them; prints their reports and keeps JSON in out/bench."""

from __future__ import annotations

import argparse
import importlib
import signal
import sys
from pathlib import Path

from bench.harness import Report

# Each module has run(short: bool) -> Report.
BENCHMARKS = (
    "streaming",
    "openai_door",
    "swap",
    "fairness",
    "adapters",
    "promotions",
    "lora",
    "soft_prompts",
    "kinds",
    "training",
    "checkpoints",
    "overhead",
    "merge",
    "blends",
    "plan",
    "preflight",
    "registry",
    "blobs",
    "capacity",
    "kubernetes",
    "alias_replicas",
    "rollout",
)


def main() -> int:
    """Runs what was named; 1 when a figure was not reached, except with --short."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(BENCHMARKS)}")
    parser.add_argument("--short", action="store_true", help="fewer rounds: does it run at all?")
    parser.add_argument("--out", type=Path, default=Path("out/bench"), help="folder for JSON")
    options = parser.parse_args()
    unknown = set(options.names) - set(BENCHMARKS)
    if unknown:
        parser.error(f"there is no benchmark {', '.join(sorted(unknown))}")
    # What was started is ended by the blocks that started it, also when this process is told to end.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    reports: list[Report] = []
    for name in options.names or BENCHMARKS:
        report: Report = importlib.import_module(f"bench.{name}").run(short=options.short)
        report.write(options.out)
        reports.append(report)
    for report in reports:
        report.print()
    reached = all(goal[-1] for report in reports for goal in report.goals)
    return 0 if reached or options.short else 1


if __name__ == "__main__":
    sys.exit(main())
