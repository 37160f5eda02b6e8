"""Chooses the trackers that a job's spec names, and knows before anything is trained whether their packages are there."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from graft.errors import GraftError, Reason

from services.trainer.run.trackers.base import Tracker
from services.trainer.spec import Reporting

_PACKAGES = {
    "tensorboard": ("tensorboardX", "tensorboardX"),
    "mlflow": ("mlflow", "graft-adapters[mlflow]"),
    "wandb": ("wandb", "graft-adapters[wandb]"),
}


def check_packages(reporting: Reporting) -> None:
    """Makes sure that what a job's trackers need is installed here; imports nothing of it.

    Raises:
        GraftError: INVALID_SPEC, naming the package and how it is installed.
    """
    for field, (package, installed) in _PACKAGES.items():
        if getattr(reporting, field) is None or find_spec(package) is not None:
            continue
        raise GraftError(
            Reason.INVALID_SPEC,
            f"reporting.{field} needs the Python package {package}, which is not installed here",
            next_step=f"Run `pip install '{installed}'` where jobs are trained, or leave reporting.{field} out.",
            field=f"reporting.{field}",
        )


def build_trackers(reporting: Reporting, job: str, work_dir: Path) -> list[Tracker]:
    """The trackers of a job.

    Args:
        job: its short name.
        work_dir: its folder, for those that write files.

    Raises:
        GraftError: INVALID_SPEC, without their packages.
    """
    check_packages(reporting)
    trackers: list[Tracker] = []
    if reporting.tensorboard is not None:
        from services.trainer.run.trackers.tensorboard import TensorBoardTracker

        named = reporting.tensorboard.folder
        folder = Path(named).expanduser() / job if named else work_dir / "tensorboard"
        trackers.append(TensorBoardTracker(folder))
    if reporting.mlflow is not None:
        from services.trainer.run.trackers.mlflow import MlFlowTracker

        trackers.append(MlFlowTracker(reporting.mlflow))
    if reporting.wandb is not None:
        from services.trainer.run.trackers.wandb import WeightsAndBiasesTracker

        trackers.append(WeightsAndBiasesTracker(reporting.wandb, work_dir / "wandb"))
    return trackers
