"""Has vLLM's workers load DoRA and IA3, which they refuse or misread, and write their scales into slots.

vLLM's own loading goes on around it: its checks, its names, its merging of layers. An IA3 has no pair of
LoRA; it gets one of zeros on one module, by which vLLM knows it.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import partial
from pathlib import Path
from typing import Any

import torch
from vllm.lora.lora_model import LoRAModel
from vllm.lora.lora_weights import LoRALayerWeights
from vllm.lora.model_manager import LoRAModelManager
from vllm.lora.peft_helper import PEFTHelper
from vllm.lora.utils import parse_fine_tuned_lora_name

from services.inference.vllm_plugin.scales_files import (
    DORA,
    IA3,
    Vector,
    read_config,
    read_scaled,
    scaled_kind,
)
from services.inference.vllm_plugin.scales_placing import make_scales, place


def install() -> None:
    """Once in a process."""
    stock_helper, stock_model = PEFTHelper.from_local_dir, LoRAModel.from_local_checkpoint
    PEFTHelper.from_local_dir = classmethod(partial(_helper, stock_helper.__func__))
    LoRAModel.from_local_checkpoint = classmethod(partial(_model, stock_model.__func__))
    stock_merge = LoRAModelManager._create_merged_loras_inplace
    stock_activate = LoRAModelManager.activate_adapter
    stock_register = LoRAModelManager.register_module
    stock_wrappers = LoRAModelManager._init_punica_wrapper

    # Not functools.wraps: its mark says elsewhere that something of ours is there already.
    def register(manager: Any, name: str, module: Any) -> None:
        stock_register(manager, name, module)
        module.graft_scales = make_scales(name, module, manager.lora_slots)

    def merge(manager: Any, lora: Any) -> None:
        stock_merge(manager, lora)
        kind, vectors = getattr(lora, "graft_vectors", ("", {}))
        if kind:
            lora.graft_rows = place(manager, lora, kind, vectors)
            lora.graft_vectors = ("", {})

    def activate(manager: Any, lora_id: int) -> bool:
        if not stock_activate(manager, lora_id):
            return False
        slot = manager.lora_index_to_id.index(lora_id)
        rows = getattr(manager._registered_adapters[lora_id], "graft_rows", {})
        for name, module in manager.modules.items():
            if module.graft_scales is not None:
                module.graft_scales.write(slot, rows.get(name))
        return True

    def wrappers(manager: Any, *args: Any) -> None:
        stock_wrappers(manager, *args)
        for wrapper in manager.punica_wrapper_mapping.values():
            # Otherwise what is behind a step's tokens is whatever the memory held, and no slot.
            wrapper._token_lora_indices.fill_(-1)

    LoRAModelManager.register_module = register
    LoRAModelManager._create_merged_loras_inplace = merge
    LoRAModelManager.activate_adapter = activate
    LoRAModelManager._init_punica_wrapper = wrappers


def _helper(stock: Any, cls: Any, lora_path: str, max_position_embeddings: int | None) -> Any:
    config = read_config(Path(lora_path))
    kind = scaled_kind(config)
    if not kind:
        return stock(cls, lora_path, max_position_embeddings)
    config |= {"vllm_max_position_embeddings": max_position_embeddings, "use_dora": False}
    if kind == IA3:
        config |= {"r": 1, "lora_alpha": 1}
    helper = cls.from_dict(config)
    helper.graft_kind = kind
    return helper


def _model(
    stock: Any,
    cls: Any,
    lora_dir: str,
    expected_lora_modules: Collection[str],
    peft_helper: Any,
    *,
    lora_model_id: int,
    weights_mapper: Any = None,
    moe_ep_spec: Any = None,
    **options: Any,
) -> Any:
    kind = getattr(peft_helper, "graft_kind", "")
    if not kind:
        return stock(
            cls,
            lora_dir,
            expected_lora_modules,
            peft_helper,
            lora_model_id=lora_model_id,
            weights_mapper=weights_mapper,
            moe_ep_spec=moe_ep_spec,
            **options,
        )
    found = read_scaled(Path(lora_dir), kind, expected_lora_modules)
    vectors = {
        parse_fine_tuned_lora_name(f"{module}.lora_A.weight", weights_mapper)[0]: vector
        for module, vector in found.vectors.items()
        if not cls._should_skip_module(module, options.get("skip_prefixes") or [])
    }
    if kind == DORA:
        lora = cls.from_lora_tensors(
            lora_model_id=lora_model_id,
            tensors=dict(found.pairs),
            peft_helper=peft_helper,
            weights_mapper=weights_mapper,
            **options,
        )
        _check_whole(lora, vectors)
    else:
        lora = cls(lora_model_id, 1, _nothing(min(vectors), options.get("dtype")))
    lora.graft_vectors = (kind, vectors)
    return lora


def _check_whole(lora: Any, vectors: dict[str, Vector]) -> None:
    """Every pair has its magnitudes, and they have their pair.

    Raises:
        ValueError: naming it.
    """
    for module, weights in lora.loras.items():
        if weights.lora_a is None or weights.lora_b is None:
            raise ValueError(f"{module}: it has one of lora_A and lora_B")
        if module not in vectors:
            raise ValueError(f"tensor {module}.lora_magnitude_vector: it is missing")
    for module, vector in vectors.items():
        if module not in lora.loras:
            raise ValueError(f"tensor {vector.tensor}: no LoRA pair belongs to it")


def _nothing(module: str, dtype: torch.dtype | None) -> dict[str, LoRALayerWeights]:
    return {
        module: LoRALayerWeights.create_dummy_lora_weights(
            module, 1, 1, 1, dtype or torch.float32, "cpu"
        )
    }
