"""Preflight of a large set, in the process in which the service runs it: seconds and peak memory on two cores.

The rows are those of the Alpaca file that `training` takes too, repeated with changes, so that no row says
what another says; made-up ones where there is no such file. The base is that of the examples: its small
vocabulary makes about twice as many tokens of a row as a large model's would.
"""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count, islice
from pathlib import Path
from typing import Any

import psutil
from graft.trainer.v1 import job_spec_pb2, preflight_pb2

from bench.alpaca import alpaca_file
from bench.harness import Measurement, Report, compare
from bench.processes import REPOSITORY
from services.trainer.convert import survey_request, survey_update
from services.trainer.preflight.process import Surveyor

_CORES = 2
_MOST_SECONDS, _MOST_MIB = 60.0, 1024.0
_TIMEOUT_S = 900.0
_LOOK_EVERY_S = 0.02


def run(short: bool = False) -> Report:
    """Looks at 100,000 rows in every round; at 2,000 when short."""
    rows = 2_000 if short else 100_000
    with tempfile.TemporaryDirectory(prefix="graft-bench-") as folder:
        source = alpaca_file(Path(folder))
        data = Path(folder) / "rows.json"
        data.write_text(json.dumps(list(islice(different_rows(source), rows))), "utf-8")
        report = compare(
            "preflight",
            {"graft": lambda: _survey(data, rows)},
            rounds=1 if short else 3,
            settings={
                "data": source.name,
                "rows": rows,
                "file_mib": round(data.stat().st_size / 2**20, 1),
                "cores": len(_cores()),
            },
        )
    if not short:
        took, peak = (report.figures["graft"][name].median for name in ("seconds", "peak_mib"))
        report.goal(
            "100,000 rows on 2 cores, seconds", f"at most {_MOST_SECONDS:g}", took, took <= 60
        )
        report.goal(
            "100,000 rows, peak MiB of the process tree",
            f"at most {_MOST_MIB:g}",
            peak,
            peak <= _MOST_MIB,
        )
    return report


def different_rows(source: Path) -> Iterator[dict[str, Any]]:
    """The rows of an Alpaca file over and over, each time with other questions and answers."""
    rows = json.loads(source.read_text("utf-8"))
    for turn in count():
        for row in rows:
            instruction, output = row["instruction"], row["output"]
            yield (row | {"instruction": f"{instruction} ({turn})", "output": f"{output} [{turn}]"})


def _survey(data: Path, rows: int) -> Measurement:
    request = preflight_pb2.ValidateJobRequest(
        parent="namespaces/bench",
        spec=job_spec_pb2.JobSpec(
            base=job_spec_pb2.BaseSpec(source=str(REPOSITORY / "examples/base")),
            dataset=job_spec_pb2.DatasetSpec(path=str(data)),
            output=job_spec_pb2.Output(adapter="bench"),
        ),
    )
    with _on_cores(), _PeakMemory() as memory:
        begin = time.perf_counter()
        report = asyncio.run(_last_update(*survey_request(request))).report
        seconds = time.perf_counter() - begin
    assert report.rows == rows, report
    return {
        "seconds": seconds,
        "peak_mib": memory.peak_bytes / 2**20,
        "rows_per_second": rows / seconds,
        "tokens_per_row": report.lengths.mean,
    }


async def _last_update(spec_json: str, examples: int) -> preflight_pb2.ValidateJobResponse:
    last: dict[str, Any] = {}
    async for update in Surveyor(_TIMEOUT_S).survey(spec_json, examples):
        last = update
    return survey_update(last)


def _cores() -> list[int]:
    return sorted(os.sched_getaffinity(0))[:_CORES]


@contextmanager
def _on_cores() -> Iterator[None]:
    """Processes that are started inside have two cores, however many the machine has."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, _cores())
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


class _PeakMemory:
    """The most that all processes below this one hold at a time; resident bytes, shared pages counted in each."""

    def __init__(self) -> None:
        self.peak_bytes = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> _PeakMemory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        me = psutil.Process()
        while not self._done.wait(_LOOK_EVERY_S):
            self.peak_bytes = max(self.peak_bytes, sum(map(_resident, me.children(recursive=True))))


def _resident(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.Error:  # It has ended meanwhile.
        return 0
