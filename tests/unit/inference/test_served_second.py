"""Prefix tuning, P-tuning v2 and the bottleneck adapter, trained by our trainer, served beside vLLM by transformers.

Each answers as by PEFT's own generation; the second engine's troubles are its own.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
from graft.channel import open_channel
from graft.errors import GraftError, Reason
from graft.inference.v1 import inference_service_pb2 as pb
from safetensors.numpy import load_file, save_file

from services.inference.config import InferenceSettings
from services.inference.engines.base import Engine, Sampling, Structure
from services.inference.engines.beside import with_second
from services.inference.engines.composed import ComposedEngine
from services.inference.engines.fake import FakeEngine
from services.inference.engines.transformers_engine import TransformersEngine
from services.inference.registry.remote import RemoteRegistry
from tests.contracts.inference.test_engines import GREEDY, answer, reason_of
from tests.support import peft_folders
from tests.support.engines import SharedEngine
from tests.support.inference import RunningInference, question, start_inference
from tests.support.models import make_adapter
from tests.support.peft import peft_greedy
from tests.support.registry import RegistryCalls, registry_calls, running_registry
from tests.support.waiting import eventually
from tests.unit.inference.refusals import refusal
from tests.unit.trainer_worker.support import attempt

pytestmark = [
    pytest.mark.asyncio(loop_scope="session"),
    pytest.mark.engine,
    pytest.mark.filterwarnings("default"),
]
KINDS = ("prefix_tuning", "p_tuning_v2", "bottleneck")
RATES = {"prefix_tuning": 0.02, "p_tuning_v2": 0.05, "bottleneck": 0.02}
PROMPTS = ([1, 40, 41, 42, 43, 44], [1, 7], [1, 200, 300, 5, 6, 7, 8, 9, 10, 11, 12])
COUNT = 12


@dataclass(frozen=True, slots=True)
class Trained:
    """A registry with an adapter of every kind, and the results as the trainer left them."""

    address: str
    base: Path
    results: dict[str, Path]


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("second") / "rows.jsonl"
    lines = [{"instruction": "red" * (1 + n % 3), "output": f"grey {n % 4}"} for n in range(16)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    return path


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def trained(
    tmp_path_factory: pytest.TempPathFactory, tiny_base: Path, rows: Path
) -> AsyncIterator[Trained]:
    folder = tmp_path_factory.mktemp("trained")
    async with running_registry(folder / "registry") as registry:
        results = {}
        for kind in KINDS:
            spec: dict[str, Any] = {
                "base": {"source": str(tiny_base)},
                "dataset": {"path": str(rows)},
                "method": {kind: {} if kind == "bottleneck" else {"virtual_tokens": 6}},
                "hyperparameters": {
                    "max_steps": 8,
                    "learning_rate": RATES[kind],
                    "micro_batch_size": 4,
                },
                "resources": {"cpu_threads": 1},
                "output": {"adapter": kind.replace("_", "-")},
                "seed": 7,
            }
            job = {"GRAFT_WORKER_JOB": f"namespaces/default/jobs/{kind.replace('_', '-')}"}
            outcome = await asyncio.to_thread(attempt, spec, folder / kind, registry.address, job)
            assert outcome.code == 0, outcome.message
            results[kind] = outcome.work_dir / "result"
        yield Trained(registry.address, tiny_base, results)


def beside(first: Engine, base: Path, **settings: Any) -> ComposedEngine:
    """The first engine with transformers beside it, as the service makes it."""
    values = {"dtype": "float32", "max_model_len": 256, "max_adapters": 2, **settings}
    engine = with_second(InferenceSettings(base=base, **values), first)
    assert isinstance(engine, ComposedEngine)
    return engine


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def service(
    trained: Trained, vllm_engine: SharedEngine, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[RunningInference]:
    """vLLM, transformers, a real registry."""
    async with start_inference(
        tmp_path_factory.mktemp("service"),
        engine=beside(vllm_engine, trained.base),
        registry=RemoteRegistry(open_channel(trained.address), "default"),
        base=trained.base,
        base_name="",
    ) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="session")
async def calls(trained: Trained) -> AsyncIterator[RegistryCalls]:
    async with registry_calls(trained.address) as found:
        yield found


def composed(service: RunningInference) -> ComposedEngine:
    assert isinstance(service.engine, ComposedEngine)
    return service.engine


def second(service: RunningInference) -> TransformersEngine:
    found = composed(service).second.engine
    assert isinstance(found, TransformersEngine)
    return found


def ask(model: str, prompt: list[int], **sampling: Any) -> pb.GenerateRequest:
    request = question(model, **{"max_tokens": COUNT, "ignore_eos": True, **sampling})
    request.prompt_token_ids.ids.extend(prompt)
    return request


def expected(trained: Trained, kind: str, prompt: list[int]) -> list[int]:
    """What PEFT's own generate() answers; transformers' with our module for the bottleneck."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from services.trainer.run.bottleneck import load_bottleneck

    base = AutoModelForCausalLM.from_pretrained(trained.base, dtype=torch.float32)
    folder = trained.results[kind]
    model = (
        load_bottleneck(base, folder)
        if kind == "bottleneck"
        else PeftModel.from_pretrained(base, str(folder)).eval()
    )
    ids = torch.tensor([prompt])
    written = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=COUNT,
        do_sample=False, eos_token_id=[], pad_token_id=0,
    )  # fmt: skip
    found: list[int] = written[0, len(prompt) :].tolist()
    return found


