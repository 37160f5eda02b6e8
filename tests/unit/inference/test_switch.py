"""Another base under a running service: beside the old one or in its place, and what is served when that fails."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
from graft.channel import rpc_errors
from graft.errors import GraftError, Reason
from graft.inference.v1 import bases_pb2
from graft.inference.v1 import inference_service_pb2 as pb

from services.inference.bases.memory import Room
from services.inference.bases.place import Place
from services.inference.config import InferenceSettings
from services.inference.domain import AdapterVersion
from services.inference.engines.base import Engine
from services.inference.engines.fake import FakeEngine
from services.inference.registry.memory import MemoryRegistry
from tests.support.health import health, probes
from tests.support.inference import (
    BASE,
    RunningInference,
    adapter_resource,
    question,
    start_inference,
    write_adapter,
)
from tests.support.models import make_base
from tests.support.registry import fetch_text
from tests.support.waiting import eventually
from tests.unit.inference.refusals import refusal

STAGES = bases_pb2.SwitchStage
DONE, FAILED, CANCELLED = (
    STAGES.SWITCH_STAGE_DONE,
    STAGES.SWITCH_STAGE_FAILED,
    STAGES.SWITCH_STAGE_CANCELLED,
)
REPLACE = bases_pb2.SWITCH_STRATEGY_REPLACE
BESIDE = bases_pb2.SWITCH_STRATEGY_BESIDE
ROOM, NO_ROOM = Room(1, 10), Room(11, 10)


class Bench:
    """Two versions of the base "tiny", a registry that has them, and the engines that were made."""

    def __init__(self, folder: Path, bases: list[Path]) -> None:
        self.folder, self.bases = folder, bases
        self.registry = MemoryRegistry()
        self.engines: list[FakeEngine] = []
        self.coming: list[FakeEngine] = []
        self.room = ROOM
        self.fingerprints: list[str] = []

    def make(self, settings: InferenceSettings) -> Engine:
        """The next that was prepared, or a new one."""
        self.engines.append(self.coming.pop(0) if self.coming else FakeEngine())
        return self.engines[-1]

    def measure(self, place: Place) -> Room:
        """What a test says."""
        return self.room

    @asynccontextmanager
    async def serve(self, **settings: object) -> AsyncIterator[RunningInference]:
        """The first version, until it is switched."""
        first = FakeEngine()
        self.engines.append(first)
        if not self.fingerprints:
            for base in self.bases:
                version = await self.registry.add_base_version(BASE, base)
                self.fingerprints.append(version.fingerprint)
        values = {"base": Path("bases/tiny:1"), "base_name": "", **settings}
        self.registry.available = True
        async with start_inference(
            self.folder,
            engine=first,
            registry=self.registry,
            make=self.make,
            measure=self.measure,
            **values,  # type: ignore[arg-type]
        ) as service:
            yield service

    async def adapter(self, name: str, content: str, base: int) -> AdapterVersion:
        """A version that was trained on the base's version of that number, in production."""
        resource = adapter_resource(name)
        if resource not in self.registry.adapters:
            await self.registry.add_adapter(resource, BASE)
        folder = write_adapter(self.folder / f"{name}-{content}", content)
        version = await self.registry.add_version(
            resource, folder, base_fingerprint=self.fingerprints[base - 1]
        )
        await self.registry.set_alias(resource, "production", version.number)
        return version


