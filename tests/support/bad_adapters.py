"""Adapters that would harm somebody, or seem to, by what is wrong with them.

Each is a right adapter of the tiny base but for one thing. tests/support/hostile.py has files that attack
whoever parses them; these here are well-formed enough to reach an engine.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from tests.support.admission import Folder, good, pack

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
Q0 = "base_model.model.model.layers.0.self_attn.q_proj"
A0, B0 = f"{Q0}.lora_A.weight", f"{Q0}.lora_B.weight"
M0, M7 = (f"{each}.lora_magnitude_vector" for each in (Q0, Q0.replace("layers.0", "layers.7")))
K0 = f"{Q0}.ia3_l".replace("q_proj", "v_proj")
K7 = K0.replace("layers.0", "layers.7")
Files = dict[str, bytes]


@dataclass(frozen=True, slots=True)
class BadAdapter:
    """Files, and what becomes of them.

    Attributes:
        make: the files by path.
        words: in the registry's refusal; empty where it admits them.
        endpoint_words: in an endpoint's refusal of the same files; empty where it serves them, because
            they can harm nobody but whoever asks for them.
        rank: what a registry would say of its rank.
        peft_type: what a registry would say of its kind.
    """

    make: Callable[[], Files]
    words: str
    endpoint_words: str
    rank: int = 4
    peft_type: str = "LORA"

    def write(self, folder: Path) -> Path:
        """As a folder."""
        folder.mkdir(parents=True)
        for path, data in self.make().items():
            (folder / path).write_bytes(data)
        return folder


def spoiled(words: str, spoil: Callable[[Folder], None], endpoint: str | None = None) -> BadAdapter:
    """A right adapter to which something is done; both refuse it, in the same words unless told otherwise."""

    def make() -> Files:
        folder = good()
        spoil(folder)
        return folder.files()

    return BadAdapter(make, words, words if endpoint is None else endpoint)


def saying(words: str, endpoint: str | None = None, **fields: object) -> BadAdapter:
    """Its adapter_config.json says something else."""
    return spoiled(words, lambda folder: folder.config.update(fields), endpoint)


def config_of(words: str, text: bytes, endpoint: str | None = None) -> BadAdapter:
    """Its adapter_config.json is this text."""
    return BadAdapter(
        lambda: {**good().files(), CONFIG: text}, words, words if endpoint is None else endpoint
    )


def valued(words: str, value: float, name: str = A0, dtype: str = "F32") -> BadAdapter:
    """One of its numbers is another."""

    def spoil(folder: Folder) -> None:
        folder.dtype = dtype
        folder.tensors[name][-1, -1] = value

    return spoiled(words, spoil)


def weighing(words: str, data: Callable[[Folder], bytes]) -> BadAdapter:
    """Its adapter_model.safetensors has these bytes."""

    def spoil(folder: Folder) -> None:
        folder.weights = data(folder)

    return spoiled(words, spoil)


def shaped(words: str, name: str, *shape: int) -> BadAdapter:
    """One of its tensors has another shape."""
    return spoiled(words, lambda folder: folder.tensors.update({name: np.ones(shape)}))


def with_tensor(words: str, name: str, *shape: int) -> BadAdapter:
    """It has a tensor more, of small numbers."""
    return spoiled(words, lambda folder: folder.tensors.update({name: np.full(shape, 0.01)}))


def without(words: str, part: str) -> BadAdapter:
    """It lacks the tensors whose names have that part."""

    def spoil(folder: Folder) -> None:
        folder.tensors = {name: each for name, each in folder.tensors.items() if part not in name}

    return spoiled(words, spoil)


def renamed(words: str, old: str, new: str) -> BadAdapter:
    """Its tensors have other names."""

    def spoil(folder: Folder) -> None:
        folder.tensors = {name.replace(old, new): each for name, each in folder.tensors.items()}

    return spoiled(words, spoil)


def typed(words: str, dtype: str, width_bytes: int) -> BadAdapter:
    """Its numbers have another type."""

    def weights(folder: Folder) -> bytes:
        header = folder.header()
        end = 0
        for name, values in folder.tensors.items():
            size = values.size * width_bytes
            header[name] |= {"dtype": dtype, "data_offsets": [end, end + size]}
            end += size
        return pack(header, b"\x01" * end)

    return weighing(words, weights)


def of_rank(rank: int, words: str, endpoint: str) -> BadAdapter:
    """A right adapter of another rank."""

    def make() -> Files:
        return good(rank).files()

    return BadAdapter(make, words, endpoint, rank)


def scaled(factor: float, endpoint: str = "") -> BadAdapter:
    """All of its numbers are so many times larger, and none is infinite."""

    def spoil(folder: Folder) -> None:
        folder.dtype = "F64" if factor > 1e38 else "F32"
        for values in folder.tensors.values():
            values *= factor

    return spoiled("", spoil, endpoint)


def twice(folder: Folder) -> bytes:
    """The first tensor's entry is there twice."""
    header, data = json.dumps(folder.header())[1:-1], folder.data()
    entry = json.dumps({A0: folder.header()[A0]})[1:-1]
    return pack(f"{{{header}, {entry}}}".encode(), data)