async def rest(stream: Any) -> list[pb.GenerateResponse]:
    """What is left of a stream."""
    found = []
    while isinstance(part := await stream.read(), pb.GenerateResponse):
        found.append(part)
    return found


def name_of(service: RunningInference) -> str:
    assert service.server.serving.base is not None
    return service.server.serving.base.base_id


async def test_every_kind_answers_as_by_peft_among_answers_of_vllm(
    service: RunningInference, trained: Trained
) -> None:
    base = name_of(service)
    models = [base, *(kind.replace("_", "-") for kind in KINDS)]
    asked = [(model, prompt) for model in models for prompt in PROMPTS]
    answers = await asyncio.gather(
        *(service.stub.Generate(ask(model, prompt)) for model, prompt in asked)
    )
    found = {
        (model, tuple(prompt)): one for (model, prompt), one in zip(asked, answers, strict=True)
    }
    for prompt in PROMPTS:
        plain = peft_greedy(trained.base, None, prompt, COUNT)
        own = found[base, tuple(prompt)]
        assert (list(own.token_ids), own.provenance.engine) == (plain, "vllm")
        for kind in KINDS:
            one = found[kind.replace("_", "-"), tuple(prompt)]
            assert list(one.token_ids) == expected(trained, kind, prompt), kind
            assert one.provenance.engine == "transformers"
            assert one.provenance.version.endswith("/versions/1")
            assert one.finish_reason == pb.FINISH_REASON_LENGTH
            assert one.usage.completion_tokens == COUNT
    answered = {tuple(own.token_ids) for own in answers}
    assert len(answered) > len(PROMPTS), "the adapters change nothing: the test shows nothing"


async def test_lists_say_which_engine_computes(service: RunningInference) -> None:
    names = [kind.replace("_", "-") for kind in KINDS]
    for name in names:
        await service.stub.Generate(ask(name, PROMPTS[0]))
    listed = (await service.stub.ListModels(pb.ListModelsRequest())).models
    engines = {one.reference: one.engine for one in listed}
    assert engines[name_of(service)] == "vllm"
    assert engines["bottleneck"] == "transformers"
    held = (await service.stub.GetResidency(pb.GetResidencyRequest())).adapters
    engines_of_held = {one.version.split("/")[3]: one.engine for one in held}
    assert {engines_of_held[name] for name in names} == {"transformers"}
    assert service.server.residency is not None
    before = {
        each.version.adapter_id: composed(service).virtual_tokens(each.adapter)
        for each in service.server.residency.current()
        if each.adapter is not None and each.version.adapter_id in names
    }
    assert before == {"prefix-tuning": 6, "p-tuning-v2": 6, "bottleneck": 0}
    shown = {each.name: each for each in composed(service).metrics()}
    (up,) = shown["graft_inference_second_engine_up"].samples
    assert (up.labels, up.value) == ({"engine": "transformers"}, 1)


