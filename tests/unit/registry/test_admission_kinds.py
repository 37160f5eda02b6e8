"""Adapters of every kind as PEFT makes them become versions, and come back as they were; spoiled ones are named."""

from __future__ import annotations

import asyncio
import copy
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import graft
import numpy as np
import pytest
from graft.bases import read_base
from graft.names import base_name
from safetensors.numpy import load_file

from services.registry.domain import BaseContent, Fingerprint, Module
from tests.support import peft_folders
from tests.support.admission import Folder, admit_to, refusal_of
from tests.support.models import make_base
from tests.support.registry import running_registry

pytestmark = pytest.mark.filterwarnings("default")
LAYER = "base_model.model.model.layers"
Q, DOWN = f"{LAYER}.0.self_attn.q_proj", f"{LAYER}.1.mlp.down_proj"
IN_ATTENTION = f"{LAYER}.1.attention_bottleneck"
# As the registry shows them: type, rank, modules.
SHOWN: dict[str, tuple[str, int, list[str]]] = {
    "lora": ("LORA", 4, ["down_proj", "q_proj"]),
    "rslora": ("LORA", 4, ["down_proj", "q_proj"]),
    "dora": ("LORA", 4, ["down_proj", "q_proj"]),
    "adalora": ("ADALORA", 6, ["down_proj", "q_proj"]),
    "ia3": ("IA3", 0, ["down_proj", "k_proj", "q_proj"]),
    "prompt_tuning": ("PROMPT_TUNING", 0, []),
    "p_tuning": ("P_TUNING", 0, []),
    "prefix_tuning": ("PREFIX_TUNING", 0, []),
    "reward": ("LORA", 4, ["down_proj", "q_proj"]),
    "bottleneck": ("BOTTLENECK", 0, ["attention_bottleneck", "mlp_bottleneck"]),
}


@dataclass(frozen=True)
class Made:
    """An adapter's folder, and what the model gave that it was saved from."""

    folder: Path
    outputs: np.ndarray[Any, Any]


@pytest.fixture(scope="module")
def other_heads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base whose heads are of another width than their share, as Qwen3's and Gemma's are."""
    folder = make_base(tmp_path_factory.mktemp("bases") / "heads")
    config = json.loads((folder / "config.json").read_text("utf-8"))
    assert config["hidden_size"] == config["num_attention_heads"] * config["head_dim"]
    config |= {"num_attention_heads": 1, "head_dim": 32}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def made(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Made]:
    """One of each kind."""
    root = tmp_path_factory.mktemp("kinds")
    return {
        kind: Made(root / kind, peft_folders.make(kind, tiny_base, root / kind))
        for kind in peft_folders.KINDS
    }


@pytest.fixture(scope="module")
def versions(
    made: dict[str, Made], tiny_base: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[graft.Version, Path]]:
    """Each kind committed, listed and pulled."""
    root = tmp_path_factory.mktemp("pulled")

    async def go() -> dict[str, tuple[graft.Version, Path]]:
        found = {}
        async with (
            running_registry(root / "registry") as server,
            graft.Client(registry=server.address, actor="ann@desk") as client,
        ):
            for kind, one in made.items():
                name = kind.replace("_", "-")
                await client.adapters.push(name, one.folder, base=tiny_base)
                (listed,) = await client.adapters.versions(name)
                await client.adapters.pull(name, root / kind)
                found[kind] = (listed, root / kind)
        return found

    return asyncio.run(go())


def content(folder: Path) -> BaseContent:
    """A base as the registry records it."""
    base = read_base(folder, base_name("default", "tiny"))
    return BaseContent(
        base.name,
        Fingerprint(base.fingerprint.digest, "", "", ""),
        base.config_json,
        [Module(one.path, one.in_features, one.out_features) for one in base.modules],
    )


@pytest.fixture(scope="module")
def base(tiny_base: Path) -> BaseContent:
    return content(tiny_base)


def opened(folder: Path, base: BaseContent) -> Folder:
    """An adapter's files, to be spoiled."""
    return Folder(
        load_file(folder / "adapter_model.safetensors"),
        json.loads((folder / "adapter_config.json").read_text("utf-8")),
        fingerprint=base.fingerprint.digest,
    )


