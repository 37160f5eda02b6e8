"""PEFT folders as people have them go in, and what comes out is loaded by PEFT itself."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import graft
import pytest

_TO_BIN = """
import sys, torch
from safetensors.torch import load_file
torch.save(load_file(sys.argv[1]), sys.argv[2])
"""
# In a process of its own: the SDK and its tests hold no torch.
_LOAD = """
import sys, torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
base = AutoModelForCausalLM.from_pretrained(sys.argv[1])
ids = torch.tensor([[1, 5, 9]])
plain = base(ids).logits
tuned = PeftModel.from_pretrained(base, sys.argv[2])(ids).logits
print(f"{(plain - tuned).abs().max().item():.6f}")
"""


def _python(code: str, *arguments: object) -> str:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=600, check=True
    ).stdout.strip()


@pytest.fixture
def old_folder(tmp_path: Path, tiny_adapter: Path) -> Path:
    """An adapter of years ago: a pickle, a sparse configuration, and what the training left."""
    folder = tmp_path / "old"
    folder.mkdir()
    _python(_TO_BIN, tiny_adapter / "adapter_model.safetensors", folder / "adapter_model.bin")
    config = json.loads((tiny_adapter / "adapter_config.json").read_text())
    old = {key: config[key] for key in ("peft_type", "task_type", "r", "lora_alpha")}
    old |= {"base_model_name_or_path": "/nowhere/tiny", "enable_lora": None, "target_modules": None}
    (folder / "adapter_config.json").write_text(json.dumps(old))
    (folder / "README.md").write_text("An adapter.")
    (folder / "optimizer.pt").write_bytes(b"x")
    return folder


async def test_an_old_folder_becomes_a_version_that_peft_loads_as_before(
    registry_client: graft.Client,
    tiny_base: Path,
    tiny_adapter: Path,
    old_folder: Path,
    tmp_path: Path,
) -> None:
    notes: list[str] = []
    version = await registry_client.adapters.push(
        "bot", old_folder, base=tiny_base, note=notes.append
    )
    assert [file.path for file in version.files] == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    assert version.target_modules == ("q_proj", "v_proj")
    assert any("optimizer.pt" in one for one in notes)
    assert any("Converted" in one for one in notes)
    await registry_client.adapters.pull("bot", tmp_path / "pulled")
    difference = _python(_LOAD, tiny_base, tmp_path / "pulled")
    assert difference == _python(_LOAD, tiny_base, tiny_adapter)
    assert float(difference) > 0


async def test_the_same_old_folder_again_is_the_same_version(
    registry_client: graft.Client, tiny_base: Path, old_folder: Path
) -> None:
    first = await registry_client.adapters.push("bot", old_folder, base=tiny_base)
    again = await registry_client.adapters.push("bot", old_folder)
    assert again.name == first.name


async def test_a_hostile_pickle_leaves_nothing_in_the_registry(
    registry_client: graft.Client, tiny_base: Path, old_folder: Path
) -> None:
    (old_folder / "adapter_model.bin").write_bytes(b"cos\nsystem\n(S'exit 7'\ntR.")
    with pytest.raises(graft.GraftError, match="is a pickle and was not converted"):
        await registry_client.adapters.push("bot", old_folder, base=tiny_base)
    assert await registry_client.adapters.list() == []
    assert await registry_client.bases.list() == []


async def test_a_base_that_is_not_here_is_asked_for(
    registry_client: graft.Client, tiny_adapter: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "adapter"
    shutil.copytree(tiny_adapter, folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = "/home/somebody/models/llama"
    (folder / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(graft.NotFoundError, match="bases/llama"):
        await registry_client.adapters.push("bot", folder)