async def test_a_stream_is_the_whole_answer_in_parts(service: RunningInference) -> None:
    request = ask("prefix-tuning", PROMPTS[0], logprobs=2)
    parts = [part async for part in service.stub.StreamGenerate(request)]
    whole = await service.stub.Generate(request)
    assert len(parts) > 1
    assert "".join(part.text for part in parts) == whole.text
    assert [each for part in parts for each in part.logprobs] == list(whole.logprobs)
    assert parts[-1].usage == whole.usage


async def test_it_draws_and_ends_as_vllm_does(
    service: RunningInference, vllm_engine: SharedEngine
) -> None:
    free, tokens, _ = await answer(vllm_engine)
    ways = [
        GREEDY,
        replace(GREEDY, repetition_penalty=1.7),
        replace(GREEDY, repetition_penalty=3.0, presence_penalty=1.5, frequency_penalty=1.9),
        replace(GREEDY, stop=(free[3:6],)),
        replace(GREEDY, stop=(free[3:6],), min_tokens=14),
        replace(GREEDY, stop_token_ids=(tokens[2],)),
        replace(GREEDY, stop_token_ids=(tokens[0],), min_tokens=5),
        replace(GREEDY, temperature=1.0, top_k=1),
        replace(GREEDY, temperature=1.0, min_p=1.0),
        replace(GREEDY, temperature=2.0, top_p=1e-6),
        replace(GREEDY, repetition_penalty=5.0, ignore_eos=False, max_tokens=40),
    ]
    await service.stub.Generate(ask("bottleneck", PROMPTS[0]))
    for sampling in ways:
        for stream in (False, True):
            theirs = await answer(vllm_engine, sampling=sampling, stream=stream)
            ours = await answer(second(service), sampling=sampling, stream=stream)
            assert ours == theirs, sampling


async def test_its_death_is_not_the_services(service: RunningInference, trained: Trained) -> None:
    base = name_of(service)
    before = await service.stub.Generate(ask("prefix-tuning", PROMPTS[0]))
    alone = await service.stub.Generate(ask(base, PROMPTS[1], max_tokens=150))
    innocent: Any = service.stub.StreamGenerate(ask(base, PROMPTS[1], max_tokens=150))
    dying = service.stub.StreamGenerate(ask("bottleneck", PROMPTS[0], max_tokens=200))
    parts = [await innocent.read()]
    await dying.read()
    pid = second(service).pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)

    error = await refusal(rest(dying))
    assert error.reason is Reason.ENGINE_DEAD
    assert "Try again" in error.next_step
    assert service.server.gate.is_open
    assert composed(service).healthy
    parts += await rest(innocent)
    assert "".join(part.text for part in parts) == alone.text
    again = await service.stub.Generate(ask("prefix-tuning", PROMPTS[0]))
    assert (again.text, again.provenance) == (before.text, before.provenance)
    assert second(service).pid not in (None, pid)
    found = await service.stub.Generate(ask("bottleneck", PROMPTS[2]))
    assert list(found.token_ids) == expected(trained, "bottleneck", PROMPTS[2])


async def test_a_disconnected_client_frees_its_place_at_once(service: RunningInference) -> None:
    streams = [
        service.stub.StreamGenerate(ask("p-tuning-v2", PROMPTS[0], max_tokens=200))
        for _ in range(4)
    ]
    for one in streams:
        await one.read()
        one.cancel()
    await eventually(lambda: second(service).unfinished() == 0, "the abort")
    assert (await service.stub.Generate(ask("p-tuning-v2", PROMPTS[0]))).token_ids