def transposed(folder: Folder) -> None:
    """Every matrix lies on its side."""
    folder.tensors = {name: each.T.copy() for name, each in folder.tensors.items()}


def of_another_base(folder: Folder) -> None:
    """Twice as wide, as of a larger model of the family."""
    for name, each in folder.tensors.items():
        shape = (4, 128) if ".lora_A." in name else (2 * each.shape[0], 4)
        folder.tensors[name] = np.full(shape, 0.1)


def of_ia3(folder: Folder) -> None:
    """What PEFT saves of an IA3."""
    folder.config = {
        "peft_type": "IA3", "task_type": "CAUSAL_LM", "target_modules": ["v_proj"],
        "feedforward_modules": [],
    }  # fmt: skip
    folder.tensors = {
        f"base_model.model.model.layers.{layer}.self_attn.v_proj.ia3_l": np.ones((32, 1))
        for layer in range(2)
    }


def of_dora(folder: Folder) -> None:
    """What PEFT saves of a DoRA."""
    folder.config["use_dora"] = True
    for name in list(folder.tensors):
        if ".lora_B." in name:
            vector = name.replace(".lora_B.weight", ".lora_magnitude_vector")
            folder.tensors[vector] = np.ones(folder.tensors[name].shape[0])


def of_scales(
    words: str, make: Callable[[Folder], None], tensor: str, values: np.ndarray
) -> BadAdapter:
    """An IA3 or a DoRA, one of whose vectors is another."""

    def spoil(folder: Folder) -> None:
        make(folder)
        folder.tensors[tensor] = values

    kind = "IA3" if make is of_ia3 else "LORA"
    return replace(spoiled(words, spoil), peft_type=kind)


def of_prompts(folder: Folder) -> None:
    """What PEFT saves of prompt tuning."""
    folder.config = {
        "peft_type": "PROMPT_TUNING", "task_type": "CAUSAL_LM", "num_virtual_tokens": 4,
        "token_dim": 64, "num_transformer_submodules": 1, "num_layers": 2,
        "num_attention_heads": 2, "prompt_tuning_init": "RANDOM",
    }  # fmt: skip
    folder.tensors = {"prompt_embeddings": np.full((4, 64), 0.1)}


def of_table(words: str, table: np.ndarray, **fields: object) -> BadAdapter:
    """Prompt tuning with another table than its configuration and the base ask for."""

    def spoil(folder: Folder) -> None:
        of_prompts(folder)
        folder.config |= fields
        folder.tensors["prompt_embeddings"] = table

    return replace(spoiled(words, spoil), peft_type="PROMPT_TUNING")


def of_many_tensors(folder: Folder) -> None:
    """Pairs of 2,000 layers."""
    for layer in range(2, 2002):
        for letter, shape in ("A", (4, 1)), ("B", (1, 4)):
            name = f"base_model.model.model.layers.{layer}.self_attn.q_proj.lora_{letter}.weight"
            folder.tensors[name] = np.ones(shape)


def nothing_but_zeros(folder: Folder) -> None:
    """As if it had not been trained."""
    for each in folder.tensors.values():
        each[:] = 0


