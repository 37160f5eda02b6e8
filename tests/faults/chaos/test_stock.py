"""The same cases on stock vLLM, in processes of its own. A case that it has mended fails nothing here: the table says so."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.chaos.cases import Case
from tests.faults.chaos.stock import GROUPS
from tests.faults.chaos.table import STOCK, Cell, Table
from tests.support.processes import ROOT, process_environment

pytestmark = [pytest.mark.chaos, pytest.mark.engine, pytest.mark.timeout(900)]
_GROUP_S = 400


@pytest.mark.parametrize("group", GROUPS)
def test_what_stock_vllm_does_is_seen(
    group: str, tiny_base: Path, tmp_path: Path, table: Table
) -> None:
    log = tmp_path / "log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.chaos.stock", group, tiny_base, tmp_path],
            cwd=ROOT,
            env=process_environment(),
            stdout=out,
            stderr=out,
            start_new_session=True,
        )
        try:
            process.wait(_GROUP_S)
        finally:
            # Its group: an engine is a process too, and one that died may leave others.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    found = tmp_path / f"{group}.jsonl"
    said = log.read_text("utf-8", "replace")[-3000:]
    assert found.exists(), said
    for line in found.read_text().splitlines():
        told = json.loads(line)
        table.cells[Case(told["case"]), STOCK] = Cell(told["fails"], told["told"])
    missing = [case.says for case in GROUPS[group].cases if (case, STOCK) not in table.cells]
    assert not missing, f"nothing was heard of {missing}: {said}"