@pytest.mark.parametrize("kind", peft_folders.KINDS)
def test_each_kind_becomes_a_version_that_says_what_it_is(
    kind: str, versions: dict[str, tuple[graft.Version, Path]]
) -> None:
    version, _ = versions[kind]
    peft_type, most_rank, modules = SHOWN[kind]
    assert version.peft_type == peft_type
    assert 0 <= version.rank <= most_rank
    assert (version.rank > 0) == (most_rank > 0) == (version.alpha > 0)
    assert list(version.target_modules) == modules
    assert version.method == ("lora" if kind == "reward" else kind)
    assert version.checks[-1].name == "finite-values"


@pytest.mark.parametrize("kind", peft_folders.KINDS)
def test_what_is_pulled_answers_as_what_was_trained(
    kind: str,
    made: dict[str, Made],
    versions: dict[str, tuple[graft.Version, Path]],
    tiny_base: Path,
) -> None:
    pulled = peft_folders.load(tiny_base, versions[kind][1])
    np.testing.assert_allclose(pulled, made[kind].outputs, atol=2e-5)
    plain = peft_folders.plain(tiny_base, kind)
    # Prompt methods answer at their virtual tokens, too.
    assert np.abs(pulled[:, -plain.shape[1] :] - plain).max() > 1e-3


Spoil = Callable[[Folder], None]


def say(**fields: Any) -> Spoil:
    """Changes the configuration."""
    return lambda folder: folder.config.update(fields)


def drop(name: str) -> Spoil:
    """Removes a tensor."""
    return lambda folder: folder.tensors.__delitem__(name)


def shape(name: str, *sizes: int) -> Spoil:
    """Gives a tensor another shape, or adds it."""
    return lambda folder: folder.tensors.update({name: np.ones(sizes)})


def rename(name: str, to: str) -> Spoil:
    """Calls a tensor something else."""

    def spoil(folder: Folder) -> None:
        folder.tensors[to] = folder.tensors.pop(name)

    return spoil


def not_a_number(name: str) -> Spoil:
    """Puts NaN into a tensor."""

    def spoil(folder: Folder) -> None:
        folder.tensors[name] = folder.tensors[name].copy()
        folder.tensors[name].flat[-1] = np.nan

    return spoil


def cut_layer(folder: Folder) -> None:
    """Leaves layer 1 away."""
    folder.tensors = {
        name: tensor for name, tensor in folder.tensors.items() if ".layers.1." not in name
    }


def twice(name: str, other: str) -> Spoil:
    """Has a tensor a second time, under another name."""
    return lambda folder: folder.tensors.update({other: folder.tensors[name]})


def keep_more(folder: Folder) -> None:
    """The pattern says that a module kept every rank; its tensors say otherwise."""
    pattern = copy.deepcopy(folder.config["rank_pattern"])
    for kept in pattern.values():
        kept[:] = [True] * 6
    folder.config["rank_pattern"] = pattern


def short_pattern(folder: Folder) -> None:
    """The pattern leaves out a module."""
    folder.config["rank_pattern"].pop("model.layers.1.mlp.down_proj.lora_E")