FILES: Mapping[str, BadAdapter] = {
    "truncated weights": weighing("truncated", lambda folder: pack(folder.header(), folder.data())[:-100]),
    "a truncated header": weighing("truncated", lambda folder: pack(folder.header(), b"")[:300]),
    "empty weights": BadAdapter(lambda: {**good().files(), WEIGHTS: b""}, "0 bytes", "not a safetensors file"),
    "no tensor": spoiled("no tensor", lambda folder: folder.tensors.clear()),
    "a pickle": weighing("a pickle", lambda folder: pickle.dumps({"weights": 1})),
    "no weights": BadAdapter(lambda: {CONFIG: good().files()[CONFIG]}, f"{WEIGHTS} is missing", f"it has no {WEIGHTS}"),
    "no config": BadAdapter(lambda: {WEIGHTS: good().files()[WEIGHTS]}, f"{CONFIG} is missing", f"it has no {CONFIG}"),
    "an empty config": config_of("0 bytes", b"", "not JSON"),
    "a config that is not JSON": config_of("not JSON", b"{'r': 4}"),
    "a config that is a list": config_of("not a JSON object", b"[4]", "not an object"),
    "a config of great depth": config_of("deeply", b'{"a":' + b"[" * 50_000 + b"]" * 50_000 + b"}", "JSON"),
    "an enormous header": weighing("allowed", lambda folder: (1 << 40).to_bytes(8, "little") + b'{"a":1}'),
    "a tensor twice": weighing("twice", twice),
    "an enormous number of tensors": spoiled("has no module", of_many_tensors),
}  # fmt: skip

CONFIGS: Mapping[str, BadAdapter] = {
    "a rank above its tensors'": saying("rank is 4, but adapter_config.json says 8", r=8),
    "a rank below its tensors'": saying("rank is 4, but adapter_config.json says 2", r=2),
    "rank 0": saying("r is 0", "the rank 0", r=0),
    "a negative rank": saying("r is -4", "the rank -4", r=-4),
    "a rank in words": saying("r is '4'", "the rank '4'", r="4"),
    "no rank": saying("r is None", "the rank None", r=None),
    "a rank_pattern that lies": saying("rank is 4, but adapter_config.json says 8", rank_pattern={"q_proj": 8}),
    "a rank_pattern of ranks that no engine takes": saying("says 512", "has rank 512", rank_pattern={"q_proj": 512}),
    "a rank_pattern that is a list": saying("rank_pattern", rank_pattern=[8]),
    "alpha 0": saying("lora_alpha is 0", lora_alpha=0),
    "a negative alpha": saying("lora_alpha is -8", lora_alpha=-8),
    "an alpha that is NaN": saying("no number", "JSON", lora_alpha=float("nan")),
    "an enormous alpha": saying("lora_alpha", lora_alpha=1e300),
    "no targets": saying("target_modules is []", target_modules=[]),
    "targets that it does not have": saying("gate_proj", target_modules=["q_proj", "v_proj", "gate_proj"]),
    "fewer targets than it has": saying("does not name it", target_modules=["q_proj"]),
    "targets of no module": saying("no such module", target_modules=["q_proj", "v_proj", "c_attn"]),
    "no kind": saying("peft_type is None", peft_type=None),
    "a kind of tomorrow": saying("peft_type is 'TELEPATHY'", peft_type="TELEPATHY"),
    "DoRA without its magnitudes": saying("it is missing, though use_dora is set", use_dora=True),
    "a bias": saying("bias", bias="all"),
    "a bias of LoRA's own": saying("lora_bias", lora_bias=True),
    "layers said twice": saying("layer_replication", layer_replication=[[0, 2], [1, 2]]),
    "activated LoRA": saying("alora", alora_invocation_tokens=[1, 2]),
    "PiSSA that is not converted": saying("init_lora_weights", init_lora_weights="pissa"),
    "fully trained modules": saying("modules_to_save", "fully trained modules", modules_to_save=["lm_head"]),
    "a head": saying("modules_to_save", "fully trained modules", modules_to_save=["score"]),
    "code to import": saying("code from elsewhere", auto_mapping={"parent_library": "os.path"}),
    "rsLoRA in words": saying("use_rslora", use_rslora="no"),
}  # fmt: skip