async def test_what_cannot_be_asked_of_it_is_refused_by_name_and_nobody_notices(
    service: RunningInference,
) -> None:
    innocent: Any = service.stub.StreamGenerate(ask("prefix-tuning", PROMPTS[0], max_tokens=200))
    first = await innocent.read()
    # 250 and 6 learned ones leave no room for an answer in 256.
    error = await refusal(service.stub.Generate(ask("prefix-tuning", [1] * 250)))
    assert error.reason in (Reason.INVALID_REQUEST, Reason.PROMPT_TOO_LONG)
    assert "250 tokens" in error.message
    assert " 6 " in error.message
    assert error.next_step
    shaped = replace(GREEDY, structure=Structure(json_object=True))
    assert await reason_of(answer(second(service), sampling=shaped)) is Reason.INVALID_REQUEST
    count = sum(len(part.token_ids) for part in [first, *await rest(innocent)])
    assert count == 200


async def test_slots_of_its_own_leave_those_of_vllm_alone(
    service: RunningInference, trained: Trained, calls: RegistryCalls, tmp_path: Path
) -> None:
    """Two LoRAs fill vLLM's slots, and three others are served beside them without moving one out."""
    assert service.server.serving.base is not None
    base = service.server.serving.base
    for seed in (1, 2):
        await calls.create_adapter(f"lora-{seed}", base.base_id)
        folder = make_adapter(tmp_path / f"lora-{seed}", trained.base, seed=seed)
        await calls.commit(folder, base.fingerprint, f"lora-{seed}")
    names = ["lora-1", "lora-2", *(kind.replace("_", "-") for kind in KINDS)]
    for name in names * 2:
        await service.stub.Generate(ask(name, PROMPTS[0]))
    held = (await service.stub.GetResidency(pb.GetResidencyRequest())).adapters
    engines = {one.version.split("/")[3]: one.engine for one in held}
    assert engines == {
        "lora-1": "vllm",
        "lora-2": "vllm",
        **{kind.replace("_", "-"): "transformers" for kind in KINDS},
    }


@pytest.fixture
def spoilt(trained: Trained, tmp_path: Path) -> Path:
    """A copy of the bottleneck that a test may spoil."""
    return shutil.copytree(trained.results["bottleneck"], tmp_path / "spoilt")


@pytest.mark.parametrize("what", ["shape", "missing", "unknown", "nan", "cut", "config"])
async def test_wrong_files_are_named_before_they_are_loaded(
    trained: Trained, spoilt: Path, what: str
) -> None:
    path, named = spoilt / "adapter_model.safetensors", "model.layers.0.mlp_bottleneck.down.bias"
    name = f"base_model.model.{named}"
    tensors = load_file(path)
    match what:
        case "shape":
            tensors[name] = np.zeros(3, np.float32)
        case "missing":
            del tensors[name]
        case "unknown":
            named = "model.layers.7.mlp_bottleneck.down.bias"
            tensors[f"base_model.model.{named}"] = tensors[name]
        case "nan":
            tensors[name][0] = np.nan
    save_file(tensors, path)
    if what == "cut":
        path.write_bytes(path.read_bytes()[:-40])
        named = ""
    if what == "config":
        config = json.loads((spoilt / "adapter_config.json").read_text())
        (spoilt / "adapter_config.json").write_text(json.dumps({**config, "size": "wide"}))
        named = "size"
    engine = TransformersEngine(second_options(trained.base))
    with pytest.raises(GraftError) as caught:
        await engine.inspect("bot", spoilt)
    assert caught.value.reason is Reason.ADAPTER_UNUSABLE
    assert named in caught.value.message
    assert caught.value.next_step


def second_options(base: Path) -> Any:
    from services.inference.engines.transformers_messages import TransformersOptions

    return TransformersOptions(base, dtype="float32", threads=1)


