"""A version that brings a chat template is asked through it, whatever moves, and can hurt nobody with it."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from graft.errors import GraftError, Reason
from graft.generation import chat_request
from graft.inference.v1 import inference_service_pb2 as pb
from transformers import AutoTokenizer

from services.inference.domain import AdapterVersion
from services.inference.engines.base import Delta, EngineAdapter, Sampling
from services.inference.engines.fake import FakeEngine
from services.inference.engines.vllm_tokenizer import BaseTokenizer
from services.inference.templates import MAX_BYTES, ChatTemplate
from services.trainer.chat_templates import template_for
from tests.support.inference import (
    BASE,
    RunningInference,
    adapter_resource,
    start_inference,
    write_adapter,
)
from tests.support.waiting import eventually
from tests.unit.inference import test_prompts_as_trained
from tests.unit.inference.refusals import refusal

TALK = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Where is it?"}]
FAILED = pb.RESIDENCY_STATE_FAILED
# All that templates use and what is bounded here, in one.
EVERYTHING = """{%- set ns = namespace(n=0, text='') -%}
{%- macro turn(m, end='!') -%}{{ m['role'] ~ ': ' ~ (m.content | trim) ~ end }}{%- endmacro -%}
{%- for m in messages if m.role != 'tool' -%}
    {%- set ns.n = ns.n + 1 -%}
    {%- set ns.text = ns.text ~ loop.index ~ ('-' * 3) ~ missing ~ (1.5 ~ none) -%}
    {%- if loop.last %}{{ turn(m, end='?' ~ (2 ** 3)) }}{% else %}{{ turn(m) }}{% endif %}
    {% generation %}{% set inner = 'x' ~ 'y' %}{{ inner }}{% endgeneration %}
    {{ inner }}
    {%- if ns.n > 3 %}{% break %}{% endif %}
{%- endfor %}
{{ ns.text + eos_token + {'a': ['ü' ~ 1, '<']} | tojson }}{{ '%03d' % ns.n }}
{%- for a in [[1, 2], [3]] recursive %}{{ loop(a) if a is iterable else a }}{% endfor %}
{%- macro within(a) %}<{{ caller() ~ a }}>{% endmacro %}{% call within(1) %}{{ 1 ~ 2 }}{% endcall %}{{ tools }}{{ add_generation_prompt }}
"""


class Asked(FakeEngine):
    """With the base's real tokenizer; remembers the ids of every prompt."""

    def __init__(self, tokenizer: Any) -> None:
        super().__init__()
        self._tokenizer = BaseTokenizer(tokenizer)
        self.prompts: list[list[int]] = []

    def tokenize(self, text: str, *, special_tokens: bool) -> list[int]:
        return self._tokenizer.tokenize(text, special_tokens=special_tokens)

    def render_chat(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]
    ) -> str:
        return self._tokenizer.render_chat(messages, tools)

    @property
    def special_tokens(self) -> Mapping[str, str]:
        return self._tokenizer.special_tokens

    def generate(
        self,
        request_id: str,
        prompt_token_ids: Sequence[int],
        sampling: Sampling,
        adapter: EngineAdapter | None,
        *,
        stream: bool,
        trace_headers: Mapping[str, str] | None = None,
    ) -> AsyncGenerator[Delta, None]:
        self.prompts.append(list(prompt_token_ids))
        return super().generate(request_id, prompt_token_ids, sampling, adapter, stream=stream)


@pytest.fixture(scope="module")
def tokenizer(example_base: Path) -> Any:
    return AutoTokenizer.from_pretrained(example_base)


@pytest.fixture
async def service(tokenizer: Any, tmp_path: Path) -> AsyncIterator[RunningInference]:
    async with start_inference(tmp_path, engine=Asked(tokenizer)) as running:
        yield running


def named(tokenizer: Any, name: str) -> str:
    """What the trainer saves with an adapter that it trained with a named template."""
    return template_for(name, tokenizer, {tokenizer.eos_token_id})


