"""Lets vLLM compile a model with LoRA on a CPU: what our LoRA does is one operator to the compiler.

vLLM compiles nothing on a CPU when there is LoRA, because its LoRA there cannot be traced. Behind an
operator it need not be: the compiler sees something that is made of a layer's input and that layer's name,
and adds it to the output together with what comes next. Without compilation nothing of this is used.
"""

from __future__ import annotations

from functools import wraps
from typing import Any
from weakref import WeakValueDictionary

import torch
from vllm.lora.layers.base_linear import BaseLinearLayerWithLoRA
from vllm.lora.layers.vocab_parallel_embedding import VocabParallelEmbeddingWithLoRA
from vllm.lora.model_manager import LoRAModelManager
from vllm.utils.torch_utils import direct_register_custom_op

from services.inference.vllm_plugin.cpu_lora_paged_embedding import PagedEmbedding
from services.inference.vllm_plugin.scales import LayerScales

# An operator belongs to the process, and so does what it finds by name: the layers of the engine in it.
_layers: WeakValueDictionary[str, torch.nn.Module] = WeakValueDictionary()


def install() -> None:
    """Registers the operators and has vLLM's layers call them; any number of times."""
    if hasattr(LoRAModelManager.register_module, "__wrapped__"):
        return
    direct_register_custom_op("graft_lora_linear", _linear, [], _linear_shape)
    direct_register_custom_op("graft_lora_embedding", _embedding, ["y"], _nothing)
    register = LoRAModelManager.register_module

    @wraps(register)
    def named(manager: LoRAModelManager, name: str, module: Any) -> None:
        register(manager, name, module)
        module.graft_name = name
        _layers[name] = module

    LoRAModelManager.register_module = named
    BaseLinearLayerWithLoRA._apply_lora_to_output = _apply_linear
    VocabParallelEmbeddingWithLoRA.forward = _apply_embedding


def layer_named(name: str) -> Any:
    """The layer that an operator was called for."""
    return _layers[name]


def _apply_linear(layer: Any, x: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
    added: torch.Tensor = torch.ops.vllm.graft_lora_linear(
        x.flatten(0, -2), output.flatten(0, -2), layer.graft_name
    )
    return output + added.view_as(output)


def _apply_embedding(layer: Any, x: torch.Tensor) -> torch.Tensor:
    output: torch.Tensor = layer.base_layer.forward(x)
    torch.ops.vllm.graft_lora_embedding(output, x, layer.graft_name)
    return output


def _linear(x: torch.Tensor, output: torch.Tensor, name: str) -> torch.Tensor:
    layer: Any = _layers[name]
    added: torch.Tensor = layer.punica_wrapper.added(
        x, output.shape[1], layer.lora_a_stacked, layer.lora_b_stacked, layer.output_slices
    )
    # Not by getattr(), which takes long to find that there is none.
    scales: LayerScales | None = layer.__dict__.get("graft_scales")
    if scales is None or not scales.outputs:
        return added
    groups = layer.punica_wrapper.tokens_of(x)
    if scales.outputs.isdisjoint(groups.active):
        return added
    # (y + added) * (1 + above) + shift, less the y that it is added to.
    whole = output + added
    if scales.shift is not None:
        added.add_(groups.rows_of(scales.shift))
    return added.addcmul_(whole, groups.rows_of(scales.output))


def _linear_shape(x: torch.Tensor, output: torch.Tensor, name: str) -> torch.Tensor:
    return output.new_empty(output.shape)


def _embedding(y: torch.Tensor, x: torch.Tensor, name: str) -> None:
    layer: Any = _layers[name]
    pages: PagedEmbedding | None = layer.__dict__.get("graft_embedding")
    if pages is not None:
        pages.add(y, x, layer.punica_wrapper.tokens_of(y))
        return
    if not layer.punica_wrapper.embeds(layer.lora_b_stacked):
        return
    low = torch.nn.functional.embedding(
        x + layer.punica_wrapper._embeddings_indices[: x.shape[0]], layer.lora_a_stacked_2d
    )
    layer.punica_wrapper.add_lora_embedding(y, low, layer.lora_b_stacked, add_input=True)


def _nothing(y: torch.Tensor, x: torch.Tensor, name: str) -> None:
    """What the compiler calls in their place: y keeps its shape."""