async def test_switched_off_such_versions_are_refused(trained: Trained, tmp_path: Path) -> None:
    first = FakeEngine()
    settings = InferenceSettings(base=trained.base, second_engine="off")
    assert with_second(settings, first) is first
    async with start_inference(
        tmp_path,
        engine=first,
        registry=RemoteRegistry(open_channel(trained.address), "default"),
        base=trained.base,
        base_name="",
    ) as service:
        error = await refusal(service.stub.Generate(ask("bottleneck", [1])))
        assert error.reason is Reason.ADAPTER_UNUSABLE
        assert "BOTTLENECK" in error.message


async def test_it_stands_in_for_whatever_the_first_engine_does_not_compute(
    trained: Trained, calls: RegistryCalls, tmp_path: Path
) -> None:
    """AdaLoRA as PEFT saves it, which vLLM takes from nobody; and others beside a first engine of LoRA alone."""
    kinds = ("adalora", "ia3", "prompt_tuning", "p_tuning")
    async with start_inference(
        tmp_path,
        engine=beside(FakeEngine(), trained.base),
        registry=RemoteRegistry(open_channel(trained.address), "default"),
        base=trained.base,
        base_name="",
    ) as service:
        assert second(service).pid is None, "nobody has asked for it yet"
        assert service.server.serving.base is not None
        base = service.server.serving.base
        for kind in kinds:
            name, folder = f"peft-{kind.replace('_', '-')}", tmp_path / kind
            await asyncio.to_thread(peft_folders.make, kind, trained.base, folder)
            await calls.create_adapter(name, base.base_id)
            await calls.commit(folder, base.fingerprint, name)
            for prompt in PROMPTS:
                found = await service.stub.Generate(ask(name, prompt))
                wanted = await asyncio.to_thread(peft_greedy, trained.base, folder, prompt, COUNT)
                assert list(found.token_ids) == wanted, kind
                assert found.provenance.engine == "transformers"
        # A plain LoRA is the first one's.
        await calls.create_adapter("plain", base.base_id)
        await calls.commit(
            make_adapter(tmp_path / "plain", trained.base), base.fingerprint, "plain"
        )
        found = await service.stub.Generate(ask("plain", PROMPTS[0]))
        assert found.provenance.engine == "fake"


async def test_a_base_that_it_cannot_load_hurts_nobody_else(
    trained: Trained, tmp_path: Path
) -> None:
    engine = beside(FakeEngine(), tmp_path / "no-base")
    async with start_inference(
        tmp_path,
        engine=engine,
        registry=RemoteRegistry(open_channel(trained.address), "default"),
        base=trained.base,
        base_name="",
    ) as service:
        error = await refusal(service.stub.Generate(ask("bottleneck", [1])))
        assert error.reason is Reason.NOT_A_MODEL
        assert error.next_step
        assert (await service.stub.Generate(ask(name_of(service), [1]))).token_ids


async def test_every_method_of_an_engine_is_composed() -> None:
    public = {name for name in vars(Engine) if not name.startswith("_")}
    assert public <= set(vars(ComposedEngine))


async def test_nothing_is_left_when_it_ends(trained: Trained) -> None:
    engine = TransformersEngine(second_options(trained.base))
    await engine.start()
    pid = engine.pid
    assert pid is not None
    # When memory ends, it goes, and neither the service nor vLLM.
    assert Path(f"/proc/{pid}/oom_score_adj").read_text().strip() == "1000"
    running = engine.generate("r1", [1, 2], Sampling(200, ignore_eos=True), None, stream=True)
    await anext(running)
    await engine.stop()
    with suppress(ProcessLookupError):
        os.kill(pid, 0)
        raise AssertionError("it is still there")

    async def to_its_end() -> None:
        # What the process had said before is still there to be taken.
        async for _ in running:
            pass

    assert await reason_of(to_its_end()) is Reason.ENGINE_DEAD
