"""Merges and evaluations as jobs of a trainer, by the API, the client and the command line."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from graft.channel import rpc_errors
from graft.cli.app import app
from graft.client import Client
from graft.errors import GraftError, Reason
from graft.spec_file import read_any_spec
from graft.trainer.v1 import job_spec_pb2, model_jobs_pb2
from graft.trainer.v1 import trainer_service_pb2 as pb
from typer.testing import CliRunner

from services.trainer.launchers.base import Launch
from services.trainer.launchers.fake import FakeLauncher
from services.trainer.launchers.local import LocalLauncher
from services.trainer.launchers.scripted import Script
from services.trainer.preflight import NoPreflight, ProcessPreflight
from services.trainer.states import JobState
from tests.support.trainer import follow, start_trainer, trainer_stub, until_state

MERGE = model_jobs_pb2.MergeSpec(version="bot:3", output_base="bot-merged")
EVALUATION = model_jobs_pb2.EvaluationSpec(
    version="bot:3", name="held", dataset=job_spec_pb2.DatasetSpec(path="rows.jsonl")
)
PARENT = "namespaces/default"


def short(_launch: Launch) -> Script:
    return Script(steps=1)


async def test_a_merge_and_an_evaluation_are_stored_started_and_watched_as_trainings_are(
    tmp_path: Path,
) -> None:
    launcher = FakeLauncher(short)
    async with (
        start_trainer(tmp_path, launcher=launcher, preflight=NoPreflight()) as server,
        trainer_stub(server.address) as stub,
    ):
        merge = await stub.CreateJob(pb.CreateJobRequest(parent=PARENT, merge=MERGE))
        held = await stub.CreateJob(pb.CreateJobRequest(parent=PARENT, evaluation=EVALUATION))
        for job in (merge, held):
            events = await follow(stub, job.name)
            assert events[-1].state_change.to_state == pb.JOB_STATE_SUCCEEDED
        assert {launch.job: launch.kind for launch in launcher.launches} == {
            merge.name: "merge",
            held.name: "evaluate",
        }
        found = await stub.GetJob(pb.GetJobRequest(name=merge.name))
        assert found.merge == MERGE
        assert not found.HasField("spec")
        assert "/jobs/bot-merged-" in merge.name
        assert "/jobs/held-" in held.name
        listed = await stub.ListJobs(pb.ListJobsRequest(parent=PARENT))
        assert [job.name for job in listed.jobs] == [
            held.name,
            merge.name,
        ]


@pytest.mark.parametrize(
    ("request_", "reason", "words"),
    [
        (
            pb.CreateJobRequest(parent=PARENT, merge=MERGE, evaluation=EVALUATION),
            Reason.INVALID_REQUEST,
            "merge and evaluation",
        ),
        (
            pb.CreateJobRequest(
                parent=PARENT,
                merge=model_jobs_pb2.MergeSpec(version="bot:1", output_base="No Name"),
            ),
            Reason.INVALID_SPEC,
            "output_base is 'No Name'",
        ),
        (
            pb.CreateJobRequest(parent=PARENT, merge=model_jobs_pb2.MergeSpec(version="bot:1")),
            Reason.INVALID_SPEC,
            "output_base",
        ),
        (
            pb.CreateJobRequest(parent=PARENT, evaluation=model_jobs_pb2.EvaluationSpec(name="x")),
            Reason.INVALID_SPEC,
            "version is ''",
        ),
    ],
)
async def test_what_no_worker_could_begin_with_is_refused_at_once(
    tmp_path: Path, request_: pb.CreateJobRequest, reason: Reason, words: str
) -> None:
    async with (
        start_trainer(tmp_path, launcher=FakeLauncher(short), preflight=NoPreflight()) as server,
        trainer_stub(server.address) as stub,
    ):
        with pytest.raises(GraftError, match=words) as caught, rpc_errors("it"):
            await stub.CreateJob(request_)
        assert caught.value.reason is reason


async def test_an_evaluations_rows_are_looked_at_before_it_waits_for_a_slot(
    tmp_path: Path, pythonpath: None
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "a", "completion": "b"}\n{"prompt": "a"}\n')
    spec = model_jobs_pb2.EvaluationSpec()
    spec.CopyFrom(EVALUATION)
    spec.dataset.path = str(rows)
    async with (
        start_trainer(
            tmp_path / "t", launcher=FakeLauncher(short), preflight=ProcessPreflight(60)
        ) as server,
        trainer_stub(server.address) as stub,
    ):
        job = await stub.CreateJob(pb.CreateJobRequest(parent=PARENT, evaluation=spec))
        last = (await follow(stub, job.name))[-1].state_change
        assert last.to_state == pb.JOB_STATE_FAILED
        assert "rows.jsonl, row 2" in last.message


async def test_a_local_worker_is_told_the_kind_of_its_spec(tmp_path: Path) -> None:
    for kind, words in (("train", ["spec.json"]), ("merge", ["merge", "spec.json"])):
        launch = Launch(
            job=f"{PARENT}/jobs/{kind}",
            attempt=1,
            token="t",
            spec_json="{}",
            work_dir=tmp_path / kind,
            trainer_address="",
            registry_address="",
            slots=(0,),
            cpu_threads=1,
            kind=kind,
        )
        worker = await LocalLauncher(("/bin/echo",), {}).start(launch)
        await worker.wait()
        said = launch.log_path.read_text().split()
        assert [Path(word).name for word in said] == words


FILES = {
    "train": "base: {source: org/base}\ndataset: {path: rows.jsonl}\noutput: {adapter: bot}\n",
    "merge": "version: bot:3\noutput_base: merged\n",
    "evaluate": "version: bot:3\ndataset: {path: rows.jsonl}\n",
}


@pytest.mark.parametrize("kind", FILES)
def test_the_kind_of_a_file_is_told_from_its_fields(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text(FILES[kind])
    messages = {
        "train": job_spec_pb2.JobSpec,
        "merge": model_jobs_pb2.MergeSpec,
        "evaluate": model_jobs_pb2.EvaluationSpec,
    }
    assert type(read_any_spec(path)) is messages[kind]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"version": "bot:3"}, "merge or evaluate"),
        ({"versoin": "bot:3", "output_base": "x"}, "no field versoin.*version"),
        ({"base": {}, "dataset": {}, "outptu": {}}, "no field outptu.*output"),
    ],
)
def test_a_file_that_fits_no_kind_or_two_is_refused(values: dict[str, Any], words: str) -> None:
    with pytest.raises(GraftError, match=words):
        read_any_spec(values)


async def test_the_command_line_submits_pauses_resumes_and_retries(tmp_path: Path) -> None:
    spec = tmp_path / "merge.yaml"
    spec.write_text(FILES["merge"])

    def play(launch: Launch) -> Script:
        if launch.kind == "merge":
            return Script(steps=1, failed_uploads=1)
        return Script(steps=100_000, step_s=0.01)

    async with (
        start_trainer(
            tmp_path / "t", launcher=FakeLauncher(play), preflight=NoPreflight()
        ) as server,
        trainer_stub(server.address) as stub,
        Client(trainer=server.address) as client,
    ):

        async def graft(*words: str) -> tuple[int, str]:
            arguments = ["--trainer", server.address, "jobs", *words]
            result = await asyncio.to_thread(CliRunner().invoke, app, arguments)
            return result.exit_code, result.stdout + result.stderr

        code, out = await graft("submit", str(spec), "--json")
        assert code == 0, out
        name = json.loads(out.strip().splitlines()[-1])["job"]  # After the log of the service.
        assert (await client.job(name).wait(check=False)).state == "FAILED"
        code, out = await graft("get", name)
        assert "uploading" in out
        assert "the registry is away" in out
        assert "merge" in out
        code, out = await graft("retry", name)
        assert code == 0, out
        assert "it goes on with what it has made" in out
        assert (await client.job(name).wait()).state == "SUCCEEDED"

        training = await client.submit({"base": {"source": "b"}, "dataset": {"path": "d"},
                                        "output": {"adapter": "bot"}})  # fmt: skip
        await until_state(stub, training.name, pb.JOB_STATE_RUNNING)
        code, out = await graft("pause", training.name, "--reason", "for the night")
        assert code == 0, out
        await until_state(stub, training.name, pb.JOB_STATE_PAUSED)
        code, out = await graft("get", training.name)
        assert "for the night" in out
        assert JobState.PAUSED.lower() in out
        code, out = await graft("resume", training.name)
        assert code == 0, out
        assert "goes on from the checkpoint of step" in out
        code, _out = await graft("cancel", training.name)
        assert code == 0
        code, out = await graft("resume", training.name)
        assert code != 0
