"""A run in MLflow, through its own client. Where it is and who asks may come from MLflow's environment variables."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from services.trainer.run.trackers.base import About, Tracker
from services.trainer.spec.reporting import MlFlow

_JOB, _ATTEMPT = "graft.job", "graft.attempt"
_LONGEST_VALUE = 5000


class MlFlowTracker(Tracker):
    """One run for a job, whatever attempt writes it.

    Args:
        settings: as the spec has them.
    """

    name = "MLflow"

    def __init__(self, settings: MlFlow) -> None:
        self._settings = settings
        self._client: Any = None
        self._run_id = ""

    def start(self, about: About, first_step: int) -> None:
        from mlflow.tracking import MlflowClient

        client = MlflowClient(tracking_uri=self._settings.tracking_uri or None)
        name = self._settings.experiment
        found = client.get_experiment_by_name(name)
        experiment = found.experiment_id if found else client.create_experiment(name)
        same = client.search_runs([experiment], f"tags.`{_JOB}` = '{about.job}'", max_results=1)
        if same:
            self._run_id = same[0].info.run_id
            client.update_run(self._run_id, status="RUNNING")
        else:
            run = client.create_run(
                experiment, tags={_JOB: about.job}, run_name=self._settings.run_name or about.job
            )
            self._run_id = run.info.run_id
        client.set_tag(self._run_id, _ATTEMPT, about.attempt)
        client.set_tag(self._run_id, "graft.spec", about.spec_json[:_LONGEST_VALUE])
        self._client = client

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        now_ms = int(time.time() * 1000)
        metrics = [Metric(name, value, now_ms, step) for name, value in figures.items()]
        self._client.log_batch(self._run_id, metrics=metrics)

    def close(self, succeeded: bool) -> None:
        if self._client is not None:
            self._client.set_terminated(self._run_id, "FINISHED" if succeeded else "FAILED")