def trained(tokenizer: Any, template: str) -> list[int]:
    """The ids of TALK's prompt as the trainer makes them; with "" by the base's own template."""
    own = copy.copy(tokenizer)
    own.chat_template = template or tokenizer.chat_template
    ids, begins = test_prompts_as_trained.trained(own, {"messages": TALK})
    return ids[:begins]


async def publish(
    service: RunningInference, content: str, template: str | bytes = "", adapter: str = "bot"
) -> AdapterVersion:
    name = adapter_resource(adapter)
    if name not in service.memory.adapters:
        await service.memory.add_adapter(name, BASE)
    folder = write_adapter(service.folder / f"{adapter}-{content}", content)
    if template:
        data = template if isinstance(template, bytes) else template.encode()
        (folder / "chat_template.jinja").write_bytes(data)
    return await service.memory.add_version(name, folder)


async def served(service: RunningInference, model: str) -> tuple[int, list[int]]:
    """The number of the version that answers TALK, and the ids that it was asked with."""
    assert isinstance(service.engine, Asked)
    service.engine.prompts.clear()
    answer = await service.stub.Chat(chat_request(model, TALK, (), {"max_tokens": 2}))
    number = answer.provenance.version.rpartition("/")[2]
    return int(number or 0), service.engine.prompts[0]


async def test_each_version_is_asked_as_it_was_trained_before_and_after_its_alias_moves(
    service: RunningInference, tokenizer: Any
) -> None:
    templates = {1: named(tokenizer, "llama3"), 2: "", 3: named(tokenizer, "zephyr")}
    expected = {number: trained(tokenizer, text) for number, text in templates.items()}
    assert len({*map(tuple, expected.values())}) == 3
    for number, text in templates.items():
        await publish(service, f"v{number}", text)
    for number in (1, 2, 3, 1):
        await service.promote("bot", number)

        async def moved(number: int = number) -> bool:
            found, ids = await served(service, "bot")
            # Also while it moves, whatever answers was asked as it was trained.
            assert ids == expected[found]
            return found == number

        await eventually(moved, f"bot -> {number}")
    assert await served(service, "bot:2") == (2, expected[2])
    assert await served(service, "bot:3") == (3, expected[3])
    assert await served(service, "tiny") == (0, expected[2])


async def test_moves_under_a_flood_of_conversations_mix_no_template_with_other_weights(
    service: RunningInference, tokenizer: Any
) -> None:
    texts = {1: named(tokenizer, "llama3"), 2: named(tokenizer, "zephyr")}
    for number, text in texts.items():
        await publish(service, f"v{number}", text)
    await service.promote("bot", 1)
    lengths = {number: len(trained(tokenizer, text)) for number, text in texts.items()}
    assert lengths[1] != lengths[2]
    seen: set[int] = set()
    stop = asyncio.Event()

    async def flood() -> None:
        while not stop.is_set():
            request = chat_request("bot", TALK, (), {"max_tokens": 2})
            answer = await service.stub.Chat(request)
            number = int(answer.provenance.version.rpartition("/")[2])
            assert answer.usage.prompt_tokens == lengths[number]
            seen.add(number)

    floods = [asyncio.create_task(flood()) for _ in range(4)]
    for number in (2, 1, 2):
        seen.clear()
        await service.promote("bot", number)
        await eventually(lambda number=number: number in seen, f"bot -> {number}")  # type: ignore[misc]
    stop.set()
    await asyncio.gather(*floods)


async def test_a_template_that_fails_on_a_conversation_fails_that_request_alone(
    service: RunningInference,
) -> None:
    await publish(
        service,
        "v1",
        "{% if messages|length > 1 %}{{ raise_exception('one turn only') }}{% endif %}hi",
    )
    error = await refusal(service.stub.Chat(chat_request("bot", TALK, (), {})))
    assert error.reason is Reason.INVALID_REQUEST
    assert "bot/versions/1 refuses the conversation: one turn only" in error.message
    assert error.next_step
    one = chat_request("bot", TALK[:1], (), {"max_tokens": 2})
    assert (await service.stub.Chat(one)).usage.completion_tokens == 2
    answer = await service.stub.GetResidency(pb.GetResidencyRequest())
    assert [each.in_flight for each in answer.adapters] == [0]


