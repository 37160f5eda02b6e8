"""Structured answers, calls of tools, several answers, vectors and counts, by a real vLLM engine."""

from __future__ import annotations

import asyncio
import json
import re
import warnings
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
import torch
from graft.errors import GraftError, Reason
from graft.inference.v1 import inference_service_pb2 as pb
from graft.inference.v1 import structured_pb2
from jsonschema import Draft202012Validator
from transformers import AutoTokenizer

from services.inference.engines.base import Delta, Finish
from services.inference.engines.vllm_pooling import KIND, MARK, VectorsExtension
from services.inference.engines.vllm_tools import (
    VllmToolReader,
    check_parser,
    detect,
    vllm_tool_reader,
)
from services.inference.registry.memory import MemoryRegistry
from tests.support.engines import SharedEngine
from tests.support.inference import (
    BASE,
    FINGERPRINT,
    RunningInference,
    adapter_resource,
    question,
    start_inference,
)
from tests.support.models import make_adapter
from tests.unit.inference.refusals import refusal

pytestmark = pytest.mark.asyncio(loop_scope="session")

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "minItems": 1, "maxItems": 3},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}
TOOL = {
    "type": "function",
    "function": {
        "name": "f",
        "parameters": {
            "type": "object",
            "properties": {"a": {"enum": [1, 2]}, "b": {"$ref": "#/$defs/b"}},
            "required": ["a", "b"],
            "additionalProperties": False,
            "$defs": {"b": {"type": "boolean"}},
        },
    },
}
OTHER = {"type": "function", "function": {"name": "g"}}


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def service(
    vllm_engine: SharedEngine, tiny_base: Path, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[RunningInference]:
    """With an adapter "bot" of one version."""
    folder = tmp_path_factory.mktemp("door")
    registry = MemoryRegistry(FINGERPRINT)
    await registry.add_adapter(adapter_resource("bot"), BASE)
    adapter = make_adapter(folder / "bot", tiny_base, scale=1.0)
    await registry.add_version(adapter_resource("bot"), adapter, rank=8)
    async with start_inference(
        folder, engine=vllm_engine, registry=registry, base=tiny_base, max_adapters=2
    ) as running:
        yield running


def structured(**form: Any) -> structured_pb2.Structure:
    return structured_pb2.Structure(**form)


def with_form(model: str = "tiny", max_tokens: int = 120, **form: Any) -> pb.GenerateRequest:
    return question(
        model,
        "Alice is",
        max_tokens=max_tokens,
        temperature=1.0,
        seed=3,
        structure=structured(**form),
    )


async def test_an_answer_under_a_schema_is_valid_json(service: RunningInference) -> None:
    for model in ("tiny", "bot:1"):
        for seed in range(4):
            request = with_form(model, json_schema=json.dumps(PERSON))
            request.sampling.seed = seed
            answer = await service.stub.Generate(request)
            if answer.finish_reason == pb.FINISH_REASON_STOP:
                Draft202012Validator(PERSON).validate(json.loads(answer.text))
            else:
                assert answer.usage.completion_tokens == 120


async def test_every_form_is_kept_to(service: RunningInference) -> None:
    async def text(**form: Any) -> str:
        return (await service.stub.Generate(with_form(**form))).text

    assert re.fullmatch(r"[a-c]{3}-\d{2}", await text(regex=r"[a-c]{3}-\d{2}"))
    assert await text(choice={"texts": ["yes", "no"]}) in ("yes", "no")
    sums = 'root ::= number ("+" number){1,2}\nnumber ::= [0-9]{1,2}'
    assert re.fullmatch(r"\d{1,2}(\+\d{1,2}){1,2}", await text(grammar=sums))
    assert json.loads(await text(json_schema='{"enum": [1, 2.5, "x"]}')) in (1, 2.5, "x")
    assert (await text(json_object=True, max_tokens=20)).startswith("{")


HOSTILE: list[dict[str, Any]] = [
    {"json_schema": '{"type": '},
    {"json_schema": json.dumps({"type": "banana"})},
    {"json_schema": json.dumps({"not": {"type": "string"}})},
    {"json_schema": json.dumps({"allOf": [{"type": "string"}, {"type": "integer"}]})},
    {"json_schema": json.dumps({"$ref": "#"})},
    {
        "json_schema": json.dumps(
            {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}
        )
    },
    {"json_schema": json.dumps({"type": "array", "items": {"type": "null"}, "minItems": 10**6})},
    {"json_schema": '{"type":"array","items":' * 900 + "true" + "}" * 900},
    {"json_schema": json.dumps({"properties": {f"p{i}": {"type": "string"} for i in range(5000)}})},
    {"regex": "[ab"},
    {"regex": "(.{0,1000}){0,1000}"},
    {"regex": "((((a{0,100}){0,100}){0,100}){0,100}){0,100}"},
    {"grammar": "root ::= x"},
    {"grammar": "root ::= root"},
    {"grammar": 'root ::= "a" root'},
    {"grammar": 'root ::= s\ns ::= "" | s s s s s | [a-z]'},
    {"choice": {"texts": []}},
    {"choice": {"texts": ["a", "a"]}},
]


async def test_a_hostile_structure_is_refused_and_an_innocent_stream_goes_on(
    service: RunningInference,
) -> None:
    request = question("bot:1", max_tokens=200, ignore_eos=True)
    alone = await service.stub.Generate(request)
    parts = aiter(service.stub.StreamGenerate(request))
    ids = list((await anext(parts)).token_ids)

    async def innocent() -> None:
        async for part in parts:
            ids.extend(part.token_ids)

    streaming = asyncio.create_task(innocent())
    for form in HOSTILE:
        error = await refusal(service.stub.Generate(with_form(**form)))
        assert error.reason is Reason.INVALID_REQUEST, form
        assert "sampling.structure" in error.message
        assert error.next_step
    await streaming
    assert ids == list(alone.token_ids)


def chat(tool_choice: str, *tools: Any, **sampling: Any) -> pb.ChatRequest:
    params: dict[str, Any] = {"temperature": 1.0, "seed": 5, **sampling}
    return pb.ChatRequest(
        model="tiny",
        messages=[pb.ChatMessage(role="user", content="Hi")],
        tools_json=[json.dumps(each) for each in tools],
        tool_choice=tool_choice,
        sampling=pb.SamplingParams(**params),
    )


async def test_a_named_tool_is_called_with_arguments_that_fit_its_schema(
    service: RunningInference,
) -> None:
    answer = await service.stub.Chat(chat("f", TOOL))
    (call,) = answer.tool_calls
    assert (call.name, answer.text) == ("f", "")
    assert re.fullmatch("[A-Za-z0-9]{9}", call.id)
    assert answer.finish_reason == pb.FINISH_REASON_TOOL_CALLS
    schema = TOOL["function"]["parameters"]  # type: ignore[index]
    Draft202012Validator(schema).validate(json.loads(call.arguments_json))


async def test_required_calls_stream_in_pieces_that_join_to_the_whole_calls(
    service: RunningInference,
) -> None:
    request = chat("required", TOOL)
    request.one_tool_call = True
    whole = await service.stub.Chat(request)
    pieces: dict[int, str] = {}
    names: dict[int, str] = {}
    async for part in service.stub.StreamChat(request):
        assert not part.text
        for call in part.tool_calls:
            pieces[call.index] = pieces.get(call.index, "") + call.arguments_json
            names.setdefault(call.index, call.name)
    assert names == {0: whole.tool_calls[0].name}
    assert pieces == {0: whole.tool_calls[0].arguments_json}
    json.loads(pieces[0])


async def test_several_answers_are_those_of_the_seeds_that_follow(
    service: RunningInference,
) -> None:
    request = question("bot:1", temperature=1.0, seed=11, n=3, max_tokens=12, ignore_eos=True)
    many = await service.stub.Generate(request)
    texts = [many.text, *(each.text for each in many.others)]
    alone = [
        await service.ask("bot:1", temperature=1.0, seed=11 + i, max_tokens=12, ignore_eos=True)
        for i in range(3)
    ]
    assert texts == [each.text for each in alone]
    assert len(set(texts)) == 3
    assert many.usage.completion_tokens == 36
    streamed = ["", "", ""]
    async for part in service.stub.StreamGenerate(request):
        streamed[part.index] += part.text
    assert streamed == texts


async def test_a_stop_string_may_be_part_of_the_answer(service: RunningInference) -> None:
    free = await service.ask("bot:1", max_tokens=30, ignore_eos=True)
    stop = free.text[6:9]
    answer = await service.ask("bot:1", max_tokens=30, stop=[stop], include_stop=True)
    assert answer.text == free.text[: free.text.index(stop) + len(stop)]


async def test_log_probabilities_of_the_prompt_are_those_of_its_tokens(
    service: RunningInference,
) -> None:
    answer = await service.ask("tiny", "The cat sees a dog", max_tokens=1, prompt_logprobs=2)
    ids = service.engine.tokenize("The cat sees a dog", special_tokens=True)
    assert [each.token.token_id for each in answer.prompt_logprobs] == ids[1:]
    assert all(len(each.top) == 2 for each in answer.prompt_logprobs)


def _hidden_states(base: Path, adapter: Path | None, ids: list[int]) -> Any:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        if adapter is not None:
            model = PeftModel.from_pretrained(model, str(adapter))
        model.eval()
        with torch.no_grad():
            found = model(torch.tensor([ids]), output_hidden_states=True).hidden_states[-1][0]
    return found


@pytest.mark.parametrize("model", ["tiny", "bot:1"])
async def test_vectors_equal_the_hidden_states_of_transformers(
    service: RunningInference, tiny_base: Path, model: str
) -> None:
    texts = ["The cat sees a dog", "Oslo", "The cat sees a dog and then another one"]
    adapter = service.folder / "bot" if model != "tiny" else None
    for pooling in (pb.POOLING_UNSPECIFIED, pb.POOLING_MEAN):
        answer = await service.stub.Embed(
            pb.EmbedRequest(
                model=model, inputs=[pb.EmbedInput(text=text) for text in texts], pooling=pooling
            )
        )
        for text, found in zip(texts, answer.embeddings, strict=True):
            ids = service.engine.tokenize(text, special_tokens=True)
            states = _hidden_states(tiny_base, adapter, ids)
            wanted = states.mean(0) if pooling == pb.POOLING_MEAN else states[-1]
            wanted = wanted / wanted.norm()
            assert list(found.values) == pytest.approx(wanted.tolist(), abs=2e-4)
            assert found.prompt_tokens == len(ids)


async def test_vectors_come_while_others_stream(service: RunningInference) -> None:
    request = question("bot:1", max_tokens=60, ignore_eos=True)
    alone = await service.stub.Generate(request)
    inputs = [pb.EmbedInput(text=f"text {index}") for index in range(20)]
    embed = service.stub.Embed(pb.EmbedRequest(model="tiny", inputs=inputs))
    streamed, vectors = await asyncio.gather(service.stub.Generate(request), embed)
    assert streamed.text == alone.text
    one = await service.stub.Embed(pb.EmbedRequest(model="tiny", inputs=inputs[7:8]))
    assert list(vectors.embeddings[7].values) == pytest.approx(
        list(one.embeddings[0].values), abs=2e-4
    )


async def test_a_count_is_what_the_answer_says_it_used(service: RunningInference) -> None:
    request = chat("", TOOL, max_tokens=1)
    answer = await service.stub.Chat(request)
    count = await service.stub.CountTokens(
        pb.CountTokensRequest(
            model="tiny", messages=request.messages, tools_json=request.tools_json
        )
    )
    assert count.tokens == answer.usage.prompt_tokens
    assert count.max_context_tokens == 256


SAYS = {
    "hermes": 'Let me see.\n<tool_call>\n{"name": "f", "arguments": {"a": 1, "b": true}}\n</tool_call>'
    '\n<tool_call>\n{"name": "g", "arguments": {}}\n</tool_call>',
    "llama3_json": '{"name": "f", "parameters": {"a": 1, "b": true}}',
    "mistral": '[TOOL_CALLS] [{"name": "f", "arguments": {"a": 1, "b": true}}]',
    "pythonic": "[f(a=1, b=True), g()]",
}


def with_marks(engine: SharedEngine) -> Any:
    """Its tokenizer with the tokens that some forms need."""
    tokenizer = AutoTokenizer.from_pretrained(engine.options.base)
    tokenizer.add_tokens(["<|python_tag|>", "[TOOL_CALLS]"], special_tokens=True)
    return tokenizer


def read_in_pieces(
    engine: SharedEngine, parser: str, said: str, size: int
) -> tuple[str, dict[int, list[str]], Finish | None]:
    """Text, calls as name and arguments, and the end, where so many tokens come at once."""
    tokenizer = with_marks(engine)
    reader = VllmToolReader(parser, tokenizer, [TOOL, OTHER])
    ids = tokenizer.encode(said, add_special_tokens=False)
    text, calls = "", dict[int, list[str]]()
    finish: Finish | None = None
    for at in range(0, len(ids), size):
        before, until = tokenizer.decode(ids[:at]), tokenizer.decode(ids[: at + size])
        end = Finish.STOP if at + size >= len(ids) else None
        delta = reader.read(Delta(until[len(before) :], ids[at : at + size], finish=end))
        text, finish = text + delta.text, delta.finish
        for part in delta.tool_calls:
            call = calls.setdefault(part.index, ["", ""])
            call[0], call[1] = call[0] + part.name, call[1] + part.arguments
    return text, calls, finish


@pytest.mark.parametrize("parser", SAYS)
@pytest.mark.parametrize("size", [1, 3, 1000])
async def test_a_models_own_calls_are_read_the_same_whole_and_in_pieces(
    service: RunningInference, parser: str, size: int
) -> None:
    assert isinstance(service.engine, SharedEngine)
    text, calls, finish = read_in_pieces(service.engine, parser, SAYS[parser], size)
    assert finish is Finish.TOOL_CALLS
    assert text.strip() == ("Let me see." if parser == "hermes" else "")
    assert json.loads(calls[0][1]) == {"a": 1, "b": True}
    assert [call[0] for call in calls.values()] == (
        ["f", "g"] if parser in ("hermes", "pythonic") else ["f"]
    )


@pytest.mark.parametrize("parser", SAYS)
async def test_text_without_calls_stays_text(service: RunningInference, parser: str) -> None:
    engine = service.engine
    assert isinstance(engine, SharedEngine)
    for said in ("It is 3 o'clock [maybe].", "<tool_c", "[1, 2]", "{", '<tool_call>{"name'):
        for size in (1, 1000):
            found = read_in_pieces(engine, parser, said, size)
            assert found == (said, {}, Finish.STOP), (said, size)


async def test_a_form_whose_marks_the_tokenizer_lacks_is_not_read(
    service: RunningInference,
) -> None:
    assert isinstance(service.engine, SharedEngine)
    assert vllm_tool_reader("mistral", service.engine.hugging_face, [TOOL]) is None


async def test_the_form_of_calls_is_seen_in_the_chat_template() -> None:
    assert detect("{{ '<tool_call>' }}") == "hermes"
    assert detect("{{ '[TOOL_CALLS]' }}") == "mistral"
    assert detect("{{ bos }}{{ '<|python_tag|>' }}") == "llama3_json"
    assert detect("{{ messages[0].content }}") == ""
    with pytest.raises(GraftError, match="no tool parser 'morse'"):
        check_parser("morse")


class _Runner:
    """What vLLM's second model runner, which needs a GPU, shows of itself."""

    def __init__(self) -> None:
        self.prompt_logprobs_worker: Any = SimpleNamespace(
            add_request=lambda *_: None,
            remove_request=lambda *_: None,
            compute_prompt_logprobs=lambda *_: {"theirs": 1},
        )


async def test_a_prompt_that_is_computed_in_parts_has_the_same_vector() -> None:
    extension, runner = VectorsExtension(), _Runner()
    extension.model_runner = runner
    extension.graft_collect()
    states = torch.arange(30.0).reshape(10, 3)
    worker = runner.prompt_logprobs_worker
    for kind in ("LAST", "MEAN"):
        worker.add_request(kind, 0, SimpleNamespace(extra_args={MARK: kind, KIND: kind}))
    worker.add_request("other", 1, SimpleNamespace(extra_args=None))
    for first, until in ((0, 4), (0, 4), (4, 10)):
        # Begun, preempted and begun anew, and ended; behind one token of somebody else.
        batch = SimpleNamespace(
            req_ids=["other", "LAST", "MEAN"],
            query_start_loc_np=np.array([0, 1, 1 + until - first, 1 + 2 * (until - first)]),
            num_computed_prefill_tokens_np=np.array([0, first, first]),
            idx_mapping_np=np.array([0, 1, 2]),
        )
        part = states[first:until]
        hidden = torch.cat([torch.ones(1, 3), part, part])
        lengths = np.array([1, 10, 10])
        told = worker.compute_prompt_logprobs(None, hidden, batch, None, None, lengths)
        assert told == {"theirs": 1}
    last, mean, nothing = extension.graft_vectors(["LAST", "MEAN", "other"])
    assert nothing is None
    assert last == pytest.approx((states[-1] / states[-1].norm()).tolist())
    assert mean == pytest.approx((states.mean(0) / states.mean(0).norm()).tolist())
