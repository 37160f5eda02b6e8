"""What a worker is told by whoever starts it: environment variables, read once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from graft.errors import GraftError, Reason
from graft.names import parse_name

from services.trainer.stall import StallLimits


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """The contract with the launcher.

    Attributes:
        job: "namespaces/{ns}/jobs/{job}".
        attempt: from 1.
        trainer_address: "host:port"; "" for none: events go to standard output.
        token: proves this worker to the trainer.
        registry_address: "host:port"; "" for none: the result stays in the work folder.
        work_dir: checkpoints/, result/ and data/ are below it.
        registry_patience_s: how long a registry that cannot be reached is tried again.
        trainer_patience_s: how long the end of the attempt is offered to a trainer that is away.
        signing_key: a PEM file with the key that signs the version; None for none.
        rank: of this process among those that train the job together, from 0.
        processes: how many those are.
        end_file: where the worker's last report is left for whoever ran it; None for nowhere.
        kubernetes_every_s: at most so often figures are written on the Job that this worker is the pod of.
        stall: how long a step may take where no trainer watches.
    """

    job: str
    attempt: int
    trainer_address: str
    token: str
    registry_address: str
    work_dir: Path
    registry_patience_s: float
    trainer_patience_s: float
    signing_key: Path | None = None
    rank: int = 0
    processes: int = 1
    end_file: Path | None = None
    kubernetes_every_s: float = 5.0
    stall: StallLimits = field(default_factory=StallLimits)

    @property
    def namespace(self) -> str:
        """The namespace of the job, its adapter and its base."""
        return parse_name(self.job, "namespaces/{namespace}/jobs/{job}")["namespace"]

    @property
    def checkpoints_dir(self) -> Path:
        """Where checkpoints are kept."""
        return self.work_dir / "checkpoints"

    @property
    def result_dir(self) -> Path:
        """Where the trained adapter is kept."""
        return self.work_dir / "result"


def read_settings(environment: Mapping[str, str], spec_path: Path) -> WorkerSettings:
    """Settings from GRAFT_WORKER_* variables; without a work folder, one beside the spec.

    Which of several processes it is comes from torchrun's RANK and WORLD_SIZE. All but the first have a
    folder of their own below the work folder, because several may be on one machine.

    Raises:
        GraftError: INVALID_REQUEST or INVALID_NAME, naming the variable's value.
    """

    def value(name: str, default: str = "") -> str:
        return environment.get(f"GRAFT_WORKER_{name}") or default

    job = value("JOB", "namespaces/default/jobs/local")
    parse_name(job, "namespaces/{namespace}/jobs/{job}")
    try:
        attempt = int(value("ATTEMPT", "1"))
        registry_patience_s = float(value("REGISTRY_PATIENCE_S", "600"))
        trainer_patience_s = float(value("TRAINER_PATIENCE_S", "300"))
        every_s = float(value("KUBERNETES_EVERY_S", "5"))
        usual = StallLimits()
        stall = StallLimits(
            float(value("STALL_FACTOR", str(usual.factor))),
            float(value("STALL_LEAST_S", str(usual.least_s))),
            float(value("STALL_FIRST_S", str(usual.first_s))),
        )
        rank, processes = int(environment.get("RANK", "0")), int(environment.get("WORLD_SIZE", "1"))
    except ValueError as error:
        raise GraftError(
            Reason.INVALID_REQUEST,
            f"A variable of the worker is not a number ({error})",
            next_step="Check ATTEMPT, REGISTRY_PATIENCE_S, TRAINER_PATIENCE_S, KUBERNETES_EVERY_S and STALL_*; torchrun sets RANK and WORLD_SIZE.",
        ) from None
    work_dir = Path(value("DIR") or spec_path.parent / f"{spec_path.stem}-work").absolute()
    return WorkerSettings(
        job=job,
        attempt=attempt,
        trainer_address=value("TRAINER"),
        token=value("TOKEN"),
        registry_address=value("REGISTRY"),
        work_dir=work_dir / f"rank-{rank}" if rank else work_dir,
        registry_patience_s=registry_patience_s,
        trainer_patience_s=trainer_patience_s,
        signing_key=Path(value("SIGNING_KEY")) if value("SIGNING_KEY") else None,
        rank=rank,
        processes=processes,
        end_file=Path(value("END_FILE")) if value("END_FILE") else None,
        kubernetes_every_s=every_s,
        stall=stall,
    )