BROKEN: dict[str, tuple[str | bytes, str]] = {
    "no template": ("{% for m in messages %}", "no chat template"),
    "not text": (b"\xff\xfe\x00", "not UTF-8"),
    "too large": ("x" * (MAX_BYTES + 1), f"{MAX_BYTES + 1} bytes"),
}


@pytest.mark.parametrize("broken", BROKEN)
async def test_an_alias_does_not_move_to_a_version_whose_template_is_broken(
    service: RunningInference, broken: str
) -> None:
    template, words = BROKEN[broken]
    await publish(service, "v1")
    await publish(service, "v2", template)
    await service.promote("bot", 1)
    await eventually(lambda: len(service.fake.loaded) == 1, "the first version")
    await service.promote("bot", 2)

    async def refused() -> str:
        found = (await service.stub.GetResidency(pb.GetResidencyRequest())).adapters
        return next((each.message for each in found if each.state == FAILED), "")

    async def is_refused() -> bool:
        return bool(await refused())

    await eventually(is_refused, "the refusal")
    assert "bot/versions/2 cannot be served" in await refused()
    assert words in await refused()
    assert (await served(service, "bot"))[0] == 1
    error = await refusal(service.stub.Chat(chat_request("bot:2", TALK, (), {})))
    assert error.reason is Reason.ADAPTER_UNUSABLE


ENDLESS = [
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "{% macro f(n) %}{{ f(n) }}{{ f(n) }}{% endmacro %}{{ f(1) }}",
    "{% set s = namespace(t='ab') %}{% for a in range(60) %}{% set s.t = s.t ~ s.t %}{% endfor %}",
    "{% set s = namespace(t='ab') %}{% for a in range(60) %}{% set s.t = s.t + s.t %}{% endfor %}",
    "{{ 'a' * 10 ** 12 }}",
    "{{ 9 ** (9 ** 9) }}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ messages.append(1) }}",
    "{{ 1 / 0 }}",
    "{{ messages[9].content }}",
]


@pytest.mark.parametrize("text", ENDLESS)
def test_a_template_can_neither_run_nor_grow_without_end_nor_reach_out(text: str) -> None:
    template = ChatTemplate("bot/versions/1", text)
    with pytest.raises(GraftError) as caught:
        template.render(TALK, [], {}, 1000)
    assert caught.value.reason is Reason.INVALID_REQUEST
    assert "bot/versions/1" in caught.value.message


def test_a_template_that_writes_too_much_is_stopped() -> None:
    text = "{% for a in range(90000) %}{% for b in range(9) %}xxxxxxxxxxxx{% endfor %}{% endfor %}"
    assert len(ChatTemplate("v", text).render(TALK, [], {}, 1000)) < 2000


async def test_what_a_template_writes_is_held_to_the_context(service: RunningInference) -> None:
    await publish(service, "v1", "{% for a in range(90000) %}xxxxxxxxxxxxxxxxxx{% endfor %}")
    error = await refusal(service.stub.Chat(chat_request("bot", TALK, (), {})))
    assert error.reason is Reason.PROMPT_TOO_LONG


def test_a_template_is_rendered_as_transformers_renders_it(tokenizer: Any) -> None:
    messages = [*TALK, {"role": "tool", "content": "5"}, {"role": "user", "content": " äöü <b> "}]
    expected = tokenizer.apply_chat_template(
        messages, chat_template=EVERYTHING, tokenize=False, add_generation_prompt=True
    )
    own = ChatTemplate("bot/versions/1", EVERYTHING)
    assert own.render(messages, [], tokenizer.special_tokens_map, 10_000) == expected
