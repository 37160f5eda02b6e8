"""Blends of adapters that our trainer trained, on the real engine: what PEFT's own combination generates, token by token."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from graft.blends import BlendReference
from graft.errors import Reason
from graft.inference.v1 import inference_service_pb2 as pb
from peft import PeftModel
from transformers import AutoModelForCausalLM

from services.inference.blends.process import BlendingOptions, ProcessBlender
from services.inference.registry.memory import MemoryRegistry
from tests.support.engines import SharedEngine
from tests.support.inference import BASE, RunningInference, adapter_resource, start_inference
from tests.support.models import make_adapter
from tests.unit.inference.refusals import refusal
from tests.unit.trainer_worker.support import attempt

pytestmark = [
    pytest.mark.engine,
    pytest.mark.asyncio(loop_scope="session"),
    pytest.mark.filterwarnings("default"),
]
IDS, COUNT = [1, 45, 300, 21, 77], 12


@pytest.fixture(scope="module")
def trained(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two adapters of rank 8 by our trainer, each so strong that it changes what is said; and one of rank 4."""
    folders = {}
    each = (
        ("bot", 8, ["q_proj", "v_proj"]),
        ("tone", 8, ["q_proj", "up_proj"]),
        ("narrow", 4, ["q_proj"]),
    )
    for seed, (name, rank, targets) in enumerate(each):
        work = tmp_path_factory.mktemp(name)
        data, folder = work / "rows.jsonl", work / "adapter"
        rows = [{"instruction": f"{n}?", "output": f"{name * 3} {n}"} for n in range(16)]
        data.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
        spec = {
            "base": {"source": str(tiny_base)},
            "dataset": {"path": str(data)},
            "method": {"lora": {"rank": rank, "alpha": 16 * rank, "target_modules": targets}},
            "hyperparameters": {"max_steps": 12, "learning_rate": 0.02, "micro_batch_size": 4},
            "resources": {"cpu_threads": 1},
            "output": {"adapter": name},
            "seed": seed,
        }
        outcome = attempt(spec, work / "work")
        assert outcome.code == 0, outcome.message
        folder.mkdir()
        for file in ("adapter_config.json", "adapter_model.safetensors"):
            shutil.copy(work / "work/result" / file, folder)
        folders[name] = folder
    return folders


def peft_blend(base: Path, trained: dict[str, Path], text: str) -> list[int]:
    """What PEFT's add_weighted_adapter generates greedily in float32."""
    blend = BlendReference.parse(text)
    names = [part.reference.name for part in blend.parts]
    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model = PeftModel.from_pretrained(model, str(trained[names[0]]), adapter_name=names[0])
    for name in names[1:]:
        model.load_adapter(str(trained[name]), adapter_name=name)
    inject = model.base_model.inject_adapter

    def then_seed(*arguments: Any, **options: Any) -> None:
        # Before it combines, PEFT draws weights that it then throws away.
        inject(*arguments, **options)
        torch.manual_seed(blend.how.seed)

    model.base_model.inject_adapter = then_seed
    model.add_weighted_adapter(
        names, [part.weight for part in blend.parts], "blend", blend.how.kind,
        svd_rank=blend.how.rank or None, density=blend.how.density,
    )  # fmt: skip
    model.set_adapter("blend")
    tokens = torch.tensor([IDS])
    with torch.inference_mode():
        for _ in range(COUNT):
            drawn = model(input_ids=tokens).logits[:, -1].argmax(-1, keepdim=True)
            tokens = torch.cat([tokens, drawn], dim=1)
    found: list[int] = tokens[0, len(IDS) :].tolist()
    return found


@asynccontextmanager
async def serving(
    folder: Path, engine: SharedEngine, base: Path, trained: dict[str, Path], **options: Any
) -> AsyncIterator[RunningInference]:
    registry = MemoryRegistry()
    blender = ProcessBlender(BlendingOptions(**options))
    async with start_inference(
        folder, engine=engine, registry=registry, base=base, blender=blender
    ) as running:
        for name, files in trained.items():
            await registry.add_adapter(adapter_resource(name), BASE)
            rank = json.loads((files / "adapter_config.json").read_text())["r"]
            await registry.add_version(adapter_resource(name), files, rank=rank)
        yield running


def request(model: str) -> pb.GenerateRequest:
    sampling = pb.SamplingParams(temperature=0, max_tokens=COUNT, ignore_eos=True)
    return pb.GenerateRequest(model=model, prompt_token_ids=pb.TokenIds(ids=IDS), sampling=sampling)


async def test_every_kind_of_blend_says_what_pefts_own_does(
    vllm_engine: SharedEngine, tiny_base: Path, trained: dict[str, Path], tmp_path: Path
) -> None:
    blends = (
        "0.7*bot+0.3*tone",
        "1.2*bot+-0.4*narrow",
        "0.7*bot+0.6*narrow~svd~rank=8",
        "0.7*bot+0.6*tone~linear",
        "0.9*bot+0.8*tone~ties",
        "0.9*bot+0.8*tone~dare~seed=3",
    )
    async with serving(tmp_path, vllm_engine, tiny_base, trained) as service:
        answers = await asyncio.gather(*(service.stub.Generate(request(one)) for one in blends))
        base = await service.stub.Generate(request("tiny"))
    said = {blend: list(answer.token_ids) for blend, answer in zip(blends, answers, strict=True)}
    assert said == {blend: peft_blend(tiny_base, trained, blend) for blend in blends}
    # Else the comparison would say nothing.
    assert len({tuple(tokens) for tokens in said.values()}) > 2
    assert list(base.token_ids) not in said.values()
    assert answers[0].provenance.blend == "0.7*bot:1+0.3*tone:1"


async def test_what_takes_too_long_or_too_much_is_refused_and_nobody_is_touched(
    vllm_engine: SharedEngine, tiny_base: Path, trained: dict[str, Path], tmp_path: Path
) -> None:
    async with serving(tmp_path / "a", vllm_engine, tiny_base, trained, timeout_s=0.2) as service:
        innocent = asyncio.ensure_future(service.stub.Generate(request("bot")))
        error = await refusal(service.stub.Generate(request("0.7*bot+0.3*tone")))
        assert error.reason is Reason.ADAPTER_UNUSABLE
        assert "not computed within 0.2 s" in error.message
        assert len((await innocent).token_ids) == COUNT
    big = {
        "bot": make_adapter(tmp_path / "big", tiny_base, rank=8, targets=("q_proj",)),
        "tone": trained["tone"],
    }
    async with serving(tmp_path / "b", vllm_engine, tiny_base, big, memory_bytes=1) as service:
        error = await refusal(service.stub.Generate(request("0.7*bot+0.3*tone~svd")))
        assert error.reason is Reason.ADAPTER_UNUSABLE
        assert "BLEND_MEMORY_BYTES" in error.next_step
        assert len((await service.stub.Generate(request("bot"))).token_ids) == COUNT