PROMPT = "prompt_embeddings"
# kind: what is wrong: (how, a tensor or a field that the refusal names)
OF_PROMPTS: dict[str, tuple[Spoil, str]] = {
    "no tensor of the name": (rename(PROMPT, "embeddings"), "embeddings"),
    "a second tensor": (shape("extra", 2, 2), "extra"),
    "fewer tokens than it says": (say(num_virtual_tokens=6), PROMPT),
    "more tokens than anybody has": (say(num_virtual_tokens=10**9), "num_virtual_tokens"),
    "tokens that are true": (say(num_virtual_tokens=True), "num_virtual_tokens"),
    "NaN": (not_a_number(PROMPT), PROMPT),
    "another base's width": (say(token_dim=128), "token_dim"),
    "a width that is no whole number": (say(token_dim=64.0), "token_dim"),
    "another base's layers": (say(num_layers=3), "num_layers"),
    "an encoder and a decoder": (say(num_transformer_submodules=2), "num_transformer_submodules"),
    "another task": (say(task_type="SEQ_2_SEQ_LM"), "task_type"),
    "trained modules": (say(modules_to_save=["lm_head"]), "modules_to_save"),
    "code": (say(auto_mapping={"parent_library": "os"}), "auto_mapping"),
}
BAD: dict[str, dict[str, tuple[Spoil, str]]] = {
    "dora": {
        "no magnitude": (drop(f"{Q}.lora_magnitude_vector"), f"{Q}.lora_magnitude_vector"),
        "a magnitude too long": (shape(f"{Q}.lora_magnitude_vector", 65), f"{Q}.lora_magnitude_vector"),
        "a magnitude of two axes": (shape(f"{Q}.lora_magnitude_vector", 1, 64), f"{Q}.lora_magnitude_vector"),
        "a magnitude twice": (twice(f"{Q}.lora_magnitude_vector", f"{Q}.lora_magnitude_vector.weight"), f"{Q}.lora_magnitude_vector"),
        "a magnitude of nothing": (shape(f"{LAYER}.0.self_attn.k_proj.lora_magnitude_vector", 32), "k_proj.lora_magnitude_vector"),
        "a magnitude beside the model": (shape("model.layers.0.self_attn.q_proj.lora_magnitude_vector", 64), "model.layers.0.self_attn.q_proj.lora_magnitude_vector"),
        "NaN in a magnitude": (not_a_number(f"{DOWN}.lora_magnitude_vector"), f"{DOWN}.lora_magnitude_vector"),
        "a configuration without it": (say(use_dora=False), "lora_magnitude_vector"),
        "a cut file": (cut_layer, "layers.1."),
        "half a pair": (drop(f"{Q}.lora_B.weight"), f"{Q}.lora_B.weight"),
        "a pair twice": (lambda folder: folder.tensors.update({name.replace("base_model.model.", "base_model.model.other."): tensor for name, tensor in folder.tensors.items() if name.startswith(Q)}), Q),
        "trained biases": (say(bias="all"), "bias"),
    },
    "reward": {
        "no head": (drop("base_model.model.score.weight"), "base_model.model.score.weight"),
        "a head of two answers": (shape("base_model.model.score.weight", 2, 64), "base_model.model.score.weight"),
        "another base's head": (shape("base_model.model.score.weight", 1, 32), "base_model.model.score.weight"),
        "two heads": (shape("base_model.model.classifier.weight", 1, 64), "heads"),
        "a bias of the head": (shape("base_model.model.score.bias", 1), "base_model.model.score.bias"),
        "NaN in the head": (not_a_number("base_model.model.score.weight"), "base_model.model.score.weight"),
        "another task": (say(task_type="CAUSAL_LM"), "modules_to_save"),
        "trained embeddings": (say(modules_to_save=["score", "embed_tokens"]), "modules_to_save"),
        "a head that nobody saves": (say(modules_to_save=None), "modules_to_save"),
        "a cut file": (cut_layer, "layers.1."),
    },
    "adalora": {
        "no singular values": (drop(f"{Q}.lora_E"), f"{Q}.lora_E"),
        "singular values of another rank": (shape(f"{Q}.lora_E", 7, 1), f"{Q}.lora_E"),
        "another base's width": (shape(f"{DOWN}.lora_A", 6, 64), f"{DOWN}.lora_A"),
        "another tensor": (shape(f"{Q}.ranknum.weight", 1), f"{Q}.ranknum.weight"),
        "NaN": (not_a_number(f"{Q}.lora_B"), f"{Q}.lora_B"),
        "a cut file": (cut_layer, "layers.1."),
        "a pattern of more rank": (keep_more, ".lora_"),
        "a pattern without a module": (short_pattern, "rank_pattern"),
        "a pattern of numbers": (say(rank_pattern={"model.layers.0.self_attn.q_proj.lora_E": [1] * 6}), "rank_pattern"),
        "a pattern of another length": (say(rank_pattern={"model.layers.0.self_attn.q_proj.lora_E": [True] * 5}), "rank_pattern"),
        "a pattern of no target": (say(rank_pattern={"model.layers.0.self_attn.k_proj.lora_E": [True] * 6}), "k_proj"),
        "rank of nothing": (say(init_r=0), "init_r"),
        "too much rank": (say(init_r=10**6), "init_r"),
        "magnitudes": (say(use_dora=True), "use_dora"),
        "steps that PEFT refuses": (say(tfinal=10), "total_step"),
        "targets by a pattern": (say(target_modules=".*q_proj"), "target_modules"),
        "trained modules": (say(modules_to_save=["lm_head"]), "modules_to_save"),
        "a target that is not there": (say(target_modules=["q_proj", "down_proj", "x_proj"]), "x_proj"),
        "alpha of nothing": (say(lora_alpha=0), "lora_alpha"),
    },
    "ia3": {
        "no scales of a module": (drop(f"{Q}.ia3_l"), f"{Q}.ia3_l"),
        "scales at the wrong side": (shape(f"{Q}.ia3_l", 1, 64), f"{Q}.ia3_l"),
        "another base's width": (shape(f"{DOWN}.ia3_l", 1, 64), f"{DOWN}.ia3_l"),
        "another tensor": (shape(f"{Q}.lora_A.weight", 4, 64), f"{Q}.lora_A.weight"),
        "a layer that the base has not": (shape(f"{LAYER}.7.self_attn.q_proj.ia3_l", 64, 1), "layers.7"),
        "scales twice": (twice(f"{Q}.ia3_l", f"{Q}.ia3_l".replace("base_model.model.", "base_model.model.other.")), "other.model.layers.0"),
        "NaN": (not_a_number(f"{DOWN}.ia3_l"), f"{DOWN}.ia3_l"),
        "a cut file": (cut_layer, "layers.1."),
        "other feedforward modules": (say(feedforward_modules=[]), f"{LAYER}.0.mlp.down_proj.ia3_l"),
        "feedforward modules that are no targets": (say(feedforward_modules=["up_proj"]), "feedforward_modules"),
        "targets by a pattern": (say(target_modules="(a+)+$"), "target_modules"),
        "a target that is not there": (say(target_modules=["q_proj", "k_proj", "down_proj", "x_proj"]), "x_proj"),
        "an excluded target": (say(exclude_modules=["k_proj"]), "k_proj.ia3_l"),
        "no targets": (say(target_modules=[]), "target_modules"),
        "trained modules": (say(modules_to_save=["lm_head"]), "modules_to_save"),
    },
    "prompt_tuning": {
        **OF_PROMPTS,
        "another base's tensor": (shape(PROMPT, 5, 32), PROMPT),
        "a tokenizer to fetch": (say(tokenizer_name_or_path="somebody/tokenizer"), "tokenizer_name_or_path"),
        "a tokenizer's code": (say(tokenizer_kwargs={"trust_remote_code": True}), "tokenizer_kwargs"),
        "a text to begin with": (say(prompt_tuning_init="TEXT"), "prompt_tuning_init"),
    },
    "p_tuning": {
        **OF_PROMPTS,
        "another base's tensor": (shape(PROMPT, 5, 32), PROMPT),
        "the encoder, too": (shape("prompt_encoder.mlp_head.0.weight", 16, 64), "prompt_encoder.mlp_head.0.weight"),
        "an encoder that is not known": (say(encoder_reparameterization_type="GRU"), "encoder_reparameterization_type"),
        "an encoder beyond memory": (say(encoder_hidden_size=10**9), "encoder_hidden_size"),
        "an encoder without end": (say(encoder_num_layers=10**6), "encoder_num_layers"),
    },
    "prefix_tuning": {
        **OF_PROMPTS,
        "heads of queries, not of keys": (say(num_attention_heads=2), "num_attention_heads"),
        "no heads": (say(num_attention_heads=None), "num_attention_heads"),
        "the width before heads were grouped": (shape(PROMPT, 5, 2 * 2 * 64), PROMPT),
        "one layer less": (shape(PROMPT, 5, 2 * 32), PROMPT),
        "a projection of words": (say(prefix_projection="yes"), "prefix_projection"),
    },
    "bottleneck": {
        "no bias": (drop(f"{IN_ATTENTION}.up.bias"), f"{IN_ATTENTION}.up.bias"),
        "another width": (shape(f"{IN_ATTENTION}.down.weight", 9, 64), f"{IN_ATTENTION}.down.weight"),
        "another base's width": (shape(f"{IN_ATTENTION}.up.weight", 32, 8), f"{IN_ATTENTION}.up.weight"),
        "another tensor": (shape(f"{IN_ATTENTION}.gate.weight", 8, 64), f"{IN_ATTENTION}.gate.weight"),
        "a layer that the base has not": (shape(f"{LAYER}.2.mlp_bottleneck.up.bias", 64), "layers.2"),
        "NaN": (not_a_number(f"{IN_ATTENTION}.down.bias"), f"{IN_ATTENTION}.down.bias"),
        "a cut file": (cut_layer, "layers.1."),
        "a size that is not the tensors'": (say(size=16), ".down."),
        "a size beyond memory": (say(size=10**9), "size"),
        "one place less": (say(after_mlp=False), "mlp_bottleneck"),
        "no place": (say(after_mlp=False, after_attention=False), "after_mlp"),
        "a place in words": (say(after_mlp="yes"), "after_mlp"),
        "an activation that is not known": (say(activation="__import__"), "activation"),
        "dropout of all": (say(dropout=1), "dropout"),
        "another task": (say(task_type="SEQ_CLS"), "task_type"),
    },
}  # fmt: skip


