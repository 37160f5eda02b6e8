"""Prompt tuning and P-tuning as our trainer makes them, out of a real registry and on the real engine: every
answer is PEFT's own, token by token, beside requests for the base and a LoRA."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
from graft.attestation import token_digest
from graft.channel import open_channel
from graft.errors import Reason
from graft.inference.v1 import inference_service_pb2 as pb
from safetensors.numpy import save_file

from services.inference.registry.memory import MemoryRegistry
from services.inference.registry.remote import RemoteRegistry
from tests.support.engines import SharedEngine
from tests.support.inference import (
    BASE,
    FINGERPRINT,
    RunningInference,
    adapter_resource,
    question,
    start_inference,
)
from tests.support.registry import running_registry
from tests.unit.inference.refusals import refusal
from tests.unit.trainer_worker.support import COLOURS, attempt

pytestmark = [
    pytest.mark.asyncio(loop_scope="session"),
    pytest.mark.engine,
    pytest.mark.training,
    pytest.mark.filterwarnings("default"),
]
TOKENS = 12
# Both compute in float32, in another order.
LOGPROBS = 1e-3
METHODS: dict[str, dict[str, Any]] = {
    "tuned": {"prompt_tuning": {"virtual_tokens": 20}},
    "encoded": {"p_tuning": {"virtual_tokens": 7}},
    "plain": {"lora": {"rank": 8}},
}
SOFT = ("tuned", "encoded")
VIRTUAL = {"tuned": 20, "encoded": 7}
# The second is longer than a block of the cache, so that asking it again takes it from there.
PROMPTS = ([1, 200, 17, 512, 33, 900, 4], [1, *((7 * n) % 900 + 5 for n in range(150))])


@dataclass
class Drawn:
    """An answer: its tokens, and the log probability of each."""

    tokens: list[int]
    logprobs: list[float]

    @classmethod
    def of(cls, answer: pb.GenerateResponse) -> Drawn:
        """From the service."""
        return cls(list(answer.token_ids), [each.token.logprob for each in answer.logprobs])

    def __eq__(self, other: object) -> bool:
        assert isinstance(other, Drawn)
        near = pytest.approx(other.logprobs, abs=LOGPROBS)
        return self.tokens == other.tokens and self.logprobs == near


@dataclass
class World:
    """A service over a real registry, and the folders of what was trained."""

    service: RunningInference
    folders: dict[str, Path]
    base: Path

    async def ask(self, model: str, ids: list[int], **sampling: Any) -> pb.GenerateResponse:
        """A greedy answer of TOKENS tokens."""
        return await self.service.stub.Generate(asked(model, ids, **sampling))

    def expected(self, model: str, ids: list[int], penalty: float = 1.0) -> Drawn:
        """What PEFT answers; the reference for everything here."""
        return peft_answer(self.base, self.folders.get(model), ids, penalty)


def asked(model: str, ids: list[int], **sampling: Any) -> pb.GenerateRequest:
    """A greedy request of token ids."""
    usual = {"max_tokens": TOKENS, "ignore_eos": True, "logprobs": 0}
    request = question(model, **(usual | sampling))
    request.prompt_token_ids.ids.extend(ids)
    return request


def peft_answer(base: Path, adapter: Path | None, ids: list[int], penalty: float) -> Drawn:
    """Greedily in float32, with a repetition penalty on the prompt's own tokens and the answer's."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, str(adapter))
    tokens, logprobs = torch.tensor([ids]), []
    with torch.inference_mode():
        for _ in range(TOKENS):
            scores = model(input_ids=tokens, attention_mask=torch.ones_like(tokens)).logits[0, -1]
            given = scores.log_softmax(-1)
            seen = torch.unique(tokens[0])
            at = scores[seen]
            scores[seen] = torch.where(at > 0, at / penalty, at * penalty)
            drawn = scores.argmax()
            logprobs.append(float(given[drawn]))
            tokens = torch.cat([tokens, drawn.view(1, 1)], dim=1)
    return Drawn(tokens[0, len(ids) :].tolist(), logprobs)


