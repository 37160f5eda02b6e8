"""A merged model's folder as one GGUF file, through the gguf package; and a file read back and compared, tensor by tensor.

Of the Llama family: whatever else has GGUF names may need more than names, and is refused.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import (
    MODEL_ARCH,
    GGMLQuantizationType,
    GGUFReader,
    GGUFWriter,
    LlamaFileType,
    RopeScalingType,
    get_tensor_name_map,
    quants,
)
from graft.errors import GraftError, Reason
from numpy.typing import NDArray
from safetensors import safe_open

from services.trainer.run.model_jobs.gguf_vocabulary import read_vocabulary, write_vocabulary

ARCHITECTURES = {
    "llama": MODEL_ARCH.LLAMA,
    "mistral": MODEL_ARCH.LLAMA,
    "qwen2": MODEL_ARCH.QWEN2,
    "qwen3": MODEL_ARCH.QWEN3,
}
_TYPES = {
    "f32": (GGMLQuantizationType.F32, LlamaFileType.ALL_F32),
    "f16": (GGMLQuantizationType.F16, LlamaFileType.MOSTLY_F16),
    "bf16": (GGMLQuantizationType.BF16, LlamaFileType.MOSTLY_BF16),
    "q8_0": (GGMLQuantizationType.Q8_0, LlamaFileType.MOSTLY_Q8_0),
}
# A number's share of the largest of its tensor that storing it may cost.
_ROUNDING = {"f32": 1e-7, "f16": 1e-3, "bf16": 8e-3, "q8_0": 8e-3}
_Q8_0_BLOCK = 32
_ROPE_FREQS = "rope_freqs.weight"
Array = NDArray[np.float32]


def check_exportable(config: Mapping[str, Any]) -> None:
    """Refuses a model that is not of the Llama family, by its config.json.

    Raises:
        GraftError: NOT_SUPPORTED.
    """
    kind = str(config.get("model_type"))
    if kind not in ARCHITECTURES:
        raise _unsupported(
            f"a {kind} is none of {', '.join(sorted(ARCHITECTURES))}",
        )
    rope = _rope(config)
    if rope["rope_type"] not in ("default", "linear", "llama3"):
        raise _unsupported(f"its positions are scaled by {rope['rope_type']}")


def write_gguf(folder: Path, path: Path, kind: str, name: str) -> None:
    """Writes a model to a new file, a tensor at a time.

    Args:
        folder: a merged model in 16 or 32 bits.
        path: the new file.
        kind: of the matrices: "f32", "f16", "bf16" or "q8_0"; vectors stay in float32.
        name: what the file calls itself.

    Raises:
        GraftError: NOT_SUPPORTED.
    """
    config = json.loads((folder / "config.json").read_text("utf-8"))
    check_exportable(config)
    vocabulary = read_vocabulary(folder, config["vocab_size"])
    with closing(GGUFWriter(path, ARCHITECTURES[config["model_type"]].name.lower())) as writer:
        writer.add_name(name)
        writer.add_file_type(_TYPES[kind][1])
        _write_shape(writer, config)
        write_vocabulary(writer, vocabulary, folder)
        for tensor_name, array in _tensors(folder, config):
            stored = _stored(array, kind)
            data = quants.quantize(array, stored)
            writer.add_tensor_info(tensor_name, data.shape, data.dtype, data.nbytes, stored)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for _, array in _tensors(folder, config):
            writer.write_tensor_data(quants.quantize(array, _stored(array, kind)))


def compare_gguf(path: Path, folder: Path, kind: str) -> int:
    """Reads a file back and compares every number with the model's; returns how many tensors there are.

    Raises:
        GraftError: NOT_THE_SAME, naming the tensor.
    """
    config = json.loads((folder / "config.json").read_text("utf-8"))
    reader = GGUFReader(path)
    found = {tensor.name: tensor for tensor in reader.tensors}
    expected = dict.fromkeys(name for name, _ in _tensors(folder, config))
    if set(found) != set(expected):
        names = sorted(set(found) ^ set(expected))
        raise _not_the_same(f"the tensors {', '.join(names[:3])} are in one of both only")
    for name, array in _tensors(folder, config):
        tensor = found[name]
        values = quants.dequantize(tensor.data, tensor.tensor_type).reshape(array.shape)
        error = float(np.abs(values - array).max()) / max(float(np.abs(array).max()), 1e-12)
        if not error <= _ROUNDING[kind]:
            raise _not_the_same(f"{name} differs by {error:.2g} of its largest number")
    vocabulary = read_vocabulary(folder, config["vocab_size"])
    field = reader.get_field("tokenizer.ggml.tokens")
    tokens = [bytes(field.parts[index]) for index in field.data] if field else []
    if tokens != vocabulary.tokens:
        raise _not_the_same("its tokens are others than the tokenizer's")
    return len(found)


def _write_shape(writer: GGUFWriter, config: Mapping[str, Any]) -> None:
    heads = config["num_attention_heads"]
    head_size = _head_size(config)
    rope = _rope(config)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.get("num_key_value_heads") or heads)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_key_length(head_size)
    writer.add_value_length(head_size)
    writer.add_rope_dimension_count(head_size)
    writer.add_rope_freq_base(float(rope["rope_theta"]))
    if rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(float(rope["factor"]))


def _tensors(folder: Path, config: Mapping[str, Any]) -> Iterator[tuple[str, Array]]:
    """GGUF's names with values in float32, in the layout that llama.cpp computes with."""
    architecture = ARCHITECTURES[config["model_type"]]
    names = get_tensor_name_map(architecture, config["num_hidden_layers"])
    rope = _rope(config)
    if rope["rope_type"] == "llama3":
        yield _ROPE_FREQS, _llama3_factors(rope, _head_size(config))
    tied = bool(config.get("tie_word_embeddings"))
    for shard in sorted(folder.glob("*.safetensors")):
        with safe_open(shard, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - no mapping.
                if tied and name == "lm_head.weight":
                    continue
                known = names.get_name(name, try_suffixes=(".weight", ".bias"))
                if known is None:
                    raise _unsupported(f"its tensor {name} has no name there")
                array = tensors.get_tensor(name).to(torch.float32).numpy()
                if architecture is MODEL_ARCH.LLAMA:
                    array = _interleaved(name, array, config)
                yield known, array


def _interleaved(name: str, array: Array, config: Mapping[str, Any]) -> Array:
    """Queries' and keys' rows with the two halves of each head interleaved, as the "llama" architecture rotates them."""
    heads = int(config["num_attention_heads"])
    groups = {"q_proj": heads, "k_proj": int(config.get("num_key_value_heads") or heads)}
    count = groups.get(name.split(".")[-2])
    if count is None:
        return array
    halves = array.reshape(count, 2, array.shape[0] // count // 2, *array.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(array.shape))


def _stored(array: Array, kind: str) -> GGMLQuantizationType:
    if array.ndim == 1:
        return GGMLQuantizationType.F32
    if kind == "q8_0" and array.shape[-1] % _Q8_0_BLOCK:
        return GGMLQuantizationType.F16
    return _TYPES[kind][0]


def _head_size(config: Mapping[str, Any]) -> int:
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])


