"""The Hugging Face Hub: the real huggingface_hub, as a command, against a stand-in of the Hub's API."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import graft
import pytest
import yaml
from graft.model_card import hub_id, model_card

from tests.support.hub import Hub, running_hub


@pytest.fixture
def hub() -> Iterator[Hub]:
    with running_hub() as hub:
        yield hub


class Command:
    """`graft hub ...` in a process of its own: huggingface_hub reads its environment once."""

    def __init__(self, client: graft.Client, hub: Hub, home: Path) -> None:
        self._registry, self._hub, self._home = client.endpoints.registry, hub, home

    async def __call__(self, *arguments: object, token: str = "hf_test") -> tuple[int, Any, str]:
        # Whoever ran an engine in this process before has switched the Hub off for it.
        inherited = {name: value for name, value in os.environ.items() if name[:3] != "HF_"}
        environment = inherited | self._hub.environment(self._home, token)
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "graft.cli", "--registry", self._registry, "hub"),
            *map(str, arguments),
            "--json",
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=environment | {"PYTHONPATH": os.pathsep.join(sys.path)},
        )
        async with asyncio.timeout(600):
            out, err = await process.communicate()
        assert process.returncode is not None
        return process.returncode, json.loads(out) if out else None, err.decode()


@pytest.fixture
def graft_hub(registry_client: graft.Client, hub: Hub, tmp_path: Path) -> Command:
    return Command(registry_client, hub, tmp_path / "hf")


def _card(hub: Hub, name: str = "org/bot") -> tuple[dict[str, Any], str]:
    _, front, body = hub.repositories[name].files()["README.md"].decode().split("---\n", 2)
    return yaml.safe_load(front), body


async def test_a_version_goes_to_the_hub_with_its_card_and_comes_back_with_its_commit(
    registry_client: graft.Client,
    graft_hub: Command,
    hub: Hub,
    tiny_base: Path,
    tiny_adapter: Path,
) -> None:
    pushed = await registry_client.adapters.push("bot", tiny_adapter, base=tiny_base)
    code, commit, err = await graft_hub(
        "push", "bot:1", "org/bot", "--private", "--base-model", "org/tiny"
    )
    assert code == 0, err
    repository = hub.repositories["org/bot"]
    assert repository.private
    assert commit["commit"] == repository.branches["main"]
    stored = repository.files()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert stored[name] == (tiny_adapter / name).read_bytes()
    metadata, body = _card(hub)
    assert (metadata["base_model"], metadata["library_name"]) == ("org/tiny", "peft")
    assert {"lora", "graft", "base_model:adapter:org/tiny"} <= set(metadata["tags"])
    assert metadata["graft"]["digest"] == pushed.digest
    assert pushed.digest in body

    code, version, err = await graft_hub("pull", "org/bot", "--adapter", "copy", "--base", "tiny")
    assert code == 0, err
    assert version["name"].endswith("/adapters/copy/versions/1")
    lineage = await registry_client.adapters.version("copy:1")
    assert lineage.lineage.sources == (f"hf://org/bot@{commit['commit']}",)
    digests = {file.path: file.digest for file in lineage.files}
    assert digests["adapter_model.safetensors"] == next(
        file.digest for file in pushed.files if file.path == "adapter_model.safetensors"
    )
    # The same commit again is the same version.
    code, again, err = await graft_hub("pull", "org/bot", "--adapter", "copy")
    assert (code, again["name"]) == (0, version["name"]), err


async def test_a_push_again_makes_a_commit_and_keeps_the_authors_words(
    registry_client: graft.Client,
    graft_hub: Command,
    hub: Hub,
    tiny_base: Path,
    tiny_adapter: Path,
    tmp_path: Path,
) -> None:
    folder = tmp_path / "adapter"
    folder.mkdir()
    for path in tiny_adapter.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "README.md").write_text("---\nlicense: mit\ntags: [legal]\n---\n# Ours\n\nFor law.\n")
    await registry_client.adapters.push("bot", folder, base=tiny_base)
    assert (await graft_hub("push", "bot", "org/bot"))[0] == 0
    code, _, err = await graft_hub("push", "bot", "org/bot")
    assert code == 0, err
    assert not hub.repositories["org/bot"].private
    metadata, body = _card(hub)
    assert (metadata["license"], metadata["tags"][0]) == ("mit", "legal")
    assert "base_model" not in metadata
    assert body.count("For law.") == body.count("## Lineage") == 1
    assert "no id on the Hub" in err


async def test_only_what_belongs_to_a_version_is_fetched(
    registry_client: graft.Client,
    graft_hub: Command,
    hub: Hub,
    tiny_base: Path,
    tiny_adapter: Path,
    tmp_path: Path,
) -> None:
    await registry_client.bases.add(tiny_base)
    commit = hub.add("org/bot", tiny_adapter)
    repository = hub.repositories["org/bot"]
    evil = {"evil.py": b"import os", "adapter_model.bin": b"x", "optimizer.pt": b"x"}
    repository.commit(evil | {"checkpoint-1/adapter_config.json": b"{}"})
    repository.branches["v1"] = commit
    code, version, err = await graft_hub("pull", "org/bot", "--adapter", "bot", "--base", "tiny")
    assert code == 0, err
    assert [file["path"] for file in version["files"]] == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    asked = [one for one in hub.requests if "/resolve/" in one]
    assert not [one for one in asked if one.endswith((".py", ".pt", ".bin"))]
    code, version, err = await graft_hub("pull", "org/bot", "-a", "bot", "--revision", "v1")
    assert code == 0, err
    assert version["lineage"]["sources"] == [f"hf://org/bot@{commit}"]


async def test_bytes_that_are_not_those_the_hub_lists_are_refused(
    registry_client: graft.Client,
    graft_hub: Command,
    hub: Hub,
    tiny_base: Path,
    tiny_adapter: Path,
) -> None:
    await registry_client.bases.add(tiny_base)
    hub.add("org/bot", tiny_adapter)
    weights = tiny_adapter / "adapter_model.safetensors"
    hub.corrupt.add(graft.digests.digest_file(weights).removeprefix("sha256:"))
    code, _, err = await graft_hub("pull", "org/bot", "--adapter", "bot", "--base", "tiny")
    assert (code, "DIGEST_MISMATCH" in err) == (1, True)
    assert await registry_client.adapters.list() == []


async def test_what_the_hub_refuses_is_said_with_a_next_step(
    registry_client: graft.Client,
    graft_hub: Command,
    hub: Hub,
    tiny_base: Path,
    tiny_adapter: Path,
) -> None:
    await registry_client.adapters.push("bot", tiny_adapter, base=tiny_base)
    hub.add("org/gated", tiny_adapter, gated=True)
    hub.add("org/bot", tiny_adapter)
    for arguments, token, reason, code in (
        (("pull", "org/nothing", "-a", "x"), "hf_test", "MODEL_NOT_FOUND", 3),
        (("pull", "org/bot", "-a", "x", "--revision", "v9"), "hf_test", "MODEL_NOT_FOUND", 3),
        (("pull", "org/gated", "-a", "x"), "hf_test", "PERMISSION_DENIED", 1),
        (("pull", "a/b/c", "-a", "x"), "hf_test", "INVALID_REQUEST", 2),
        (("push", "bot", "org/new"), "hf_wrong", "PERMISSION_DENIED", 1),
        (("push", "bot:9", "org/new"), "hf_test", "VERSION_NOT_FOUND", 3),
    ):
        found, _, err = await graft_hub(*arguments, token=token)
        error = json.loads(err.splitlines()[-1])["error"]
        assert (error["reason"], found) == (reason, code), err
        assert error["next_step"]
    assert "org/new" not in hub.repositories


async def test_a_hub_that_cannot_be_reached_is_unavailable(
    graft_hub: Command, hub: Hub, tiny_adapter: Path
) -> None:
    hub.address = "http://127.0.0.1:1"
    code, _, err = await graft_hub("pull", "org/bot", "--adapter", "bot")
    assert (code, "UNAVAILABLE" in err) == (5, True), err


def test_a_readme_without_sane_metadata_becomes_a_card(tiny_version: graft.Version) -> None:
    for readme in ("", "---\n: [\n---\nWords.", "---\n- a\n---\nWords.", "Words.\n---\nmore"):
        card = model_card(readme, tiny_version, "")
        _, front, body = card.split("---\n", 2)
        assert yaml.safe_load(front)["library_name"] == "peft"
        assert ("Words." in body) == ("Words." in readme)
        assert model_card(card, tiny_version, "") == card


def test_a_card_says_what_kind_of_adapter_it_is(tiny_version: graft.Version) -> None:
    def card(**changes: object) -> tuple[dict[str, object], str]:
        text = model_card("", replace(tiny_version, **changes), "")  # type: ignore[arg-type]
        return yaml.safe_load(text.split("---\n")[1]), text

    metadata, text = card(method="dora")
    assert metadata["tags"] == ["lora", "dora", "graft"]
    assert "| method | LORA (dora), rank 8, alpha 16 |" in text
    metadata, text = card(peft_type="IA3", method="ia3", rank=0, alpha=0)
    assert (metadata["tags"], metadata["library_name"]) == (["ia3", "graft"], "peft")
    assert "| method | IA3 |" in text
    metadata, text = card(peft_type="BOTTLENECK", method="bottleneck", rank=0, alpha=0)
    assert metadata["library_name"] == "graft"
    assert "rank" not in text


@pytest.mark.parametrize(
    ("text", "expected"),
    [("org/name", "org/name"), ("/home/x", ""), ("./x", ""), ("a/b/c", ""), ("tiny", "")],
)
def test_a_folder_is_not_taken_for_an_id_of_the_hub(text: str, expected: str) -> None:
    assert hub_id(text) == expected


@pytest.fixture
def tiny_version() -> graft.Version:
    lineage = graft.results.Lineage(
        job="namespaces/default/jobs/j1",
        attempt=1,
        spec={},
        data_digest="sha256:" + "d" * 64,
        data_rows=8,
        seed=0,
        library_versions={"peft": "0.21"},
        metrics={"train_loss": 0.5},
    )
    return graft.Version(
        name="namespaces/default/adapters/bot/versions/1",
        number=1,
        digest="sha256:" + "a" * 64,
        base="namespaces/default/bases/tiny",
        base_fingerprint="sha256:" + "b" * 64,
        peft_type="LORA",
        rank=8,
        alpha=16,
        target_modules=("q_proj", "v_proj"),
        files=(),
        lineage=lineage,
        checks=(),
        parameters=1,
        create_time=None,
    )
