"""The worker's own fixtures, for workers in Jobs."""

from tests.unit.trainer_worker.conftest import spec, start, task, train

__all__ = ["spec", "start", "task", "train"]
