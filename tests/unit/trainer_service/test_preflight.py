"""What is found out about a job before it waits for a slot."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from graft.digests import canonical_json
from graft.errors import GraftError, Reason
from graft.trainer.v1.job_spec_pb2 import AdaLora, Lora, MethodSpec

from services.trainer.jobs import Job
from services.trainer.lifecycle import now
from services.trainer.preflight import ProcessPreflight, check_spec
from services.trainer.spec import parse_spec
from tests.support.trainer import job_request


def refused(base: Path | str, data: Path, *targets: str) -> GraftError:
    spec = job_request(base=str(base), data=str(data)).spec
    spec.method.lora.target_modules.extend(targets)
    with pytest.raises(GraftError) as error:
        check_spec(parse_spec(spec))
    return error.value


def test_a_good_job_passes(base_folder: Path, data_file: Path) -> None:
    spec = job_request(base=str(base_folder), data=str(data_file)).spec
    spec.method.lora.target_modules.extend(["q_proj", "layers.0.mlp.up_proj"])
    check_spec(parse_spec(spec))


def test_a_tilde_is_the_home_of_whoever_runs_the_trainer(
    base_folder: Path, data_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(base_folder.parent))
    base = f"~/{base_folder.name}"
    check_spec(parse_spec(job_request(base=base, data=str(data_file)).spec))
    monkeypatch.setenv("HOME", str(data_file.parent))
    data = f"~/{data_file.name}"
    check_spec(parse_spec(job_request(base=str(base_folder), data=data).spec))


def test_a_tilde_of_nobody_is_no_model(data_file: Path) -> None:
    assert refused("~nobody-of-that-name/base", data_file).reason is Reason.NOT_A_MODEL


def test_a_folder_without_a_model_is_named(tmp_path: Path, data_file: Path) -> None:
    error = refused(tmp_path, data_file)
    assert error.reason is Reason.NOT_A_MODEL
    assert str(tmp_path) in error.message


def test_a_path_that_does_not_exist_is_not_a_model(tmp_path: Path, data_file: Path) -> None:
    assert refused(tmp_path / "nowhere", data_file).reason is Reason.NOT_A_MODEL


def test_a_pickled_base_is_refused(tmp_path: Path, data_file: Path) -> None:
    folder = tmp_path / "pickled"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "pytorch_model.bin").write_bytes(b"\x80")
    assert "pickles" in refused(folder, data_file).message


@pytest.mark.parametrize(
    ("method", "field"),
    [
        (MethodSpec(lora=Lora(rank=33)), "method.lora.rank is 33"),
        (MethodSpec(dora=Lora(rank=33, target_modules=["auto"])), "method.dora.rank is 33"),
        (MethodSpec(adalora=AdaLora(target_rank=30)), "method.adalora.initial_rank is 45"),
    ],
)
def test_a_rank_above_a_layers_size_is_refused_with_the_layer(
    base_folder: Path, data_file: Path, method: MethodSpec, field: str
) -> None:
    spec = job_request(base=str(base_folder), data=str(data_file)).spec
    spec.method.CopyFrom(method)
    with pytest.raises(GraftError) as error:
        check_spec(parse_spec(spec))
    assert field in error.value.message
    assert "layers.0.self_attn.q_proj has 64 inputs and 32 outputs" in error.value.message
    assert "at most 32" in error.value.next_step


def test_a_rank_is_not_held_against_layers_that_are_not_adapted(
    base_folder: Path, data_file: Path
) -> None:
    spec = job_request(base=str(base_folder), data=str(data_file)).spec
    spec.method.lora.rank = 33
    spec.method.lora.target_modules.append("up_proj")
    check_spec(parse_spec(spec))


def test_an_unknown_target_module_is_named_with_those_that_exist(
    base_folder: Path, data_file: Path
) -> None:
    error = refused(base_folder, data_file, "q_proj", "c_attn")
    assert error.reason is Reason.INVALID_SPEC
    assert "'c_attn'" in error.message
    assert "q_proj, up_proj" in error.next_step


def test_a_row_without_its_field_is_named(base_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    rows = [{"prompt": "a", "completion": "b"}, {"prompt": "c"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    error = refused(base_folder, path)
    assert error.reason is Reason.BAD_DATA
    assert "row 2" in error.message
    assert "completion" in error.message


@pytest.fixture
def good_job(base_folder: Path, data_file: Path) -> Job:
    spec = job_request(base=str(base_folder), data=str(data_file)).spec
    return Job(
        name="namespaces/default/jobs/bot-1",
        namespace="default",
        spec_json=canonical_json(spec).decode(),
        slots=1,
        cpu_threads=0,
        max_restarts=3,
        create_time=now(),
    )


async def test_the_check_runs_in_a_process_of_its_own(
    good_job: Job, base_folder: Path, pythonpath: None
) -> None:
    preflight = ProcessPreflight(timeout_s=60)
    await preflight.check(good_job)
    spec = job_request(base=str(base_folder), data="nowhere.jsonl").spec
    with pytest.raises(GraftError, match=r"nowhere\.jsonl") as error:
        await preflight.check(replace(good_job, spec_json=canonical_json(spec).decode()))
    assert error.value.reason is Reason.BAD_DATA
    assert error.value.next_step


async def test_a_check_that_takes_too_long_is_an_error(good_job: Job, pythonpath: None) -> None:
    with pytest.raises(GraftError, match=r"more than 0\.01 s") as error:
        await ProcessPreflight(timeout_s=0.01).check(good_job)
    assert error.value.reason is Reason.INTERNAL


async def test_a_check_that_breaks_is_not_the_users_fault(good_job: Job, pythonpath: None) -> None:
    with pytest.raises(GraftError, match="ended with code 1") as error:
        await ProcessPreflight(timeout_s=60).check(replace(good_job, spec_json="nonsense"))
    assert error.value.reason is Reason.INTERNAL
