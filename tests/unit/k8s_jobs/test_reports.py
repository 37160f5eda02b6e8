"""What a worker writes on its own Job, and that its training never depends on it."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from graft.common.v1 import common_pb2 as common
from graft.trainer.v1.worker_service_pb2 import Finished, Started

from services.trainer.run.background import BackgroundLoop
from services.trainer.run.exits import ExitCode
from services.trainer.run.kube.access import JobAddress, JobApi
from services.trainer.run.kube.reporter import JobReporter
from services.trainer.run.last_report import leave_report
from services.trainer.run.reporters import JsonLinesReporter
from tests.support.waiting import eventually
from tests.unit.k8s_jobs.recording_api import RecordingApi

VERSION = "namespaces/default/adapters/bot/versions/3"
METRICS = common.TrainingMetrics(
    step=120, total_steps=500, epoch=0.5, loss=1.25, tokens_per_second=800, remaining_s=60
)


@pytest.fixture
def api(tmp_path: Path) -> Iterator[RecordingApi]:
    with RecordingApi(tmp_path / "account") as running:
        yield running


@pytest.fixture
def reporter(api: RecordingApi) -> Iterator[JobReporter]:
    loop = BackgroundLoop()
    address = JobAddress.read(api.environment)
    assert address is not None
    yield JobReporter(loop, JobApi(address), JsonLinesReporter(io.StringIO()), 0.05)
    loop.close()


def test_progress_is_annotated_and_what_happens_becomes_events_of_the_job(
    api: RecordingApi, reporter: JobReporter
) -> None:
    reporter.started(Started(total_steps=500, trainable_parameters=4096, total_parameters=90_000))
    reporter.metrics(METRICS)
    reporter.checkpoint(100)
    reporter.finalizing()
    reporter.finish(Finished(version=VERSION))
    written = {name.removeprefix("graft.dev/"): text for name, text in api.annotations.items()}
    assert written["state"] == "succeeded"
    assert (written["step"], written["loss"]) == ("120/500", "1.2500")
    assert (written["version"], written["checkpoint-step"]) == (VERSION, "100")
    assert api.reasons == ["Started", "Finalizing", "Registered"]
    last = api.events[-1]
    assert last["involvedObject"]["uid"] == "u-1"
    assert (last["type"], last["message"]) == ("Normal", f"Registered {VERSION}")
    assert last["reportingInstance"] == "support-bot-x1"


async def test_a_running_training_has_the_time_of_its_end_annotated(
    api: RecordingApi, reporter: JobReporter
) -> None:
    reporter.metrics(METRICS)
    await eventually(lambda: "graft.dev/eta" in api.annotations)
    assert api.annotations["graft.dev/eta"].endswith("Z")


def test_a_failure_is_a_warning_with_its_cause(api: RecordingApi, reporter: JobReporter) -> None:
    reporter.finish(
        Finished(
            failure_cause=common.FAILURE_CAUSE_BAD_DATA,
            message="train.jsonl, row 7 has no output. Mend that row.",
        )
    )
    assert api.annotations["graft.dev/failure-cause"] == "bad-data"
    assert api.events[-1]["type"] == "Warning"
    assert api.events[-1]["message"].startswith("bad-data: train.jsonl, row 7")


def test_many_figures_are_few_patches(api: RecordingApi, reporter: JobReporter) -> None:
    for step in range(2000):
        METRICS.step = step
        reporter.metrics(METRICS)
    reporter.finish(Finished(version=VERSION))
    assert api.annotations["graft.dev/step"] == "1999/500"
    assert api.patches < 200


async def test_a_server_that_refuses_is_asked_again_and_said_once(
    api: RecordingApi, reporter: JobReporter, capsys: pytest.CaptureFixture[str]
) -> None:
    api.refuse_with = 403
    reporter.started(Started(total_steps=500))
    reporter.finalizing()
    await eventually(lambda: api.refusals >= 2)
    api.refuse_with = 0
    reporter.finish(Finished(version=VERSION))
    assert api.reasons == ["Started", "Finalizing", "Registered"]
    # Libraries say things of their own on standard error.
    (said,) = [
        line
        for line in capsys.readouterr().err.splitlines()
        if "the Job" in line or "The Job" in line
    ]
    assert "training goes on" in said
    assert "patch on jobs" in said


def test_outside_of_a_job_there_is_nothing_to_write_on() -> None:
    assert JobAddress.read({}) is None
    assert JobAddress.read({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}) is None


def test_in_a_pod_the_address_comes_from_kubernetes() -> None:
    environment = {"GRAFT_WORKER_KUBERNETES_JOB": "j", "KUBERNETES_SERVICE_HOST": "fd00::1"}
    address = JobAddress.read(environment)
    assert address is not None
    assert address.url == "https://[fd00::1]:443"


def test_the_end_is_one_line_that_a_pods_status_keeps(tmp_path: Path) -> None:
    path = tmp_path / "end"
    refused = Finished(failure_cause=common.FAILURE_CAUSE_REFUSED, message="ö" * 5000)
    leave_report(path, ExitCode.REFUSED, refused)
    assert path.stat().st_size <= 4096
    assert json.loads(path.read_text("utf-8"))["failureCause"] == "FAILURE_CAUSE_REFUSED"


def test_a_process_that_only_suffered_does_not_write_over_the_cause(tmp_path: Path) -> None:
    path = tmp_path / "end"
    wrong = Finished(failure_cause=common.FAILURE_CAUSE_BAD_DATA, message="Row 7 is wrong")
    leave_report(path, ExitCode.BAD_DATA, wrong)
    leave_report(path, ExitCode.PREEMPTED, Finished(preempted=True, message="A peer is gone"))
    assert json.loads(path.read_text("utf-8"))["message"] == "Row 7 is wrong"


@pytest.mark.training
@pytest.mark.filterwarnings("default")
def test_a_worker_process_in_a_pod_tells_its_job_how_it_ended(
    api: RecordingApi, start: Callable[..., object], tmp_path: Path
) -> None:
    end = tmp_path / "end"
    worker = start(
        environment=api.environment | {"GRAFT_WORKER_END_FILE": str(end)},
        hyperparameters={"max_steps": 3},
    )
    outcome = worker.outcome()  # type: ignore[attr-defined]
    assert outcome.code == 0
    assert api.annotations["graft.dev/state"] == "succeeded"
    assert api.annotations["graft.dev/step"] == "3/3"
    assert api.reasons == ["Started", "Finalizing", "Done"]
    assert "The result is in" in json.loads(end.read_text("utf-8"))["message"]
