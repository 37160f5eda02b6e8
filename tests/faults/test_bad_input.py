"""Bad input through the whole path: a clear error with the next step, and nothing lost.

One running Graft takes all of it; at the end it must hold what it held and answer as it answered.
"""

from __future__ import annotations

import json
from pathlib import Path

import graft
import numpy as np
import pytest
from graft.errors import GraftError, Reason
from safetensors.numpy import load_file, save_file

from tests.support.models import make_adapter, make_base
from tests.support.stack import Stack

pytestmark = [pytest.mark.engine, pytest.mark.timeout(1200)]
BAD_CONFIG, BAD_DATA = 64, 65
GOOD = '{"instruction": "Say hi", "output": "hi"}\n'


@pytest.fixture(scope="module", autouse=True)
def innocent(stack: Stack, example_base: Path, tmp_path_factory: pytest.TempPathFactory) -> object:
    """An adapter that serves before, and must serve the very same after everything here."""
    folder = make_adapter(tmp_path_factory.mktemp("innocent") / "a", example_base, scale=0.05)
    pushed = stack.graft("adapters", "push", "innocent", folder, "--base", example_base)
    assert pushed.code == 0, pushed.err
    assert stack.graft("adapters", "promote", "innocent:1").code == 0
    ask = ("generate", "innocent", "Hello", "--max-tokens", "8", "--temperature", "0", "--json")
    before, listed = stack.graft(*ask), adapter_ids(stack)
    assert before.code == 0, before.err
    yield None
    assert stack.graft(*ask).json()["text"] == before.json()["text"]
    # What was refused has left nothing, not even an empty adapter.
    assert adapter_ids(stack) - {"wide"} == listed


def adapter_ids(stack: Stack) -> set[str]:
    return {
        adapter["name"].rpartition("/")[2]
        for adapter in stack.graft("adapters", "list", "--json").json()
    }


@pytest.mark.parametrize(
    ("content", "words"),
    [
        pytest.param(b"", ["is empty"], id="empty"),
        pytest.param(GOOD.encode() + b'{"instruction": "Say', ["row 2"], id="truncated"),
        pytest.param(
            GOOD.encode() + b'{"messages": [{"role": "user", "content": "x"}]}\n',
            ["row 2"],
            id="mixed formats",
        ),
        pytest.param(
            GOOD.encode() + b'{"instruction": "Say ho"}\n', ["row 2", "output"], id="no field"
        ),
        pytest.param(
            GOOD.encode() + b'{"instruction": "\xff\xfe", "output": "x"}\n',
            ["UTF-8"],
            id="not UTF-8",
        ),
    ],
)
def test_data_that_cannot_be_used_is_refused_with_its_row(
    content: bytes, words: list[str], stack: Stack, example_base: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data.jsonl"
    data.write_bytes(content)
    done = stack.graft("train", data, "--base", example_base, "--adapter", "bad", "--json")
    assert done.code == BAD_DATA, done.out + done.err
    end = json.dumps(done.json()) + done.err
    assert all(word in end for word in [*words, "data.jsonl"]), end


def test_uploaded_data_that_cannot_be_used_is_refused_with_its_row(
    stack: Stack, example_base: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text(GOOD + '{"instruction": "Say ho"}\n')
    done = stack.graft(
        "train", data, "--upload", "--base", example_base, "--adapter", "bad", "--json"
    )
    assert done.code == BAD_DATA, done.out + done.err
    assert "data.jsonl, row 2" in done.out + done.err


@pytest.mark.training
def test_data_that_trains_nothing_is_refused_with_the_reason(
    stack: Stack, example_base: Path, tmp_path: Path
) -> None:
    data = tmp_path / "long.jsonl"
    data.write_text(json.dumps({"instruction": "word " * 200, "output": "x"}) + "\n")
    done = stack.graft(
        "train", data, "--base", example_base, "--adapter", "bad", "--max-length", "32", "--json"
    )
    assert done.code == BAD_DATA, done.out + done.err
    assert "max_length_tokens" in done.out + done.err


def test_unknown_target_modules_are_named_with_those_that_exist(
    stack: Stack, example_base: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text(GOOD * 4)
    done = stack.graft(
        "train", data, "--base", example_base, "--adapter", "bad", "--target", "q_prj", "--json"
    )
    assert done.code == BAD_CONFIG, done.out + done.err
    assert "q_prj" in done.out + done.err
    assert "q_proj" in done.out + done.err


def test_a_base_path_that_is_no_model_is_said(stack: Stack, tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text(GOOD * 4)
    done = stack.graft("train", data, "--base", tmp_path, "--adapter", "bad", "--json")
    assert done.code == BAD_CONFIG, done.out + done.err
    assert "config.json" in done.out + done.err


def test_a_pickle_is_refused_before_anything_is_sent(
    stack: Stack, example_base: Path, tmp_path: Path
) -> None:
    folder = make_adapter(tmp_path / "a", example_base)
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    done = stack.graft("adapters", "push", "pickled", folder, "--base", example_base)
    assert done.code != 0
    assert "adapter_model.bin" in done.err
    assert "safetensors" in done.err


def test_nan_weights_are_refused_with_their_tensor(
    stack: Stack, example_base: Path, tmp_path: Path
) -> None:
    folder = make_adapter(tmp_path / "a", example_base)
    tensors = load_file(folder / "adapter_model.safetensors")
    name = sorted(tensors)[3]
    tensors[name][0, 0] = np.nan
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    done = stack.graft("adapters", "push", "innocent", folder)
    assert done.code == 4, done.err
    assert name in done.err
    assert "1 version" not in done.err
    versions = stack.graft("adapters", "versions", "innocent", "--json").json()
    assert [version["number"] for version in versions] == [1]


def test_an_adapter_for_another_base_is_refused(
    stack: Stack, example_base: Path, tmp_path: Path
) -> None:
    """The other base has the same shapes, so only the fingerprint tells."""
    other = make_base(tmp_path / "other", hidden=256, layers=4)
    folder = make_adapter(tmp_path / "a", example_base)
    done = stack.graft("adapters", "push", "innocent", folder, "--base", other)
    assert done.code == 4, done.err
    assert "base" in done.err


async def test_a_rank_above_the_engines_is_a_clear_status_and_others_go_on(
    client: graft.Client, example_base: Path, tmp_path: Path
) -> None:
    folder = make_adapter(tmp_path / "a", example_base, rank=200, scale=0.01)
    await client.adapters.push("wide", folder, base=example_base)
    with pytest.raises(GraftError) as caught:
        await client.generate("wide:1", "Hello", max_tokens=2)
    assert caught.value.reason is Reason.RANK_TOO_LARGE
    assert "200" in caught.value.message
    assert (await client.generate("innocent", "Hello", max_tokens=2)).token_ids


@pytest.mark.parametrize(
    ("model", "prompt", "reason"),
    [
        ("nobody", "Hello", Reason.ADAPTER_NOT_FOUND),
        ("innocent@nowhere", "Hello", Reason.ALIAS_NOT_FOUND),
        ("innocent:99", "Hello", Reason.VERSION_NOT_FOUND),
        ("no reference", "Hello", Reason.INVALID_REFERENCE),
        ("innocent", "word " * 5000, Reason.PROMPT_TOO_LONG),
    ],
)
async def test_a_request_that_cannot_be_answered_gets_a_clear_status(
    model: str, prompt: str, reason: Reason, client: graft.Client
) -> None:
    with pytest.raises(GraftError) as caught:
        await client.generate(model, prompt, max_tokens=2)
    assert caught.value.reason is reason
    assert caught.value.next_step
