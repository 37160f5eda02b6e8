"""Processes that train several jobs together, one after the other: starting them costs more than a tiny job.

As a program it is one of them: a job per line of standard input, what became of it per line of standard output.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.support.processes import ROOT
from tests.unit.trainer_worker.support import Outcome, attempt

# For how many sequences at once a process has memory.
ROOM = "TEST_ROOM_SEQUENCES"


class Processes:
    """Several processes of one machine that find each other over gloo.

    Args:
        size: how many.
    """

    def __init__(self, size: int) -> None:
        from torch._C._distributed_c10d import TCPStore

        # As torchrun's agent does, which outlives the processes that it starts.
        self._store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        self._jobs = 0
        self._processes = [
            subprocess.Popen(
                [sys.executable, "-m", "tests.support.pairs"],
                cwd=ROOT,
                env={
                    **os.environ,
                    "PYTHONPATH": os.pathsep.join(
                        filter(None, [str(ROOT / "sdk"), str(ROOT), os.environ.get("PYTHONPATH")])
                    ),
                    "OMP_NUM_THREADS": "1",
                    "MASTER_ADDR": "127.0.0.1",
                    "MASTER_PORT": str(self._store.port),
                    "TORCHELASTIC_USE_AGENT_STORE": "True",
                },
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for _ in range(size)
        ]

    def train(
        self,
        spec: Mapping[str, Any],
        work_dir: Path,
        processes: int = 0,
        room: Sequence[int] = (),
        **environment: str,
    ) -> list[Outcome]:
        """Trains a job to its end; what became of it in each process.

        Args:
            processes: how many of them; all when 0.
            room: for how many sequences at once each has memory, by rank; 0 for any.
        """
        self._jobs += 1
        taken = self._processes[: processes or len(self._processes)]
        for rank, process in enumerate(taken):
            assert process.stdin is not None
            variables = {"RANK": str(rank), "WORLD_SIZE": str(len(taken)), **environment}
            if room:
                variables[ROOM] = str(room[rank])
            job = {
                "spec": spec,
                "work_dir": str(work_dir),
                "environment": variables,
                "number": self._jobs,
            }
            process.stdin.write(json.dumps(job) + "\n")
            process.stdin.flush()
        outcomes = []
        for process in taken:
            assert process.stdout is not None
            found = json.loads(process.stdout.readline())
            outcomes.append(Outcome(found["code"], found["events"], Path(found["work_dir"])))
        return outcomes

    def close(self) -> None:
        """Ends them."""
        for process in self._processes:
            assert process.stdin is not None
            assert process.stdout is not None
            with suppress(BrokenPipeError):
                process.stdin.close()
            process.kill()
            process.wait()
            process.stdout.close()


def alone(spec: dict[str, Any], work_dir: Path) -> Outcome:
    """The job in this process alone, with as many rows per step as two have."""
    hyper = spec["hyperparameters"]
    doubled = {"gradient_accumulation_steps": 2 * hyper.get("gradient_accumulation_steps", 1)}
    outcome = attempt({**spec, "hyperparameters": {**hyper, **doubled}}, work_dir)
    assert outcome.code == 0, outcome.message
    return outcome


def same(both: list[Outcome], one: Outcome) -> None:
    """Checks that several processes came to where one came: losses, gradient norms and weights."""
    import pytest

    assert not any(outcome.code for outcome in both), [outcome.message for outcome in both]
    assert both[0].losses == pytest.approx(one.losses, rel=1e-4)
    norms = [
        [event["metrics"]["grad_norm"] for event in outcome.events if "metrics" in event]
        for outcome in (both[0], one)
    ]
    assert norms[0] == pytest.approx(norms[1], rel=1e-3)
    assert weights(both[0]) == pytest.approx(weights(one), rel=1e-3, abs=2e-5)


def weights(outcome: Outcome) -> Any:
    """All numbers of a result, in the order of their names."""
    import numpy as np
    from safetensors.numpy import load_file

    (path,) = (outcome.work_dir / "result").glob("*.safetensors")
    tensors = load_file(path)
    return np.concatenate([tensors[name].ravel() for name in sorted(tensors)])


@contextmanager
def _room_for(sequences: int) -> Iterator[None]:
    """Within it a step of more sequences fails for want of memory, once their gradients are there; 0 for never."""
    import torch
    from transformers import Trainer

    real = Trainer.training_step

    def step(self: Any, model: Any, inputs: Any, *rest: Any) -> Any:
        loss = real(self, model, inputs, *rest)
        held = next(value for value in inputs.values() if isinstance(value, torch.Tensor))
        if sequences and len(held) > sequences:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return loss

    type.__setattr__(Trainer, "training_step", step)
    try:
        yield
    finally:
        type.__setattr__(Trainer, "training_step", real)


def main() -> None:
    """Does the jobs of standard input."""
    from services.trainer.run.joined_team import JoinedTeam

    # What libraries print is not an answer.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    teams: list[JoinedTeam] = []
    join = JoinedTeam.join

    def join_once(rank: int, size: int) -> JoinedTeam:
        """They have found each other for the job before; only its end was its own."""
        from torch.distributed.distributed_c10d import PrefixStore

        if not teams:
            teams.append(join(rank, size))
        return JoinedTeam(rank, size, PrefixStore(str(job["number"]), teams[0]._store))

    type.__setattr__(JoinedTeam, "join", staticmethod(join_once))
    for line in sys.stdin:
        job = json.loads(line)
        with _room_for(int(job["environment"].get(ROOM, 0))):
            outcome = attempt(job["spec"], Path(job["work_dir"]), environment=job["environment"])
        answers.write(json.dumps(asdict(outcome), default=str) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
