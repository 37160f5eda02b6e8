"""What our trainer makes of a base is served by the real engine, one after the other in one service: tuned, merged and
quantized, with adapters on top, as transformers and PEFT answer.
"""

from __future__ import annotations

import asyncio
import json
import warnings
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import graft
import pytest
from graft.served_base import BaseSwitch, SwitchStage, failure_of

from services.inference.config import InferenceSettings
from services.inference.server import InferenceServer
from tests.support.gptq import make_gptq
from tests.support.models import make_adapter
from tests.support.registry import RegistryCalls, registry_calls, running_registry
from tests.unit.trainer_worker.support import attempt

pytestmark = [pytest.mark.engine, pytest.mark.training, pytest.mark.filterwarnings("default")]
IDS, COUNT = [1, 45, 300, 21, 77], 12
ON = {"merged": "on-merged", "gptq": "on-gptq"}


@dataclass
class Journey:
    """What was answered on the way, and what transformers and PEFT answer in float32: tokens, and how far the
    likeliest tokens' log probabilities are apart at the first.
    """

    served: dict[str, list[int]] = field(default_factory=dict)
    expected: dict[str, list[int]] = field(default_factory=dict)
    apart: dict[str, float] = field(default_factory=dict)
    bases: dict[str, graft.served_base.ServedBase] = field(default_factory=dict)
    switches: dict[str, BaseSwitch] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)