@pytest.mark.parametrize(("kind", "what"), [(kind, what) for kind in BAD for what in BAD[kind]])
async def test_a_spoiled_one_is_refused_by_what_is_wrong(
    kind: str, what: str, made: dict[str, Made], base: BaseContent
) -> None:
    spoil, named = BAD[kind][what]
    folder = opened(made[kind].folder, base)
    spoil(folder)
    error = await refusal_of(base, folder)
    assert named in error.message
    assert error.metadata.get("tensor", named) in error.message


@pytest.mark.parametrize("kind", peft_folders.KINDS)
async def test_as_it_is_it_is_admitted(kind: str, made: dict[str, Made], base: BaseContent) -> None:
    """So that what spoils it above is what it is refused for."""
    await admit_to(base, opened(made[kind].folder, base))


async def test_adalora_may_take_all_rank_from_a_module(
    made: dict[str, Made], base: BaseContent
) -> None:
    folder = opened(made["adalora"].folder, base)
    folder.config["rank_pattern"]["model.layers.0.self_attn.q_proj.lora_E"] = [False] * 6
    for name, sizes in {"lora_A": (0, 64), "lora_B": (64, 0), "lora_E": (0, 1)}.items():
        folder.tensors[f"{Q}.{name}"] = np.ones(sizes)
    await admit_to(base, folder)


