"""Figures reach trackers beside the training, which a tracker neither fails nor holds up."""

from __future__ import annotations

import struct
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from graft.common.v1.common_pb2 import TrainingMetrics
from graft.trainer.v1.worker_service_pb2 import Finished, SessionRequest, Started

from services.trainer.run.reporters import Reporter
from services.trainer.run.trackers import reporter as feeding
from services.trainer.run.trackers.base import About, Tracker
from services.trainer.run.trackers.reporter import Feeder, TrackingReporter
from tests.unit.trainer_worker.support import Outcome

ABOUT = About("bot-1", 1, '{"seed": 7}')
Train = Callable[..., Outcome]


class Listener(Reporter):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.kinds: list[str] = []
        self.lines: list[str] = []

    def send(self, report: SessionRequest) -> None:
        kind = report.WhichOneof("report")
        self.kinds.append(str(kind))
        if kind == "log":
            self.lines.append(report.log)

    def finish(self, report: Finished) -> None:
        self.kinds.append("finished")


class Kept(Tracker):
    """Keeps figures, and fails or waits as it is told to."""

    name = "Kept"

    def __init__(self, fails_at: str = "") -> None:
        self.fails_at = fails_at
        self.figures: list[tuple[int, dict[str, float]]] = []
        self.closed: bool | None = None
        self.first_step = -1
        self.go_on = threading.Event()
        self.go_on.set()

    def _maybe_fail(self, where: str) -> None:
        self.go_on.wait()
        if self.fails_at == where:
            raise ConnectionError(f"no route to {where}")

    def start(self, about: About, first_step: int) -> None:
        self.first_step = first_step
        self._maybe_fail("start")

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        self._maybe_fail("log")
        self.figures.append((step, dict(figures)))

    def close(self, succeeded: bool) -> None:
        self._maybe_fail("close")
        self.closed = succeeded


def report_steps(reporter: Reporter, *steps: int) -> None:
    reporter.started(Started(step=3))
    for step in steps:
        reporter.metrics(TrainingMetrics(step=step, loss=1 / step, figures={"reward": 0.5}))


def test_every_figure_reaches_every_tracker_and_the_trainer() -> None:
    listener, trackers = Listener(), [Kept(), Kept()]
    tracking = TrackingReporter(listener, trackers, ABOUT)
    report_steps(tracking, 4, 5)
    tracking.close(succeeded=True)
    assert listener.kinds == ["started", "metrics", "metrics"]
    for one in trackers:
        assert (one.first_step, one.closed) == (3, True)
        assert [step for step, _ in one.figures] == [4, 5]
        assert one.figures[0][1]["loss"] == 0.25
        assert one.figures[0][1]["reward"] == 0.5
        assert "eval_loss" not in one.figures[0][1]


@pytest.mark.parametrize("where", ["start", "log"])
def test_a_tracker_that_is_away_costs_a_line_and_its_own_figures(where: str) -> None:
    listener, good = Listener(), Kept()
    tracking = TrackingReporter(listener, [Kept(fails_at=where), good], ABOUT)
    report_steps(tracking, 4, 5, 6)
    tracking.close(succeeded=True)
    assert len(good.figures) == 3
    assert len(listener.lines) == 2
    assert f"no route to {where}. The training goes on without it." in listener.lines[0]
    assert listener.lines[1] == f"3 reports did not reach Kept (no route to {where})."


def test_a_tracker_that_hangs_holds_nothing_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feeding, "_CLOSING_S", 0.05)
    listener, slow = Listener(), Kept()
    slow.go_on.clear()
    tracking = TrackingReporter(listener, [slow], ABOUT)
    report_steps(tracking, 4, 5)
    tracking.close(succeeded=True)
    slow.go_on.set()
    assert "did not reach Kept (it did not answer in time)" in listener.lines[0]


def test_what_a_full_queue_drops_is_counted_in_words() -> None:
    lines: list[str] = []
    slow = Kept()
    slow.go_on.clear()
    feeder = Feeder(slow, ABOUT, lines.append, capacity=2)
    feeder.begin(0)
    for step in range(1, 6):
        feeder.put(TrainingMetrics(step=step))
    slow.go_on.set()
    feeder.close(True, time.monotonic() + 60)
    assert [step for step, _ in slow.figures] == [1, 2]
    assert lines == ["3 reports did not reach Kept, which was too slow."]


def read_events(folder: Path) -> list[Any]:
    """The events of TensorBoard's files: records of a length, its checksum, the event and its checksum."""
    from tensorboardX.proto.event_pb2 import Event

    found = []
    for path in sorted(folder.glob("events.out.tfevents.*")):
        content, at = path.read_bytes(), 0
        while at < len(content):
            (length,) = struct.unpack_from("<Q", content, at)
            found.append(Event.FromString(content[at + 12 : at + 12 + length]))
            at += 12 + length + 4
    return found


@pytest.mark.training
@pytest.mark.filterwarnings("default")
def test_a_jobs_figures_are_in_files_for_tensorboard(train: Train, tmp_path: Path) -> None:
    outcome = train(
        dataset={"eval_fraction": 0.25},
        hyperparameters={"max_steps": 3},
        reporting={"tensorboard": {}},
    )
    assert outcome.code == 0, outcome.message
    scalars = {
        (value.tag, event.step): value.simple_value
        for event in read_events(outcome.work_dir / "tensorboard")
        for value in event.summary.value
    }
    losses = [scalars["loss", step] for step in (1, 2, 3)]
    assert losses == pytest.approx(outcome.losses[:3])
    assert ("eval_loss", 3) in scalars
    assert ("learning_rate", 1) in scalars


@pytest.mark.soak
@pytest.mark.filterwarnings("default")
def test_a_run_in_mlflow_is_one_run_whatever_attempt_writes_it(tmp_path: Path) -> None:
    pytest.importorskip("mlflow")
    from services.trainer.run.trackers.mlflow import MlFlowTracker
    from services.trainer.spec.reporting import MlFlow

    settings = MlFlow(f"sqlite:///{tmp_path}/mlflow.db", "graft", "")
    for attempt, steps in ((1, (1, 2)), (2, (2, 3))):
        tracker = MlFlowTracker(settings)
        tracker.start(About("bot-1", attempt, "{}"), steps[0] - 1)
        for step in steps:
            tracker.log(step, {"loss": 1 / step})
        tracker.close(succeeded=True)
    from mlflow.tracking import MlflowClient

    client = MlflowClient(settings.tracking_uri)
    experiment = client.get_experiment_by_name("graft")
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.run_name, run.info.status) == ("bot-1", "FINISHED")
    history = client.get_metric_history(run.info.run_id, "loss")
    assert sorted({(one.step, one.value) for one in history}) == [(1, 1.0), (2, 0.5), (3, 1 / 3)]


@pytest.mark.soak
@pytest.mark.filterwarnings("default")
def test_weights_and_biases_writes_its_files_offline(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    from services.trainer.run.trackers.wandb import WeightsAndBiasesTracker
    from services.trainer.spec.reporting import WeightsAndBiases

    tracker = WeightsAndBiasesTracker(WeightsAndBiases("graft", "", "", "offline"), tmp_path)
    tracker.start(ABOUT, 0)
    tracker.log(1, {"loss": 1.0})
    tracker.close(succeeded=True)
    (written,) = tmp_path.rglob("run-*.wandb")
    assert b"loss" in written.read_bytes()
