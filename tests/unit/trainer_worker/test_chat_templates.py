"""Named chat templates: each is its format, shows what is learned, and trains a model to stop."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from graft.errors import GraftError

from services.trainer.chat_templates import named_template, template_for, template_names
from services.trainer.formats import Conversation, Example, Place
from services.trainer.tokens import ExampleTokenizer, TokenRow, load_tokenizer
from services.trainer.tokens.templates import ChatTemplate
from tests.unit.trainer_worker.support import Outcome, attempt

TALK: list[dict[str, Any]] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "One?"},
    {"role": "assistant", "content": "Yes."},
    {"role": "user", "content": "Two?"},
    {"role": "assistant", "content": "No."},
]
TOOL = {"type": "function", "function": {"name": "rain", "description": "d", "parameters": {}}}
CALL = {"type": "function", "function": {"name": "rain", "arguments": {"where": "Bonn"}}}
CALLING: list[dict[str, Any]] = [
    {"role": "user", "content": "Rain?"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": "much"},
    {"role": "assistant", "content": "Much."},
]
# As the sources in the templates' files describe them, with the special tokens of those bases.
FORMATS = {
    "chatml": "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nOne?<|im_end|>\n"
    "<|im_start|>assistant\nYes.<|im_end|>\n<|im_start|>user\nTwo?<|im_end|>\n"
    "<|im_start|>assistant\nNo.<|im_end|>\n",
    "llama2": "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nOne? [/INST] Yes. </s>"
    "<s>[INST] Two? [/INST] No. </s>",
    "llama3": "<s><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nOne?<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\nYes.<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nTwo?<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\nNo.<|eot_id|>",
    "mistral": "<s>[INST] One?[/INST] Yes.</s>[INST] Be brief.\n\nTwo?[/INST] No.</s>",
    "gemma": "<s><start_of_turn>user\nBe brief.\n\nOne?<end_of_turn>\n<start_of_turn>model\nYes."
    "<end_of_turn>\n<start_of_turn>user\nTwo?<end_of_turn>\n<start_of_turn>model\nNo.<end_of_turn>\n",
    "phi3": "<s><|system|>\nBe brief.<|end|>\n<|user|>\nOne?<|end|>\n<|assistant|>\nYes.<|end|>\n"
    "<|user|>\nTwo?<|end|>\n<|assistant|>\nNo.<|end|>\n",
    "zephyr": "<|system|>\nBe brief.</s>\n<|user|>\nOne?</s>\n<|assistant|>\nYes.</s>\n"
    "<|user|>\nTwo?</s>\n<|assistant|>\nNo.</s>\n",
    "vicuna": "<s>Be brief. USER: One? ASSISTANT: Yes.</s>USER: Two? ASSISTANT: No.</s>",
    "alpaca": "<s>Be brief.\n\n### Instruction:\nOne?\n\n### Response:\nYes.</s>\n\n"
    "### Instruction:\nTwo?\n\n### Response:\nNo.</s>",
    "chatglm": "[gMASK]<sop><|system|>\nBe brief.<|user|>\nOne?<|assistant|>\nYes."
    "<|user|>\nTwo?<|assistant|>\nNo.</s>",
    "deepseek": "<s>Be brief.<｜User｜>One?<｜Assistant｜>Yes.</s><｜User｜>Two?<｜Assistant｜>No.</s>",
}


@pytest.fixture
def tokenizer(tiny_base: Path) -> Any:
    return load_tokenizer(tiny_base)


def with_template(tokenizer: Any, name: str) -> Any:
    tokenizer.chat_template = template_for(name, tokenizer, {tokenizer.eos_token_id})
    return tokenizer


def row_of(tokenizer: Any, messages: list[dict[str, Any]], *tools: dict[str, Any]) -> TokenRow:
    reader = ExampleTokenizer(tokenizer, 4096, {tokenizer.eos_token_id})
    example = Example(Place("d.jsonl", 1), Conversation(tuple(messages), tools))
    ((row,), _) = reader.tokenize([example])
    return row


class ForeignTokenizer:
    """A base whose special tokens are those of the formats' sources."""

    eos_token = "</s>"

    def __init__(self, text: str) -> None:
        self.special_tokens_map = {"bos_token": "<s>", "eos_token": "</s>"}
        self._text = text

    def get_chat_template(self, tools: Any) -> str:
        return self._text