def colours(folder: Path) -> Path:
    """Something to train on."""
    path = folder / "colours.jsonl"
    rows = [{"instruction": "red" * (1 + n % 3), "output": f"I like {n % 4}"} for n in range(16)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def train(folder: Path, source: Path, registry: str, method: str, **output: str) -> Path:
    """Two steps of our trainer; the worker commits what it made. Answers with the result's folder."""
    spec: dict[str, Any] = {
        "base": {"source": str(source)},
        "dataset": {"path": str(colours(folder))},
        "method": {method: {"rank": 8} if method == "lora" else {}},
        "hyperparameters": {"max_steps": 2, "learning_rate": 0.005, "micro_batch_size": 4},
        "resources": {"cpu_threads": 1},
        "output": output,
        "seed": 7,
    }
    environment = {"GRAFT_WORKER_JOB": f"namespaces/default/jobs/{method}"}
    outcome = attempt(spec, folder / method, registry, environment)
    assert outcome.code == 0, outcome.message
    return outcome.work_dir / "result"


def merge(folder: Path, base: Path, registry: str) -> Path:
    """Our merge job: the trained adapter in its base, quantized again to w4a16."""
    spec = {
        "version": "bot:1",
        "outputBase": "merged",
        "requantization": "REQUANTIZATION_W4A16",
        "base": {"source": str(base)},
        "skipCheck": True,
    }
    environment = {"GRAFT_WORKER_JOB": "namespaces/default/jobs/merge"}
    outcome = attempt(spec, folder / "merge", registry, environment, kind="merge")
    assert outcome.code == 0, outcome.message
    return outcome.work_dir / "result"


async def adapter_on(calls: RegistryCalls, client: graft.Client, base: str, folder: Path) -> None:
    """Commits an adapter as one that was trained on a base's first version."""
    version = await client.base_versions.get(base, 1)
    await calls.create_adapter(ON[base], base)
    await calls.commit(folder, version.fingerprint, ON[base])


@asynccontextmanager
async def service(folder: Path, registry: str, dtype: str) -> AsyncIterator[InferenceServer]:
    """The real engine, on the first version of the base "tuned"."""
    server = InferenceServer(
        InferenceSettings(
            base=Path("bases/tuned"),
            registry_address=registry,
            data_dir=folder / "data",
            dtype=dtype,
            max_adapters=2,
            max_lora_rank=16,
            max_model_len=256,
            max_num_seqs=8,
            enforce_eager=True,
        )
    )
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


async def ask(client: graft.Client, model: str) -> graft.Answer:
    return await client.generate(
        model, IDS, max_tokens=COUNT, temperature=0.0, ignore_eos=True, logprobs=5
    )


async def switch(client: graft.Client, base: str, dtype: str) -> BaseSwitch:
    """The last word of a switch."""
    told = [one async for one in client.served_base.switch(base, dtype=dtype)]
    assert failure_of(told[-1]) is None, told[-1].message
    return told[-1]


def reference(base: Path, adapter: Path | None) -> tuple[list[int], list[float]]:
    """Greedy tokens, and the log probabilities of the first, by transformers and PEFT in float32."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, CompressedTensorsConfig

    how: dict[str, Any] = {"dtype": torch.float32}
    if "compressed-tensors" in (base / "config.json").read_text():
        # PEFT looks for weights where packed ones have none.
        how["quantization_config"] = CompressedTensorsConfig(run_compressed=False)
    model = AutoModelForCausalLM.from_pretrained(base, **how)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, str(adapter))
    tokens, first = torch.tensor([IDS]), None
    with torch.inference_mode():
        for _ in range(COUNT):
            logits = model(input_ids=tokens).logits[:, -1]
            first = torch.log_softmax(logits[0], -1).tolist() if first is None else first
            tokens = torch.cat([tokens, logits.argmax(-1, keepdim=True)], dim=1)
    return tokens[0, len(IDS) :].tolist(), first or []


async def travel(folder: Path, tiny_base: Path, whole: str, quantized: str) -> Journey:
    """Trains, merges, quantizes, commits, serves the one, and switches to the others.

    Args:
        whole: type in which the tuned base is computed.
        quantized: type in which the quantized ones are.
    """
    journey = Journey()
    make_gptq(tiny_base, folder / "gptq", folder / "undone")
    on_top = make_adapter(
        folder / "on-top", tiny_base, targets=("q_proj", "v_proj", "down_proj"), scale=0.1
    )
    async with (
        running_registry(folder / "registry") as registry,
        registry_calls(registry.address) as calls,
    ):
        address = registry.address
        tuned = await asyncio.to_thread(train, folder, tiny_base, address, "full", base="tuned")
        await asyncio.to_thread(train, folder, tiny_base, address, "lora", adapter="bot")
        merged = await asyncio.to_thread(merge, folder, tiny_base, address)
        async with graft.Client(registry=address) as client:
            await client.base_versions.push(folder / "gptq", "gptq", method="quantize")
            for base in ON:
                await adapter_on(calls, client, base, on_top)
        references: dict[str, tuple[Path, Path | None]] = {
            "tuned": (tuned, None),
            "merged": (merged, None),
            "on-merged": (merged, on_top),
            "gptq": (folder / "undone", None),
            "on-gptq": (folder / "undone", on_top),
        }
        log_probs: dict[str, list[float]] = {}
        for name, (base_folder, adapter) in references.items():
            journey.expected[name], log_probs[name] = await asyncio.to_thread(
                reference, base_folder, adapter
            )
        async with (
            service(folder, address, whole) as server,
            graft.Client(registry=address, inference=server.address) as client,
        ):
            for base in ("tuned", "merged", "gptq"):
                if base != "tuned":
                    journey.switches[base] = await switch(client, f"bases/{base}", quantized)
                journey.bases[base] = await client.served_base.get()
                for model in (base, ON.get(base)):
                    if model is not None:
                        answer = await ask(client, model)
                        journey.served[model] = list(answer.token_ids)
                        journey.apart[model] = max(
                            abs(one.logprob - log_probs[model][one.token_id])
                            for one in answer.logprobs[0].top
                        )
            with pytest.raises(graft.errors.GraftError) as refused:
                await ask(client, "on-merged")
            journey.refused["on-merged"] = refused.value.reason
    return journey


def travelled(folder: Path, tiny_base: Path, whole: str, quantized: str) -> Journey:
    with warnings.catch_warnings():
        # Of vLLM, and of its libraries.
        warnings.simplefilter("ignore")
        return asyncio.run(travel(folder, tiny_base, whole, quantized))


@pytest.fixture(scope="module")
def journey(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Journey:
    """As exact as each can be computed: vLLM has no float32 for 4 bits."""
    return travelled(tmp_path_factory.mktemp("journey"), tiny_base, "float32", "float16")


@pytest.mark.parametrize("base", ["tuned", "merged", "gptq"])
def test_a_base_of_the_registry_answers_as_transformers_does(journey: Journey, base: str) -> None:
    assert journey.served[base] == journey.expected[base]
    assert journey.apart[base] < (0.001 if base == "tuned" else 0.02)


@pytest.mark.parametrize("base", ["merged", "gptq"])
def test_an_adapter_on_a_quantized_base_answers_as_peft_does(journey: Journey, base: str) -> None:
    assert journey.served[ON[base]] == journey.expected[ON[base]]
    assert journey.served[ON[base]] != journey.served[base]
    assert journey.apart[ON[base]] < 0.02


@pytest.mark.soak
def test_in_bfloat16_log_probabilities_are_within_two_tenths(
    tiny_base: Path, tmp_path: Path
) -> None:
    found = travelled(tmp_path, tiny_base, "bfloat16", "bfloat16")
    assert max(found.apart.values()) < 0.2, found.apart


def test_the_service_says_which_version_answers_and_how_it_is_quantized(journey: Journey) -> None:
    found = {name: (one.reference, one.quantization) for name, one in journey.bases.items()}
    assert found == {
        "tuned": ("bases/tuned:1", "none"),
        "merged": ("bases/merged:1", "w4a16"),
        "gptq": ("bases/gptq:1", "gptq"),
    }
    assert all(one.ready for one in journey.bases.values())


def test_real_engines_are_switched_beside_each_other(journey: Journey) -> None:
    for told in journey.switches.values():
        assert (told.stage, told.strategy) == (SwitchStage.DONE, "beside")
        assert 0 < told.needed_bytes <= told.available_bytes


def test_an_adapter_of_the_base_before_is_refused(journey: Journey) -> None:
    assert journey.refused == {"on-merged": "WRONG_BASE"}
