"""python -m bench.gpu [NAME ...]: the benchmarks of one CUDA device; prints reports, keeps JSON in out/bench."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from bench.gpu.training import CASES, run

# After bench.contenders, which sets the environment that torch reads when it is loaded.
import torch  # isort: skip


def main(arguments: list[str]) -> int:
    """Runs what was named, or everything; 1 when a figure was not reached, 2 where there is no CUDA device."""
    names = [case.name.removeprefix("gpu-training-") for case in CASES]
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(names)}")
    parser.add_argument("--short", action="store_true", help="one round of each, without warm-up")
    parser.add_argument("--out", type=Path, default=Path("out/bench"), help="folder for JSON")
    options = parser.parse_args(arguments)
    unknown = set(options.names) - set(names)
    if unknown:
        parser.error(f"there is no benchmark {', '.join(sorted(unknown))}")
    if not torch.cuda.is_available():
        print("There is no CUDA device here, so nothing was measured.", file=sys.stderr)
        return 2
    reached = True
    for name, case in zip(names, CASES, strict=True):
        if options.names and name not in options.names:
            continue
        report = run(case, short=options.short)
        report.settings["device"] = torch.cuda.get_device_name()
        report.write(options.out)
        report.print()
        reached &= all(goal[-1] for goal in report.goals)
    return 0 if reached or options.short else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