@pytest.mark.parametrize("name", FORMATS)
def test_a_template_is_the_format_of_its_source(name: str) -> None:
    template = ChatTemplate(ForeignTokenizer(named_template(name).text))
    rendered = template.render(Conversation(tuple(TALK)), Place("d", 1))
    assert rendered.text == FORMATS[name]


@pytest.mark.parametrize("name", template_names())
def test_what_is_learned_follows_what_is_served_and_ends(tokenizer: Any, name: str) -> None:
    tokenizer = with_template(tokenizer, name)
    row = row_of(tokenizer, TALK)
    learned = np.flatnonzero(row.learned)
    last = learned[np.flatnonzero(np.diff(learned) > 1)[-1] + 1]
    assert "No." in tokenizer.decode(row.ids[last:])
    assert row.ids[learned[-1]] == tokenizer.eos_token_id
    served = tokenizer.apply_chat_template(TALK[:-1], add_generation_prompt=True)["input_ids"]
    assert served == row.ids[:last].tolist()
    everything_learned = tokenizer.decode(row.ids[learned])
    assert "Yes." in everything_learned
    assert "Two?" not in everything_learned


@pytest.mark.parametrize("name", template_names())
def test_tools_are_shown_or_refused_by_name(tokenizer: Any, name: str) -> None:
    tokenizer = with_template(tokenizer, name)
    if not named_template(name).tools:
        with pytest.raises(
            GraftError, match=rf"row 1: .*the template {name} has no place for tools"
        ):
            row_of(tokenizer, CALLING, TOOL)
        return
    row = row_of(tokenizer, CALLING, TOOL)
    text, learned = tokenizer.decode(row.ids), tokenizer.decode(row.ids[row.learned])
    assert '"description": "d"' in text
    assert "much" in text
    assert "Bonn" in learned
    assert "Much." in learned
    assert "much" not in learned


def test_a_format_whose_end_the_base_does_not_know_gets_the_bases_end(tokenizer: Any) -> None:
    row = row_of(with_template(tokenizer, "gemma"), TALK)
    assert tokenizer.decode(row.ids[row.learned]).endswith(f"<end_of_turn>{tokenizer.eos_token}")
    row = row_of(with_template(tokenizer, "chatml"), TALK)
    assert tokenizer.decode(row.ids[row.learned]).endswith("No.<|im_end|>")


def test_a_template_that_is_not_there_is_refused_with_the_names(
    train: Callable[..., Outcome],
) -> None:
    outcome = train(dataset={"chat_template": "lama3"})
    assert outcome.code != 0
    assert "dataset.chat_template is 'lama3'" in outcome.message
    assert "chatglm, chatml" in outcome.message


def test_the_template_goes_with_the_adapter_that_was_trained_with_it(
    train: Callable[..., Outcome], tiny_base: Path
) -> None:
    outcome = train(dataset={"chat_template": "zephyr"}, hyperparameters={"max_steps": 1})
    result = outcome.work_dir / "result"
    written = (result / "chat_template.jinja").read_text("utf-8")
    assert written == load_tokenizer(tiny_base, "zephyr").chat_template
    commits = [json.loads(p.read_text("utf-8")) for p in result.glob("*.json")]
    assert any(
        file.get("path") == "chat_template.jinja"
        for commit in commits
        for file in commit.get("files", [])
    )


def test_a_whole_model_that_was_trained_with_a_template_has_it_for_its_own(
    spec: dict[str, Any], tiny_base: Path, tmp_path: Path
) -> None:
    changes = {
        "dataset": {**spec["dataset"], "chat_template": "zephyr"},
        "method": {"full": {}},
        "output": {"base": "kind"},
        "hyperparameters": {**spec["hyperparameters"], "max_steps": 1},
    }
    outcome = attempt({**spec, **changes}, tmp_path / "work")
    assert outcome.code == 0, outcome.message
    own = load_tokenizer(outcome.work_dir / "result").chat_template
    assert own == load_tokenizer(tiny_base, "zephyr").chat_template


def test_a_base_without_a_template_is_told_of_the_named_ones(tokenizer: Any) -> None:
    tokenizer.chat_template = None
    with pytest.raises(GraftError, match="no chat template") as caught:
        row_of(tokenizer, TALK)
    assert "dataset.chat_template to one of alpaca, chatglm, chatml" in caught.value.next_step
