"""Merging and evaluating versions of a real registry, by the worker as a process would do it."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from graft.bases import read_base
from graft.client import Client
from graft.digests import digest_file
from graft.registry.v1 import registry_service_pb2 as pb

from services.trainer.run import __main__ as worker
from services.trainer.run.background import BackgroundLoop
from services.trainer.run.reporters import JsonLinesReporter
from services.trainer.run.settings import read_settings
from services.trainer.run.stop import StopSignal
from tests.support.models import make_adapter, make_base
from tests.support.registry import RegistryCalls, registry_calls, running_registry
from tests.unit.trainer_worker.support import Outcome

pytestmark = [pytest.mark.training, pytest.mark.filterwarnings("default")]
BOT, MERGED = "namespaces/default/adapters/bot", "namespaces/default/bases/bot-merged"


@pytest.fixture
async def registry(
    tmp_path: Path,
) -> AsyncIterator[tuple[str, RegistryCalls]]:
    async with (
        running_registry(tmp_path / "registry") as server,
        registry_calls(server.address) as calls,
    ):
        yield server.address, calls


def do(kind: str, spec: dict[str, Any], work_dir: Path, registry: str) -> Outcome:
    """One attempt in this process."""
    work_dir.mkdir(exist_ok=True)
    path = work_dir / f"{kind}.json"
    path.write_text(json.dumps(spec), "utf-8")
    variables = {
        "GRAFT_WORKER_DIR": str(work_dir),
        "GRAFT_WORKER_JOB": f"namespaces/default/jobs/{kind}",
        "GRAFT_WORKER_REGISTRY": registry,
        "GRAFT_WORKER_REGISTRY_PATIENCE_S": "0.5",
    }
    out, loop = io.StringIO(), BackgroundLoop()
    reporter = JsonLinesReporter(out)
    settings = read_settings(variables, path)
    code, finished = worker.attempt(path, settings, loop, reporter, StopSignal(), kind)
    reporter.finish(finished)
    loop.close()
    return Outcome(code, [json.loads(line) for line in out.getvalue().splitlines()], work_dir)


async def test_an_adapter_is_merged_checked_by_a_fresh_process_and_evaluated_to_the_same_loss(
    registry: tuple[str, RegistryCalls],
    train: Callable[..., Outcome],
    task: Path,
    tmp_path: Path,
) -> None:
    address, calls = registry
    trained = await asyncio.to_thread(train, registry=address, hyperparameters={"max_steps": 6})
    assert trained.code == 0, trained.message

    spec = {"version": "bot", "outputBase": "bot-merged"}
    merged = await asyncio.to_thread(do, "merge", spec, tmp_path / "merge", address)
    assert merged.code == 0, merged.message
    assert merged.finished["version"] == f"{MERGED}/versions/1"
    assert "A fresh process computes the same" in merged.log
    version = await calls.get_version(f"{MERGED}/versions/1")
    assert version.manifest.method == "merge"
    assert list(version.manifest.lineage.parent_versions) == [f"{BOT}/versions/1"]
    assert version.manifest.lineage.metrics["logits_difference"] < 1e-3

    again = await asyncio.to_thread(do, "merge", spec, tmp_path / "another-disk", address)
    assert again.finished["version"] == version.name
    assert "has made" in again.log
    answer = await calls.stub.ListVersions(pb.ListVersionsRequest(parent=MERGED))
    assert len(answer.versions) == 1

    losses = []
    for name in ("bot:1", "bases/bot-merged:1"):
        evaluation = {"version": name, "dataset": {"path": str(task)}, "max_loss": 20}
        done = await asyncio.to_thread(do, "evaluate", evaluation, tmp_path / "eval", address)
        assert done.code == 0, done.message
        labels = dict((await calls.get_version(done.finished["version"])).labels)
        assert labels["eval.held-out.passed"] == "true"
        assert labels["eval.held-out.rows"] == "48"
        losses.append(float(labels["eval.held-out.loss"]))
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


async def test_an_adapter_of_a_quantized_base_is_merged_into_what_it_was_fitted_to(
    registry: tuple[str, RegistryCalls], train: Callable[..., Outcome], tmp_path: Path
) -> None:
    address, _ = registry
    changes = {"method": {"lora": None, "qlora": {"rank": 4}}, "hyperparameters": {"max_steps": 2}}
    trained = await asyncio.to_thread(train, registry=address, **changes)
    assert trained.code == 0, trained.message
    spec = {"version": "bot:1", "outputBase": "bot-merged"}
    merged = await asyncio.to_thread(do, "merge", spec, tmp_path / "merge", address)
    assert merged.code == 0, merged.message
    assert "nf4 quantization" in merged.log
    assert "A fresh process computes the same" in merged.log


async def test_a_merge_that_is_not_what_was_trained_is_refused_with_the_number(
    registry: tuple[str, RegistryCalls],
    train: Callable[..., Outcome],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from peft.tuners.tuners_utils import BaseTuner

    address, calls = registry
    trained = await asyncio.to_thread(train, registry=address, hyperparameters={"max_steps": 6})
    assert trained.code == 0, trained.message
    monkeypatch.setattr(BaseTuner, "merge_and_unload", lambda tuner, **_: tuner.unload())
    spec = {"version": "bot", "outputBase": "bot-merged"}
    merged = await asyncio.to_thread(do, "merge", spec, tmp_path / "merge", address)
    assert merged.code == 64
    assert "its logits differ by 0." in merged.message
    assert "nothing was committed" in merged.message
    assert "computes the same" not in merged.log
    answer = await calls.stub.ListBases(pb.ListBasesRequest(parent="namespaces/default"))
    assert MERGED not in [base.name for base in answer.bases]


async def test_what_does_not_exist_is_a_bad_spec(
    registry: tuple[str, RegistryCalls], tmp_path: Path
) -> None:
    address, _ = registry
    spec = {"version": "nobody:3", "outputBase": "x"}
    merged = await asyncio.to_thread(do, "merge", spec, tmp_path / "merge", address)
    assert merged.code == 64
    assert "nobody" in merged.message

    spec = {"version": "bot", "outputBase": "No Name"}
    merged = await asyncio.to_thread(do, "merge", spec, tmp_path / "merge", address)
    assert merged.code == 64
    assert "output_base" in merged.message


def test_without_a_registry_there_is_nothing_to_merge(tmp_path: Path) -> None:
    outcome = do("merge", {"version": "bot", "outputBase": "x"}, tmp_path / "merge", "")
    assert outcome.code == 64
    assert "GRAFT_WORKER_REGISTRY" in outcome.message


@pytest.mark.soak  # In short by the command line: cli/test_merging.py.
async def test_two_adapters_become_one_that_is_served_and_merged(
    registry: tuple[str, RegistryCalls], tiny_base: Path, tmp_path: Path
) -> None:
    address, calls = registry
    async with Client(registry=address) as client:
        for number, name in enumerate(("one", "two")):
            folder = make_adapter(tmp_path / name, tiny_base, rank=4 + 4 * number, seed=number)
            await client.adapters.push(name, folder, base=tiny_base)
    spec = {
        "versions": [{"version": "one:1", "weight": 0.7}, {"version": "two:1", "weight": 0.4}],
        "combination": {"kind": "cat"},
        "output_adapter": "both",
    }
    made = await asyncio.to_thread(do, "merge", spec, tmp_path / "merge", address)
    assert made.code == 0, made.message
    version = await calls.get_version("namespaces/default/adapters/both/versions/1")
    lineage = version.manifest.lineage
    assert [one.split("/")[3] for one in lineage.parent_versions] == ["one", "two"]
    assert lineage.metrics["rank"] == 12
    assert lineage.metrics["difference_from_sum"] < 1e-4
    assert lineage.metrics["logits_difference"] < 1e-4
    assert "MERGE_REPORT.md" in [file.path for file in version.manifest.files]
    assert "tokens from all over the vocabulary" in made.log, "pushed by hand: it has no data"


async def flip_a_byte(calls: RegistryCalls, version: str, registry_dir: Path) -> None:
    """Damages the stored weights of a version."""
    files = (await calls.get_version(version)).manifest.files
    digest = next(file.digest for file in files if file.path.endswith(".safetensors"))
    blobs = [path for path in registry_dir.rglob("*") if path.is_file()]
    stored = next(path for path in blobs if digest_file(path) == digest)
    stored.chmod(0o644)
    content = bytearray(stored.read_bytes())
    content[-7] ^= 1
    stored.write_bytes(content)


async def test_what_cannot_be_merged_leaves_nothing_anywhere(
    registry: tuple[str, RegistryCalls], tiny_base: Path, tmp_path: Path
) -> None:
    """The wrong base, a version that is gone, and files that were damaged on the way."""
    address, calls = registry
    adapter = make_adapter(tmp_path / "bot", tiny_base)
    async with Client(registry=address) as client:
        await client.adapters.push("bot", adapter, base=tiny_base)
        gone = await client.adapters.push("bot", make_adapter(tmp_path / "2", tiny_base, seed=2))
    await calls.stub.DeleteVersion(pb.DeleteVersionRequest(name=gone.name))
    spec: dict[str, Any] = {"version": "bot:1", "output_base": "bot-merged"}

    another = make_base(tmp_path / "another", seed=9)
    wrong = {**spec, "base": {"source": str(another)}}
    refused = await asyncio.to_thread(do, "merge", wrong, tmp_path / "wrong", address)
    ours = read_base(tiny_base, "namespaces/default/bases/x").fingerprint.digest
    theirs = read_base(another, "namespaces/default/bases/x").fingerprint.digest
    assert refused.code == 64
    assert ours in refused.message
    assert theirs in refused.message

    missing = {**spec, "version": "bot:2"}
    absent = await asyncio.to_thread(do, "merge", missing, tmp_path / "gone", address)
    assert absent.code == 64, absent.message
    assert "bot/versions/2" in absent.message

    await flip_a_byte(calls, f"{BOT}/versions/1", tmp_path / "registry")
    damaged = await asyncio.to_thread(do, "merge", spec, tmp_path / "damaged", address)
    assert damaged.code == 70, damaged.message
    assert "the store is damaged" in damaged.message

    target = tmp_path / "out" / "model"
    export = {"version": "bot:1", "export": {"path": str(target)}}
    failed = await asyncio.to_thread(do, "merge", export, tmp_path / "export", address)
    assert failed.code == 70
    assert not target.parent.exists()
    answer = await calls.stub.ListBases(pb.ListBasesRequest(parent="namespaces/default"))
    assert MERGED not in [base.name for base in answer.bases]
