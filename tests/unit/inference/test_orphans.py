"""What a service leaves behind when it is killed: nothing that computes."""

from __future__ import annotations

import subprocess
import sys
from contextlib import suppress

import psutil
import pytest

from tests.support.processes import ROOT, process_environment
from tests.support.waiting import eventually

_CHILD = """
import subprocess, sys
from services.inference.engines.orphans import end_with_ancestors
if int(sys.argv[1]):
    below = subprocess.Popen([sys.executable, "-c", sys.argv[3], str(int(sys.argv[1]) - 1), *sys.argv[2:]],
                             stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    print(below.stdout.readline().decode().strip(), flush=True)
else:
    end_with_ancestors(int(sys.argv[2]))
    import os
    print(os.getpid(), flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("generations", [1, 2])
async def test_a_process_ends_when_its_ancestor_was_killed(generations: int) -> None:
    """The ancestor's input stays open, so that nothing else tells what is below it."""
    ancestor = _started(generations)
    assert ancestor.stdin is not None
    assert ancestor.stdout is not None
    with ancestor.stdin, ancestor.stdout:
        process = psutil.Process(int(ancestor.stdout.readline()))
        between = psutil.Process(ancestor.pid).children() if generations > 1 else []
        assert process.is_running()
        ancestor.kill()
        ancestor.wait()
        await eventually(lambda: not process.is_running(), "its end")
    for one in between:
        with suppress(psutil.NoSuchProcess):
            one.kill()


def _started(generations: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", _CHILD, str(generations), str(generations), _CHILD],
        cwd=ROOT,
        env=process_environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