def train(root: Path, base: Path, name: str, registry: str) -> Path:
    """The result of a job that has run long enough to change answers; committed to the registry."""
    rows = root / "rows.jsonl"
    if not rows.exists():
        made = [{"instruction": COLOURS[n % 4], "output": COLOURS[n % 3]} for n in range(16)]
        rows.write_text("".join(json.dumps(row) + "\n" for row in made), "utf-8")
    spec = {
        "base": {"source": str(base)},
        "dataset": {"path": str(rows)},
        "method": METHODS[name],
        "hyperparameters": {"max_steps": 6, "learning_rate": 0.3, "micro_batch_size": 8},
        "checkpointing": {"every_steps": 100},
        "resources": {"cpu_threads": 1},
        "output": {"adapter": name, "alias": "production"},
        "seed": 7,
    }
    outcome = attempt(
        spec, root / name, registry, {"GRAFT_WORKER_JOB": f"namespaces/default/jobs/{name}"}
    )
    assert outcome.code == 0, outcome.message
    return root / name / "result"


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def world(
    vllm_engine: SharedEngine, tiny_base: Path, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[World]:
    root = tmp_path_factory.mktemp("soft")
    async with running_registry(root / "registry") as registry:
        folders = {
            name: await asyncio.to_thread(train, root, tiny_base, name, registry.address)
            for name in METHODS
        }
        remote = RemoteRegistry(open_channel(registry.address), "default")
        async with start_inference(
            root, engine=vllm_engine, registry=remote, base=tiny_base
        ) as service:
            yield World(service, folders, tiny_base)


@pytest.mark.parametrize("model", SOFT)
@pytest.mark.parametrize("ids", PROMPTS, ids=("short", "long"))
async def test_its_answers_are_pefts_token_by_token(
    world: World, model: str, ids: list[int]
) -> None:
    first, again = await world.ask(model, ids), await world.ask(model, ids)
    assert Drawn.of(first) == world.expected(model, ids)
    assert Drawn.of(again) == Drawn.of(first), "out of the prefix cache"
    assert Drawn.of(await world.ask("tiny", ids)) != Drawn.of(first)
    assert first.provenance.version == f"namespaces/default/adapters/{model}/versions/1"
    assert first.usage.prompt_tokens == len(ids), "what the user sent, without the learned tokens"


async def test_one_batch_holds_the_base_a_lora_and_soft_prompts(world: World) -> None:
    models = ("tiny", "plain", *SOFT) * 3
    calls = [asked(model, PROMPTS[n // 4 % 2]) for n, model in enumerate(models)]
    answers = await asyncio.gather(*(world.service.stub.Generate(call) for call in calls))
    for call, answer in zip(calls, answers, strict=True):
        ids = list(call.prompt_token_ids.ids)
        assert Drawn.of(answer) == world.expected(call.model, ids), call.model


async def test_a_stream_of_it_is_its_answer_in_parts_with_text_as_ever(world: World) -> None:
    call = question("tuned", "The cat sees", max_tokens=TOKENS, logprobs=2)
    whole = await world.service.stub.Generate(call)
    parts = [part async for part in world.service.stub.StreamGenerate(call)]
    assert "".join(part.text for part in parts) == whole.text
    assert parts[-1].usage == whole.usage
    assert len(whole.logprobs) == whole.usage.completion_tokens


async def test_an_answer_is_attested_as_the_version_and_engine_that_made_it(world: World) -> None:
    answer = await world.ask("tuned", PROMPTS[0])
    statement = json.loads(answer.attestation.statement_json)
    assert statement["adapter"]["digest"] == answer.provenance.version_digest
    assert statement["engine"]["name"] == "vllm"
    assert statement["engine"]["version"].startswith("0.32")
    assert statement["prompt"]["tokens"] == token_digest(PROMPTS[0]), "what the user sent"
    assert statement["answers"][0]["tokens"] == token_digest(answer.token_ids)


async def test_a_repetition_penalty_knows_the_prompts_tokens_and_no_learned_one(
    world: World,
) -> None:
    for model in SOFT:
        answer = await world.ask(model, PROMPTS[0], repetition_penalty=1.7)
        assert Drawn.of(answer) == world.expected(model, PROMPTS[0], penalty=1.7)


async def test_the_learned_tokens_count_against_the_context(world: World) -> None:
    context = world.service.engine.limits.max_context_tokens
    most = context - VIRTUAL["tuned"] - 1
    fitting = await world.ask("tuned", [5] * most)
    assert fitting.usage.completion_tokens == 1
    error = await refusal(world.service.stub.Generate(asked("tuned", [5] * (most + 1))))
    assert error.reason is Reason.PROMPT_TOO_LONG
    assert "after the 20 of namespaces/default/adapters/tuned/versions/1" in error.message
    assert f"Shorten the prompt to {most} tokens" in error.next_step
    error = await refusal(world.service.stub.Generate(asked("tuned", [5] * most, min_tokens=2)))
    assert "1 tokens are left" in error.message
    # The base has room for it.
    assert (await world.ask("tiny", [5] * (most + 1))).token_ids


async def test_it_takes_no_slot_from_a_lora(world: World) -> None:
    for model in ("plain", *SOFT):
        await world.ask(model, PROMPTS[0])
    found = await world.service.stub.GetResidency(pb.GetResidencyRequest())
    ready = {each.version.split("/")[3] for each in found.adapters}
    assert ready == {"plain", *SOFT}
    assert all(each.state == pb.RESIDENCY_STATE_READY for each in found.adapters)
    assert len(await world.service.engine.listed()) == 1  # type: ignore[attr-defined]


def scored(
    world: World, model: str, ids: list[int]
) -> tuple[list[float], list[float], list[float]]:
    """What PEFT says of a prompt: log probabilities from its second token on, and its vectors, last and mean."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(world.base, dtype=torch.float32)
    adapted = PeftModel.from_pretrained(base, str(world.folders[model]))
    tokens = torch.tensor([ids])
    with torch.inference_mode():
        found = adapted(
            input_ids=tokens, attention_mask=torch.ones_like(tokens), output_hidden_states=True
        )
    logprobs = found.logits[0, -len(ids) : -1].log_softmax(-1)
    states = found.hidden_states[-1][0, -len(ids) :]
    unit = torch.nn.functional.normalize
    return (
        [float(row[token]) for row, token in zip(logprobs, ids[1:], strict=True)],
        unit(states[-1], dim=0).tolist(),
        unit(states.mean(0), dim=0).tolist(),
    )


@pytest.mark.parametrize("model", SOFT)
async def test_prompts_are_scored_and_embedded_after_what_was_learned(
    world: World, model: str
) -> None:
    ids = PROMPTS[0]
    logprobs, last, mean = scored(world, model, ids)
    answer = await world.ask(model, ids, prompt_logprobs=2)
    found = [(one.token.token_id, one.token.logprob) for one in answer.prompt_logprobs]
    assert [token for token, _ in found] == ids[1:]
    assert [value for _, value in found] == pytest.approx(logprobs, abs=LOGPROBS)
    assert Drawn.of(answer) == world.expected(model, ids)
    for pooling, expected in ((pb.POOLING_LAST, last), (pb.POOLING_MEAN, mean)):
        request = pb.EmbedRequest(model=model, pooling=pooling)
        request.inputs.add().token_ids.ids.extend(ids)
        (vector,) = (await world.service.stub.Embed(request)).embeddings
        assert list(vector.values) == pytest.approx(expected, abs=1e-4)


def soft_prompt(folder: Path, table: np.ndarray[Any, Any], **changes: Any) -> Path:
    """Files of a soft prompt for the tiny base."""
    folder.mkdir(parents=True)
    save_file({"prompt_embeddings": table}, folder / "adapter_model.safetensors")
    config = {
        "peft_type": "PROMPT_TUNING",
        "task_type": "CAUSAL_LM",
        "num_virtual_tokens": len(table),
        "token_dim": 64,
        "num_layers": 2,
        "num_attention_heads": 2,
        "num_transformer_submodules": 1,
        "prompt_tuning_init": "RANDOM",
    }
    (folder / "adapter_config.json").write_text(json.dumps(config | changes))
    return folder


def table(tokens: int, width: int = 64) -> np.ndarray[Any, Any]:
    """Random embeddings."""
    return np.random.default_rng(3).normal(0, 0.5, (tokens, width)).astype(np.float32)


def with_nan() -> np.ndarray[Any, Any]:
    """One number of which is none."""
    found = table(4)
    found[2, 5] = np.nan
    return found


async def test_wrong_ones_are_refused_by_name_and_touch_no_request_in_flight(
    vllm_engine: SharedEngine, tiny_base: Path, tmp_path: Path
) -> None:
    wrong = {
        "with NaN": (soft_prompt(tmp_path / "nan", with_nan()), "[2, 5] is NaN"),
        "of a wider base": (
            soft_prompt(tmp_path / "wide", table(4, 96), token_dim=96),
            "token_dim",
        ),
        "of another shape": (
            soft_prompt(tmp_path / "shape", table(4), num_virtual_tokens=5),
            "its shape is [4, 64]",
        ),
        "that fills the context": (
            soft_prompt(tmp_path / "long", table(255)),
            "255 virtual tokens leave no room",
        ),
    }
    registry = MemoryRegistry(FINGERPRINT)
    await registry.add_adapter(adapter_resource("bot"), BASE)
    for folder, _ in wrong.values():
        await registry.add_version(
            adapter_resource("bot"), folder, rank=0, peft_type="PROMPT_TUNING"
        )
    good = soft_prompt(tmp_path / "good", table(4))
    await registry.add_version(adapter_resource("bot"), good, rank=0, peft_type="PROMPT_TUNING")
    async with start_inference(
        tmp_path, engine=vllm_engine, registry=registry, base=tiny_base
    ) as service:
        innocent = asked(f"bot:{len(wrong) + 1}", PROMPTS[0], max_tokens=150)
        alone = await service.stub.Generate(innocent)
        beside = service.stub.Generate(innocent)
        for number, (kind, (_, words)) in enumerate(wrong.items(), 1):
            error = await refusal(service.stub.Generate(asked(f"bot:{number}", PROMPTS[0])))
            assert error.reason is Reason.ADAPTER_UNUSABLE, kind
            assert f"bot/versions/{number} cannot be served" in error.message, kind
            assert words in error.message, kind
            assert error.next_step, kind
        assert Drawn.of(await beside) == Drawn.of(alone)