def _rope(config: Mapping[str, Any]) -> dict[str, Any]:
    """What is said of rotary positions, in transformers 5's words or in those before."""
    given = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    given.setdefault("rope_type", given.pop("type", "default"))
    given.setdefault("rope_theta", config.get("rope_theta", 10000.0))
    return given


def _llama3_factors(rope: Mapping[str, Any], head_size: int) -> Array:
    """What each frequency is divided by: long waves by the factor, short ones not, those between in part."""
    factor, length = float(rope["factor"]), float(rope["original_max_position_embeddings"])
    low, high = float(rope["low_freq_factor"]), float(rope["high_freq_factor"])
    found = []
    for exponent in range(0, head_size, 2):
        wave = 2 * math.pi * float(rope["rope_theta"]) ** (exponent / head_size)
        share = min(max((length / wave - low) / (high - low), 0.0), 1.0)
        found.append(1 / ((1 - share) / factor + share))
    return np.array(found, dtype=np.float32)


def _unsupported(why: str) -> GraftError:
    return GraftError(
        Reason.NOT_SUPPORTED,
        f"This model cannot be written to GGUF: {why}",
        next_step="Export a folder instead.",
    )


def _not_the_same(why: str) -> GraftError:
    return GraftError(
        Reason.NOT_THE_SAME,
        f"The GGUF file is not what was merged: {why}; it was not kept",
        next_step="Report it with the model's config.json; export a folder meanwhile.",
    )