@pytest.fixture(scope="session")
def two_bases(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("switched")
    return [make_base(folder / f"base-{seed}", layers=1, seed=seed) for seed in (1, 2)]


@pytest.fixture
def bench(tmp_path: Path, two_bases: list[Path]) -> Bench:
    return Bench(tmp_path, two_bases)


async def switch(
    service: RunningInference, base: str = "bases/tiny:2", **fields: object
) -> list[bases_pb2.BaseSwitch]:
    """All that is told of a switch, to its end."""
    request = bases_pb2.SwitchBaseRequest(base=base, **fields)  # type: ignore[arg-type]
    with rpc_errors("inference"):
        return [told async for told in service.stub.SwitchBase(request)]


async def reach(service: RunningInference, stage: int) -> None:
    """Waits until the last switch is there."""

    async def there() -> bool:
        return (await served(service)).last_switch.stage == stage

    await eventually(there, f"stage {stage}")


async def served(service: RunningInference) -> bases_pb2.ServedBase:
    return await service.stub.GetBase(bases_pb2.GetBaseRequest())


async def fingerprint(service: RunningInference, model: str = "tiny") -> str:
    """Of the base that answers."""
    return (await service.ask(model)).provenance.base_fingerprint


class Load:
    """Streams without a pause, and which bases they began and ended on; a failure ends the test."""

    def __init__(self, service: RunningInference, streams: int = 4) -> None:
        self._service, self._on = service, True
        self.answered: list[str] = []
        self._tasks = [asyncio.create_task(self._run()) for _ in range(streams)]

    async def _run(self) -> None:
        while self._on:
            request = question("tiny", max_tokens=12)
            said = [one async for one in self._service.stub.StreamGenerate(request)]
            assert said[0].provenance == said[-1].provenance
            assert len("".join(one.text for one in said)) == 12
            self.answered.append(said[-1].provenance.base_fingerprint)

    async def end(self) -> list[str]:
        """Raises what any of them met."""
        self._on = False
        await asyncio.gather(*self._tasks)
        return self.answered


async def test_beside_no_request_fails_and_those_in_flight_end_where_they_began(
    bench: Bench,
) -> None:
    async with bench.serve() as service:
        old, new = bench.fingerprints
        bench.coming.append(FakeEngine(token_s=0.001))
        bench.engines[0].hold(after_tokens=3)
        stream = aiter(service.stub.StreamGenerate(question("tiny")))
        first = await anext(stream)
        switching = asyncio.create_task(switch(service))
        await reach(service, STAGES.SWITCH_STAGE_RETIRING)
        load = Load(service)
        await eventually(lambda: len(load.answered) > 8, "answers of the new base")
        assert await health(service.channel, "readiness")
        # The old one is still there, for the one that began on it.
        assert bench.engines[0].healthy
        await bench.engines[0].release()
        rest = [first, *[one async for one in stream]]
        assert len("".join(one.text for one in rest)) == 8
        assert {one.provenance.base_fingerprint for one in (rest[0], rest[-1])} == {old}
        told = await switching
        assert set(await load.end()) == {new}
        assert [one.stage for one in told if one.stage in (DONE, FAILED)] == [DONE]
        assert told[-1].strategy == BESIDE
        assert not bench.engines[0].healthy
        assert bench.engines[1].healthy


async def test_under_load_every_answer_is_of_one_base_and_readiness_never_says_no(
    bench: Bench,
) -> None:
    async with bench.serve() as service:
        bench.coming += [FakeEngine(token_s=0.0005), FakeEngine(token_s=0.0005)]
        load, told_ready = Load(service), set()
        for base in ("bases/tiny:2", "bases/tiny:1"):
            request = bases_pb2.SwitchBaseRequest(base=base)
            stages = []
            async for told in service.stub.SwitchBase(request):
                told_ready.add(await health(service.channel, "readiness"))
                stages.append(told.stage)
            assert stages[-1] == DONE
            count = len(load.answered)
            await eventually(lambda count=count: len(load.answered) > count + 4, "answers")  # type: ignore[misc]
        answered = await load.end()
        assert set(answered) == set(bench.fingerprints)
        assert told_ready == {True}
        assert [engine.healthy for engine in bench.engines] == [False, False, True]


async def test_what_tells_of_the_base_follows_the_switch(bench: Bench) -> None:
    async with bench.serve() as service:
        await switch(service)
        now = await served(service)
        assert (now.reference, now.fingerprint) == ("bases/tiny:2", bench.fingerprints[1])
        assert now.version == f"{BASE}/versions/2"
        assert (now.ready, now.last_switch.stage) == (True, DONE)
        models = await service.stub.ListModels(pb.ListModelsRequest())
        assert [one.base_version for one in models.models] == [now.version]
        held = await service.stub.GetResidency(pb.GetResidencyRequest())
        assert (held.base_version, held.base_version_digest) == (now.version, now.version_digest)
        assert held.base_quantization == "none"
        assert not held.HasField("base_switch")


async def test_adapters_of_the_new_base_are_followed_and_those_of_the_old_end_in_wrong_base(
    bench: Bench,
) -> None:
    async with bench.serve() as service:
        of_old = await bench.adapter("old", "a", 1)
        of_new = await bench.adapter("new", "b", 2)
        assert (await service.ask("old")).provenance.version == of_old.name
        assert (await refusal(service.ask("new"))).reason is Reason.WRONG_BASE
        await switch(service)
        assert (await service.ask("new")).provenance.version == of_new.name
        assert (await refusal(service.ask("old"))).reason is Reason.WRONG_BASE
        # Later changes arrive, too.
        later = await bench.adapter("new", "c", 2)

        async def moved() -> bool:
            return (await service.ask("new")).provenance.version == later.name

        await eventually(moved, "the moved alias")
        assert len(bench.engines[1].loaded) >= 1
        text = await asyncio.to_thread(_scrape, service)
        assert 'running_lora_adapters="new"' in text.replace("new:2", "new")
        assert text.count("vllm:lora_requests_info{") == 1
        assert 'base_switches_total{outcome="done",strategy="beside"} 1.0' in text


def _scrape(service: RunningInference) -> str:
    return fetch_text(f"http://{service.server.grpc.metrics_address}/metrics")


async def test_a_new_base_that_does_not_start_leaves_the_old_one_serving(bench: Bench) -> None:
    async with bench.serve() as service:
        broken = FakeEngine()
        broken.start_failures.append(
            GraftError(Reason.NOT_A_MODEL, "it has no layers", next_step="Add some.")
        )
        bench.coming.append(broken)
        load = Load(service)
        told = (await switch(service))[-1]
        assert (told.stage, told.reason, told.message, told.next_step) == (
            FAILED,
            "NOT_A_MODEL",
            "it has no layers",
            "Add some.",
        )
        assert await health(service.channel, "readiness")
        assert set(await load.end()) == {bench.fingerprints[0]}
        # And the next try is a switch like any other.
        assert (await switch(service))[-1].stage == DONE


async def test_without_memory_it_replaces_and_readiness_tells_the_truth(bench: Bench) -> None:
    async with bench.serve() as service:
        bench.room = NO_ROOM
        next_one = FakeEngine()
        next_one.start_gate.clear()
        bench.coming.append(next_one)
        bench.engines[0].hold(after_tokens=3)
        stream = aiter(service.stub.StreamGenerate(question("tiny")))
        await anext(stream)
        switching = asyncio.create_task(switch(service))
        await reach(service, STAGES.SWITCH_STAGE_DRAINING)
        assert await probes(service.channel) == (True, False, True)
        waiting = asyncio.create_task(fingerprint(service))
        await bench.engines[0].release()
        ended = [one async for one in stream][-1]
        assert ended.provenance.base_fingerprint == bench.fingerprints[0]
        await reach(service, STAGES.SWITCH_STAGE_STARTING)
        assert not bench.engines[0].healthy
        assert await probes(service.channel) == (True, False, True)
        assert not (await served(service)).ready
        with pytest.raises(GraftError, match="changes its base"), rpc_errors("inference"):
            await service.stub.ListModels(pb.ListModelsRequest())
        assert not waiting.done()
        next_one.start_gate.set()
        told = await switching
        assert (told[-1].stage, told[-1].strategy) == (DONE, REPLACE)
        assert await waiting == bench.fingerprints[1]
        assert await probes(service.channel) == (True, True, True)


async def test_a_replacement_that_fails_brings_the_old_base_back_with_the_reason(
    bench: Bench,
) -> None:
    async with bench.serve() as service:
        broken, back = FakeEngine(), FakeEngine()
        broken.start_failures.append(GraftError(Reason.NOT_A_MODEL, "no", next_step="Another one."))
        # The old one fails once, too: it is tried again.
        back.start_failures.append(GraftError(Reason.NOT_A_MODEL, "busy", next_step="Wait."))
        bench.coming += [broken, back]
        bot = await bench.adapter("bot", "a", 1)
        told = [
            one async for one in service.stub.SwitchBase(
                bases_pb2.SwitchBaseRequest(base="bases/tiny:2", strategy=REPLACE)
            )
        ]  # fmt: skip
        assert (told[-1].stage, told[-1].reason, told[-1].message) == (FAILED, "NOT_A_MODEL", "no")
        assert await health(service.channel, "readiness")
        assert (await service.ask("bot")).provenance.version == bot.name
        assert (await served(service)).reference == "bases/tiny:1"
        assert await fingerprint(service) == bench.fingerprints[0]


async def test_what_fits_nowhere_is_refused_before_anything_is_touched(bench: Bench) -> None:
    async with bench.serve() as service:
        bench.room = Room(100, 10)
        told = (await switch(service, strategy=BESIDE))[-1]
        assert (told.stage, told.reason) == (FAILED, "OVERLOADED")
        assert "replace" in told.next_step
        assert (told.needed_bytes, told.available_bytes) == (100, 10)
        # What the old one frees is as much as the new one needs, so beside is all that is refused.
        bench.room = NO_ROOM
        checked = (await switch(service, validate_only=True))[-1]
        assert (checked.stage, checked.strategy) == (DONE, REPLACE)
        assert len(bench.engines) == 1
        assert await fingerprint(service) == bench.fingerprints[0]


@pytest.mark.parametrize(
    ("base", "reason"),
    [
        ("", "INVALID_REFERENCE"),
        ("bases/", "INVALID_REFERENCE"),
        ("bases/tiny:0", "INVALID_REFERENCE"),
        ("tiny", "INVALID_REFERENCE"),
        ("bases/none", "VERSION_NOT_FOUND"),
        ("bases/tiny:9", "VERSION_NOT_FOUND"),
        ("bases/tiny@gone", "ALIAS_NOT_FOUND"),
        ("other/bases/tiny", "INVALID_REFERENCE"),
        ("/nothing/is/here", "NOT_A_MODEL"),
    ],
)
async def test_a_base_that_cannot_be_had_is_named_and_nobody_notices(
    bench: Bench, base: str, reason: str
) -> None:
    async with bench.serve() as service:
        bench.engines[0].hold(after_tokens=2)
        innocent = asyncio.create_task(fingerprint(service))
        told = (await switch(service, base))[-1]
        assert (told.stage, told.reason) == (FAILED, reason)
        assert told.next_step
        await bench.engines[0].release()
        assert await innocent == bench.fingerprints[0]
        assert len(bench.engines) == 1


async def test_files_that_arrive_with_other_bytes_are_not_served(
    bench: Bench, tmp_path: Path
) -> None:
    async with bench.serve() as service:
        own = shutil.copytree(bench.bases[1], tmp_path / "third")
        (own / "note.txt").write_text("as it was")
        await bench.registry.add_base_version(BASE, own)
        (own / "note.txt").write_text("another")
        told = (await switch(service, "bases/tiny:3"))[-1]
        assert (told.stage, told.reason) == (FAILED, "DIGEST_MISMATCH")
        assert not list((tmp_path / "data/inference/bases").glob("*/note.txt"))
        assert await fingerprint(service) == bench.fingerprints[0]


async def test_one_at_a_time_and_the_same_one_again_is_the_one_under_way(bench: Bench) -> None:
    async with bench.serve() as service:
        slow = FakeEngine()
        slow.start_gate.clear()
        bench.coming.append(slow)
        first = asyncio.create_task(switch(service))
        await reach(service, STAGES.SWITCH_STAGE_STARTING)
        held = await service.stub.GetResidency(pb.GetResidencyRequest())
        assert held.base_switch.to_base == "bases/tiny:2"
        with pytest.raises(GraftError) as refused:
            await switch(service, "bases/tiny:1")
        assert refused.value.reason is Reason.IN_USE
        again = aiter(service.stub.SwitchBase(bases_pb2.SwitchBaseRequest(base="bases/tiny:2")))
        assert (await anext(again)).stage == STAGES.SWITCH_STAGE_STARTING
        slow.start_gate.set()
        assert [one.number async for one in again][-1] == (await first)[-1].number == 1
        assert "already" in (await switch(service))[-1].message


async def test_it_goes_on_when_whoever_asked_leaves(bench: Bench) -> None:
    async with bench.serve() as service:
        slow = FakeEngine()
        slow.start_gate.clear()
        bench.coming.append(slow)
        call = service.stub.SwitchBase(bases_pb2.SwitchBaseRequest(base="bases/tiny:2"))
        await reach(service, STAGES.SWITCH_STAGE_STARTING)
        call.cancel()
        slow.start_gate.set()
        await reach(service, DONE)
        assert await fingerprint(service) == bench.fingerprints[1]


@pytest.mark.parametrize("strategy", [BESIDE, REPLACE])
async def test_cancelled_in_the_new_engines_start_the_old_base_serves(
    bench: Bench, strategy: bases_pb2.SwitchStrategy.ValueType
) -> None:
    async with bench.serve() as service:
        slow = FakeEngine()
        slow.start_gate.clear()
        bench.coming.append(slow)
        switching = asyncio.create_task(switch(service, strategy=strategy))
        await reach(service, STAGES.SWITCH_STAGE_STARTING)
        request = bases_pb2.CancelBaseSwitchRequest()
        assert (await service.stub.CancelBaseSwitch(request)).stage == CANCELLED
        assert (await switching)[-1].stage == CANCELLED
        assert await health(service.channel, "readiness")
        assert await fingerprint(service) == bench.fingerprints[0]
        with pytest.raises(GraftError, match="No such switch"), rpc_errors("inference"):
            await service.stub.CancelBaseSwitch(request)


async def test_cancelled_while_it_drains_the_old_engine_was_never_touched(bench: Bench) -> None:
    async with bench.serve() as service:
        bench.engines[0].hold(after_tokens=3)
        stream = aiter(service.stub.StreamGenerate(question("tiny")))
        await anext(stream)
        switching = asyncio.create_task(switch(service, strategy=REPLACE))
        await reach(service, STAGES.SWITCH_STAGE_DRAINING)
        waiting = asyncio.create_task(fingerprint(service))
        await service.stub.CancelBaseSwitch(bases_pb2.CancelBaseSwitchRequest())
        assert (await switching)[-1].stage == CANCELLED
        await bench.engines[0].release()
        assert len([one async for one in stream]) > 0
        assert await waiting == bench.fingerprints[0]
        assert (len(bench.engines), bench.engines[0].starts) == (1, 1)
        assert await health(service.channel, "readiness")


async def test_requests_that_do_not_end_in_time_end_with_their_engine(bench: Bench) -> None:
    async with bench.serve(base_drain_timeout_s=0.1) as service:
        bench.engines[0].hold(after_tokens=3)
        stream = aiter(service.stub.StreamGenerate(question("tiny")))
        await anext(stream)
        assert (await switch(service))[-1].stage == DONE
        bench.engines[0].die()
        with pytest.raises(GraftError) as ended, rpc_errors("inference"):
            _ = [one async for one in stream]
        assert ended.value.reason is Reason.ENGINE_DEAD


async def test_a_restart_serves_what_was_switched_to_until_the_setting_changes(
    bench: Bench,
) -> None:
    async with bench.serve() as service:
        await switch(service)
    async with bench.serve() as service:
        assert await fingerprint(service) == bench.fingerprints[1]
    async with bench.serve(base=bench.bases[0], base_name="tiny") as service:
        assert (await served(service)).reference == str(bench.bases[0])
    async with bench.serve() as service:
        assert (await switch(service, "bases/tiny:1"))[-1].stage == DONE
    async with bench.serve() as service:
        assert await fingerprint(service) == bench.fingerprints[0]


async def test_ended_in_mid_switch_a_restart_serves_the_old_base(bench: Bench) -> None:
    async with bench.serve() as service:
        slow = FakeEngine()
        slow.start_gate.clear()
        bench.coming.append(slow)
        call = service.stub.SwitchBase(
            bases_pb2.SwitchBaseRequest(base="bases/tiny:2", strategy=REPLACE)
        )
        await reach(service, STAGES.SWITCH_STAGE_STARTING)
        # What a kill in this moment would leave.
        kept = [one.name for one in (bench.folder / "data/inference").glob("switched-*")]
        assert kept == []
        call.cancel()
    async with bench.serve() as service:
        assert await fingerprint(service) == bench.fingerprints[0]


async def test_killed_while_the_old_engine_retires_a_restart_serves_the_new_base(
    bench: Bench,
) -> None:
    async with bench.serve() as service:
        bench.engines[0].hold(after_tokens=3)
        stream = aiter(service.stub.StreamGenerate(question("tiny")))
        await anext(stream)
        switching = asyncio.create_task(switch(service))
        await reach(service, STAGES.SWITCH_STAGE_RETIRING)
        # Nothing of the first one was ended or cleared away, as after a kill.
        async with bench.serve() as restarted:
            assert await fingerprint(restarted) == bench.fingerprints[1]
        bench.registry.available = True
        await bench.engines[0].release()
        assert (await switching)[-1].stage == DONE


async def test_the_setting_may_name_an_alias_and_its_files_are_cached(bench: Bench) -> None:
    bench.registry.set_base_alias(BASE, "stable", 1)
    async with bench.serve(base=Path("bases/tiny@stable")) as service:
        assert (await served(service)).reference == "bases/tiny:1"
        count = len(bench.registry.fetched)
    async with bench.serve(base=Path("bases/tiny@stable")) as service:
        assert await fingerprint(service) == bench.fingerprints[0]
        assert len(bench.registry.fetched) == count
    # Damaged on disk: fetched again.
    [folder] = [
        one for one in (bench.folder / "data/inference/bases").iterdir() if one.name[0] != "."
    ]
    (folder / "config.json").write_text("{}")
    async with bench.serve(base=Path("bases/tiny@stable")):
        assert json.loads((folder / "config.json").read_text())["model_type"] == "llama"


async def test_what_the_operator_forbids_is_refused(bench: Bench) -> None:
    async with bench.serve(base_switch="off") as service:
        with pytest.raises(GraftError) as refused:
            await switch(service)
        assert refused.value.reason is Reason.PERMISSION_DENIED
    async with bench.serve(base_switch="registry") as service:
        told = (await switch(service, str(bench.bases[1])))[-1]
        assert (told.stage, told.reason) == (FAILED, "PERMISSION_DENIED")
        assert (await switch(service))[-1].stage == DONE


async def test_a_service_that_ends_in_mid_switch_refuses_who_waits_and_leaves_no_engine(
    bench: Bench,
) -> None:
    async with AsyncExitStack() as stack:
        service = await stack.enter_async_context(bench.serve())
        slow = FakeEngine()
        slow.start_gate.clear()
        bench.coming.append(slow)
        switching = asyncio.create_task(switch(service, strategy=REPLACE))
        await reach(service, STAGES.SWITCH_STAGE_STARTING)
        assembly = service.server.serving.assembly
        assert assembly is not None
        succession = assembly.answers.succession
        waiting = asyncio.create_task(refusal(service.ask("tiny")))
        await eventually(lambda: succession.waiting == 1, "a request that waits")
        await service.server.stop()
        assert (await waiting).reason is Reason.UNAVAILABLE
        assert (await switching)[-1].stage == CANCELLED
    assert not any(engine.healthy for engine in bench.engines)


async def test_a_folder_is_switched_to_by_its_path(bench: Bench) -> None:
    async with bench.serve() as service:
        told = (await switch(service, str(bench.bases[1])))[-1]
        assert (told.stage, told.to_base) == (DONE, str(bench.bases[1]))
        now = await served(service)
        assert (now.name, now.version) == ("namespaces/default/bases/base-2", "")
        assert now.fingerprint == bench.fingerprints[1]
        assert await fingerprint(service, "base-2") == bench.fingerprints[1]