TENSORS: Mapping[str, BadAdapter] = {
    "NaN": valued("NaN or infinite", float("nan")),
    "NaN in the last number": valued("NaN or infinite", float("nan"), "base_model.model.model.layers.1.self_attn.v_proj.lora_B.weight"),
    "infinity": valued("NaN or infinite", float("inf"), B0),
    "minus infinity": valued("NaN or infinite", float("-inf"), B0),
    "NaN in half precision": valued("NaN or infinite", float("nan"), dtype="F16"),
    "infinity in bfloat16": valued("NaN or infinite", float("inf"), dtype="BF16"),
    "half a pair": without("it is missing", f"{Q0}.lora_B"),
    "the other half": without("it is missing", f"{Q0}.lora_A"),
    "a layer too few": without("layer", "layers.1."),
    "a module of a layer too few": without("layer", "layers.1.self_attn.v_proj"),
    "a layer too many": renamed("has no module", "layers.1.", "layers.7."),
    "a layer before the first": renamed("has no module", "layers.1.", "layers.-1."),
    "another architecture": renamed("has no module", "self_attn.q_proj", "attn.c_attn"),
    "no names of PEFT's": renamed("no matrix of a LoRA pair", "base_model.model.", ""),
    "a module more": spoiled("does not name it", lambda folder: folder.tensors.update({
        f"{Q0.replace('q_proj', 'k_proj')}.lora_A.weight": np.ones((4, 64)),
        f"{Q0.replace('q_proj', 'k_proj')}.lora_B.weight": np.ones((32, 4)),
    })),
    "the output layer of a tied base": spoiled("has no module", lambda folder: folder.tensors.update({
        "base_model.model.lm_head.lora_A.weight": np.ones((4, 64)),
        "base_model.model.lm_head.lora_B.weight": np.ones((1024, 4)),
    })),
    "an embedding": with_tensor("embedding", "base_model.model.model.embed_tokens.lora_embedding_A", 4, 1024),
    "a weight of the base": with_tensor("weight of the base itself", f"{Q0}.base_layer.weight", 64, 64),
    "a bias": with_tensor("bias", f"{Q0}.lora_B.bias", 64),
    "a magnitude": with_tensor("DoRA", f"{Q0}.lora_magnitude_vector", 64),
    "a name that is a path": with_tensor("no matrix", "../../../etc/passwd", 4, 64),
    "a name of control characters": with_tensor("printable ASCII", "a\x1b[2J", 4, 64),
    "another base's widths": spoiled("in_features", of_another_base),
    "matrices on their side": spoiled("shape", transposed),
    "a vector for a matrix": shaped("not a matrix", A0, 64),
    "a matrix too deep": shaped("not a matrix", A0, 4, 64, 1),
    "a matrix of nothing": shaped("not a matrix", A0, 0, 64),
    "another rank in one matrix": shaped("rank is 8", A0, 8, 64),
    "another rank in one pair": spoiled("rank is 8", lambda folder: folder.tensors.update({A0: np.ones((8, 64)), B0: np.ones((64, 8))})),
    "whole numbers": typed("dtype", "I8", 1),
    "eight bits": typed("dtype", "F8_E4M3", 1),
    "truth values": typed("dtype", "BOOL", 1),
}  # fmt: skip

KINDS: Mapping[str, BadAdapter] = {
    "IA3 with a NaN": of_scales("NaN or infinite", of_ia3, K0, np.full((32, 1), np.nan)),
    "IA3 of another base's width": of_scales("its shape is [64, 1]", of_ia3, K0, np.ones((64, 1))),
    "IA3 of a layer that is not there": of_scales(
        "ask for no such tensor", of_ia3, K7, np.ones((32, 1))
    ),
    "DoRA with an infinite magnitude": of_scales(
        "NaN or infinite", of_dora, M0, np.full(64, np.inf)
    ),
    "DoRA with too few magnitudes": of_scales("out_features", of_dora, M0, np.ones(32)),
    "DoRA with a magnitude more": of_scales("no LoRA pair", of_dora, M7, np.ones(64)),
    "prompt tuning with a NaN": of_table("NaN or infinite", np.full((4, 64), np.nan)),
    "prompt tuning with a row more": of_table("its shape is [5, 64]", np.ones((5, 64))),
    "prompt tuning of another base's width": of_table("token_dim", np.ones((4, 96)), token_dim=96),
    # A registry that knows no better: the files tell.
    "IA3 that is said to be LoRA": saying(
        "ask for no such tensor", peft_type="IA3", feedforward_modules=[]
    ),
    "X-LoRA": saying("peft_type is", peft_type="XLORA"),
}

SIZES: Mapping[str, BadAdapter] = {
    "a rank above the engine's": of_rank(64, "", "has rank 64"),
    "an enormous rank": of_rank(600, "rank is 600", "has rank 600"),
    "numbers that only 64 bits hold": scaled(1e200, "engine's numbers end"),
    # Finite, so they may be served: whoever asks for them hears babble, and nobody else anything.
    "huge numbers": scaled(1e6),
    "huge numbers whose product is infinite": scaled(1e30),
    "the largest numbers": scaled(1e37),
    "nothing but zeros": spoiled("", nothing_but_zeros, ""),
}


def everything() -> dict[str, BadAdapter]:
    """All of them, by what is wrong with them."""
    groups = {"files": FILES, "config": CONFIGS, "tensors": TENSORS, "kind": KINDS, "size": SIZES}
    return {
        f"{group}: {what}": bad for group, kinds in groups.items() for what, bad in kinds.items()
    }
