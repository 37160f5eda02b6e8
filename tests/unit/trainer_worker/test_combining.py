"""The arithmetic of combined adapters is PEFT's own, and one adapter's file is the same each time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from graft.blends import KINDS, Combining
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from services.combining.folders import combine_folders
from services.combining.plain import NotCombinableError, Source
from tests.support.models import make_adapter

pytestmark = [pytest.mark.training, pytest.mark.filterwarnings("default")]
_ALL = ("q_proj", "k_proj", "o_proj", "up_proj", "down_proj")


@pytest.fixture(scope="module")
def folders(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three adapters of one rank, scale and modules of their own."""
    root = tmp_path_factory.mktemp("combining")
    rslora = {"use_rslora": True, "alpha_pattern": {"layers.1.self_attn.q_proj": 3}}
    return [
        make_adapter(root / "a", tiny_base, seed=1, targets=_ALL),
        make_adapter(root / "b", tiny_base, seed=2, targets=("q_proj", "v_proj", "gate_proj")),
        make_adapter(root / "c", tiny_base, seed=3, targets=_ALL, config_changes=rslora),
    ]


def changes(model: Any, name: str) -> dict[str, torch.Tensor]:
    """What an adapter changes of each weight."""
    return {
        path: layer.get_delta_weight(name)
        for path, layer in model.named_modules()
        if isinstance(layer, LoraLayer) and name in layer.lora_A
    }


def loaded(base: Path, *folders: Path) -> Any:
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    adapted = PeftModel.from_pretrained(model, str(folders[0]), adapter_name="0")
    for number, folder in enumerate(folders[1:], 1):
        adapted.load_adapter(str(folder), adapter_name=str(number))
    return adapted


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_what_peft_makes_of_the_same(
    tiny_base: Path,
    folders: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
) -> None:
    weights, names = [0.7, -0.4, 1.5], ["0", "1", "2"]
    how = Combining(kind, density=0.6, seed=7)
    sources = [Source(f.name, f, w) for f, w in zip(folders, weights, strict=True)]
    rank = combine_folders(sources, how, tmp_path / "ours")
    model = loaded(tiny_base, *folders)
    inject = model.base_model.inject_adapter

    def then_seed(*arguments: Any, **options: Any) -> None:
        # Before it combines, PEFT draws weights that it then throws away.
        inject(*arguments, **options)
        torch.manual_seed(7)

    monkeypatch.setattr(model.base_model, "inject_adapter", then_seed)
    model.add_weighted_adapter(names, weights, "theirs", kind, density=0.6, svd_full_matrices=False)
    model.load_adapter(str(tmp_path / "ours"), adapter_name="ours")
    ours, theirs = changes(model, "ours"), changes(model, "theirs")
    assert ours.keys() == theirs.keys()
    assert rank == model.peft_config["theirs"].r == (24 if kind == "cat" else 8)
    for path, change in theirs.items():
        torch.testing.assert_close(ours[path], change, rtol=1e-4, atol=1e-5)


def test_a_file_is_the_same_bytes_each_time_and_another_seed_draws_others(
    folders: list[Path], tmp_path: Path
) -> None:
    sources = [Source(f.name, f, 0.5) for f in folders]
    made = []
    for number, seed in enumerate((1, 1, 2)):
        combine_folders(sources, Combining("dare_ties", seed=seed), tmp_path / str(number))
        made.append((tmp_path / f"{number}/adapter_model.safetensors").read_bytes())
    assert made[0] == made[1] != made[2]


def test_an_adapter_that_is_more_than_pairs_is_refused_by_name(
    tiny_base: Path, folders: list[Path], tmp_path: Path
) -> None:
    config = json.loads((folders[0] / "adapter_config.json").read_text())
    tensors = load_file(folders[0] / "adapter_model.safetensors")

    def refused(words: str, config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
        odd = tmp_path / words.replace(" ", "-")
        odd.mkdir()
        (odd / "adapter_config.json").write_text(json.dumps(config))
        save_file(tensors, odd / "adapter_model.safetensors")
        sources = [Source("good", folders[1], 1.0), Source("odd", odd, 1.0)]
        with pytest.raises(NotCombinableError, match=f"odd.*{words}") as caught:
            combine_folders(sources, Combining("cat"), tmp_path / "out")
        assert caught.value.next_step
        assert not (tmp_path / "out").exists()

    refused("is a DoRA", {**config, "use_dora": True}, tensors)
    refused("unconverted olora", {**config, "init_lora_weights": "olora"}, tensors)
    refused("whole modules", {**config, "modules_to_save": ["score"]}, tensors)
    refused("more than pairs", config, {**tensors, "odd": torch.ones(1)})
    lost = {k: v for k, v in tensors.items() if "layers.0.self_attn.q_proj.lora_B" not in k}
    refused("no half of a pair", config, lost)