@pytest.mark.parametrize("kind", ["prefix_tuning", "bottleneck"])
@pytest.mark.parametrize(
    "changes",
    [
        {"num_hidden_layers": 10**6},
        {"num_hidden_layers": "2"},
        {"num_hidden_layers": None},
        {"text_config": {"num_hidden_layers": 10**6}},
        {"hidden_size": -64},
    ],
    ids=str,
)
async def test_a_base_of_nonsense_is_named_at_once(
    kind: str, changes: dict[str, Any], made: dict[str, Made], base: BaseContent
) -> None:
    config = json.loads(base.config_json) | changes
    error = await refusal_of(
        replace(base, config_json=json.dumps(config)), opened(made[kind].folder, base)
    )
    assert ("hidden_size" if "hidden_size" in changes else "num_hidden_layers") in error.message


@pytest.mark.parametrize("nested", [None, [], "x"])
async def test_a_base_without_a_text_part_is_taken_as_it_is(
    nested: object, made: dict[str, Made], base: BaseContent
) -> None:
    config = json.loads(base.config_json) | {"text_config": nested}
    odd = replace(base, config_json=json.dumps(config))
    await admit_to(odd, opened(made["prefix_tuning"].folder, base))


async def test_prefixes_are_held_against_the_width_that_heads_have(
    other_heads: Path, made: dict[str, Made], base: BaseContent
) -> None:
    other = content(other_heads)
    folder = opened(made["prefix_tuning"].folder, other)
    await admit_to(other, folder)
    folder.config["token_dim"] = 64
    folder.tensors[PROMPT] = np.ones((5, 2 * 2 * 64))
    assert "token_dim" in (await refusal_of(other, folder)).message


@pytest.mark.parametrize("kind", ["lora", "adalora", "ia3", "bottleneck"])
async def test_a_base_that_leaves_out_its_own_prefix_is_the_same_base(
    kind: str, made: dict[str, Made], base: BaseContent
) -> None:
    """As GPT-2's files, whose "h.0" is "transformer.h.0" once it is loaded."""
    modules = [replace(one, path=one.path.removeprefix("model.")) for one in base.modules]
    bare = replace(base, modules=modules, fingerprint=Fingerprint("sha256:bare", "", "", ""))
    await admit_to(bare, replace(opened(made[kind].folder, base), fingerprint="sha256:bare"))


@pytest.mark.parametrize("kind", ["adalora", "ia3"])
async def test_targets_may_be_whole_paths(
    kind: str, made: dict[str, Made], base: BaseContent
) -> None:
    folder = opened(made[kind].folder, base)
    paths = [one.path for one in base.modules]
    for field in ("target_modules", "feedforward_modules"):
        if field in folder.config:
            ends = tuple(folder.config[field])
            folder.config[field] = [path for path in paths if path.endswith(ends)]
    await admit_to(base, folder)
